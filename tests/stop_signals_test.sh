#!/usr/bin/env bash
# A signal stops a run in every phase: nothing is lost, the exit code is 75, and the command to go on is printed. What goes on ends
# with the weights of a run that was not disturbed.
#   stop_signals_test.sh CAROUSEL [CASE...]
set -euo pipefail
carousel=$1
shift
source_dir=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
cd "$work"

mpirun=$source_dir/launcher/scripts/mpirun.sh  # signals must reach it, not a shell around it
ours() {
  for process in /proc/[0-9]*; do
    if { tr '\0' ' ' <"$process/cmdline"; } 2>/dev/null | grep -- "^$carousel train .*--run_dir $1" >/dev/null; then
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
fail() { echo "FAIL: $*" >&2; for log in log*; do echo "--- $log"; tail -40 "$log"; done; exit 1; }
says() { grep -Eq -- "$2" "$1" || fail "$1 does not say: $2"; }
wait_until() { # TEXT COMMAND...: until the command succeeds
  local text=$1
  shift
  for _ in $(seq 1200); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.05
  done
  fail "waited in vain until $text"
}
steps() { grep -c '^{"step":' "$1/metrics.jsonl" || true; }
has_steps() { [ "$(steps "$1")" -ge "$2" ]; }
checkpoints() { find "$1/checkpoints" -mindepth 1 -maxdepth 1 -name 'step-*' 2>/dev/null | sort; }

"$carousel" data synth --output corpus.txt --bytes 100000 >/dev/null
"$carousel" data build --input corpus.txt --output tokens --validation_fraction 0.3 >/dev/null
cat >tiny.textproto <<END
model { embedding_dim: 64 num_blocks: 2 num_heads: 2 chunk_length: 16 igate_bias_init: -2 }
data { train { path: "$work/tokens_train" } validation { path: "$work/tokens_valid" } sequence_length: 64 }
train { steps: 1000000 global_batch: 8 micro_batch: 1 compute: F32 }
eval { every_steps: 0 }
sample { every_steps: 0 }
parallel { threads: 1 }
checkpoint { every_steps: 0 keep_last: 0 }
watchdog { heartbeat_seconds: 0 }
END
train=("$carousel" train --config tiny.textproto --preflight off)

# expect CODE PID: the process ends with this code within 20 seconds.
expect() {
  local code=0 begin=$SECONDS
  wait "$2" || code=$?
  [ "$code" -eq "$1" ] || fail "exit code $code instead of $1"
  [ $((SECONDS - begin)) -le 20 ] || fail "it took $((SECONDS - begin)) s"
}
# The last line is the command; with it and a last step the run is brought to its end, and weighs what an undisturbed one does.
goes_on() { # LOG RUN
  local command
  command=$(sed -n 's/.*; to go on: //p' "$1" | tail -1)
  [ -n "$command" ] || fail "$1 has no command to go on"
  local last=$(($(steps "$2") + 2))
  eval "${command/#mpirun/\$mpirun} --accept_change --set train.steps=$last" >log_on 2>&1 || fail "what was printed does not go on: $command"
  [ "$(steps "$2")" -eq $last ] || fail "$(steps "$2") steps instead of $last"
}

while_training() { # SIGNAL
  local run=$work/training_$1
  "$mpirun" -np 2 "${train[@]}" --run_dir "$run" --fresh >"log_training_$1" 2>&1 &
  local launcher=$!
  wait_until "it trains" has_steps "$run" 3
  kill "-$1" $launcher
  expect 75 $launcher
  says "log_training_$1" "stopped by a signal at step [0-9]+, everything is saved; to go on: mpirun -np 2 "
  [ "$(checkpoints "$run" | wc -l)" -eq 1 ] || fail "no checkpoint"
  goes_on "log_training_$1" "$run"
}
training() { while_training USR2; }
training_usr1() { while_training USR1; }

# SIGTERM to a process alone is a request to stop, like Ctrl-C.
alone() {
  local signal
  for signal in TERM INT; do
    local run=$work/alone_$signal
    # Background processes of a script ignore Ctrl-C unless they are told otherwise.
    setsid bash -c 'trap - INT; exec "$@"' - "${train[@]}" --run_dir "$run" --set train.seed=1 >"log_alone_$signal" 2>&1 &
    local process=$!
    wait_until "it trains" has_steps "$run" 3
    kill "-$signal" $process
    expect 75 $process
    says "log_alone_$signal" "to go on: $carousel train --config tiny.textproto"
    [ "$(checkpoints "$run" | wc -l)" -eq 1 ] || fail "no checkpoint"
  done
}

# A signal to one rank stops all: they agree.
one_rank() {
  local run=$work/one
  "$mpirun" -np 3 "${train[@]}" --run_dir "$run" --set train.global_batch=6 >log_one 2>&1 &
  local launcher=$!
  wait_until "it trains" has_steps "$run" 3
  kill -USR2 "$(ours "$run" | tail -1)"
  expect 75 $launcher
  [ "$(checkpoints "$run" | wc -l)" -eq 1 ] || fail "no checkpoint"
}

# SIGTERM to mpirun itself: it waits as long as it was told to, reading nothing that ranks print (so they print little here), tells
# them, waits once more, and says 1 whatever they say. They save.
mpirun_told() {
  local run=$work/told
  OMPI_MCA_odls_base_sigkill_timeout=8 "$mpirun" -np 2 "${train[@]}" --run_dir "$run" --set log.every_steps=1000000 >log_told 2>&1 &
  local launcher=$! code=0
  wait_until "it trains" has_steps "$run" 3
  kill -TERM $launcher
  wait $launcher || code=$?
  [ "$code" -eq 1 ] || fail "mpirun returned $code, not 1"
  [ "$(checkpoints "$run" | wc -l)" -eq 1 ] || fail "no checkpoint"
  "$carousel" checkpoint verify "$(checkpoints "$run")" >log_verify 2>&1 || fail "a damaged checkpoint"
  [ "$((10#$(checkpoints "$run" | sed 's/.*-//')))" -eq "$(steps "$run")" ] || fail "trained $(steps "$run") steps, saved $(checkpoints "$run")"
}

# Ranks that meet over TCP: SIGTERM to one of them stops all.
tcp() {
  local run=$work/tcp rank pids=() secret
  secret=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
  for rank in 0 1; do
    CAROUSEL_RENDEZVOUS=file:$work/meet CAROUSEL_RANK=$rank CAROUSEL_WORLD_SIZE=2 CAROUSEL_RUN_SECRET=$secret \
      "${train[@]}" --run_dir "$run" >"log_tcp$rank" 2>&1 &
    pids[rank]=$!
  done
  wait_until "it trains" has_steps "$run" 3
  kill -TERM "${pids[1]}"
  for rank in 0 1; do expect 75 "${pids[rank]}"; done
  [ "$(checkpoints "$run" | wc -l)" -eq 1 ] || fail "no checkpoint"
  "$carousel" checkpoint verify "$(checkpoints "$run")" >log_verify 2>&1 || fail "a damaged checkpoint"
  [ "$((10#$(checkpoints "$run" | sed 's/.*-//')))" -eq "$(steps "$run")" ] || fail "trained $(steps "$run") steps, saved $(checkpoints "$run")"
}

# In the middle of an evaluation: no step is made any more, and the evaluation is made up for.
evaluating() {
  local run=$work/evaluating long=(--set eval.every_steps=4 --set eval.num_windows=400)
  "$mpirun" -np 2 "${train[@]}" --run_dir "$run" "${long[@]}" >log_evaluating 2>&1 &
  local launcher=$!
  wait_until "it evaluates" has_steps "$run" 4
  kill -USR2 $launcher
  expect 75 $launcher
  [ "$(checkpoints "$run" | wc -l)" -eq 1 ] || fail "no checkpoint"
  [ "$((10#$(checkpoints "$run" | sed 's/.*-//')))" -eq "$(steps "$run")" ] || fail "trained $(steps "$run") steps, saved $(checkpoints "$run")"
  goes_on log_evaluating "$run"
  says "$run/metrics.jsonl" '"evaluation":\{"step":4,'
}

# A reader of its output that ends first (Ctrl-C in "train | tee log") costs nothing.
nobody_reads() {
  local run=$work/unread process
  mkfifo reader
  sleep 1000 <reader &
  local reading=$!
  "${train[@]}" --run_dir "$run" --set log.every_steps=1 >reader 2>&1 &
  process=$!
  wait_until "it trains" has_steps "$run" 3
  kill $reading
  wait_until "it trains on" has_steps "$run" $(($(steps "$run") + 5))
  kill -TERM $process
  expect 75 $process
  [ "$((10#$(checkpoints "$run" | sed 's/.*-//')))" -eq "$(steps "$run")" ] || fail "trained $(steps "$run") steps, saved $(checkpoints "$run")"
}

take_signals() { # take_signals RUN NUMBER: so many of its ranks hold SIGUSR2 until they look
  local process blocked number=0
  for process in $(ours "$1"); do
    blocked=$(sed -n 's/^SigBlk:[^0-9a-f]*//p' "/proc/$process/status" 2>/dev/null || true)
    [ $((0x${blocked:-0} & 0x800)) -eq 0 ] || number=$((number + 1))
  done
  [ "$number" -ge "$2" ]
}
# Before the first step: nothing is written, and a checkpoint that there was is as it was.
starting() {
  local run=$work/starting delay
  "${train[@]}" --run_dir "$run" --set train.seed=4 >log_first 2>&1 &
  local first=$!
  wait_until "it trains" has_steps "$run" 2
  kill -USR2 $first
  expect 75 $first
  local before first_checkpoint
  first_checkpoint=$(basename "$(checkpoints "$run")")
  before=$(cd "$run/checkpoints" && find "$first_checkpoint" -type f -exec sha256sum {} + | sort)
  for delay in 0 0.1 0.2 0.4 0.8; do
    "$mpirun" -np 2 "${train[@]}" --run_dir "$run" --set train.seed=4 >log_starting 2>&1 &
    local launcher=$!
    wait_until "its ranks take signals" take_signals "$run" 2
    sleep $delay
    kill -USR2 $launcher || fail "mpirun has ended"
    local code=0
    wait $launcher || code=$?
    [ "$code" -eq 75 ] || fail "after $delay s: exit code $code"
    says log_starting "stopped by a signal"
  done
  for checkpoint in $(checkpoints "$run"); do
    "$carousel" checkpoint verify "$checkpoint" >log_verify 2>&1 || fail "$checkpoint is damaged"
  done
  local after
  after=$(cd "$run/checkpoints" && find "$first_checkpoint" -type f -exec sha256sum {} + | sort)
  [ "$before" = "$after" ] || fail "the earlier checkpoint was changed"
}

# Told to end (as launchers do when a rank has died), a rank that waits for another ends within seconds.
peer_died() {
  local run=$work/peer
  "$mpirun" -np 2 "${train[@]}" --run_dir "$run" --set train.seed=3 >log_peer 2>&1 &
  local launcher=$!
  wait_until "it trains" has_steps "$run" 3
  local ranks
  ranks=($(ours "$run"))
  kill -STOP "${ranks[1]}"
  sleep 0.5
  kill -TERM "${ranks[0]}"
  expect 143 $launcher
}

# A second Ctrl-C ends the process at once, in the middle of a step that never ends.
second_interrupt() {
  local run=$work/second
  setsid bash -c 'trap - INT; exec "$@"' - "${train[@]}" --run_dir "$run" --set train.global_batch=100000 >log_second 2>&1 &
  local process=$!
  wait_until "it runs" test -e "$run/metrics.jsonl"
  sleep 0.5
  kill -INT $process
  sleep 1
  kill -INT $process
  expect 130 $process
}

[ $# -gt 0 ] || set -- training training_usr1 alone one_rank mpirun_told tcp evaluating nobody_reads starting peer_died second_interrupt
for name in "$@"; do
  start=$SECONDS
  $name
  echo "$name: ok, $((SECONDS - start)) s"
done
