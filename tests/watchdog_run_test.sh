#!/usr/bin/env bash
# A run in which one rank is stopped ends by itself, says which one, and leaves nothing behind: under mpirun, and over TCP.
#   watchdog_run_test.sh CAROUSEL [CASE...]
set -euo pipefail
carousel=$1
shift
source_dir=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
cd "$work"

mpirun() { "$source_dir/launcher/scripts/mpirun.sh" "$@"; }
# Processes of this program that train in run directory $1.
ours() {
  for process in /proc/[0-9]*; do
    if { tr '\0' ' ' <"$process/cmdline"; } 2>/dev/null | grep -- "$carousel train .*--run_dir $1" >/dev/null; then
      echo "${process#/proc/}"
    fi
  done
}
cleanup() {
  local pids
  pids=$(ours "$work/")
  [ -z "$pids" ] || kill -KILL $pids 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT
fail() { echo "FAIL: $*" >&2; for log in log*; do echo "--- $log"; tail -60 "$log"; done; exit 1; }
says() { grep -Eq -- "$2" "$1" || fail "$1 does not say: $2"; }
no_orphans() {
  for _ in $(seq 100); do
    [ -z "$(ours "$1")" ] && return
    sleep 0.1
  done
  fail "processes are left: $(ours "$1")"
}
wait_for_steps() { # RUN NUMBER
  for _ in $(seq 1200); do
    if [ -e "$1/metrics.jsonl" ] && [ "$(grep -c '"loss"' "$1/metrics.jsonl")" -ge "$2" ]; then return; fi
    sleep 0.05
  done
  fail "$1 did not train"
}

"$carousel" data synth --output corpus.txt --bytes 100000 >/dev/null
"$carousel" data build --input corpus.txt --output tokens --validation_fraction 0.1 >/dev/null
cat >tiny.textproto <<END
model { embedding_dim: 64 num_blocks: 2 num_heads: 2 chunk_length: 16 igate_bias_init: -2 }
data { train { path: "$work/tokens_train" } sequence_length: 64 }
train { steps: 1000000 global_batch: 8 micro_batch: 1 compute: F32 }
parallel { threads: 1 }
checkpoint { every_steps: 0 }
watchdog { step_seconds: 4 heartbeat_seconds: 0 }
END
# 4 s (after thirty short steps nothing longer is learned), at most 9 s of the watchdog's own, twice 2 s of mpirun's, and some.
limit=25
train=("$carousel" train --config tiny.textproto --preflight off)

# The rank that is stopped is the one with this number: mpirun starts them in order.
stopped_rank_under_mpirun() {
  local run=$work/stopped
  mpirun -np 4 "${train[@]}" --run_dir "$run" --set train.seed=1 >log_stopped 2>&1 &
  local launcher=$!
  wait_for_steps "$run" 30
  local victim
  victim=$(ours "$run" | while read -r pid; do
    tr '\0' '\n' <"/proc/$pid/environ" | grep -x OMPI_COMM_WORLD_RANK=2 >/dev/null && echo "$pid"
  done || true)
  kill -STOP "$victim"
  local begin=$SECONDS code=0
  wait "$launcher" || code=$?
  local took=$((SECONDS - begin))
  [ "$code" -eq 71 ] || fail "mpirun ended with $code instead of 71"
  [ "$took" -le $limit ] || fail "it took $took s to notice"
  no_orphans "$run"
  says log_stopped "watchdog: rank [013] of 4 on .*: a step of step [0-9]+, no progress for ([4-9]|[12][0-9])\.[0-9] s, the limit is 4 s"
  says log_stopped "waits in .*(AllToAll|AllReduceSum|AllGather)\(.* at (core|parallel)/.* for ranks 2$"
  says log_stopped "suspect: rank 2 \(.*\): left no record: stopped, dead or cut off; ranks 0, 1 and 3 wait for it"
  says log_stopped "carousel::"  # stacks
  local records
  records=$(find "$run/flight_records" -name 'rank-*.json' | wc -l)
  [ "$records" -eq 3 ] || fail "$records records instead of 3"
  [ -z "$(find "$run/flight_records" -name 'rank-00002.*')" ] || fail "the rank that was stopped left a record"
  [ -s "$(find "$run/flight_records" -name report.txt)" ] || fail "there is no report"
}

stopped_rank_over_tcp() {
  local run=$work/tcp secret pids=() rank
  secret=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
  for rank in 0 1 2 3; do
    CAROUSEL_RENDEZVOUS=file:$work/meet CAROUSEL_RANK=$rank CAROUSEL_WORLD_SIZE=4 CAROUSEL_RUN_SECRET=$secret \
      "${train[@]}" --run_dir "$run" --set train.seed=2 >"log_tcp$rank" 2>&1 &
    pids+=($!)
  done
  wait_for_steps "$run" 30
  kill -STOP "${pids[1]}"
  local begin=$SECONDS
  for rank in 0 2 3; do
    local code=0
    wait "${pids[$rank]}" || code=$?
    [ "$code" -eq 71 ] || fail "rank $rank ended with $code instead of 71"
  done
  local took=$((SECONDS - begin))
  [ "$took" -le $limit ] || fail "it took $took s to notice"
  cat log_tcp[023] >log_tcp
  says log_tcp "suspect: rank 1 \(.*\): left no record: stopped, dead or cut off; ranks 0, 2 and 3 wait for it"
  # The one that was stopped ends as soon as it may run.
  kill -CONT "${pids[1]}"
  local code=0
  wait "${pids[1]}" || code=$?
  [ "$code" -eq 71 ] || fail "the rank that had been stopped ended with $code"
  no_orphans "$run"
}

[ $# -gt 0 ] || set -- stopped_rank_under_mpirun stopped_rank_over_tcp
for name in "$@"; do
  start=$SECONDS
  $name
  echo "$name: ok, $((SECONDS - start)) s"
done
