#!/bin/bash
# The lease between machines, for real: processes that have nothing in common but a directory. A machine here
# is a set of namespaces (mounts, name, network, process numbers) with an identity of its boot and a clock of
# its own, that mounts the shared directory for itself through FUSE, so that it sees nobody's locks. Ends with
# 77 where there are no namespaces or no FUSE.
set -euo pipefail
holder=$1
beat=0.2 stale=4
work=$(mktemp -d)
declare -A outer=() # machine -> the process that is all of it
clean() {
  for pid in "${outer[@]}"; do kill -9 "$pid" 2> /dev/null || true; done
  wait || true
  rm -rf "$work"
}
trap clean EXIT
fail() {
  echo "FAILED: $*" >&2
  tail -n +1 "$work"/*.out >&2 || true
  exit 1
}
skip() {
  echo "SKIPPED: $*"
  exit 77
}
command -v bindfs > /dev/null || skip "bindfs is missing (Debian: bindfs)"
[[ -r /dev/fuse && -w /dev/fuse ]] || skip "there is no /dev/fuse"
unshare --mount --uts --net --pid --fork --mount-proc bash -c \
  'hostname probe && mount --bind /dev/null /proc/sys/kernel/random/boot_id' 2> /dev/null ||
  skip "namespaces are not allowed here (a container without --privileged?)"
mkdir "$work/shared" "$work/mnt"
unshare --mount sh -c "bindfs '$work/shared' '$work/mnt' && umount '$work/mnt'" 2> /dev/null ||
  skip "FUSE may not be mounted"

# start NAME HOST BOOT MOUNT SKEW: BOOT "" is this machine's own; MOUNT fuse or none.
start() {
  local name=$1 host=$2 boot=$3 mount=$4 skew=$5
  mkfifo "$work/$name.in"
  sleep 1000 > "$work/$name.in" & # keeps it open
  outer[$name.in]=$!
  : > "$work/$name.out"
  [[ -n $boot ]] && echo "$boot" > "$work/$name.boot"
  # shellcheck disable=SC2016
  unshare --mount --uts --net --pid --fork --kill-child=SIGKILL --mount-proc bash -c '
    set -e
    hostname "$1"
    [[ -z $2 ]] || mount --bind "$3" /proc/sys/kernel/random/boot_id
    dir=$4/shared
    if [[ $5 = fuse ]]; then bindfs "$dir" "$4/mnt"; dir=$4/mnt; fi
    "$6" "$dir/run" "$7" "$8" "$9"' _ "$host" "$boot" "$work/$name.boot" "$work" "$mount" "$holder" $beat $stale \
    "$skew" < "$work/$name.in" > "$work/$name.out" 2> "$work/$name.err" &
  outer[$name]=$!
}
# expect NAME PATTERN SECONDS: it says so in time.
expect() {
  local end=$((SECONDS + $3))
  until grep -Eq "$2" "$work/$1.out"; do
    ((SECONDS < end)) || fail "$1 did not say '$2' within $3 s, but: $(cat "$work/$1.out" "$work/$1.err")"
    sleep 0.1
  done
}
stop() { # gives the lease back
  kill "${outer[$1.in]}"
  wait "${outer[$1]}" || fail "$1 ended with $?"
  unset "outer[$1]" "outer[$1.in]"
}
family() { # a process and all below it
  local child
  echo "$1"
  for child in $(cat "/proc/$1/task/$1/children" 2> /dev/null || true); do family "$child"; done
}
# Also one that nobody waits for; but its files, and their locks, live on until its last thread has ended.
is_gone() {
  [[ ! -e /proc/$1 ]] ||
    { grep -q '^State:.Z' "/proc/$1/status" && [[ $(find "/proc/$1/task" -mindepth 1 -maxdepth 1 | wc -l) -le 1 ]]; } 2> /dev/null
}
crash() { # the machine loses its power; returns when nothing runs there any more
  local pid end=$((SECONDS + 60)) machine
  mapfile -t machine < <(family "${outer[$1]}")
  kill -9 "${outer[$1]}" "${outer[$1.in]}" 2> /dev/null || true
  wait "${outer[$1]}" "${outer[$1.in]}" 2> /dev/null || true
  unset "outer[$1]" "outer[$1.in]"
  for pid in "${machine[@]}"; do
    until is_gone "$pid"; do
      ((SECONDS < end)) || fail "process $pid of $1 does not end"
      sleep 0.02
    done
  done
}
now() { date +%s%N; }
long=60

echo "-- another machine is refused while the holder lives, whatever the clocks say"
start a node1 1111-a fuse 0
expect a '^held' $long
start b node2 2222-b fuse 420
start c node3 3333-c fuse -420
for name in b c; do
  expect $name '^refused: .* is in use by process [0-9]+ on node1, .*if you are certain that it is dead' $long
  crash $name
done
grep -q held "$work/a.out" && ! grep -q lost "$work/a.out" || fail "a lost its lease"

echo "-- a machine that died is succeeded after the limit, not before, also by one whose clock is behind"
crash a
begin=$(now)
start d node4 4444-d fuse -420
expect d '^held' $long
(($(now) - begin >= stale * 1000000000)) || fail "d did not wait"

echo "-- a machine that stood still learns who has the directory now"
mapfile -t frozen < <(family "${outer[d]}")
kill -STOP "${frozen[@]}"
start e node5 5555-e fuse 420
expect e '^held' $long
kill -CONT "${frozen[@]}"
expect d '^lost: this process has lost .* it was taken over by process [0-9]+ on node5' $long
! grep -q lost "$work/e.out" || fail "e lost its lease to one that was asleep"
crash d
stop e
[[ ! -e $work/shared/run/checkpoints/.lease ]] || fail "e did not give its lease back"

echo "-- containers of one machine with mounts of their own are machines to each other"
start f node6 "" fuse 0
expect f '^held' $long
start g node6 "" fuse 0
expect g '^refused: .* on node6' $long
! grep -q lost "$work/f.out" || fail "f was robbed"
crash g
crash f

echo "-- containers that share the file system share its locks: nobody waits"
rm -rf "$work/shared/run"
start h node7 "" none 0
expect h '^held' $long
begin=$(now)
start i node8 "" none 0
expect i '^refused: .* is in use by process [0-9]+ on node7' $long
crash i
crash h
start j node8 "" none 0
expect j '^held' $long
! grep -q watching "$work/j.err" || fail "j watched for what the lock tells"
stop j
echo PASSED
