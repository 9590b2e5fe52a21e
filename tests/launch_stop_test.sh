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
make_data
make_config 240
grace=60
launch=("$carousel" launch -n 2 --backoff 0 --grace "$grace" train --config tiny.textproto --run_dir)
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
has_log() { grep -q -- "$1" "$run"/attempts/*/rank_logs/*.0.log 2>/dev/null; }
has_temporary() { compgen -G "$run/checkpoints/.tmp-*" >/dev/null; }
has_evaluation() { grep -q '^{"evaluation"\|"validation' "$run/metrics.jsonl" 2>/dev/null; }
has_steps() { [ "$(steps_of "$run" | grep . || echo 0)" -ge "$1" ]; }

# The moments. Those of the beginning are tried on a run that has a checkpoint: the earlier one stays.
takes_signals() { # its program is loaded: SIGTERM waits to be asked for
  local blocked
  blocked=$(sed -n 's/^SigBlk:[^0-9a-f]*\([0-9a-f]*\)$/\1/p' "/proc/$launcher/status" 2>/dev/null || true)
  [ $((0x${blocked:-0} & 0x4000)) -ne 0 ]
}
at_start() { until_there takes_signals; pause 150; }  # the launcher, mpirun
at_processes() { until_there has_ranks; pause 40; }   # ranks meet
at_loading() { until_there has_ranks; pause 400; }    # configs, data, the checkpoint
at_training() { until_there has_steps $((before + 3)); pause 200; }
at_evaluation() { until_there has_steps $((before + 8)); }
at_saving() { until_there has_temporary; }
at_backoff() { until_there has_steps $((before + 2)); kill -KILL "$(ranks "$run" | tail -1)"; pause 900; }

stop_at() { # stop_at MOMENT: once, on $run, which goes on
  local moment=$1 code=0 begin took checkpoint
  before=$(steps_of "$run")
  before=${before:-0}
  "${launch[@]}" "$run" >"log_$run" 2>&1 &
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
  echo "$moment: 75 after $took s"
}

stopped=0
for ((turn = 1; turn <= times; ++turn)); do
  RANDOM=$turn
  run=run$turn
  for moment in start processes loading training start processes evaluation loading saving backoff; do
    stop_at "$moment"
    stopped=$((stopped + 1))
  done
  "${launch[@]}" "$run" >"log_$run" 2>&1 || fail "$run did not go on to its end"
  no_orphans "$run"
  same_as_whole "$run"
done
echo "$stopped of $stopped stopped, saved, and gone on with to the same bits"
