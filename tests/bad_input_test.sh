#!/usr/bin/env bash
# What users get wrong, and what goes wrong around them: a clear message, a nonzero exit, nothing lost.
#   bad_input_test.sh CAROUSEL
set -uo pipefail
carousel=$1
source_dir=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'umount "$work/small" 2>/dev/null; rm -rf "$work"' EXIT
cd "$work" || exit 1
failures=0

# expect NAME 'TEXT' COMMAND...: the command fails and says TEXT (an extended regular expression).
expect() {
  local name=$1 text=$2 code
  shift 2
  "$@" >out 2>&1
  code=$?
  if [ $code -lt 64 ] || [ $code -gt 77 ] || ! grep -Eq -- "$text" out; then
    echo "FAIL: $name: exit $code, expected a failure that says /$text/; it said:"
    cat out
    failures=$((failures + 1))
  else
    echo "ok    $name: $(grep -E -m1 -- "$text" out | cut -c1-150)"
  fi
}
must() { "$@" >out 2>&1 || { echo "FAIL: $*"; cat out; failures=$((failures + 1)); }; }

"$carousel" data synth --output corpus.txt --bytes 60000 >/dev/null || exit 1
"$carousel" data build --input corpus.txt --output tokens --validation_fraction 0.1 >/dev/null || exit 1
cat >tiny.textproto <<'END'
model { embedding_dim: 64 num_blocks: 1 num_heads: 2 }
data { train { path: "tokens_train" } validation { path: "tokens_valid" } sequence_length: 32 }
schedule { warmup_steps: 2 }
train { steps: 4 global_batch: 4 micro_batch: 1 compute: F32 }
parallel { threads: 1 }
eval { every_steps: 0 }
checkpoint { every_steps: 2 keep_last: 3 }
END
train() { "$carousel" train --config tiny.textproto "$@"; }

expect "missing config" "nowhere.textproto" "$carousel" train --config nowhere.textproto --run_dir r
expect "missing data" "nowhere.*(bin|idx)" train --run_dir r --set data.train.path=nowhere
cp tokens_train.bin cut.bin; cp tokens_train.idx cut.idx; truncate -s 1000 cut.bin
expect "truncated data" "cut.bin" train --run_dir r --set data.train.path=cut
expect "vocabulary below the tokenizer" "vocab_size" train --run_dir r --set model.vocab_size=128
cp tokens_train.bin ids.bin; cp tokens_train.idx ids.idx # without the sidecar: ids of whatever kind
expect "token id above the vocabulary" "ids.*vocab" train --run_dir r --set data.train.path=ids \
  --set data.tokenizer=NONE --set model.vocab_size=64
sed 's/num_heads/num_hed/' tiny.textproto >misspelt.textproto
expect "misspelt field" "misspelt.textproto:1:.*num_heads" "$carousel" train --config misspelt.textproto --run_dir r
expect "misspelt --set" "embedding_dim" train --run_dir r --set model.embeding_dim=64
expect "unknown enum value" "BF16" train --run_dir r --set train.compute=BF17
expect "sizes that do not divide" "num_heads" train --run_dir r --set model.num_heads=3
expect "micro batch that does not divide" "micro_batch" train --run_dir r --set train.micro_batch=3
expect "world size that does not fit" "(1, 2|1 and 2|1, 2 and 4|divis)" "$source_dir/launcher/scripts/mpirun.sh" -np 3 \
  "$carousel" train --config tiny.textproto --run_dir r
expect "run directory that cannot be made" "run_dir" train --run_dir /proc/carousel
expect "no run directory" "run_dir" train
expect "unknown option" "fersh" train --run_dir r --fersh
expect "unknown subcommand" "trian" "$carousel" trian
[ -e r/checkpoints ] && { echo "FAIL: a refused start left checkpoints"; failures=$((failures + 1)); }

# The last step is saved although a save is in flight then; nothing says that it is not.
must train --run_dir last --set checkpoint.every_steps=1 --set train.steps=2
if grep -q "step 2 *checkpoint SKIPPED" out || ! grep -q "step 2 *checkpoint saved" out; then
  echo "FAIL: the save of the last step"; cat out; failures=$((failures + 1))
fi

must train --run_dir run
cp -r run good
expect "another model in the same directory" "num_blocks: 1 in the run, 2 now" train --run_dir run --set model.num_blocks=2
expect "--fresh on an existing run" "fresh" train --run_dir run --fresh

# Other tokens under the same path.
cp -r run rebuilt
"$carousel" data synth --output other.txt --bytes 60000 --seed 5 >/dev/null
cp tokens_train.bin keep.bin; cp tokens_train.idx keep.idx; cp tokens_train.meta keep.meta
"$carousel" data build --input other.txt --output tokens --validation_fraction 0.1 --force >/dev/null
expect "rebuilt training data" "not those the run was trained on" train --run_dir rebuilt
for e in bin idx meta; do mv "keep.$e" "tokens_train.$e"; done
must train --run_dir rebuilt

# A damaged checkpoint: refused by name; taken back to the one before if asked.
newest=$(ls -d run/checkpoints/step-* | sort | tail -n 1)
shard=$(ls "$newest"/model-*.safetensors | sed -n 1p)
printf '\x55' | dd of="$shard" bs=1 seek=$(($(stat -c %s "$shard") - 5000)) conv=notrunc status=none
expect "damaged checkpoint" "$(basename "$shard")" train --run_dir run --set train.steps=6 --accept_change
expect "checkpoint verify on damage" "$(basename "$shard")" "$carousel" checkpoint verify "$newest"
must train --run_dir run --checkpoint_fallback
must "$carousel" checkpoint diff run good

# A full disk during a save: the earlier checkpoint stays. Needs the right to mount.
mkdir small
if mount -t tmpfs -o size=2600k tmpfs small 2>/dev/null; then
  must train --run_dir small/run --set checkpoint.every_steps=4 --set checkpoint.keep_last=0
  before=$(ls small/run/checkpoints)
  free_kib=$(df --output=avail -k small | tail -n 1)
  dd if=/dev/zero of=small/filler bs=1k count=$((free_kib - 120)) status=none # room to start, none for a checkpoint
  expect "full disk during a save" "(No space left|are free)" train --run_dir small/run --set train.steps=8 \
    --set checkpoint.every_steps=1 --accept_change
  rm -f small/filler
  [ "$(ls small/run/checkpoints)" = "$before" ] || { echo "FAIL: the full disk changed the checkpoints"; failures=$((failures + 1)); }
  must "$carousel" checkpoint verify small/run
else
  echo "skipped: full disk (no right to mount a small file system)"
fi

expect "export of nothing" "nowhere" "$carousel" export --format hf --model nowhere --out x
expect "generate from nothing" "nowhere" "$carousel" generate --model nowhere --prompt a
expect "verify of a file that is no dump" "corpus.txt" "$carousel" verify corpus.txt
head -c 5000 "$source_dir/tests/golden/large_a.safetensors" >cut.safetensors
expect "verify of a truncated dump" "cut.safetensors" "$carousel" verify cut.safetensors

[ $failures -eq 0 ] && echo "all refused well" || { echo "$failures failures"; exit 1; }
