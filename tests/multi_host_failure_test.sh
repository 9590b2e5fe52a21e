#!/usr/bin/env bash
# What goes wrong between hosts while `carousel launch` trains on them is noticed, named and mended: the run starts again from its
# newest checkpoint within 30 seconds of the limit that was set, on the hosts that are left, and ends with the bits of a run that
# nobody disturbed. Nothing is left behind on any host.
#   multi_host_failure_test.sh CAROUSEL [SCENARIO...]      scenarios: link freeze stopped_rank rank daemon host, or all
# Without any: link freeze rank daemon. Skipped (77), with the reason, where hosts of namespaces cannot be made.
set -euo pipefail
carousel=$1
shift
scenarios=(link freeze rank daemon)
if [ "$*" = all ]; then scenarios+=(stopped_rank host); elif [ $# -gt 0 ]; then scenarios=("$@"); fi
source_dir=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=tests/host_run_testing.sh
. "$source_dir/tests/host_run_testing.sh"

limit=5        # watchdog.heartbeat_seconds
max_delay=30   # beyond it, until training goes on; and twice what a start takes here
explain() {
  local node process file
  for node in "${!host_init[@]}"; do
    echo "--- node$node:"
    for process in $(host_processes "$node"); do tr '\0' ' ' <"/proc/$process/cmdline" || true; echo; done
  done
  for file in $(find . -path '*/attempts/*' -type f ! -name '*.textproto' ! -name environment); do
    echo "--- $file"
    tail -20 "$file"
  done
}

make_tokens
cat >tiny.textproto <<END
model { embedding_dim: 64 num_blocks: 2 num_heads: 2 chunk_length: 16 igate_bias_init: -2 }
data { train { path: "tokens_train" } sequence_length: 64 }
train { steps: 200 global_batch: 12 micro_batch: 1 compute: F32 }
parallel { threads: 1 }
checkpoint { every_steps: 20 keep_last: 2 }
watchdog { heartbeat_seconds: $limit }
END
undisturbed --set checkpoint.every_steps=0

printf 'node1 slots=1\nnode2 slots=2\nnode3 slots=1\n' >hostfile
attempts_of() { compgen -G "$1/attempts/[0-9]*" | wc -l; }
goes_on() { # a second attempt has written something
  [ "$(attempts_of "$1")" -ge 2 ] && grep -h "^step" "$(compgen -G "$1/attempts/*" | sort | tail -1)"/rank_logs/* >/dev/null 2>&1
}
is_empty() { [ -z "$(host_processes "$1")" ]; }

# disturb NAME SUSPECT PATTERN COMMAND...: launches a run on three hosts, disturbs it after 30 steps, and checks what must follow.
# `mend`: a command for afterwards; a host that was cut off or stopped keeps mpirun's daemon until then.
mend=
disturb() {
  local run=$1 suspect=$2 pattern=$3 launch node begin delay record start=$SECONDS
  shift 3
  on 1 "$carousel" launch --hostfile "$work/hostfile" --rsh_agent "ssh -F $hosts_directory/ssh_config" --backoff 1 \
    --failure_grace 5 --kill_timeout 8 train --config tiny.textproto --run_dir "$run" >"log_$run" 2>&1 &
  launch=$!
  wait_until 90 has_steps "$run" 30 || fail "$run does not train"
  begin=$SECONDS
  start=$((begin - start))
  "$@"
  wait_until $((limit + max_delay + 2 * start)) goes_on "$run" || fail "$run: training does not go on"
  delay=$((SECONDS - begin))
  wait "$launch" || fail "$run: carousel launch ended with exit code $?"
  record=$(compgen -G "$run/attempts/*/exit.json" | sort | sed -n 1p)
  grep "$pattern" "$record" >/dev/null || { cat "$record"; fail "$run: exit.json does not say: $pattern"; }
  if [ -n "$suspect" ]; then
    tr -d ' \n' <"$record" | grep "\"suspect_hosts\":\[\"$suspect\"\]" >/dev/null ||
      { cat "$record"; fail "$run: $suspect is not the one that is suspected"; }
  fi
  # What the ranks did that were left when the silence was noticed.
  if grep "no sign of life" "$record" >/dev/null; then
    grep "IN PROGRESS" "$(dirname "$record")"/flight/rank-*.txt >/dev/null || fail "$run: no flight record says in which call a rank was"
  fi
  same "$run"
  if [ -n "$suspect" ] && [ -n "${host_init[${suspect#node}]:-}" ] && [ "$mend" != "thaw_host 2" ]; then
    # The daemon there gives a rank that was stopped its kill time-out; training may have ended before.
    wait_until 30 no_ranks_on "${suspect#node}" || fail "$run: ranks are left on $suspect"
  fi
  $mend
  mend=
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
no_ranks_on() { [ -z "$(ranks_on "$1")" ]; }
daemon_on() { # of mpirun
  local process
  for process in $(host_processes "$1"); do
    if [ "$(cat "/proc/$process/comm" 2>/dev/null)" = orted ] || [ "$(cat "/proc/$process/comm" 2>/dev/null)" = prted ]; then echo "$process"; fi
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
mend=
run_scenarios "${scenarios[@]}"
echo "the bits of an undisturbed run"
