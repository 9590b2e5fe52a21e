#!/usr/bin/env bash
# Tasks with a known answer as a user runs them: every ready config fits the data that it names, accuracies have the same bits
# on 1 and 2 MPI ranks and after an interruption, and what does not fit is refused with the fix.
#   task_run_test.sh CAROUSEL
set -euo pipefail
carousel=$1
source_dir=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

fail() { echo "FAIL: $*" >&2; exit 1; }
# says TEXT COMMAND...: the command fails with exit 64 to 77 and says TEXT (an extended regular expression).
says() {
  local text=$1 code=0
  shift
  "$@" >out 2>&1 || code=$?
  { [ "$code" -ge 64 ] && [ "$code" -le 77 ]; } || { cat out; fail "exit $code instead of 64 to 77: $*"; }
  grep -Eq -- "$text" out || { cat out; fail "no /$text/ from: $*"; }
}
evaluations() { grep '"evaluation"' "$1/metrics.jsonl"; }

# Every ready config, with less data and two steps.
mkdir ready
for config in "$source_dir"/configs/tasks/*.textproto; do
  name=$(basename "$config" .textproto)
  make_data=$(sed -n '/^# data: carousel /,/^$/{ s/^# data: carousel //; s/^# *//; p }' "$config" | tr '\n' ' ' |
    sed -E 's/--problems [0-9]+/--problems 600/; s/--letters [0-9]+/--letters 20000/; s/--test_letters [0-9]+/--test_letters 5000/')
  # shellcheck disable=SC2086  # the words of the command
  "$carousel" $make_data --force >log_data 2>&1 || { cat log_data; fail "the data of $name"; }
  "$carousel" train --config "$config" --run_dir "ready/$name" --set train.steps=2 --set schedule.warmup_steps=1 \
    --set eval.every_steps=2 --set eval.num_windows=4 --set sample.every_steps=0 --set parallel.threads=1 >log 2>&1 ||
    { cat log; fail "training $name"; }
  if [ "$name" = markov ]; then
    evaluations "ready/$name" | grep '"source_entropy":1.35.*"excess_percent":' >/dev/null || fail "no entropy in the metrics of $name"
    grep -q "the source's entropy 1.35" log || fail "no entropy beside the loss of $name"
  else
    evaluations "ready/$name" | grep '"accuracy":.*"accuracy_by_length":\[{"length_from":' >/dev/null || fail "no accuracies in the metrics of $name"
    grep -q "^accuracy by length of the problem at step 2" log || { cat log; fail "no table from $name"; }
    grep -Eq '^ +all +[0-9]+ +[01]\.[0-9]{4}$' log || { cat log; fail "no last row in the table of $name"; }
  fi
done

# The same accuracies on any number of ranks and after going on.
"$carousel" data task parity --output parity --lengths 3:12 --test_lengths 8:30 --problems 400 --test_problems 60 \
  --row_tokens 32 --test_row_tokens 48 >/dev/null
cat >parity.textproto <<'END'
model { family: XLSTM_PAPER vocab_size: 3 embedding_dim: 16 num_blocks: 2 num_heads: 2 slstm_at: [1] }
data { tokenizer: TASK train { path: "parity_train" } validation { path: "parity_valid" } sequence_length: 64 }
schedule { peak_lr: 3e-3 warmup_steps: 2 }
train { steps: 8 global_batch: 8 micro_batch: 2 compute: F32 }
parallel { threads: 1 }
eval { every_steps: 2 num_windows: 13 sequence_length: 48 }
checkpoint { every_steps: 4 }
END
train() { "$carousel" train --config parity.textproto "$@"; }
train --run_dir one >log_one 2>&1 || { cat log_one; fail "training on 1 rank"; }
[ "$(evaluations one | wc -l)" -eq 4 ] || fail "not 4 evaluations"
if command -v mpirun >/dev/null; then
  "$source_dir/launcher/scripts/mpirun.sh" -np 2 "$carousel" train --config parity.textproto --run_dir two >log_two 2>&1 ||
    { cat log_two; fail "training on 2 ranks"; }
  diff <(evaluations one) <(evaluations two) || fail "accuracies differ between 1 and 2 ranks"
  "$carousel" checkpoint diff one two || fail "weights differ between 1 and 2 ranks"
fi
train --run_dir parts --set train.max_tokens=2048 >log_parts 2>&1 || { cat log_parts; fail "the first part"; }
[ "$(evaluations parts | wc -l)" -eq 2 ] || fail "the first part did not stop early"
train --run_dir parts >log_parts 2>&1 || { cat log_parts; fail "the second part"; }
diff <(evaluations one) <(evaluations parts) || fail "accuracies differ after going on"
grep -q "^accuracy by length of the problem at step 8" log_parts || fail "no table after going on"

# A signal in mid-step, whatever the kernels are doing, ends the run in good order.
for pause in 0 0.1 0.2 0.3 0.4 0.5; do
  rm -rf signalled
  "$carousel" train --config parity.textproto --run_dir signalled --set train.steps=1000000 --set eval.every_steps=0 \
    --set schedule.peak_lr=0 >log_signalled 2>&1 &
  process=$!
  for _ in $(seq 1200); do
    if grep -qs '^{"step"' signalled/metrics.jsonl; then break; fi
    sleep 0.05
  done
  sleep "$pause"
  kill -TERM "$process"
  code=0
  wait "$process" || code=$?
  [ "$code" -eq 75 ] || { cat log_signalled; fail "a run stopped by a signal after $pause s ends with $code"; }
  grep -q "stopped by a signal" log_signalled || { cat log_signalled; fail "the signal was not noticed"; }
done

# What does not fit.
says 'rows of 32 tokens.*data.sequence_length=96' train --run_dir r --set data.sequence_length=80
says 'rows of 48 tokens.*eval.sequence_length=96' train --run_dir r --set eval.sequence_length=64
says 'parity with 3 ids.*use model.vocab_size=3' train --run_dir r --set model.vocab_size=2
says 'model.vocab_size is required with data.tokenizer=TASK' train --run_dir r --set model.vocab_size=
says 'holds the task parity, not text.*TASK' train --run_dir r --set data.tokenizer=BYTES --set model.vocab_size=
says 'even_pairs.*the same task' train --run_dir r --set data.validation.path=data/tasks/even_pairs_valid --set eval.sequence_length=960
says 'holds no task' train --run_dir r --set data.train.path=data/tasks/markov_train
says 'sample.every_steps needs a tokenizer' train --run_dir r --set sample.every_steps=2
says 'data.tokenizer: TASK' "$carousel" generate --model one --prompt 1
cp parity_valid.labels kept; printf 'xx' >>parity_valid.labels
says 'parity_valid.labels holds .* bytes' train --run_dir r
rm parity_valid.labels
says 'parity_valid.meta names it' train --run_dir r
mv kept parity_valid.labels
# Other data under the same name are noticed.
"$carousel" data task parity --output parity --lengths 3:12 --test_lengths 8:30 --problems 400 --test_problems 60 \
  --row_tokens 32 --test_row_tokens 48 --seed 1 --force >/dev/null
says 'not those the run was trained on' train --run_dir parts
says 'NAME is one of: .*parity_slstm' "$source_dir/launcher/task.sh" nothing
"$source_dir/launcher/task.sh" --help | grep parity_mixed >/dev/null || fail "task.sh --help does not list the tasks"
echo "every ready config runs; accuracies are the same on 1 and 2 ranks and after going on; misfits are refused"
