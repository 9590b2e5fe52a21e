#!/usr/bin/env bash
# `carousel launch`: what it starts, what it refuses, how it goes on after failures, and that it leaves nothing behind.
#   launch_test.sh CAROUSEL
set -euo pipefail
umask 022
carousel=$1
source_dir=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
launcher=
trap '[ -z "$launcher" ] || kill -KILL "$launcher" 2>/dev/null; rm -rf "$work"' EXIT
cd "$work"
# shellcheck source=tests/launch_testing.sh
. "$source_dir/tests/launch_testing.sh"
make_data
make_config 160
train=(train --config tiny.textproto --run_dir)
"$carousel" train --config tiny.textproto --run_dir whole >log_whole 2>&1 || fail "the undisturbed run"
code_of() { # code_of CODE LOG COMMAND...: the command's exit status is CODE
  local expected=$1 log=$2 code=0
  shift 2
  "$@" >"$log" 2>&1 || code=$?
  [ "$code" -eq "$expected" ] || fail "exit status $code, not $expected, of: $*"
}

# What is printed is what runs, and printing makes nothing.
code_of 0 log_dry "$carousel" launch -np 2 --dry_run "${train[@]}" dry
says log_dry "mpirun .*-np 2 --bind-to none .*odls_base_sigkill_timeout 20 .*launch_rank train --config tiny.textproto --run_dir dry"
[ ! -e dry ] || fail "--dry_run made a directory"

# What cannot be is refused with the fix, before anything is made.
code_of 64 log_no "$carousel" launch -n 2
says log_no "say what to launch"
code_of 64 log_no "$carousel" launch --hotsfile x "${train[@]}" no
says log_no "no option --hotsfile; did you mean .--hostfile"
code_of 64 log_no "$carousel" launch -n 2 generate
says log_no "only train can"
code_of 64 log_no "$carousel" launch -n 2 train --confg tiny.textproto
says log_no "no option --confg; did you mean .--config"
code_of 64 log_no "$carousel" launch -n 2 "${train[@]}" no --set model.num_heads=3
says log_no "num_heads"
code_of 64 log_no "$carousel" launch -n 3 "${train[@]}" no
says log_no "3"
code_of 64 log_no "$carousel" launch --hostfile nowhere "${train[@]}" no
says log_no "--hostfile nowhere cannot be read: No such file"
printf 'node1 slots=x\n' >hosts
code_of 64 log_no "$carousel" launch --hostfile hosts "${train[@]}" no
says log_no "hosts:1: 'slots=x' is no number of slots"
code_of 77 log_no env PATH=/nowhere "$carousel" launch -n 2 "${train[@]}" no
says log_no "mpirun was not found in PATH; install Open MPI"
code_of 77 log_no "$carousel" launch --launcher srun -n 2 "${train[@]}" no
says log_no "srun"
code_of 64 log_no "$carousel" launch_rank train
says log_no "is started by .carousel launch"
touch file
code_of 73 log_no "$carousel" launch -n 2 "${train[@]}" file/run
says log_no "cannot make .*file/run/attempts"
[ ! -e no ] || fail "a launch that was refused made a directory"

# A job that never comes to life: a restart may help, but not for ever; its words are the last.
cat >broken <<'SCRIPT'
#!/bin/sh
echo "no such luck" >&2
exit 70
SCRIPT
chmod +x broken
code_of 70 log_broken "$carousel" launch -n 2 --backoff 0 --failure_grace 1 --program "$work/broken" "${train[@]}" broken_run
[ "$(ls broken_run/attempts | wc -l)" -eq 4 ] || fail "not three restarts: $(ls broken_run/attempts)"
says log_broken "3 restarts in a row brought no new checkpoint"
tail -1 log_broken | grep "log: .*broken_run/attempts/4/launcher.log" >/dev/null || fail "the path of the log is not the last line"
code_of 77 log_no "$carousel" launch -n 2 --backoff 0 --failure_grace 1 --program /no/such/program "${train[@]}" absent
says log_no "the program is not on every host under the same path"

# Two "hosts": an agent that runs on this machine what mpirun would run on others, unless the host is down.
cat >agent <<'SCRIPT'
#!/bin/bash
host=$1
shift
[ ! -e "down.$host" ] || { echo "ssh: connect to host $host port 22: No route to host" >&2; exit 255; }
exec bash -c "$*"
SCRIPT
chmod +x agent
hosts=(--host nodeA:1,nodeB:1 --rsh_agent "$work/agent")

# A rank that is killed: named, and the run goes on to the bits of the undisturbed one. Meanwhile the secret of the job is nowhere
# to be seen, and each rank's output is in its log.
"$carousel" launch -n 2 --backoff 0 "${train[@]}" killed >log_killed 2>&1 &
launcher=$!
wait_for_step killed 20
mapfile -t pids < <(ranks killed)
[ "${#pids[@]}" -eq 2 ] || fail "there are ${#pids[@]} ranks"
secret=$(tr '\0' '\n' <"/proc/${pids[0]}/environ" | sed -n 's/^CAROUSEL_RUN_SECRET=//p')
[ "${#secret}" -eq 64 ] || fail "the ranks have no secret"
for process in /proc/[0-9]*; do
  if { tr '\0' ' ' <"$process/cmdline"; } 2>/dev/null | grep -- "$secret" >/dev/null; then fail "the secret is in $process/cmdline"; fi
done
victim=$(for pid in "${pids[@]}"; do
  if tr '\0' '\n' <"/proc/$pid/environ" | grep -x OMPI_COMM_WORLD_RANK=1 >/dev/null; then echo "$pid"; fi
done)
kill -KILL "$victim"
wait "$launcher" || fail "the launch did not recover"
launcher=
no_orphans killed
same_as_whole killed
end=killed/attempts/1/exit.json
[ "$(field $end exit_code)" -eq 137 ] && [ "$(field $end rank)" -eq 1 ] || fail "the killed rank is not named"
[ "$(field $end host)" = "$(hostname)" ] && [ "$(field $end step)" -ge 20 ] || fail "$end: host or step"
says log_killed "rank 1 on $(hostname): signal 9 (Killed)"
says killed/attempts/2/rank_logs/"$(hostname)".0.log "resuming from"
[ -e killed/attempts/1/rank_logs/"$(hostname)".1.log ] || fail "rank 1 has no log"
if grep -r -q -- "$secret" killed log_killed; then fail "the secret is in a file"; fi
[ "$(stat -c %a killed/attempts/1)" = 750 ] || fail "the attempt's directory has mode $(stat -c %a killed/attempts/1)"

# A host that is gone when its rank has died: the run goes on without it, with fewer ranks, to the same bits.
"$carousel" launch "${hosts[@]}" --backoff 0 "${train[@]}" lost >log_lost 2>&1 &
launcher=$!
wait_for_step lost 20
[ "$(ranks lost | wc -l)" -eq 2 ] || fail "there are $(ranks lost | wc -l) ranks on two hosts"
touch down.nodeB
kill -KILL "$(ranks lost | tail -1)"
wait "$launcher" || fail "the launch did not recover from a lost host"
launcher=
no_orphans lost
same_as_whole lost
says log_lost "nodeB does not answer: this attempt does without"
[ "$(cat lost/attempts/2/hosts)" = "nodeA slots=1" ] || fail "hosts of the second attempt: $(cat lost/attempts/2/hosts)"
says log_lost "attempt 2: 1 rank on nodeA"
# With --min_nodes it waits for the host, and then gives up.
code_of 71 log_few "$carousel" launch "${hosts[@]}" --min_nodes 2 --backoff 0 "${train[@]}" few
says log_few "only 1 of 2 hosts can be used, --min_nodes asks for 2"
no_orphans few
rm down.nodeB

# A launcher that is killed takes everything with it.
"$carousel" launch "${hosts[@]}" "${train[@]}" orphan --set train.steps=100000 >log_orphan 2>&1 &
launcher=$!
wait_for_step orphan 5
[ "$(processes orphan | wc -l)" -ge 6 ] || fail "too few processes: $(processes orphan)"
kill -KILL "$launcher"
wait "$launcher" 2>/dev/null || true
launcher=
# The daemons of other hosts notice that mpirun is gone, and give their ranks the kill time-out of 20 seconds.
no_orphans orphan 60
echo "starts, refuses, recovers, leaves nothing behind"
