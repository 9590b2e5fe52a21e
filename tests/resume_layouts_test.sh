#!/usr/bin/env bash
# A run that stops and goes on under other layouts of MPI ranks is the run that was never interrupted: its metrics and its final
# checkpoint have the same bits where only ranks of data differ (replicate, shard), and agree to rounding where the model is cut
# in another way.
#   resume_layouts_test.sh CAROUSEL
set -euo pipefail
carousel=$1
source_dir=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

fail() { echo "FAIL: $*" >&2; for log in log*; do echo "--- $log"; tail -20 "$log"; done; exit 1; }
# train RUN STEP RANKS [AXIS...]: goes on until that step is done
train() {
  local run=$1 step=$2 ranks=$3 options=()
  shift 3
  for axis in "$@"; do options+=(--set "parallel.$axis"); done
  "$source_dir/launcher/scripts/mpirun.sh" -np "$ranks" "$carousel" train --config tiny.textproto --run_dir "$run" \
    --set train.max_tokens=$((step * 512)) "${options[@]}" >"log_$run" 2>&1 || fail "$run on $ranks ranks ($*) until step $step"
  [ -e "$run/checkpoints/step-$(printf %09d "$step")/MANIFEST.pb" ] || fail "$run did not save step $step on $ranks ranks ($*)"
}
# What every step computed, without times.
record() { sed -n 's/,"seconds":.*"data_digest"/,"data_digest"/p' "$1/metrics.jsonl"; }
steps() { sed -n 's/^{"step":\([0-9]*\),.*/\1/p' "$1/metrics.jsonl" | tr '\n' ' '; }
losses() { sed -n 's/.*"evaluation":{"step":[0-9]*,"loss":\([^,]*\),.*/\1/p' "$1/metrics.jsonl"; }
config() { # config COMPUTE
  cat >tiny.textproto <<END
model { embedding_dim: 64 num_blocks: 2 num_heads: 4 chunk_length: 16 igate_bias_init: -2 slstm_at: [1] }
data { train { path: "tokens_train" } validation { path: "tokens_valid" } sequence_length: 64 }
schedule { peak_lr: 3e-3 warmup_steps: 3 }
optimizer { eps: 1e-4 }
train { steps: 12 global_batch: 8 micro_batch: 1 compute: $1 }
parallel { threads: 1 }
eval { every_steps: 3 num_windows: 8 }
checkpoint { every_steps: 0 }
END
}

cp "$source_dir/LICENSE" text.txt
"$carousel" data build --input text.txt --output tokens --validation_fraction 0.1 >/dev/null

config F32
train whole 12 1
train moved 3 2 shard=2
train moved 6 8 replicate=8
train moved 9 4 replicate=2 shard=2
train moved 12 1
[ "$(steps moved)" = "1 2 3 4 5 6 7 8 9 10 11 12 " ] || fail "steps in the metrics of the run that moved: $(steps moved)"
diff <(record whole) <(record moved) || fail "the run that moved has other metrics"
[ "$(losses whole)" = "$(losses moved)" ] || fail "the run that moved has other validation losses"
[ "$(losses whole | wc -l)" -eq 4 ] || fail "there are $(losses whole | wc -l) evaluations"
"$carousel" checkpoint diff whole moved >log_diff 2>&1 || fail "the run that moved ends with other bits"

# A checkpoint that was damaged since: refused on all ranks with one message, and set aside when that is asked for.
shard=$(ls moved/checkpoints/step-000000012/optim-* | tail -1)
printf 'x' | dd of="$shard" bs=1 seek=$(($(stat -c %s "$shard") - 9)) conv=notrunc status=none
damaged=(-np 4 "$carousel" train --config tiny.textproto --run_dir moved --set parallel.shard=2)
! "$source_dir/launcher/scripts/mpirun.sh" "${damaged[@]}" >log_damaged 2>&1 || fail "a damaged checkpoint was loaded"
grep -q "${shard##*/}: block 0 .* is damaged: .*; changed: tensor " log_damaged || fail "the damage is not named"
grep -q "step-000000009: give --checkpoint_fallback" log_damaged || fail "nothing is said of the checkpoint before"
"$source_dir/launcher/scripts/mpirun.sh" "${damaged[@]}" --checkpoint_fallback >log_fallback 2>&1 || fail "no way back to step 9"
[ -e moved/checkpoints/.bad-step-000000012 ] || fail "the damaged checkpoint was not set aside"
diff <(record whole) <(record moved) || fail "the run that fell back has other metrics"
"$carousel" checkpoint diff whole moved >log_diff 2>&1 || fail "the run that fell back ends with other bits"

# The same with the model cut in two all the time.
train whole_cut 6 2 tensor=2
train moved_cut 3 4 tensor=2 shard=2
train moved_cut 6 8 tensor=2 replicate=4
diff <(record whole_cut) <(record moved_cut) || fail "the run on two tensor ranks has other metrics when it moves"
"$carousel" checkpoint diff whole_cut moved_cut >log_diff 2>&1 || fail "the run on two tensor ranks ends with other bits when it moves"

# Cut in every way, one after the other.
config F64
train whole64 12 1
train cut64 3 4 tensor=2 shard=2
train cut64 6 4 pipe=2 replicate=2
train cut64 9 4 sequence=2 tensor=2
train cut64 12 1
paste <(losses whole64) <(losses cut64) | awk '
  { d = $1 - $2; if (d < 0) d = -d; if ($2 == "" || d > 1e-12 * $1) exit 1 }' || fail "validation losses: $(losses whole64) and $(losses cut64)"
[ "$(losses cut64 | wc -l)" -eq 4 ] || fail "there are $(losses cut64 | wc -l) evaluations"

# A run that diverges: its weights grow until nothing is finite, and it stops after twenty skipped steps in a row, at the same
# one whether it was interrupted among them or not.
cat >tiny.textproto <<END
model { embedding_dim: 64 num_blocks: 2 num_heads: 4 chunk_length: 16 }
data { train { path: "tokens_train" } sequence_length: 64 }
schedule { kind: CONSTANT peak_lr: 1e3 warmup_steps: 0 }
optimizer { weight_decay: 1 }
train { steps: 100 global_batch: 8 micro_batch: 1 compute: F32 }
parallel { threads: 1 }
checkpoint { every_steps: 0 }
END
! "$carousel" train --config tiny.textproto --run_dir diverged >log_diverged 2>&1 || fail "a run that diverges goes on for ever"
last=$(sed -n 's/.*20 steps in a row were skipped (health.max_skipped_in_row), the last that was not is \([0-9]*\).*/\1/p' log_diverged | sed -n 1p)
[ -n "$last" ] || fail "the run did not say where it diverged"
train diverged_twice $((last + 7)) 1
! "$source_dir/launcher/scripts/mpirun.sh" -np 2 "$carousel" train --config tiny.textproto --run_dir diverged_twice --set parallel.shard=2 \
  >log_diverged_twice 2>&1 || fail "an interrupted run that diverges goes on for ever"
grep -q "20 steps in a row were skipped (health.max_skipped_in_row), the last that was not is $last;" log_diverged_twice ||
  fail "an interrupted run stops at another step than after twenty skipped ones, seven of them before it was interrupted"
diff <(record diverged) <(record diverged_twice) || fail "an interrupted run that diverges has other metrics"

# What may not change unasked is named with both values, whatever the layout.
config F64
! "$source_dir/launcher/scripts/mpirun.sh" -np 2 "$carousel" train --config tiny.textproto --run_dir cut64 --set parallel.tensor=2 \
  --set train.global_batch=16 --set schedule.peak_lr=1e-3 --set model.num_heads=2 >log_refused 2>&1 || fail "another config was accepted"
for part in "train.global_batch: 8 in the run, 16 now" "schedule.peak_lr: 0.003 in the run, 0.001 now" "model.num_heads: 4 in the run, 2 now" \
  "accept_change"; do
  grep -q -- "$part" log_refused || fail "the refusal does not say: $part"
done
echo "runs that move between layouts end where they would have ended, validation loss $(losses whole | tail -1)"
