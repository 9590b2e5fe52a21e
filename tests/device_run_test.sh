#!/usr/bin/env bash
# Runs on the emulated GPU as a user makes them: the CPU's losses, the same bits with and without recorded
# micro-batches and on 1 and 2 ranks, checkpoints and models that go on on the other device, clear refusals.
#   device_run_test.sh CAROUSEL
set -euo pipefail
carousel=$1
source_dir=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

fail() { echo "FAIL: $*" >&2; exit 1; }
must() { "$@" >out 2>&1 || { cat out; fail "exit $?: $*"; }; }
# says TEXT COMMAND...: the command fails with exit 64 to 77 and says TEXT (an extended regular expression).
says() {
  local text=$1 code=0
  shift
  "$@" >out 2>&1 || code=$?
  { [ "$code" -ge 64 ] && [ "$code" -le 77 ]; } || { cat out; fail "exit $code instead of 64 to 77: $*"; }
  grep -Eq -- "$text" out || { cat out; fail "no /$text/ from: $*"; }
}
# field RUN NAME: the values of a field in the metrics of steps and evaluations, in order.
field() { grep -o "\"$2\":[-+.e0-9]*" "$1/metrics.jsonl" | cut -d: -f2; }
# near RUN RUN NAME BOUND: a field's values differ by no more than BOUND, relative.
near() {
  paste <(field "$1" "$3") <(field "$2" "$3") | awk -v bound="$4" '
    NF != 2 { print "different numbers of values"; exit 1 }
    { d = $1 / $2 - 1; if (d < 0) d = -d; if (!(d <= bound)) { print NR ": " $1 " and " $2; bad = 1 } }
    END { exit bad || NR == 0 }' || fail "$3 of $1 and $2 differ by more than $4"
}
same() { [ "$(field "$1" "$3")" = "$(field "$2" "$3")" ] || fail "$3 of $1 and $2 differ"; }

must "$carousel" data synth --output corpus.txt --bytes 30000
must "$carousel" data build --input corpus.txt --output tokens --validation_fraction 0.1
cat >large.textproto <<'END'
model { embedding_dim: 32 num_blocks: 2 num_heads: 2 }
data { train { path: "tokens_train" } validation { path: "tokens_valid" } sequence_length: 24 }
schedule { peak_lr: 3e-3 warmup_steps: 2 }
train { steps: 4 global_batch: 6 micro_batch: 2 compute: F32 }
parallel { threads: 1 }
eval { every_steps: 2 num_windows: 4 }
checkpoint { every_steps: 2 }
END
sed 's/model {.*/model { family: XLSTM_PAPER embedding_dim: 32 num_blocks: 2 num_heads: 2 slstm_at: [1] }/' large.textproto >paper.textproto
train() { must "$carousel" train "$@"; }

"$carousel" plan --device simt --config large.textproto >out 2>&1 || true
if grep -q "is not available" out; then
  echo "this program has no emulated GPU"
  exit 77
fi

for config in large paper; do
  train --config $config.textproto --run_dir cpu_$config
  train --config $config.textproto --run_dir simt_$config --device simt
  grep -q "f32 on simt" out || { cat out; fail "the log does not name the device"; }
  near simt_$config cpu_$config loss 1e-5
  near simt_$config cpu_$config grad_norm 1e-4
done

# In bf16: recorded micro-batches have the bits of those that are issued op by op.
train --config paper.textproto --run_dir recorded --device simt --set train.compute=BF16
train --config paper.textproto --run_dir issued --device simt --set train.compute=BF16 --no_graphs
train --config paper.textproto --run_dir cpu_bf16 --set train.compute=BF16
same recorded issued loss
same recorded issued grad_norm
near recorded cpu_bf16 loss 2e-3

# Going on on the other device, from a checkpoint that either wrote; the states have the bits of the whole run.
for first in cpu simt; do
  second=$([ $first = cpu ] && echo simt || echo cpu)
  cp -r ${first}_paper from_$first
  train --run_dir from_$first --device $second --set train.steps=6 --accept_change
  grep -q "resuming from" out || { cat out; fail "it did not go on"; }
done
near from_cpu from_simt loss 1e-5
# Two halves on the device are one run: the states have its bits.
train --config paper.textproto --run_dir halves --device simt --set train.steps=2
train --config paper.textproto --run_dir halves --device simt --set train.steps=4 --accept_change
must "$carousel" checkpoint diff halves simt_paper
grep -q "have the same weights and moments" out || { cat out; fail "two halves are not one run"; }

# Ranks on devices that exchange gradients through the host.
if command -v mpirun >/dev/null; then
  sed 's/global_batch: 6/global_batch: 8/' paper.textproto >even.textproto
  train --config even.textproto --run_dir one --device simt
  must "$source_dir/launcher/scripts/mpirun.sh" -np 2 "$carousel" train --config even.textproto --run_dir two --device simt
  same one two loss
  same one two grad_norm
fi

# A text.
generate() { "$carousel" generate --model cpu_paper --prompt "it is" --temperature 0 --max_tokens 12 "$@" 2>/dev/null; }
[ "$(generate)" = "$(generate --device simt)" ] || fail "the emulated GPU writes another text"

# What cannot be had is refused before anything is written.
says "no device 'gpu'; use 'cpu', 'cuda:N'" "$carousel" train --config large.textproto --run_dir new --device gpu
says "cuda:3' is not available" "$carousel" train --config large.textproto --run_dir new --device cuda:3
[ ! -e new ] || fail "a refused start left a directory"
huge=("$carousel" train --config large.textproto --run_dir new --device simt --set model.embedding_dim=65536 --set model.num_blocks=48)
says "the run takes .* of a device, an emulated GPU has .* free of .*" "${huge[@]}"
says "training needs .* on simt.*, which has .* of it free.*reduce " "${huge[@]}" --preflight=off
must "$carousel" plan --config large.textproto --device simt
grep -q "memory of simt" out && grep -q "the plan fits" out || { cat out; fail "the plan does not know the device's memory"; }
echo "device runs agree"
