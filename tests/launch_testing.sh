# What the tests of `carousel launch` share; to be sourced, with $carousel set and the working directory an empty one.

fail() {
  echo "FAIL: $*" >&2
  for log in log*; do echo "--- $log"; tail -25 "$log"; done >&2
  for end in */attempts/*/exit.json; do [ ! -e "$end" ] || { echo "--- $end"; cat "$end"; } >&2; done
  exit 1
}
says() { grep -q -- "$2" "$1" || fail "$1 does not say: $2"; }
make_data() { # make_data [BYTES]
  "$carousel" data synth --output corpus.txt --bytes "${1:-100000}" >/dev/null
  "$carousel" data build --input corpus.txt --output tokens --validation_fraction 0.1 >/dev/null
}
make_config() { # make_config STEPS
  cat >tiny.textproto <<END_OF_CONFIG
model { embedding_dim: 64 num_blocks: 2 num_heads: 2 chunk_length: 16 igate_bias_init: -2 slstm_at: 1 }
data { train { path: "tokens_train" } validation { path: "tokens_valid" } sequence_length: 64 }
train { steps: $1 global_batch: 8 micro_batch: 2 compute: F32 }
parallel { threads: 1 }
eval { every_steps: 7 num_windows: 8 }
checkpoint { every_steps: 5 keep_last: 2 }
log { every_steps: 100 }
END_OF_CONFIG
}
# Processes that belong to run $1 in this directory, by their command lines: the launcher, mpirun, what watches over ranks, ranks.
processes() {
  for process in /proc/[0-9]*; do
    if [ "$(readlink "$process/cwd" 2>/dev/null)" = "$PWD" ] &&
      { tr '\0' ' ' <"$process/cmdline"; } 2>/dev/null | grep -- "train .*--run_dir $1 " >/dev/null; then
      echo "${process#/proc/}"
    fi
  done
}
ranks() { # of run $1: `carousel train`, not started by hand
  for process in $(processes "$1"); do
    if { tr '\0' ' ' <"/proc/$process/cmdline"; } 2>/dev/null | grep -- "^$carousel train " >/dev/null; then echo "$process"; fi
  done
}
no_orphans() { # no_orphans RUN [SECONDS]: within ten (or so many) seconds nothing of it is left
  for _ in $(seq $((20 * ${2:-10}))); do
    [ -z "$(processes "$1")" ] && return
    sleep 0.05
  done
  fail "processes of $1 are left: $(for process in $(processes "$1"); do echo "$process $(tr '\0' ' ' <"/proc/$process/cmdline")"; done)"
}
steps_of() { # the last step that run $1 took
  { sed -n 's/^{"step":\([0-9]*\),.*/\1/p' "$1/metrics.jsonl" 2>/dev/null || true; } | tail -1
}
wait_for_step() { # wait_for_step RUN STEP
  local step
  for _ in $(seq 2400); do
    step=$(steps_of "$1")
    if [ "${step:-0}" -ge "$2" ]; then return; fi
    sleep 0.025
  done
  fail "$1 does not come to step $2"
}
field() { # field FILE NAME: of exit.json
  sed -n "s/^  \"$2\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}$/\1/p" "$1"
}
record() { # what a run's metrics say, without clocks and what saves took
  grep '^{"step"' "$1/metrics.jsonl" | sed 's/,"seconds":.*"data_digest"/,"data_digest"/; s/,"seconds":.*//'
}
same_as_whole() { # the bits of the undisturbed run
  "$carousel" checkpoint diff whole "$1" >log_diff 2>&1 || fail "$1: other weights or moments than the undisturbed run"
  diff <(record whole) <(record "$1") >log_diff || fail "$1: other metrics than the undisturbed run"
}
