#!/usr/bin/env bash
# Runs as a user makes them, of ranks with an emulated GPU each and an NCCL that needs none (tests/emulated_gpus.cc): under mpirun
# and over TCP, the bits of one GPU along the axes of data and its losses along the others; a rank that is killed in the midst of a
# run, and NCCL that fails, end all ranks with clear words and leave neither processes nor shared memory behind.
#   nccl_run_test.sh CAROUSEL_EMULATED_GPUS
set -euo pipefail
carousel=$1
source_dir=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
pids=()
trap 'for p in "${pids[@]}"; do kill -KILL "$p" 2>/dev/null || true; done; rm -rf "$work"' EXIT
cd "$work"

fail() { echo "FAIL: $*" >&2; tail -n 20 log* >&2; exit 1; }
says() { grep -Eq -- "$2" "$1" || fail "$1 does not say: $2"; }
mpirun() { "$source_dir/launcher/scripts/mpirun.sh" "$@"; }
record() { sed -n 's/,"seconds":.*"data_digest"/,"data_digest"/p' "$1/metrics.jsonl"; }
last() { grep '"evaluation"' "$1/metrics.jsonl" | tail -1 | sed 's/.*"loss":\([^,}]*\).*/\1/'; }
close() { # close A B TOLERANCE
  awk -v a="$1" -v b="$2" -v t="$3" 'BEGIN { d = a - b; if (d < 0) d = -d; exit !(a != "" && b != "" && d <= t * (b < 0 ? -b : b)) }'
}
options() { for axis in $1; do printf -- '--set parallel.%s ' "$axis"; done; }
train=("$carousel" train --config tiny.textproto --device simt --gpu_transport nccl)

secret=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
start() { # start RANKS RUN [OPTION...]: all ranks over TCP, logs in log_RUN.RANK
  local ranks=$1 run=$2
  shift 2
  pids=()
  for ((rank = ranks - 1; rank >= 0; --rank)); do
    CAROUSEL_RENDEZVOUS=file:$work/meet CAROUSEL_RANK=$rank CAROUSEL_WORLD_SIZE=$ranks CAROUSEL_RUN_SECRET=$secret \
      "${train[@]}" --run_dir "$run" "$@" >"log_$run.$rank" 2>&1 &
    pids[rank]=$!
  done
}
# Processes that train in run directory $1.
ours() {
  for process in /proc/[0-9]*; do
    if { tr '\0' ' ' <"$process/cmdline"; } 2>/dev/null | grep -- "^$carousel train .*--run_dir $1 " >/dev/null; then echo "${process#/proc/}"; fi
  done
}
# What is left of a run whose ranks have ended: no process, no shared memory of the emulated NCCL, which has rank 0's process id in
# its name.
nothing_left() { # nothing_left RUN PID_OF_RANK_0
  for _ in $(seq 50); do
    [ -z "$(ours "$1")" ] && break
    sleep 0.1
  done
  [ -z "$(ours "$1")" ] || fail "$1: processes are left: $(ours "$1")"
  ! compgen -G "/dev/shm/emulated-nccl-$2-*" || fail "$1: shared memory is left"
}

cp "$source_dir/LICENSE" text.txt  # a text that does not change
"$carousel" data build --input text.txt --output tokens --validation_fraction 0.1 >/dev/null
cat >tiny.textproto <<END
model { embedding_dim: 32 num_blocks: 2 num_heads: 4 chunk_length: 4 igate_bias_init: -2 slstm_at: 1 }
data { train { path: "tokens_train" } validation { path: "tokens_valid" } sequence_length: 8 }
schedule { peak_lr: 3e-3 warmup_steps: 1 }
optimizer { eps: 1e-4 }
train { steps: 2 global_batch: 8 micro_batch: 1 compute: F64 }
parallel { threads: 1 audit_every_steps: 2 }
eval { every_steps: 2 num_windows: 2 }
checkpoint { every_steps: 0 }
END
"${train[@]}" --run_dir one >log_one 2>&1 || fail "one rank"

same() { # same RUN: the bits of one rank
  diff <(record one) <(record "$1") || fail "$1: metrics are not those of one rank, bit for bit"
  "$carousel" checkpoint diff one "$1" >/dev/null || fail "$1: weights are not those of one rank, bit for bit"
}
near() { close "$(last "$1")" "$(last one)" 1e-12 || fail "$1: validation loss $(last "$1"), on one rank $(last one)"; }
have_mpi=$(command -v mpirun >/dev/null && echo yes || echo no)
number=0
run_mesh() { # run_mesh RANKS AXES same|near
  number=$((number + 1))
  local run=run$number
  # Under mpirun and over TCP in turns.
  if [ $((number % 2)) -eq 1 ] && [ "$have_mpi" = yes ]; then
    # shellcheck disable=SC2046
    mpirun -np "$1" "${train[@]}" --run_dir "$run" $(options "$2") >"log_$run" 2>&1 || fail "$2 under mpirun"
  else
    # shellcheck disable=SC2046
    start "$1" "$run" $(options "$2")
    for rank in "${!pids[@]}"; do wait "${pids[rank]}" || fail "rank $rank of $2 over TCP"; done
  fi
  "$3" "$run"
}
run_mesh 2 "replicate=2" same
run_mesh 4 "replicate=2 shard=2" same
run_mesh 8 "shard=2 sequence=2 tensor=2 sequence_mode=STATE" near
run_mesh 2 "sequence=2 sequence_mode=HEADS" near
run_mesh 4 "pipe=2 tensor=2" near

# A rank that is killed ends the others within ten seconds; each says in which call it was, and some which rank has gone.
killed() { # killed RUN AXES
  # shellcheck disable=SC2046
  start 4 "$1" --set train.steps=100000 $(options "$2")
  for _ in $(seq 600); do
    if [ -e "$1/metrics.jsonl" ] && [ "$(record "$1" | wc -l)" -ge 3 ]; then break; fi
    sleep 0.05
  done
  [ "$(record "$1" | wc -l)" -ge 3 ] || fail "$1 did not train"
  kill -KILL "${pids[2]}"
  local begin=$SECONDS
  { wait "${pids[2]}" || true; } 2>/dev/null
  for rank in 0 1 3; do
    ! wait "${pids[rank]}" || fail "$1: rank $rank ended as if all were well"
    says "log_$1.$rank" "\[rank $rank\] (after )?\[step [0-9]+\] ([A-Za-z]+\(.*\) on '[a-z]+' at [a-z]+/.*:[0-9]+|the job ends: .* was not in a collective)"
  done
  grep -Eqs "\[step [0-9]+\] [A-Za-z]+\(.*\) on '[a-z]+' at [a-z]+/.*:[0-9]+" "log_$1".[013] || fail "$1: nobody names a call"
  [ $((SECONDS - begin)) -le 10 ] || fail "$1: took $((SECONDS - begin)) s to end"
  nothing_left "$1" "${pids[0]}"
  grep -Eqs "rank [0-9] (is gone|has gone|has ended)|2 .* has gone|another rank" "log_$1".[013] || fail "$1: nobody says who has gone"
}
killed killed_data_tensor "shard=2 tensor=2"
killed killed_pipe_sequence "pipe=2 sequence=2"

# NCCL that fails on one rank: all end, and say so.
faulty() { # faulty RUN FAULT TEXT
  EMULATED_NCCL_FAULT=$2 start 4 "$1" --set parallel.shard=2 --set parallel.tensor=2
  wait -n || true
  local begin=$SECONDS
  for rank in 0 1 2 3; do ! wait "${pids[rank]}" || fail "$1: rank $rank ended as if all were well"; done
  [ $((SECONDS - begin)) -le 10 ] || fail "$1: the last rank ended $((SECONDS - begin)) s after the first"
  nothing_left "$1" "${pids[0]}"
  cat "log_$1".[0-3] >"log_$1"
  says "log_$1" "$3"
}
faulty no_init 2:setup:0 "carousel: .*ncclCommInitRankConfig: rank 2: NCCL: unhandled system error"
faulty no_split 1:setup:3 "ncclCommSplit: rank 1: NCCL: unhandled system error"
faulty background 3:operation:300 "\[rank 3\] \[step [0-9]\] .* at [a-z]+/.*: NCCL: unhandled system error: this operation was made to fail"
echo "emulated GPUs agree over NCCL; killed ranks and faults end all"
