#!/usr/bin/env bash
# One task with a known answer, from nothing to the table of accuracy by length:
#   launcher/task.sh parity_slstm
# Builds the program if needed, makes the task's data, trains configs/tasks/NAME.textproto and prints the table. Run again,
# it goes on from the last checkpoint.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
names() { for config in configs/tasks/*.textproto; do basename "$config" .textproto; done; }

usage() {
  cat <<END
Usage: launcher/task.sh NAME [--restart] [OPTION OF carousel train...]
Makes the data of a task with a known answer, trains configs/tasks/NAME.textproto on it on this machine's CPU, and
prints how many answers are right by the length of the problem.

  NAME      $(names | tr '\n' ' ' | fold -s -w 100 | sed '2,$s/^/            /')
  --restart   Make the data and train anew; otherwise what there is is kept and an interrupted run goes on
  -h        This text

Where things are: data/tasks/, runs/tasks/NAME/ (metrics.jsonl, config.textproto, checkpoints/).
Environment: CAROUSEL_BUILD, the build folder (default: build).

Examples:
  launcher/task.sh parity_slstm
  launcher/task.sh parity_slstm --restart --set train.seed=1 --set train.steps=1500
END
}

if [ $# -eq 0 ]; then usage >&2; exit 64; fi
case $1 in
  -h | --help) usage; exit 0 ;;
esac
name=$1
shift
fresh=
if [ "${1:-}" = --restart ]; then fresh=yes; shift; fi
config=configs/tasks/$name.textproto
if [ ! -e "$config" ]; then
  echo "launcher/task.sh: there is no $config; NAME is one of: $(names | tr '\n' ' ')" >&2
  exit 64
fi

build=${CAROUSEL_BUILD:-$root/build}
carousel=$build/launcher/carousel
if [ ! -x "$carousel" ]; then
  ./launcher/scripts/install_packages.sh
  cmake --preset cpu -B "$build" -DCAROUSEL_TESTS=OFF >/dev/null
  cmake --build "$build"
fi

# The end of a config's first comment, from "data:" on, is the command that makes its data.
make_data=$(sed -n '/^# data: carousel /,/^$/{ s/^# data: carousel //; s/^# *//; p }' "$config" | tr '\n' ' ')
prefix=$(sed -n 's/.* --output \([^ ]*\).*/\1/p' <<<"$make_data")
if [ -n "$fresh" ] || [ ! -e "${prefix}_train.idx" ] || [ ! -e "${prefix}_valid.idx" ]; then
  echo "== carousel $make_data"
  # shellcheck disable=SC2086  # the words of the command
  "$carousel" $make_data --force
fi

run=runs/tasks/$name
if [ -n "$fresh" ]; then rm -rf "$run"; fi
echo "== carousel train --config $config --run_dir $run $*"
exec "$carousel" train --config "$config" --run_dir "$run" "$@"
