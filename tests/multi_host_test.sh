#!/usr/bin/env bash
# Training on several hosts: network namespaces with addresses, host names and sshds of their own, joined by a virtual network.
#   multi_host_test.sh CAROUSEL [SCENARIO...]      scenarios: two three
# Skipped (77), with the reason, where such hosts cannot be made.
set -euo pipefail
carousel=$1
shift
scenarios=${*:-two three}
source_dir=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=tests/virtual_hosts.sh
. "$source_dir/tests/virtual_hosts.sh"
reason=$(virtual_hosts_missing)
if [ -n "$reason" ]; then echo "skipped: $reason"; exit 77; fi
work=$(mktemp -d)
trap 'stop_hosts; rm -rf "$work"' EXIT
cd "$work"

fail() { echo "FAIL: $*" >&2; for log in log* hosts/*.log; do echo "--- $log"; tail -40 "$log"; done; exit 1; }

"$carousel" data synth --output corpus.txt --bytes 100000 >/dev/null
"$carousel" data build --input corpus.txt --output tokens --validation_fraction 0.1 >/dev/null
cat >tiny.textproto <<END
model { embedding_dim: 64 num_blocks: 2 num_heads: 2 chunk_length: 16 igate_bias_init: -2 slstm_at: 1 }
data { train { path: "tokens_train" } validation { path: "tokens_valid" } sequence_length: 64 }
train { steps: 40 global_batch: 12 micro_batch: 1 compute: F32 }
parallel { threads: 1 }
eval { every_steps: 10 num_windows: 8 }
checkpoint { every_steps: 10 }
END
"$carousel" train --config tiny.textproto --run_dir whole >log_whole 2>&1 || fail "the undisturbed run"
record() { # what a run's metrics say, without clocks and what saves took
  grep -v '^{"checkpoint"\|"kind":"straggler"' "$1/metrics.jsonl" | sed 's/,"seconds":.*"data_digest"/,"data_digest"/; s/,"seconds":.*//'
}
same() { # same RUN: as the undisturbed one
  diff <(record whole) <(record "$1") >log_diff || fail "$1: other metrics than on one host"
  "$carousel" checkpoint diff whole "$1" >log_diff 2>&1 || fail "$1: other weights or moments than on one host"
}
sent_bytes() { # sent_bytes NODE INTERFACE
  on "$1" sed -n "s/^ *$2: *//p" /proc/net/dev | awk '{ print $9 }'
}
start_hosts 3 "$work/hosts"
mpirun_on_1() { on 1 "$source_dir/launcher/scripts/mpirun.sh" "$@"; }

train_on() { # train_on HOSTFILE RANKS RUN OPTION...
  local hostfile=$1 ranks=$2 run=$3 before
  shift 3
  before=$(sent_bytes 2 eth0)
  mpirun_on_1 --hostfile "$hostfile" -np "$ranks" "$carousel" train --config tiny.textproto --run_dir "$run" "$@" >"log_$run" 2>&1 ||
    fail "$run did not train"
  # Every rank of node2 exchanges all gradients with those elsewhere: megabytes.
  [ $(($(sent_bytes 2 eth0) - before)) -gt 1000000 ] || fail "$run: node2 has hardly sent anything"
  [ "$(sent_bytes 2 docker0)" -lt 100000 ] || fail "$run: tensors went to the interface of containers"
}

scenario_two() {
  printf 'node1 slots=2\nnode2 slots=2\n' >hostfile2
  train_on "$work/hostfile2" 4 two_replicas
  grep "rank 0 of 4 on node1 (2 here)" log_two_replicas >/dev/null || fail "rank 0 does not say where it runs"
  same two_replicas
  train_on "$work/hostfile2" 4 two_shards --set parallel.shard=2
  same two_shards
  printf 'node1 slots=1\nnode2 slots=1\n' >hostfile1
  train_on "$work/hostfile1" 2 two_stages --set parallel.pipe=2
  same two_stages
}
scenario_three() {
  printf 'node1 slots=1\nnode2 slots=1\nnode3 slots=1\n' >hostfile3
  # Half of it on three hosts, the rest on two others of them: the checkpoint belongs to no host.
  train_on "$work/hostfile3" 3 three --set train.max_tokens=15360
  grep "token budget used up at step 20" log_three >/dev/null || fail "three: did not stop half way"
  printf 'node1 slots=2\nnode2 slots=2\n' >hostfile2
  mpirun_on_1 --hostfile "$work/hostfile2" -np 4 "$carousel" train --run_dir three --set train.max_tokens=0 >log_three 2>&1 ||
    fail "three did not go on"
  same three
}
for scenario in $scenarios; do
  begin=$SECONDS
  "scenario_$scenario"
  echo "$scenario: $((SECONDS - begin)) s"
done
echo "the bits of one host"
