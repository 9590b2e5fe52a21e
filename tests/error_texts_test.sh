#!/usr/bin/env bash
# What the program says about broken configs, data and launches: every text is in tests/golden/error_texts.txt, where people
# review it (cause and fix), and must be said exactly so. Paths, the host and the revision are replaced.
#   error_texts_test.sh CAROUSEL [--update]
# --update writes the file anew, for review.
set -uo pipefail
carousel=$1
update=${2:-}
source_dir=$(cd "$(dirname "$0")/.." && pwd)
golden=$source_dir/tests/golden/error_texts.txt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
unset SLURM_NTASKS SLURM_STEP_ID SLURM_PROCID NCCL_SOCKET_IFNAME CAROUSEL_RENDEZVOUS
mpirun() { "$source_dir/launcher/scripts/mpirun.sh" "$@"; }

number=0
# texts TITLE COMMAND...: runs it and notes command, exit code and what it said.
texts() {
  local title=$1 code
  shift
  number=$((number + 1))
  timeout 100 "$@" >said 2>&1
  code=$?
  {
    printf '== %02d %s\n' "$number" "$title"
    printf '$ %s\n' "$*" | sed -e "s#$carousel#carousel#g" -e "s#$work#WORK#g" -e "s#$source_dir/launcher/scripts/mpirun.sh#mpirun#g" |
      perl -pe 's/[\x01-\x08\x0b-\x1f]/sprintf("\\x%02x", ord $&)/ge'
    printf 'exit %d\n' "$code"
    # Log lines, what Open MPI adds, and what differs between machines: names, versions, checksums of trained weights, rows
    # that are no error.
    sed -e '/^\[[0-9:]* [IW]\] /d' -e '/^-----/,/^-----/d' -e "s#$work#WORK#g" -e "s#\b$(hostname)\b#HOST#g" \
      -e 's#([0-9]* checks: [^)]*)#(CHECKS)#; s#Open MPI v[0-9.]*#Open MPI vVERSION#; s#checksum is [0-9a-f]*#checksum is CRC#' \
      -e 's#should be [0-9a-f]\{8\}#should be CRC#; s#is not available: .*#is not available: REASON#' said |
      perl -0pe 's/; interfaces\s+that\s+are\s+up:.*?\n(\s+fix:)/; INTERFACES\n$1/sg'
    echo
  } >>texts.txt
}
train() { texts "$1" "$carousel" train --config tiny.textproto --run_dir r "${@:2}"; }
# A config with one line changed by sed.
broken() { # broken TITLE SED-SCRIPT
  sed "$2" tiny.textproto >broken.textproto
  texts "$1" "$carousel" train --config broken.textproto --run_dir r
}

"$carousel" data synth --output corpus.txt --bytes 60000 >/dev/null || exit 1
"$carousel" data build --input corpus.txt --output tokens --validation_fraction 0.1 >/dev/null || exit 1
cat >tiny.textproto <<'END_CONFIG'
model { embedding_dim: 64 num_blocks: 2 num_heads: 2 chunk_length: 16 }
data { train { path: "tokens_train" } validation { path: "tokens_valid" } sequence_length: 32 }
schedule { warmup_steps: 1 }
train { steps: 2 global_batch: 4 micro_batch: 1 compute: F32 }
parallel { threads: 1 }
eval { every_steps: 0 }
checkpoint { every_steps: 2 }
END_CONFIG

# ---- the command line
texts "unknown command" "$carousel" trian --config tiny.textproto
train "unknown option" --fersh
texts "no config and no run" "$carousel" train
texts "no run directory" "$carousel" train --config tiny.textproto
texts "a run directory without a run" "$carousel" train --run_dir nothing_here
train "unknown device" --device tpu
train "a GPU that is not there" --device cuda:63
train "unknown preflight" --preflight=slow
# ---- the config
texts "missing config" "$carousel" train --config nowhere.textproto --run_dir r
broken "unknown field" 's/num_heads/num_hed/'
broken "unknown section" 's/^train {/training {/'
broken "text for a number" 's/num_blocks: 2/num_blocks: two/'
broken "a brace is missing" 's/^model { \(.*\) }/model { \1/'
broken "a field twice" 's/num_heads: 2/num_heads: 2 num_heads: 4/'
broken "unknown enum value" 's/compute: F32/compute: FP16/'
broken "heads that do not divide" 's/num_heads: 2/num_heads: 5/'
broken "a negative number" 's/steps: 2 global/steps: -2 global/'
broken "no batch" 's/global_batch: 4/global_batch: 0/'
broken "a micro-batch that does not divide" 's/micro_batch: 1/micro_batch: 3/'
broken "several mistakes at once" 's/num_heads: 2/num_heads: 5/; s/steps: 2 global/steps: 0 global/; s/sequence_length: 32/sequence_length: -1/'
train "--set of an unknown field" --set model.embeding_dim=64
train "--set without a value" --set model.embedding_dim
train "--set of a word for a number" --set train.steps=many
train "--set of an unknown element" --set data.train[7].path=x
# ---- the data
train "missing data" --set data.train.path=nowhere
cp tokens_train.bin cut.bin && cp tokens_train.idx cut.idx && truncate -s 1000 cut.bin
train "truncated data" --set data.train.path=cut
cp tokens_train.bin junk.bin && printf 'this is no index at all, whatever its name may say' >junk.idx
train "an index that is none" --set data.train.path=junk
cp tokens_train.bin ids.bin && cp tokens_train.idx ids.idx
train "ids above the vocabulary" --set data.train.path=ids --set data.tokenizer=NONE --set model.vocab_size=64
train "a vocabulary below the tokenizer's" --set model.vocab_size=128
train "a sequence longer than the data" --set data.sequence_length=262144
# ---- the run directory
texts "a run directory that cannot be made" "$carousel" train --config tiny.textproto --run_dir /proc/carousel
"$carousel" train --config tiny.textproto --run_dir run >/dev/null 2>&1 || { echo "FAIL: a good run failed" >&2; exit 1; }
texts "another model in the directory of a run" "$carousel" train --config tiny.textproto --run_dir run --set model.num_blocks=3
texts "another schedule in the directory of a run" "$carousel" train --config tiny.textproto --run_dir run --set train.steps=9
texts "--fresh in the directory of a run" "$carousel" train --config tiny.textproto --run_dir run --fresh
shard=$(ls run/checkpoints/step-*/model-*.safetensors | sed -n 1p)
cp -r run damaged && printf 'sixteen bytes of' | dd of="damaged/${shard#run/}" bs=1 seek=$(($(stat -c %s "$shard") - 5000)) conv=notrunc status=none
texts "a damaged checkpoint" "$carousel" train --run_dir damaged
texts "text from nothing" "$carousel" generate --model nowhere --prompt a
texts "a reference dump that is none" "$carousel" verify corpus.txt
# ---- the launch
SLURM_NTASKS=8 train "alone in a job of eight tasks"
SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_NTASKS=8 train "srun without MPI"
OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_RANK=0 train "the mpirun of another MPI"
CAROUSEL_RENDEZVOUS=tcp://127.0.0.1:29500 CAROUSEL_RANK=0 train "half of the variables of TCP"
CAROUSEL_RENDEZVOUS=tcp://127.0.0.1:29500 CAROUSEL_RANK=3 CAROUSEL_WORLD_SIZE=2 CAROUSEL_RUN_SECRET=0123456789abcdef0123456789abcdef \
  train "a rank outside of the world"
CAROUSEL_RENDEZVOUS=tcp://127.0.0.1:29500 CAROUSEL_RANK=0 CAROUSEL_WORLD_SIZE=2 CAROUSEL_RUN_SECRET=short train "a secret that is too short"
NCCL_SOCKET_IFNAME=nothere0 train "an interface that is not there"
(ulimit -n 100 && train "too few open files" && cp texts.txt with_limits.txt)
[ -e with_limits.txt ] && cp with_limits.txt texts.txt && number=$((number + 1))
CAROUSEL_RENDEZVOUS=tcp://127.0.0.1:29500 CAROUSEL_RANK=0 CAROUSEL_WORLD_SIZE=0 CAROUSEL_RUN_SECRET=0123456789abcdef0123456789abcdef \
  train "a world of no ranks"
launch() { texts "$1" "$carousel" launch "${@:2}" train --config tiny.textproto --run_dir r; }
printf '# to be filled in\n' >hosts
launch "a hostfile without hosts" --hostfile hosts
printf 'node1 slots=2\n\0\033[31mnode2 slots=2\n' >hosts
launch "a hostfile that is no text" --hostfile hosts
launch "an empty list of hosts" --host ""
launch "more hosts demanded than named" --host node1:2 --min_nodes 3
launch "a variable that is not set" -n 2 --export NOT_SET_ANYWHERE
launch "a time that is no number" -n 2 --grace nan
launch "no ranks" -n 0
texts "another command launched" "$carousel" launch -n 2 generate --model run
# ---- what is missing, or given in vain
texts "completion for no shell" "$carousel" completion
texts "a report of no run" "$carousel" report
texts "a report of a directory without a run" "$carousel" report --run_dir nothing_here
texts "an option twice" "$carousel" plan --config tiny.textproto --config tiny.textproto
texts "an option without its value" "$carousel" plan --config
texts "a number below the smallest" "$carousel" generate --model run --temperature=-1
texts "a seed that is no number" "$carousel" generate --model run --seed first
texts "a run directory with control characters" "$carousel" train --config tiny.textproto --run_dir $'runs/\033[31mred'
texts "a command with control characters" "$carousel" $'tr\033[31mian'
# ---- files in the way
cp -r run in_the_way && rm in_the_way/metrics.jsonl && mkdir in_the_way/metrics.jsonl
texts "a directory where metrics.jsonl goes" "$carousel" train --run_dir in_the_way --set train.steps=3 --accept_change
texts "a report of it" "$carousel" report --run_dir in_the_way
mkdir -p taken_config/config.textproto taken_id/run_id taken_build/build.txt
for name in config id build; do
  texts "a directory where another file goes: $name" "$carousel" train --config tiny.textproto --run_dir taken_$name
done
# ---- other commands
texts "text that is not there" "$carousel" data build --input nowhere.txt --output x
texts "token files where no folder can be" "$carousel" data build --input corpus.txt --output /proc/x/y
texts "plain text as jsonl" "$carousel" data build --input corpus.txt --output x --format jsonl
echo '{"text":1}' >number.jsonl
texts "a number for a text" "$carousel" data build --input number.jsonl --output x
texts "checkpoints of nothing" "$carousel" checkpoint ls nothing_here
texts "nothing to prune" "$carousel" checkpoint prune nothing_here
texts "a comparison with nothing" "$carousel" checkpoint diff run nothing_here
texts "a merged file in no directory" "$carousel" checkpoint merge run nothing_here/x.safetensors
texts "files of no ranks" "$carousel" checkpoint reshard run x --ranks 0
cp -r run incomplete && rm incomplete/checkpoints/step-*/state.pb
texts "text from an incomplete checkpoint" "$carousel" generate --model incomplete --prompt a
texts "logits into no directory" "$carousel" generate --model run --prompt a --prompt_logits nothing_here/x.safetensors
texts "logits over a file" "$carousel" generate --model run --prompt a --prompt_logits corpus.txt
texts "import of a run of our own" "$carousel" import --model run --out x
m=(mpirun.sh -np)
PATH=$source_dir/launcher/scripts:$PATH
texts "more ranks than micro-batches" "${m[@]}" 3 "$carousel" train --config tiny.textproto --run_dir r
texts "a mesh that cannot be" "${m[@]}" 4 "$carousel" train --config tiny.textproto --run_dir r --set parallel.tensor=3 --set parallel.pipe=4
texts "ranks with different configs" "${m[@]}" 1 "$carousel" train --config tiny.textproto --run_dir r : -np 1 "$carousel" train \
  --config tiny.textproto --run_dir r --set train.seed=5
texts "ranks with different options" "${m[@]}" 1 "$carousel" train --config tiny.textproto --run_dir r : -np 1 "$carousel" train \
  --config tiny.textproto --run_dir r --fresh
[ -e r ] && { echo "FAIL: a refused start left a directory" >&2; find r >&2; exit 1; }

if [ "$update" = --update ]; then
  cp texts.txt "$golden"
  echo "$number texts written to $golden: review them"
  exit 0
fi
if ! diff -u "$golden" texts.txt >difference; then
  cat difference >&2
  echo "FAIL: error texts differ from tests/golden/error_texts.txt; if that is meant: $0 CAROUSEL --update" >&2
  exit 1
fi
echo "$number error texts are as they were reviewed"
