#!/usr/bin/env bash
# Training whose ranks meet over TCP instead of MPI: the same bits as one rank, clear words where the settings are wrong, and an end
# of all ranks when one is killed.
#   tcp_run_test.sh CAROUSEL
set -euo pipefail
carousel=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

fail() { echo "FAIL: $*" >&2; tail -n 20 log* >&2; exit 1; }
says() { grep -q -- "$2" "$1" || fail "$1 does not say: $2"; }
# What must not depend on ranks.
record() { sed -n 's/,"seconds":.*"data_digest"/,"data_digest"/p' "$1/metrics.jsonl"; }

secret=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
pids=()
start() { # start RANKS RUN RENDEZVOUS [OPTION...]: all ranks, logs in log_RUN.RANK
  local ranks=$1 run=$2 rendezvous=$3
  shift 3
  pids=()
  for ((rank = ranks - 1; rank >= 0; --rank)); do
    CAROUSEL_RENDEZVOUS=$rendezvous CAROUSEL_RANK=$rank CAROUSEL_WORLD_SIZE=$ranks CAROUSEL_RUN_SECRET=$secret \
      "$carousel" train --config tiny.textproto --run_dir "$run" "$@" >"log_$run.$rank" 2>&1 &
    pids[rank]=$!
  done
}

"$carousel" data synth --output corpus.txt --bytes 100000 >/dev/null
"$carousel" data build --input corpus.txt --output tokens --validation_fraction 0.1 >/dev/null
cat >tiny.textproto <<END
model { embedding_dim: 64 num_blocks: 2 num_heads: 2 chunk_length: 16 igate_bias_init: -2 }
data { train { path: "tokens_train" } sequence_length: 64 }
train { steps: 10 global_batch: 6 micro_batch: 1 compute: F32 }
parallel { threads: 1 }
checkpoint { every_steps: 0 }
END
"$carousel" train --config tiny.textproto --run_dir one >log_one 2>&1 || fail "one rank"
for ranks in 2 3; do
  start "$ranks" "run$ranks" "file:$work/meet"
  for rank in "${!pids[@]}"; do wait "${pids[rank]}" || fail "rank $rank of $ranks"; done
  diff <(record one) <(record "run$ranks") || fail "metrics differ between 1 and $ranks ranks"
  "$carousel" checkpoint diff one "run$ranks" || fail "weights differ between 1 and $ranks ranks"
done

# Two ranks save, three go on: what one reads of the files for another goes over the sockets.
start 2 moved "file:$work/meet" --set train.max_tokens=1920
for rank in "${!pids[@]}"; do wait "${pids[rank]}" || fail "rank $rank of 2"; done
[ "$(record moved | wc -l)" -eq 5 ] || fail "two ranks did not stop at step 5"
start 3 moved "file:$work/meet"
for rank in "${!pids[@]}"; do wait "${pids[rank]}" || fail "rank $rank of 3"; done
diff <(record one) <(record moved) || fail "metrics differ when three ranks go on from two"
"$carousel" checkpoint diff one moved || fail "weights differ when three ranks go on from two"

# Some of the variables are not enough, and a wrong one is named.
! CAROUSEL_RANK=0 CAROUSEL_WORLD_SIZE=2 "$carousel" train --config tiny.textproto --run_dir wrong >log_some 2>&1 ||
  fail "half of the variables were enough"
says log_some "CAROUSEL_RANK, CAROUSEL_WORLD_SIZE are set, but not CAROUSEL_RENDEZVOUS, CAROUSEL_RUN_SECRET"
! CAROUSEL_RENDEZVOUS=node:1 CAROUSEL_RANK=0 CAROUSEL_WORLD_SIZE=2 CAROUSEL_RUN_SECRET=$secret \
  "$carousel" train --config tiny.textproto --run_dir wrong >log_wrong 2>&1 || fail "a wrong rendezvous was accepted"
says log_wrong "'node:1' is no rendezvous"

# A rank that is killed ends the others within ten seconds; they name it.
start 3 killed "file:$work/meet" --set train.steps=1000000
for _ in $(seq 600); do
  if [ -e killed/metrics.jsonl ] && [ "$(record killed | wc -l)" -ge 3 ]; then break; fi
  sleep 0.05
done
kill -KILL "${pids[1]}"
begin=$SECONDS
for rank in 0 2; do
  ! wait "${pids[rank]}" || fail "rank $rank ended as if all were well"
  says "log_killed.$rank" "rank 1 has gone"
done
[ $((SECONDS - begin)) -le 10 ] || fail "took $((SECONDS - begin)) s to end"
echo "the same bits on 1, 2 and 3 ranks over TCP; a killed rank ended the others in $((SECONDS - begin)) s"
