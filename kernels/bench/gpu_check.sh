#!/usr/bin/env bash
# Checks and times the CUDA backend on a machine with a GPU, and writes one Markdown report. Runs from the folder that
# make_portable.sh made; the machine needs its driver and the CUDA libraries.
#
#   gpu_check.sh [REPORT.md]
#     --device N          the GPU to use (default 0)
#     --no_bench          correctness only
#     --no_sanitizer      leave compute-sanitizer out
#     --part_seconds N    a part that takes longer is ended and has failed (default 2700): a kernel may hang
#     --only PART         one of: conformance tests golden train nccl sanitizer probes cells
#                         portable public ops step cudnn
# Exits 0 only if every check passed; a part that cannot run here (no compute-sanitizer) is named in the report.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
report="" device=0 bench=1 sanitizer=1 part_seconds=2700 only=""
while [ $# -gt 0 ]; do
  case $1 in
    --device) device=$2; shift ;;
    --no_bench) bench=0 ;;
    --no_sanitizer) sanitizer=0 ;;
    --part_seconds) part_seconds=$2; shift ;;
    --only) only=$2; shift ;;
    -h | --help) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) echo "gpu_check.sh: unknown option $1; see --help" >&2; exit 2 ;;
    *) report=$1 ;;
  esac
  shift
done
report=$(realpath -m "${report:-gpu_report.md}")
work=$(mktemp -d)
running=""  # the part's process group
trap 'rm -rf "$work"' EXIT
trap 'if [ -n "$running" ]; then kill -KILL -- "-$running" 2>/dev/null; fi; exit 130' INT TERM
cd "$here"
if ! [[ $part_seconds =~ ^[1-9][0-9]*$ ]]; then
  echo "gpu_check.sh: --part_seconds $part_seconds is not a number of seconds" >&2
  exit 2
fi

# Where the CUDA libraries lie: on the loader's path, in the toolkit, or among Python's packages.
find_cuda_library() {
  local dir
  for dir in ${LD_LIBRARY_PATH:+${LD_LIBRARY_PATH//:/ }} /usr/local/cuda/lib64 /usr/local/cuda-*/lib64 /usr/lib/x86_64-linux-gnu \
    $(python3 -c 'import site, sysconfig; print(*site.getsitepackages(), sysconfig.get_paths()["purelib"])' 2>/dev/null |
      tr ' ' '\n' | sort -u | sed 's|$|/nvidia/*/lib|'); do
    if compgen -G "$dir/$1" >/dev/null; then echo "$dir"; return; fi
  done
}
export LD_LIBRARY_PATH="$here/lib:$(find_cuda_library 'libcublasLt.so.13'):${LD_LIBRARY_PATH:-}"
carousel="$here/bin/carousel"
failures=() left_out=()
parts="conformance tests golden train nccl sanitizer probes cells portable public ops step cudnn"
if [ -n "$only" ] && ! grep -qw -- "$only" <<<"$parts"; then
  echo "gpu_check.sh: there is no part '$only'; parts: $parts" >&2
  exit 2
fi
if [ -z "$(find_cuda_library 'libcublasLt.so.13')" ]; then
  echo "gpu_check.sh: libcublasLt.so.13 was not found; install the CUDA 13 libraries (cuBLAS), or name their folder in LD_LIBRARY_PATH" >&2
  exit 1
fi

# limited COMMAND...: runs it, a function too; ends it and all that it started after part_seconds, with status 124.
limited() {
  local end=$((SECONDS + part_seconds)) status
  set -m  # a process group of its own
  "$@" &
  running=$!
  set +m
  while kill -0 "$running" 2>/dev/null && [ $SECONDS -lt $end ]; do sleep 0.2; done
  if kill -0 "$running" 2>/dev/null; then
    echo "ENDED after $part_seconds s (--part_seconds)"
    kill -KILL -- "-$running"
    wait "$running" 2>/dev/null
    status=124
  else
    wait "$running"
    status=$?
  fi
  running=""
  return $status
}

# part NAME TITLE COMMAND...: runs it, puts its output's end into the report, notes a failure.
part() {
  local name=$1 title=$2 start=$SECONDS status
  shift 2
  if [ -n "$only" ] && [ "$only" != "$name" ]; then return; fi
  echo "== $title"
  limited "$@" >"$work/$name.log" 2>&1
  status=$?
  tail -n 3 "$work/$name.log"
  local verdict=FAIL
  if [ $status -eq 0 ]; then verdict=pass; fi
  if [ $status -eq 77 ]; then verdict="not run" status=0; left_out+=("$name"); fi
  {
    printf '\n## %s: %s (%d s)\n\n' "$title" "$verdict" $((SECONDS - start))
    if grep -q '^|' "$work/$name.log"; then
      sed 's/^## /### /' "$work/$name.log"
    else
      printf '```\n%s\n```\n' "$(tail -n "$([ $status -eq 0 ] && echo 12 || echo 60)" "$work/$name.log")"
    fi
  } >>"$report"
  if [ $status -ne 0 ]; then failures+=("$name"); fi
}

{
  echo "# Carousel on a GPU"
  echo
  echo "Commit $(cat COMMIT), $(date -u '+%Y-%m-%d %H:%M') UTC, command \`gpu_check.sh\`."
  echo
  echo '```'
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv -i "$device" 2>&1
  echo '```'
} >"$report"

# What the emulation stored is checked here; what the GPU gives is stored beside the report, to be checked by the emulation:
#   build/kernels/simt/conformance_simt --check REPORT.conformance.bin
conformance() {
  bin/conformance_cuda --check conformance.bin
  local status=$?
  bin/conformance_cuda --write "$report.conformance.bin" || status=1
  return $status
}

golden() {
  local file dtypes dtype bad=0
  for file in golden/*.safetensors; do
    case $(basename "$file") in
      mlstm_* | slstm_*) dtypes="f64 f32 bf16" ;;
      curve_*) dtypes="f64 f32" ;;
      v1_*) dtypes="f64 f32" ;;
      *) dtypes="f64 f32 bf16" ;;
    esac
    for dtype in $dtypes; do
      if "$carousel" verify --backend "cuda:$device" --dtype "$dtype" "$file" >"$work/verify.log" 2>&1; then
        echo "pass $(basename "$file") $dtype"
      else
        echo "FAIL $(basename "$file") $dtype"
        grep -iE 'fail|error|carousel:' "$work/verify.log" | head -5
        bad=1
      fi
    done
  done
  return $bad
}

# Losses of a short run of each family on the GPU and on the CPU, f32 and bf16. demo_bytes learns so fast that it amplifies
# rounding: f32 against f64 on the CPU differ by 3e-7 of the loss in its first 4 steps, by 7e-5 at step 6, and bf16 against
# f32 by 3e-2; so only its first steps are held to rounding. demo_paper is calm. Both end near the CPU's loss.
losses() { sed -n 's/.*"loss": *\([0-9.eE+-]*\).*/\1/p' "$1"; }
short_runs() {
  local family compute bound first bad=0 settings
  "$carousel" data synth --output "$work/text.txt" --bytes 400000 --force || return 1
  "$carousel" data build --input "$work/text.txt" --output "$work/tokens" --validation_fraction 0.1 --force || return 1
  for family in demo_bytes demo_paper; do
    for compute in F32 BF16; do
      case $family$compute in
        demo_bytesF32) bound=1e-5 first=4 ;;
        demo_bytesBF16) bound=6e-2 first=4 ;;
        demo_paperF32) bound=1e-5 first=20 ;;
        demo_paperBF16) bound=1e-2 first=20 ;;
      esac
      settings=(--config "configs/$family.textproto" --set "train.compute=$compute" --set train.steps=20
        --set "data.train[0].path=$work/tokens_train" --set "data.validation[0].path=$work/tokens_valid"
        --set eval.every_steps=0 --set checkpoint.every_steps=0 --set log.every_steps=1 --set sample.every_steps=0)
      "$carousel" train "${settings[@]}" --device cpu --run_dir "$work/cpu_$family$compute" || return 1
      "$carousel" train "${settings[@]}" --device "cuda:$device" --run_dir "$work/gpu_$family$compute" || return 1
      paste <(losses "$work/cpu_$family$compute/metrics.jsonl") <(losses "$work/gpu_$family$compute/metrics.jsonl") |
        awk -v name="$family $compute" -v bound="$bound" -v first="$first" '
          NF == 2 { d = ($1 > $2 ? $1 - $2 : $2 - $1) / $1; ++steps; if (steps <= first && d > worst) worst = d; last = $2 }
          NF != 2 { broken = 1 }
          END {
            ok = steps >= 20 && !broken && worst <= bound && d <= 0.1
            printf "%s %s: %d steps; relative difference of the loss at most %.2g in the first %d (bound %s), %.2g at the end (bound 0.1); last loss %s\n",
              ok ? "pass" : "FAIL", name, steps, worst, first, bound, d, last
            exit !ok
          }' || bad=1
    done
  done
  return $bad
}

# One rank must work. Several on one GPU are an experiment: its outcome is in the report.
nccl() {
  LD_LIBRARY_PATH="$(find_cuda_library 'libnccl.so.2'):$LD_LIBRARY_PATH" ./nccl_one_gpu.sh --device "$device"
  local status=$?
  if [ $status -eq 3 ]; then return 0; fi
  return $status
}

sanitize() {
  local tool checker bad=0
  checker=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | head -n 1)
  if [ -z "$checker" ]; then echo "compute-sanitizer is not installed here: not run"; return 77; fi
  for tool in memcheck racecheck initcheck synccheck; do
    # small cases of every kind of kernel: a sanitizer slows them down a hundredfold
    local cases='*_odd*:*_one*:*_in_place*:*heads_*:*Cast*:*SoftCap*:*Dropout*:*BlockLinear*:*Matmul*:*AdamW*:*Exact*:*Norm*_plain*'
    cases+=':*DeviceMlstm*:*DeviceSlstm*:*DeviceEmbedding*:*DeviceCrossEntropy*:*DeviceModel*:*Conv*:CudaDevice*-*Death*:*large*:*many*'
    if timeout 600 "$checker" --tool "$tool" --error-exitcode 9 bin/gpu_tests --gtest_death_test_style=threadsafe --gtest_filter="$cases" \
      >"$work/sanitizer_$tool.log" 2>&1; then
      echo "pass $tool: $(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY|PASSED' "$work/sanitizer_$tool.log" | tr '\n' ' ')"
    else
      echo "FAIL $tool"; tail -n 20 "$work/sanitizer_$tool.log"; bad=1
    fi
  done
  return $bad
}

# What the kernels' design assumes of the GPU.
probes() { bin/gpu_probes --device "$device"; }

# Heads, qk, v of the published kernel measurements; 8 x 8192 tokens. The sLSTM: batch 16, 1024 tokens, heads of 128.
# cells [SUFFIX]: of the device's name.
cells() {
  local shape suffix=${1:-}
  for shape in "8 256 512" "16 128 256" "32 128 128" "64 64 64" "4 256 512"; do
    set -- $shape
    "$carousel" bench cells --device "cuda:$device$suffix" --batch 8 --tokens 8192 --heads "$1" --qk "$2" --v "$3" --slstm_head 128 \
      --slstm_batch 16 --slstm_tokens 1024 || return 1
  done
}
ops() { "$carousel" bench ops --device "cuda:$device" --config configs/xlstm_400m.textproto --set train.micro_batch=8 --set train.global_batch=8; }
# Public kernels that the machine's Python finds, on the same inputs.
public() {
  if ! command -v python3 >/dev/null; then echo "python3 is not installed here: not compared"; return 77; fi
  python3 compare_public.py --carousel "$carousel" --device "$device"
}
# MFU counts against the dense bf16 rate of the data sheet.
step() {
  local peak=""
  case $(nvidia-smi --query-gpu=name --format=csv,noheader -i "$device") in
    *H100* | *H200*) peak="--peak_tflops 989" ;;
    *A100*) peak="--peak_tflops 312" ;;
  esac
  "$carousel" bench step --device "cuda:$device" $peak --config configs/xlstm_400m.textproto --set train.micro_batch=8 --set train.global_batch=8
  local status=$?
  "$carousel" bench step --device "cuda:$device" $peak --config configs/paper_350m_7to1.textproto --set train.micro_batch=8 --set train.global_batch=8 ||
    status=1
  return $status
}
# Where cuDNN has the same op: its kernels beside ours. Needs a build that found cuDNN, and its library here.
cudnn() {
  local dir
  if [ ! -x bin/cudnn_candidates ]; then echo "built without cuDNN: not compared"; return 77; fi
  dir=$(find_cuda_library 'libcudnn.so.9')
  if [ -z "$dir" ]; then echo "libcudnn.so.9 is not installed here: not compared"; return 77; fi
  LD_LIBRARY_PATH="$dir:$(find_cuda_library 'libnvrtc.so.13'):$LD_LIBRARY_PATH" bin/cudnn_candidates --device "$device"
}

part conformance "Device wrappers against the emulation" conformance
# death tests start the program anew: a process that used CUDA cannot fork
part tests "Device tests" bin/gpu_tests --gtest_brief=1 --gtest_death_test_style=threadsafe
part golden "Golden files" golden
part train "Short training runs, GPU against CPU" short_runs
part nccl "NCCL on one GPU" nccl
if [ $sanitizer -eq 1 ]; then part sanitizer "compute-sanitizer" sanitize; fi
if [ $bench -eq 1 ]; then
  part probes "What the design assumes" probes
  part cells "Cells" cells
  part portable "Cells without kernels for one architecture alone" cells :portable
  part public "Public kernels beside ours" public
  part ops "Ops of a 400M step" ops
  part step "Whole steps" step
  part cudnn "cuDNN beside ours" cudnn
fi

cat >>"$report" <<'END'

## Targets on an H100, bf16, 65,536 tokens at T = 8192

mLSTM forward at most 1.2 ms and backward at most 4 ms with 8 heads of 256/512, 0.9 and 3.2 ms with 16 heads of 128/256; sLSTM forward at most 1.2 us
and backward 1.6 us per step, heads of up to 256, batch 16; the 400M model at least 150,000 tokens/s at 8 x 8192 tokens. With portable kernels alone: mLSTM
2.0 and 4.5 ms, 1.6 and 3.4 ms; sLSTM 1.5 and 2.2 us; 102,000 tokens/s.
END
if [ ${#left_out[@]} -gt 0 ]; then printf '\nNot run here: %s\n' "${left_out[*]}" | tee -a "$report"; fi
if [ ${#failures[@]} -eq 0 ]; then
  printf '\nAll parts that ran passed.\n' | tee -a "$report"
  exit 0
fi
printf '\nFAILED: %s\n' "${failures[*]}" | tee -a "$report"
exit 1
