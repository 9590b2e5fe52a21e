#!/usr/bin/env bash
# What goes wrong between hosts while `carousel launch` trains on them is noticed, named and mended: the run starts again from its
# newest checkpoint within 30 seconds of the limit that was set, on the hosts that are left, and ends with the bits of a run that
# nobody disturbed. Nothing is left behind on any host.
#   multi_host_failure_test.sh CAROUSEL [SCENARIO...]      scenarios: link freeze stopped_rank rank daemon host
# Skipped (77), with the reason, where hosts of namespaces cannot be made.
set -euo pipefail
carousel=$1
shift
scenarios=${*:-link freeze rank daemon}
source_dir=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=tests/virtual_hosts.sh
. "$source_dir/tests/virtual_hosts.sh"
reason=$(virtual_hosts_missing)
if [ -n "$reason" ]; then echo "skipped: $reason"; exit 77; fi
work=$(mktemp -d)
trap 'stop_hosts; rm -rf "$work"' EXIT
cd "$work"

limit=5        # watchdog.heartbeat_seconds
max_delay=30   # beyond it, until training goes on
fail() {
  echo "FAIL: $*" >&2
  for node in "${!host_init[@]}"; do
    echo "--- node$node:"
    for process in $(host_processes "$node"); do tr '\0' ' ' <"/proc/$process/cmdline" || true; echo; done
  done
  for log in log* hosts/*.log $(find . -path '*/attempts/*' -type f); do echo "--- $log"; tail -40 "$log"; done
  exit 1
}
wait_until() { # wait_until SECONDS COMMAND...
  local end=$((SECONDS + $1))
  shift
  while ! "$@"; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.1
  done
}

"$carousel" data synth --output corpus.txt --bytes 100000 >/dev/null
"$carousel" data build --input corpus.txt --output tokens --validation_fraction 0.1 >/dev/null
cat >tiny.textproto <<END
model { embedding_dim: 64 num_blocks: 2 num_heads: 2 chunk_length: 16 igate_bias_init: -2 }
data { train { path: "tokens_train" } sequence_length: 64 }
train { steps: 300 global_batch: 12 micro_batch: 1 compute: F32 }
parallel { threads: 1 }
checkpoint { every_steps: 20 keep_last: 2 }
watchdog { heartbeat_seconds: $limit }
END
"$carousel" train --config tiny.textproto --run_dir whole --set checkpoint.every_steps=0 >log_whole 2>&1 ||
  fail "the undisturbed run"

printf 'node1 slots=1\nnode2 slots=2\nnode3 slots=1\n' >hostfile
steps_of() { # how many steps of a run are recorded
  if [ -e "$1/metrics.jsonl" ]; then grep -c '^{"step"' "$1/metrics.jsonl" || true; else echo 0; fi
}
has_steps() { [ "$(steps_of "$1")" -ge "$2" ]; }
attempts_of() { compgen -G "$1/attempts/[0-9]*" | wc -l; }
goes_on() { # a second attempt has written something
  [ "$(attempts_of "$1")" -ge 2 ] && grep -h "^step" "$(compgen -G "$1/attempts/*" | sort | tail -1)"/rank_logs/* >/dev/null 2>&1
}
is_empty() { [ -z "$(host_processes "$1")" ]; }

# disturb NAME SUSPECT PATTERN COMMAND...: launches a run on three hosts, disturbs it after 30 steps, and checks what must follow.
# `mend`: a command for afterwards; a host that was cut off or stopped keeps mpirun's daemon until then.
mend=
disturb() {
  local run=$1 suspect=$2 pattern=$3 launch node begin delay record
  shift 3
  on 1 "$carousel" launch --hostfile "$work/hostfile" --rsh_agent "ssh -F $hosts_directory/ssh_config" --backoff 1 \
    --failure_grace 5 train --config tiny.textproto --run_dir "$run" >"log_$run" 2>&1 &
  launch=$!
  wait_until 90 has_steps "$run" 30 || fail "$run does not train"
  begin=$SECONDS
  "$@"
  wait_until $((limit + max_delay)) goes_on "$run" || fail "$run: training does not go on"
  delay=$((SECONDS - begin))
  wait "$launch" || fail "$run: carousel launch ended with exit code $?"
  record=$(compgen -G "$run/attempts/*/exit.json" | sort | sed -n 1p)
  grep "$pattern" "$record" >/dev/null || { cat "$record"; fail "$run: exit.json does not say: $pattern"; }
  if [ -n "$suspect" ]; then
    tr -d ' \n' <"$record" | grep "\"suspect_hosts\":\[\"$suspect\"[],]" >/dev/null ||
      { cat "$record"; fail "$run: $suspect is not suspected"; }
  fi
  "$carousel" checkpoint diff whole "$run" >log_diff 2>&1 || fail "$run: other weights than the undisturbed run"
  if [ -n "$suspect" ] && [ -n "${host_init[${suspect#node}]:-}" ] && [ "$mend" != "thaw_host 2" ]; then
    [ -z "$(ranks_on "${suspect#node}")" ] || fail "$run: ranks are left on $suspect"
  fi
  $mend
  for node in "${!host_init[@]}"; do
    wait_until 60 is_empty "$node" || fail "$run: processes are left on node$node"
  done
  echo "$run: training went on after $delay s, the limit is $limit s"
}
ranks_on() { # process ids of the ranks on a node: those without children of this program
  local process
  for process in $(host_processes "$1"); do
    if { tr '\0' ' ' <"/proc/$process/cmdline"; } 2>/dev/null | grep -E "^$carousel train " >/dev/null; then echo "$process"; fi
  done
}
daemon_on() { # of mpirun
  local process
  for process in $(host_processes "$1"); do
    if [ "$(cat "/proc/$process/comm" 2>/dev/null)" = orted ]; then echo "$process"; fi
  done
}
kill_rank() { kill -KILL "$(ranks_on 2 | sed -n 1p)"; }
stop_rank() { kill -STOP "$(ranks_on 3 | sed -n 1p)"; }
kill_daemon() { kill -KILL "$(daemon_on 2 | sed -n 1p)"; }

start_hosts 3 "$work/hosts"
scenario_link() {
  mend="mend_link 2"
  disturb link node2 "node2 (ranks 1 and 2) has given no sign of life" cut_link 2
}
scenario_freeze() {
  mend="thaw_host 2"
  disturb freeze node2 "node2 (ranks 1 and 2) has given no sign of life" freeze_host 2
}
scenario_stopped_rank() { disturb stopped_rank node3 "node3 (rank 3) has given no sign of life" stop_rank; }
scenario_rank() { disturb rank "" "node2" kill_rank; }
scenario_daemon() { disturb daemon "" "node2" kill_daemon; }
scenario_host() {
  disturb host node3 "node3 (rank 3) has" kill_host 3
  start_host 3
}
for scenario in $scenarios; do
  begin=$SECONDS
  mend=
  "scenario_$scenario"
  echo "$scenario: $((SECONDS - begin)) s"
done
echo "the bits of an undisturbed run"
