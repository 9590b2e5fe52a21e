#!/usr/bin/env bash
# What mpirun does when it or a rank is told to end, as `carousel launch` relies on it: one assertion for each fact.
#   mpirun_behaviour_test.sh HELPER      HELPER: mpirun_behaviour_helper
# Skipped (77), with the reason, where there is no Open MPI 4.
set -euo pipefail
helper=$1
if ! command -v mpirun >/dev/null; then echo "skipped: mpirun was not found"; exit 77; fi
version=$(mpirun --version 2>/dev/null | sed -n 's/^mpirun (Open MPI) //p')
case $version in 4.*) ;; *) echo "skipped: these are facts about Open MPI 4, not '$version'"; exit 77 ;; esac
work=$(mktemp -d)
launcher=
trap '[ -z "$launcher" ] || kill -KILL "$launcher" 2>/dev/null; rm -rf "$work"' EXIT
cd "$work"

fail() { echo "FAIL: $*" >&2; tail -20 log >&2; tail -n 20 case/* >&2; exit 1; }
root=()
[ "$(id -u)" -ne 0 ] || root=(--allow-run-as-root)
at_least() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a >= b) }'; }
minus() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f", a - b }'; }
time_of() { # time_of RANK LINE: when rank RANK noted it first
  sed -n "s/^$2 \([0-9.]*\)$/\1/p" "case/rank.$1" | sed -n 1p
}
begin() { # begin OPTION... -- WHAT [CODE]: starts mpirun with three ranks
  local options=()
  while [ "$1" != -- ]; do options+=("$1"); shift; done
  rm -rf case
  mkdir case
  local what=$2 code=${3:-0}
  mpirun "${root[@]}" -np 3 --oversubscribe "${options[@]}" "$helper" "$what" "$work/case" "$code" >log 2>&1 &
  launcher=$!
}
ready() { # until all ranks wait
  for _ in $(seq 1200); do
    if [ "$(cat case/rank.* 2>/dev/null | grep -c '^up ' || true)" -eq 3 ]; then return 0; fi
    kill -0 "$launcher" 2>/dev/null || fail "mpirun ended early"
    sleep 0.05
  done
  fail "the ranks did not come up"
}
finish() { # waits for mpirun; its code is in $code, the seconds since $started in $took
  code=0
  wait "$launcher" || code=$?
  launcher=
  took=$(minus "$(awk '{ print $1 }' /proc/uptime)" "$started")
}
start_clock() { started=$(awk '{ print $1 }' /proc/uptime); }
is() { [ "$code" -eq "$1" ] || fail "mpirun returned $code, not $1"; }
# Rank $1 got SIGTERM, and was killed between $2 and $2 + 8 seconds later.
killed_after() {
  local term alive
  term=$(time_of "$1" "signal 15")
  [ -n "$term" ] || fail "rank $1 got no SIGTERM"
  alive=$(cat "case/alive.$1")
  at_least "$(minus "$alive" "$term")" "$2" || fail "rank $1 was killed $(minus "$alive" "$term") s after SIGTERM, before $2"
  at_least "$2" "$(minus "$(minus "$alive" "$term")" 8)" || fail "rank $1 lived $(minus "$alive" "$term") s after SIGTERM"
}

# SIGUSR1 and SIGUSR2 are forwarded to all ranks, nothing is killed, and the ranks' code is mpirun's.
begin -- leave 75
ready
kill -USR1 "$launcher"
for rank in 0 1 2; do
  for _ in $(seq 200); do [ -n "$(time_of "$rank" "signal 10")" ] && break; sleep 0.05; done
  [ -n "$(time_of "$rank" "signal 10")" ] || fail "SIGUSR1 did not reach rank $rank"
done
sleep 1.5
for rank in 0 1 2; do [ -z "$(time_of "$rank" "signal 15")" ] || fail "SIGUSR1 made mpirun end rank $rank"; done
kill -USR2 "$launcher"
start_clock
finish
is 75
for rank in 0 1 2; do [ -n "$(time_of "$rank" "signal 12")" ] || fail "SIGUSR2 did not reach rank $rank"; done
echo "SIGUSR1, SIGUSR2: forwarded, code of the ranks"

# SIGTERM and SIGINT: SIGTERM to the ranks, SIGKILL after the time-out (default 1 s); mpirun returns 1 and takes
# about twice the time-out if ranks ignore it.
for signal in TERM INT; do
  begin -- stubborn 75
  ready
  start_clock
  kill "-$signal" "$launcher"
  finish
  is 1
  for rank in 0 1 2; do killed_after "$rank" 0.3; done
  at_least "$took" 1.3 || fail "mpirun was gone after $took s"
done
begin --mca odls_base_sigkill_timeout 4 -- stubborn
ready
start_clock
kill -TERM "$launcher"
finish
is 1
for rank in 0 1 2; do killed_after "$rank" 2.5; done
at_least "$took" 6 || fail "mpirun was gone after $took s, not after twice the time-out"
begin -- wait
ready
start_clock
kill -TERM "$launcher"
finish
is 1
echo "SIGTERM, SIGINT: SIGTERM, then SIGKILL after the time-out; returns 1"

# Told again while it waits, mpirun ends at once.
begin --mca odls_base_sigkill_timeout 20 -- stubborn
ready
start_clock
for _ in 1 2 3 4 5 6; do
  kill -TERM "$launcher" 2>/dev/null || break
  sleep 0.3
done
finish
at_least 15 "$took" || fail "mpirun took $took s though it was told again and again"
for _ in $(seq 100); do
  left=$(pgrep -f -x -c "$helper stubborn $work/case 0" || true)
  [ "$left" -eq 0 ] && break
  sleep 0.1
done
[ "$left" -eq 0 ] || fail "$left ranks outlived mpirun"
echo "SIGTERM again and again: ends at once"

check_death() { # check_death WHAT CODE EXPECTED: rank 1 ends; the others get SIGTERM, then SIGKILL
  begin -- "$1" "$2"
  start_clock
  finish
  is "$3"
  for rank in 0 2; do killed_after "$rank" "${4:-0.3}"; done
}
check_death exit 75 75
echo "_exit(75) without finalize: 75"
check_death exit 0 1
echo "_exit(0) without finalize: 1"
check_death signal 9 137
check_death signal 11 139
echo "SIGKILL, SIGSEGV: 137, 139"
check_death abort 75 75 0
echo "MPI_Abort(75): 75"

begin -- return 75
start_clock
finish
is 75
echo "all finalize and return 75: 75"

begin --timeout 2 -- stubborn
start_clock
finish
is 110
at_least "$took" 2 || fail "--timeout 2 ended the job after $took s"
echo "--timeout: 110"

# Without an option two ranks are bound to one core each, which --bind-to none undoes.
cores=$(nproc)
if [ "$cores" -ge 2 ]; then
  for bind in "" "--bind-to none"; do
    rm -rf case
    mkdir case
    # shellcheck disable=SC2086
    mpirun "${root[@]}" -np 2 $bind "$helper" leave "$work/case" 0 >log 2>&1 &
    launcher=$!
    for _ in $(seq 1200); do
      [ "$(cat case/rank.* 2>/dev/null | grep -c '^up ' || true)" -eq 2 ] && break
      sleep 0.05
    done
    kill -USR2 "$launcher"
    start_clock
    finish
    is 0
    for rank in 0 1; do
      seen=$(sed -n 's/^cores \([0-9]*\) .*/\1/p' "case/rank.$rank")
      if [ -z "$bind" ]; then
        [ "$seen" -lt "$cores" ] || fail "rank $rank may use $seen of $cores cores without an option"
      else
        [ "$seen" -eq "$cores" ] || fail "rank $rank may use $seen of $cores cores with --bind-to none"
      fi
    done
  done
  echo "without an option ranks are bound, with --bind-to none not"
else
  echo "not checked, one core only: the default binding"
fi

# A sum of 4 MiB of f32 has the same bits on every rank, and again.
for ranks in 2 4; do
  rm -rf case
  mkdir case
  mpirun "${root[@]}" -np "$ranks" --oversubscribe --bind-to none "$helper" allreduce "$work/case" >log 2>&1 || fail "the sum of $ranks ranks"
  [ "$(cat case/sum.* | wc -l)" -eq $((2 * ranks)) ] || fail "the sum of $ranks ranks is incomplete"
  [ "$(cat case/sum.* | sort -u | wc -l)" -eq 1 ] || fail "the sum of $ranks ranks differs between ranks or turns"
done
echo "MPI_Allreduce: same bits on every rank and again"
