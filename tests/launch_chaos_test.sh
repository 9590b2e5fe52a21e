#!/usr/bin/env bash
# Chaos: random signals (TERM, KILL, USR2, SEGV, and STOP with CONT) at random moments to random processes of a launched run: the
# launcher, mpirun, what watches over the ranks, the ranks. Every launch ends as the contract says: a launch that was asked to end
# has 75 (or 0, if it was just done), one that died leaves nothing behind, any other recovers by itself; and the run ends with the
# bits of an undisturbed one.
#   launch_chaos_test.sh CAROUSEL [--runs N] [--seed S]
set -euo pipefail
carousel=$1
shift
runs=3
seed=1
while [ $# -gt 0 ]; do
  case $1 in
    --runs) runs=$2 ;;
    --seed) seed=$2 ;;
    *) echo "launch_chaos_test.sh: no option $1" >&2; exit 64 ;;
  esac
  shift 2
done
source_dir=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
launcher=
trap '[ -z "$launcher" ] || kill -KILL "$launcher" 2>/dev/null; rm -rf "$work"' EXIT
cd "$work"
# shellcheck source=tests/launch_testing.sh
. "$source_dir/tests/launch_testing.sh"
make_data
make_config 200
"$carousel" train --config tiny.textproto --run_dir whole >log_whole 2>&1 || fail "the undisturbed run"
max_signals=6  # in one run

role() { # of process $1
  local words
  words=$({ tr '\0' ' ' <"/proc/$1/cmdline"; } 2>/dev/null || true)
  case $words in
    "$carousel launch "*) echo launcher ;;
    *mpirun*--bind-to*) echo mpirun ;;
    "$carousel launch_rank "*) echo watch ;;
    "$carousel train "*) echo rank ;;
    *) echo other ;;
  esac
}

declare -A sent=()
signals=0
for ((number = seed; number < seed + runs; ++number)); do
  RANDOM=$number
  run=chaos$number
  story="seed $number:"
  hurt=0
  for ((launches = 1; ; ++launches)); do
    [ "$launches" -le 12 ] || fail "$story no end"
    "$carousel" launch -n $((1 + RANDOM % 2)) --backoff 0 --max_no_progress 100 --failure_grace 5 --grace 60 train --config tiny.textproto --run_dir "$run" >"log_$run" 2>&1 &
    launcher=$!
    asked=0 dead=0 # of this launch: whether its launcher was asked to end, or killed
    while kill -0 "$launcher" 2>/dev/null && [ "$hurt" -lt "$max_signals" ] && [ $((asked + dead)) -eq 0 ]; do
      sleep "$(printf '%d.%03d' $((RANDOM % 2)) $((RANDOM % 999)))"
      mapfile -t all < <(processes "$run")
      [ "${#all[@]}" -gt 0 ] || continue
      victim=${all[RANDOM % ${#all[@]}]}
      kind=$(role "$victim")
      signal=$(set -- TERM KILL USR2 SEGV STOP; shift $((RANDOM % 5)); echo "$1")
      [ "$kind" != other ] || continue
      kill "-$signal" "$victim" 2>/dev/null || continue
      hurt=$((hurt + 1))
      signals=$((signals + 1))
      sent[$kind]=$((${sent[$kind]:-0} + 1))
      story="$story $signal->$kind"
      if [ "$signal" = STOP ]; then
        sleep "$(printf '0.%03d' $((RANDOM % 999)))"
        kill -CONT "$victim" 2>/dev/null || true
      elif [ "$kind" = launcher ]; then
        case $signal in
          TERM | USR2) asked=1 ;;
          *) dead=1 ;;
        esac
      fi
    done
    code=0
    wait "$launcher" || code=$?
    launcher=
    no_orphans "$run"
    if [ "$asked" -eq 1 ]; then
      [ "$code" -eq 75 ] || [ "$code" -eq 0 ] || fail "$story: a launch that was asked to end has $code"
    elif [ "$dead" -eq 1 ]; then
      [ "$code" -ge 128 ] || [ "$code" -eq 0 ] || fail "$story: a launcher that was killed has $code"
    else
      [ "$code" -eq 0 ] || fail "$story: a launch that nobody asked to end has $code"
    fi
    [ "$code" -ne 0 ] || break
  done
  same_as_whole "$run"
  rm -rf "$run" "log_$run"
  echo "$story; $launches launches, same bits"
done
echo "$runs runs, $signals signals (launcher ${sent[launcher]:-0}, mpirun ${sent[mpirun]:-0}, watch ${sent[watch]:-0}, ranks ${sent[rank]:-0}): as the contract says, no process left, same bits"
