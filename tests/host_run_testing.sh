# For tests of runs on hosts of namespaces: to be sourced by a script that has set `carousel` and `source_dir`. Skips (77), with the
# reason, where such hosts cannot be made; else goes to an empty directory, which is removed at the end, together with the hosts.
#
#   wait_until SECONDS COMMAND...    until it succeeds; fails when the time is over
#   make_tokens                      corpus.txt, tokens_train and tokens_valid
#   undisturbed OPTION...            trains tiny.textproto in the run directory `whole`, alone
#   same RUN                         fails unless RUN has its weights and moments, bit by bit
#   run_scenarios NAME...            scenario_NAME for each, with times
# The script defines `explain`, which prints what else is to be known of a failure.
# shellcheck shell=bash
: "${carousel:?}" "${source_dir:?}"
# shellcheck source=tests/virtual_hosts.sh
. "$source_dir/tests/virtual_hosts.sh"

skip_if_missing() { # skip_if_missing PACKAGE TOOL...: Debian's package
  local package=$1 tool
  shift
  for tool in "$@"; do
    if ! PATH=$PATH:/usr/sbin command -v "$tool" >/dev/null; then
      echo "skipped: $tool is missing (Debian: $package)"
      exit 77
    fi
  done
}
missing=$(virtual_hosts_missing)
if [ -n "$missing" ]; then echo "skipped: $missing"; exit 77; fi
work=$(mktemp -d)
trap 'stop_hosts; rm -rf "$work"' EXIT
cd "$work" || exit 1

fail() {
  echo "FAIL: $*" >&2
  explain || true
  for log in log* hosts/*.log; do
    if [ -f "$log" ]; then echo "--- $log"; tail -40 "$log"; fi
  done
  exit 1
}
wait_until() {
  local end=$((SECONDS + $1))
  shift
  while ! "$@"; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.1
  done
}
make_tokens() {
  "$carousel" data synth --output corpus.txt --bytes 100000 >/dev/null
  "$carousel" data build --input corpus.txt --output tokens --validation_fraction 0.1 >/dev/null
}
undisturbed() { "$carousel" train --config tiny.textproto --run_dir whole "$@" >log_whole 2>&1 || fail "the undisturbed run"; }
same() { "$carousel" checkpoint diff whole "$1" >log_diff 2>&1 || fail "$1: other weights or moments than the undisturbed run"; }
steps_of() { # how many steps of a run are recorded
  if [ -e "$1/metrics.jsonl" ]; then grep -c '^{"step"' "$1/metrics.jsonl" || true; else echo 0; fi
}
has_steps() { [ "$(steps_of "$1")" -ge "$2" ]; }
run_scenarios() {
  local scenario begin
  for scenario in "$@"; do
    begin=$SECONDS
    "scenario_$scenario"
    echo "$scenario: $((SECONDS - begin)) s"
  done
}
