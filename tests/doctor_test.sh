#!/usr/bin/env bash
# `carousel doctor` and the preflight of `carousel train`, as people meet them: the table, JSON, several ranks of which one
# has other limits, another disk or other data, and starts that are refused before anything is written.
#   doctor_test.sh CAROUSEL
set -euo pipefail
carousel=$1
source_dir=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
unset SLURM_NTASKS NCCL_SOCKET_IFNAME

fail() { echo "FAIL: $*" >&2; for log in log*; do echo "--- $log"; tail -40 "$log"; done; exit 1; }
mpirun() { "$source_dir/launcher/scripts/mpirun.sh" "$@"; }
# A table wraps its text; words are looked for over line ends.
says() { tr -s ' \n' ' ' <"$1" | grep -c -- "$2" >/dev/null || fail "$1 does not say: $2"; }
silent_about() { ! tr -s ' \n' ' ' <"$1" | grep -c -- "$2" >/dev/null || fail "$1 says: $2"; }
expect() { # expect CODE LOG COMMAND...
  local code=$1 log=$2 got=0
  shift 2
  "$@" >"$log" 2>&1 || got=$?
  [ "$got" -eq "$code" ] || fail "$log: exit $got, not $code"
}

"$carousel" data synth --output corpus.txt --bytes 60000 >/dev/null
"$carousel" data build --input corpus.txt --output tokens --validation_fraction 0.1 >/dev/null
cat >tiny.textproto <<'END_CONFIG'
model { embedding_dim: 64 num_blocks: 1 num_heads: 2 chunk_length: 16 }
data { train { path: "tokens_train" } sequence_length: 32 }
train { steps: 2 global_batch: 4 micro_batch: 1 compute: F32 }
parallel { threads: 1 }
checkpoint { every_steps: 0 }
END_CONFIG
before=$(find . | sort)

# Alone, on any machine.
expect 0 log_alone "$carousel" doctor
for check in program launch cores memory "open files" network GPUs "products repeat" "disk rate" mpirun; do says log_alone "$check"; done
says log_alone "GFLOP/s\|TFLOP/s"
expect 0 log_json "$carousel" doctor --json
says log_json '"ok": *true'
says log_json '"exit_code": *0'
says log_json '"world": *1'
says log_json '"flops"'
expect 0 log_run "$carousel" doctor --config tiny.textproto --run_dir runs/a
says log_run "a checkpoint takes"
says log_run "the run takes [0-9.]* MiB"
says log_run "token files 2 files"
expect 64 log_usage "$carousel" doctor --config nowhere.textproto --run_dir runs/a
expect 64 log_set "$carousel" doctor --set train.steps=3
expect 77 log_space "$carousel" doctor --config tiny.textproto --run_dir /proc/carousel
says log_space "FAILED directory"
expect 77 log_device "$carousel" doctor --device cuda:63
says log_device "FAILED device --device cuda:63"

# More tasks than ranks.
SLURM_NTASKS=8 expect 77 log_slurm "$carousel" train --config tiny.textproto --run_dir runs/a
says log_slurm "Slurm gave this job 8 tasks, but this process was started alone"
NCCL_SOCKET_IFNAME=nothere0 expect 77 log_network "$carousel" train --config tiny.textproto --run_dir runs/a
says log_network "nothere0 is no interface of this machine"
NCCL_SOCKET_IFNAME=nothere0 expect 0 log_off "$carousel" train --config tiny.textproto --run_dir off --preflight=off
rm -rf off

# Four ranks: equal ones share a row, the one that differs is named with its machine.
cat >low.sh <<'END_SCRIPT'
#!/bin/sh
[ "$OMPI_COMM_WORLD_RANK" != 2 ] || ulimit -n 100
exec "$@"
END_SCRIPT
cat >elsewhere.sh <<'END_SCRIPT'
#!/bin/sh
if [ "$OMPI_COMM_WORLD_RANK" = 3 ]; then cd other; fi
exec "$@"
END_SCRIPT
chmod +x low.sh elsewhere.sh
expect 0 log_four mpirun -np 4 "$carousel" doctor --config tiny.textproto --run_dir runs/a --preflight full
says log_four "4 ranks on "
says log_four "ok sums are exact integers with known sums"
says log_four "and all ranks see the same"
[ "$(grep -c "open files" log_four)" -eq 1 ] || fail "equal ranks have several rows"
expect 77 log_low mpirun -np 4 ./low.sh "$carousel" doctor --config tiny.textproto --run_dir runs/a
says log_low "FAILED open files rank 2 ($(hostname)): only 100 allowed"
says log_low "ok open files ranks 0, 1, 3"
says log_low "fix: Raise it before the start"
expect 77 log_low_train mpirun -np 4 ./low.sh "$carousel" train --config tiny.textproto --run_dir runs/a
says log_low_train "FAILED open files rank 2 ($(hostname)): only 100 allowed"
says log_low_train "Nothing was started"
# Rank 3 has another directory with the same names in it, and tokens that differ in one byte.
mkdir other
cp tokens_train.bin tokens_train.idx tokens_train.meta tiny.textproto other/
printf '\x41' | dd of=other/tokens_train.bin bs=1 seek=1000 conv=notrunc status=none
expect 77 log_elsewhere mpirun -np 4 ./elsewhere.sh "$carousel" train --config tiny.textproto --run_dir runs/a
says log_elsewhere "FAILED directory the run directory cannot be used: \[rank 3\]"
says log_elsewhere "FAILED token files rank 3 ($(hostname)): tokens_train.bin holds other data than on rank 0"
rm -r other low.sh elsewhere.sh log*
[ "$(find . | sort)" = "$before" ] || { find .; fail "a check left something behind"; }

# A start that is in order.
expect 0 log_train mpirun -np 2 "$carousel" train --config tiny.textproto --run_dir runs/a
says log_train "preflight: [0-9]* checks: "
silent_about log_train FAILED
expect 0 log_again "$carousel" doctor --run_dir runs/a
says log_again "a checkpoint takes"
echo "the doctor finds what is wrong, and leaves nothing behind"
