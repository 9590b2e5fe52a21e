#!/usr/bin/env bash
# What goes wrong between ranks is said in clear words, ends all of them within ten seconds and leaves no process behind: ranks
# that were asked for different things, meshes that cannot be, a rank that dies in a collective call.
#   rank_failure_test.sh CAROUSEL
set -euo pipefail
carousel=$1
source_dir=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

fail() { echo "FAIL: $*" >&2; for log in log*; do echo "--- $log"; tail -30 "$log"; done; exit 1; }
mpirun() { "$source_dir/launcher/scripts/mpirun.sh" "$@"; }
says() { grep -q -- "$2" "$1" || fail "$1 does not say: $2"; }
# Processes of this program that train in $work.
ours() {
  for process in /proc/[0-9]*; do
    if [ "$(readlink "$process/cwd" 2>/dev/null)" = "$(pwd -P)" ] &&
      { tr '\0' ' ' <"$process/cmdline"; } 2>/dev/null | grep -- "$carousel train .*$1" >/dev/null; then
      echo "${process#/proc/}"
    fi
  done
}
ranks() { # those of ours that are not mpirun
  for process in $(ours "$1"); do
    if { tr '\0' ' ' <"/proc/$process/cmdline"; } 2>/dev/null | grep -- "^$carousel train " >/dev/null; then echo "$process"; fi
  done
}
no_orphans() {
  for _ in $(seq 50); do
    [ -z "$(ours "$1")" ] && return
    sleep 0.1
  done
  fail "processes are left: $(ours "$1")"
}

"$carousel" data synth --output corpus.txt --bytes 100000 >/dev/null
"$carousel" data build --input corpus.txt --output tokens --validation_fraction 0.1 >/dev/null
cat >tiny.textproto <<END
model { embedding_dim: 64 num_blocks: 2 num_heads: 2 chunk_length: 16 igate_bias_init: -2 }
data { train { path: "tokens_train" } sequence_length: 64 }
train { steps: 100000 global_batch: 8 micro_batch: 1 compute: F32 }
parallel { threads: 1 }
checkpoint { every_steps: 0 }
END
train=("$carousel" train --config tiny.textproto)

# Ranks that read another config: the field, both values and the rank.
start=$SECONDS
! mpirun -np 1 "${train[@]}" --run_dir r1 : -np 1 "${train[@]}" --run_dir r1 --set train.seed=5 --set model.num_heads=4 >log_config 2>&1 ||
  fail "different configs were accepted"
says log_config "\[rank 1\] .*model.num_heads is 4 here and 2 on rank 0"
says log_config "train.seed is 5 here and 0 on rank 0"
! mpirun -np 1 "${train[@]}" --run_dir r1 : -np 2 "${train[@]}" --run_dir r1 --fresh >log_options 2>&1 ||
  fail "different options were accepted"
says log_options "\[rank 1, 2\] .*started on .* with other options than rank 0"
[ -e r1 ] && fail "a run that was refused left a directory"

# Meshes that cannot be: all problems at once.
! mpirun -np 6 "${train[@]}" --run_dir r2 --set parallel.tensor=3 --set parallel.sequence=5 --set parallel.pipe=4 >log_mesh 2>&1 ||
  fail "an impossible mesh was accepted"
says log_mesh "parallel.pipe=4 x parallel.sequence=5 x parallel.tensor=3 takes 60 ranks and does not fit the 6 ranks that were started"
says log_mesh "parallel.tensor=3 does not divide"
says log_mesh "data.sequence_length=64 is not a multiple of"
says log_mesh "parallel.pipe=4 is more than model.num_blocks=2"
[ $((SECONDS - start)) -le 40 ] || fail "refusing took $((SECONDS - start)) s"
no_orphans r1
no_orphans r2

# A rank that is killed: the others name the call that they wait in, and all end within ten seconds.
check_death() { # check_death NAME OPTION...
  local run=$1
  shift
  mpirun -np 4 "${train[@]}" --run_dir "$run" "$@" >"log_$run" 2>&1 &
  local launcher=$! steps=0
  for _ in $(seq 600); do
    if [ -e "$run/metrics.jsonl" ] && [ "$(wc -l <"$run/metrics.jsonl")" -ge 3 ]; then steps=1 && break; fi
    sleep 0.05
  done
  [ "$steps" -eq 1 ] || fail "$run did not train"
  kill -KILL "$(ranks "$run" | tail -1)"
  local begin=$SECONDS
  ! wait "$launcher" || fail "$run: the launcher says that all is well"
  [ $((SECONDS - begin)) -le 10 ] || fail "$run: took $((SECONDS - begin)) s to end"
  no_orphans "$run"
  grep -Eq "\[rank [0-3]\].*(AllReduceSum|AllGather|ReduceScatterSum|AllToAll|SendRecv|Send|Recv|Broadcast)\(" "log_$run" ||
    fail "$run: nobody names the call that was waited for"
}
check_death replicas
check_death tensor --set parallel.tensor=2 --set parallel.shard=2
check_death pipe --set parallel.pipe=2 --set parallel.sequence=2
echo "errors between ranks are named, and no process is left"
