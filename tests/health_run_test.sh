#!/usr/bin/env bash
# Steps that look wrong in whole runs: a real spike (noise in the data of one step) under every action, with the same decisions and
# the same weights on 1, 2 and 4 ranks; rollbacks that leave data out, that are given up, that survive a kill; a wrong bit and a NaN on
# one rank.
#   health_run_test.sh CAROUSEL POISON_TOKENS FAULTY_TRAIN
set -euo pipefail
carousel=$1 poison=$2 faulty=$3
source_dir=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

fail() { echo "FAIL: $*" >&2; for log in log*; do echo "--- $log"; tail -15 "$log"; done; exit 1; }
mpirun() { "$source_dir/launcher/scripts/mpirun.sh" "$@"; }
says() { grep -q -- "$2" "$1" || fail "$1 does not say: $2"; }
expect() {  # CODE LOG COMMAND...
  local want=$1 log=$2 code=0
  shift 2
  "$@" >"$log" 2>&1 || code=$?
  [ "$code" -eq "$want" ] || fail "$log: exit code $code, should be $want: $*"
}
steps() { grep -c '^{"step":' "$1/metrics.jsonl"; }
# What depends on nothing but the numbers.
numbers() { sed -n '/^{"step":/s/,"seconds":.*"data_digest"/,"data_digest"/p' "$1/metrics.jsonl"; }
events() { sed -n 's/^{"health":{"step":[0-9]*,"kind":"\([a-z]*\)".*/\1/p' "$1/metrics.jsonl" | sed "/^straggler$/d" | sort | uniq -c | tr -s ' \n' ' '; }

# Steps 60 and 61 of 90 are noise.
"$poison" tokens 200000 32 8 5 60 61
cat >run.textproto <<END
model { embedding_dim: 32 num_blocks: 2 num_heads: 2 chunk_length: 16 igate_bias_init: -2 slstm_at: [1] }
data { train { path: "tokens" } sequence_length: 32 }
train { steps: 90 global_batch: 8 micro_batch: 2 compute: F32 seed: 5 }
schedule { kind: CONSTANT peak_lr: 3e-3 warmup_steps: 5 }
parallel { threads: 1 }
eval { every_steps: 0 }
checkpoint { every_steps: 10 keep_last: 2 good_after_steps: 5 asynchronous: false }
health { gate_stats_every_steps: 30 }
log { every_steps: 10 }
END
train() { "$carousel" train --config run.textproto --run_dir "$@"; }
on() { local n=$1; shift; mpirun -np "$n" "$carousel" train --config run.textproto --run_dir "$@"; }

# NOTE, the default: the run goes on; gates are measured.
expect 0 log_note train note
says log_note "step 60: the loss .* deviations above .* the median of 59 steps; the update is made"
[ "$(steps note)" -eq 90 ] || fail "note has $(steps note) steps"
grep '"kind":"spike"' note/metrics.jsonl | grep '"step":60,' >/dev/null || fail "no event of the spike"
[ "$(grep -c '^{"gates":{"step":' note/metrics.jsonl)" -eq 3 ] || fail "gates were not measured three times"
grep '^{"step":50,' note/metrics.jsonl | grep '"loss_z":-\?[0-9]' >/dev/null || fail "no score of the loss"
grep '^{"step":20,' note/metrics.jsonl | grep '"loss_z":[0-9-]' >/dev/null && fail "a score without enough steps before it"
says log_note "loss_z .* norm_z"

# SKIP: the same steps on any number of ranks, and the same weights.
for n in 1 2 4; do
  expect 0 "log_skip$n" on "$n" "skip$n" --set health.on_spike=SKIP
  says "log_skip$n" "2 steps skipped"
  [ "$(numbers "skip$n")" = "$(numbers skip1)" ] || fail "other numbers on $n ranks"
done
[ "$(numbers skip1 | grep -c '"skipped":true')" -eq 2 ] || fail "not two steps were skipped"
numbers skip1 | grep '"skipped":true' | grep '"step":60,' >/dev/null || fail "step 60 was not skipped"
for n in 2 4; do
  expect 0 "log_diff$n" "$carousel" checkpoint diff "skip1/checkpoints/step-000000090" "skip$n/checkpoints/step-000000090"
done

# STOP, and too many skipped in a row.
expect 72 log_stop on 2 stop --set health.on_spike=STOP
says log_stop "step 60: .* health.on_spike is STOP; go on from .*step-000000050, the newest that is marked as good"
expect 72 log_many on 2 many --set health.on_spike=SKIP --set health.max_skipped_in_row=2
says log_many "2 steps in a row were skipped"

# ROLLBACK with the data left out: to step 50, past the noise, to the end; the same on 1 and 4 ranks, and when it is killed right after
# the rollback and goes on with 2.
back=(--set health.on_spike=ROLLBACK --set health.data_skip_steps=2 --set checkpoint.keep_last=0)
for n in 1 4; do
  expect 0 "log_back$n" on "$n" "back$n" "${back[@]}"
  says "log_back$n" "Rollback 1 of at most 3, to .*step-000000050; 88 sequences of data are left out"
  [ "$(steps "back$n")" -eq 90 ] || fail "back$n has $(steps "back$n") steps in its metrics"
  [ "$(numbers "back$n")" = "$(numbers back1)" ] || fail "other numbers after a rollback on $n ranks"
done
[ "$(events back1)" = " 1 rollback " ] || fail "events: $(events back1)"
[ "$(wc -l <back1/rollbacks.jsonl)" -eq 1 ] || fail "the journal has not one line"
says back1/rollbacks.jsonl '"number":1,"bad_step":60,"to_step":50,"consumed_sequences":488,'
expect 0 log_diff_back "$carousel" checkpoint diff back1/checkpoints/step-000000090 back4/checkpoints/step-000000090
cp -r back1 killed
rm -r killed/checkpoints/step-0000000[6-9]0
expect 0 log_killed on 2 killed "${back[@]}"
says log_killed "going on after rollback 1 (step 60: "
expect 0 log_diff_killed "$carousel" checkpoint diff back1/checkpoints/step-000000090 killed/checkpoints/step-000000090
[ "$(numbers killed)" = "$(numbers back1)" ] || fail "other numbers after a kill"

# The same data again spike again: given up after max_rollbacks.
expect 72 log_again on 2 again --set health.on_spike=ROLLBACK --set health.max_rollbacks=2
says log_again "Rollback 2 of at most 2"
says log_again "the run has gone back 2 times already (health.max_rollbacks)"
# Without a good checkpoint there is nothing to go back to.
expect 72 log_none on 2 none --set health.on_spike=ROLLBACK --set checkpoint.every_steps=0
says log_none "no checkpoint is marked as good yet"

# Computed twice: it is the data.
expect 0 log_rerun on 2 rerun --set health.rerun=true --set health.on_spike=SKIP
says log_rerun "step 60 was computed twice, with the same bits on every rank"
[ "$(numbers rerun)" = "$(numbers skip1)" ] || fail "a rerun changed the numbers"

# A NaN on one rank: skipped by all; with a rerun the rank is named.
for n in 2 4; do
  expect 0 "log_nan$n" mpirun -np "$n" "$faulty" run.textproto "nan$n" 1 300 nan health.on_spike=SKIP
  [ "$(numbers "nan$n" | grep -c '"skipped":true')" -eq 3 ] || fail "not three steps were skipped on $n ranks"
done
expect 76 log_hardware mpirun -np 4 "$faulty" run.textproto hardware 2 300 nan health.rerun=true
says log_hardware "was computed twice from the same batches and gave different bits: rank 2 on $(hostname), faulty cpu: its gradients. A machine"
[ -e hardware/checkpoints/step-000000090 ] && fail "a run on bad hardware was saved at its end"

# What a config may not say.
expect 64 log_config train config --set health.on_non_finite=NOTE
says log_config "health.on_non_finite=NOTE would put NaN into the weights; use SKIP, ROLLBACK or STOP"
echo "ok: $SECONDS s"
