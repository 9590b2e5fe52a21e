#!/usr/bin/env bash
# SIGTERM to `carousel launch` in every phase of a run: within the grace period all has ended with 75, what was trained is in a
# committed checkpoint, nothing is left behind, and the same command goes on to the bits of an undisturbed run.
#   launch_stop_test.sh CAROUSEL [TIMES]      TIMES: how often each phase is tried (once)
set -euo pipefail
carousel=$1
times=${2:-1}
source_dir=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
launcher=
trap '[ -z "$launcher" ] || kill -KILL "$launcher" 2>/dev/null; rm -rf "$work"' EXIT
cd "$work"
# shellcheck source=tests/launch_testing.sh
. "$source_dir/tests/launch_testing.sh"
make_data 400000
make_config 240
grace=60
launch=("$carousel" launch -n 2 --backoff 2 --grace "$grace" train --config tiny.textproto --run_dir)
# Of an evaluation, so that there is a moment in it and runs do not end before theirs; weights do not depend on it.
windows() { [ "$1" = evaluation ] && echo 600 || echo 150; }
"$carousel" train --config tiny.textproto --run_dir whole >log_whole 2>&1 || fail "the undisturbed run"

pause() { sleep "$(printf '0.%03d' $((RANDOM % $1)))"; }
until_there() { # until_there CONDITION...: while the launch lives
  for _ in $(seq 4000); do
    if "$@"; then return; fi
    kill -0 "$launcher" 2>/dev/null || fail "$run ended before its moment"
    sleep 0.01
  done
  fail "$run: the moment does not come: $*"
}
has_ranks() { [ -n "$(ranks "$run")" ]; }
newest_log() { ls "$run"/attempts/"$(ls "$run/attempts" 2>/dev/null | sort -n | tail -1)"/rank_logs/*.0.log 2>/dev/null || true; }
says_new() { # rank 0 of the newest attempt, which is not the one before the launch
  local log
  log=$(newest_log)
  [ -n "$log" ] && [ "$log" != "$log_before" ] && grep -q -- "$1" "$log"
}
evaluated() { sed -n 's/^{"evaluation":{"step":\([0-9]*\),.*/\1/p' "$1/metrics.jsonl" | sort -nu; }
has_temporary() { compgen -G "$run/checkpoints/.tmp-*" >/dev/null; }
has_steps() { [ "$(steps_of "$run" | grep . || echo 0)" -ge "$1" ]; }
in_preflight() { compgen -G "$run/checkpoints/.probe-*" >/dev/null || says_new "preflight:"; }
evaluates() { # the newest step is one after which there is an evaluation, and it has not ended
  local step
  step=$(steps_of "$run")
  [ "${step:-0}" -gt "$before" ] && [ $((step % 7)) -eq 0 ] && ! grep -q "^{\"evaluation\":{\"step\":$step," "$run/metrics.jsonl"
}

# The moments. Those of the beginning are tried on a run that has a checkpoint: the earlier one stays.
takes_signals() { # its program is loaded: SIGTERM waits to be asked for
  local blocked
  blocked=$(sed -n 's/^SigBlk:[^0-9a-f]*\([0-9a-f]*\)$/\1/p' "/proc/$launcher/status" 2>/dev/null || true)
  [ $((0x${blocked:-0} & 0x800)) -ne 0 ]  # SIGUSR2: a shell that is about to become the launcher may hold SIGTERM itself
}
at_start() { until_there takes_signals; pause 150; }           # the launcher, mpirun
at_processes() { until_there has_ranks; pause 40; }            # ranks meet
at_preflight() { until_there in_preflight; }                   # checks before the start
at_loading() { until_there says_new "preflight:"; pause 80; }  # data, the checkpoint
at_training() { until_there has_steps $((before + 3)); pause 200; }
at_evaluation() {
  until_there evaluates
  evaluation=$(steps_of "$run")
}
at_saving() { until_there has_temporary; }
at_backoff() {
  until_there has_steps $((before + 2))
  kill -KILL "$(ranks "$run" | tail -1)"
  until_there grep -q "restart 1 in" "log_$run"
  pause 900
}

stop_at() { # stop_at MOMENT: once, on $run, which goes on
  local moment=$1 code=0 begin took checkpoint
  before=$(steps_of "$run")
  before=${before:-0}
  log_before=$(newest_log)
  "${launch[@]}" "$run" --set "eval.num_windows=$(windows "$moment")" >"log_$run" 2>&1 &
  launcher=$!
  "at_$moment"
  begin=$SECONDS
  kill -TERM "$launcher"
  wait "$launcher" || code=$?
  launcher=
  took=$((SECONDS - begin))
  no_orphans "$run"
  [ "$code" -eq 75 ] || fail "$moment: exit status $code, not 75"
  [ "$took" -le "$grace" ] || fail "$moment: took $took s"
  # Every step that metrics tell of is in the newest checkpoint, which is whole; what a dead rank cost is trained again.
  if [ "$(steps_of "$run" | grep . || echo 0)" -gt 0 ]; then
    checkpoint=$(ls -d "$run"/checkpoints/step-* | tail -1)
    "$carousel" checkpoint verify "$checkpoint" >log_verify 2>&1 || fail "$moment: $checkpoint is damaged"
    [ "$moment" = backoff ] || [ "$((10#${checkpoint##*-}))" -ge "$(steps_of "$run")" ] ||
      fail "$moment: trained $(steps_of "$run") steps, saved $checkpoint"
  fi
  if [ "$moment" = evaluation ] && ! evaluated "$run" | grep -x "$evaluation" >/dev/null; then in_evaluation=$((in_evaluation + 1)); fi
  echo "$moment: 75 after $took s"
}

stopped=0 in_evaluation=0 log_before=
for ((turn = 1; turn <= times; ++turn)); do
  RANDOM=$turn
  run=run$turn
  for moment in preflight start processes training loading evaluation preflight saving loading backoff; do
    stop_at "$moment"
    stopped=$((stopped + 1))
  done
  "${launch[@]}" "$run" --set eval.num_windows=150 >"log_$run" 2>&1 || fail "$run did not go on to its end"
  no_orphans "$run"
  same_as_whole "$run"
  # An evaluation that was stopped is made up for.
  diff <(evaluated whole) <(evaluated "$run") >log_diff || fail "$run: other evaluations than the undisturbed run"
done
echo "$stopped of $stopped stopped, saved, and gone on with to the same bits; $in_evaluation in the middle of an evaluation"
