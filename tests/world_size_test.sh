#!/usr/bin/env bash
# The same run on 1, 2 and 4 MPI ranks, and one that is killed in mid-step and goes on with another number of ranks, end with the
# same bits: every loss and norm in metrics.jsonl, the digest of every tensor in the checkpoint.
#   world_size_test.sh CAROUSEL
set -euo pipefail
carousel=$1
source_dir=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

fail() { echo "FAIL: $*" >&2; exit 1; }
launch() { # launch RANKS RUN_DIR [OPTION...]
  local ranks=$1 run=$2
  shift 2
  "$source_dir/launcher/scripts/mpirun.sh" -np "$ranks" "$carousel" train --config tiny.textproto --run_dir "$run" "$@"
}
# What must not depend on ranks: step, tokens, loss, norm, rate, data digest of every step.
record() { sed -n 's/,"seconds":.*"data_digest"/,"data_digest"/p' "$1/metrics.jsonl"; }

"$carousel" data synth --output corpus.txt --bytes 200000 >/dev/null
"$carousel" data build --input corpus.txt --output tokens --validation_fraction 0.1 >/dev/null
# check NAME MODEL: the whole check for one model.
check() {
  mkdir "$1" && cd "$1"
  cat >tiny.textproto <<END
model { $2 }
data { train { path: "../tokens_train" } validation { path: "../tokens_valid" } sequence_length: 64 }
schedule { peak_lr: 3e-3 warmup_steps: 5 }
train { steps: 20 global_batch: 12 micro_batch: 1 compute: BF16 }
parallel { threads: 1 }
eval { every_steps: 10 num_windows: 8 }
checkpoint { every_steps: 4 keep_last: 2 }
END

  for ranks in 1 2 4 3; do launch "$ranks" "run$ranks" >"log$ranks" 2>&1 || { cat "log$ranks"; fail "training on $ranks ranks"; }; done
  [ "$(record run1 | wc -l)" -eq 20 ] || fail "metrics.jsonl does not hold 20 steps"
  for ranks in 2 4 3; do
    diff <(record run1) <(record "run$ranks") || fail "metrics differ between 1 and $ranks ranks"
    "$carousel" checkpoint diff run1 "run$ranks" || fail "weights differ between 1 and $ranks ranks"
    diff <(grep evaluation run1/metrics.jsonl) <(grep evaluation "run$ranks/metrics.jsonl") || fail "validation differs"
  done

  # Kill everything at once in mid-run, go on with other rank counts.
  launch 2 killed >log_killed 2>&1 &
  launcher=$!
  for _ in $(seq 600); do
    if [ -e killed/metrics.jsonl ] && [ "$(record killed | wc -l)" -ge 7 ]; then break; fi
    sleep 0.05
  done
  for process in /proc/[0-9]*; do
    if [ "$(readlink "$process/cwd" 2>/dev/null)" = "$(pwd -P)" ] &&
      { tr '\0' ' ' <"$process/cmdline"; } 2>/dev/null | grep -- "$carousel train .*--run_dir killed" >/dev/null; then
      kill -KILL "${process#/proc/}" 2>/dev/null || true
    fi
  done
  wait "$launcher" || true
  steps=$(record killed | wc -l)
  [ "$steps" -lt 20 ] || echo "note: the run finished before it was killed"
  launch 4 killed >log_resumed 2>&1 || { cat log_resumed; fail "resuming on 4 ranks"; }
  diff <(record run1) <(record killed) || fail "metrics of the resumed run differ"
  "$carousel" checkpoint diff run1 killed || fail "weights of the resumed run differ"
  echo "$1: bit-identical on 1, 2, 3 and 4 ranks, and after kill -9 at step $steps on 2 ranks and resuming on 4"
  cd ..
}

check large 'embedding_dim: 64 num_blocks: 2 num_heads: 2 chunk_length: 16 igate_bias_init: -2'
check paper 'family: XLSTM_PAPER embedding_dim: 64 num_blocks: 2 num_heads: 2 slstm_at: 1 dropout: 0.1 tie_embeddings: true'
