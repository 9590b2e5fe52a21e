#!/usr/bin/env bash
# Training on several hosts: network namespaces with addresses, host names and sshds of their own, joined by a virtual network.
#   multi_host_test.sh CAROUSEL [SCENARIO...]      scenarios: two three
# Skipped (77), with the reason, where such hosts cannot be made.
set -euo pipefail
carousel=$1
shift
source_dir=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=tests/host_run_testing.sh
. "$source_dir/tests/host_run_testing.sh"
explain() { :; }

make_tokens
cat >tiny.textproto <<END
model { embedding_dim: 64 num_blocks: 2 num_heads: 2 chunk_length: 16 igate_bias_init: -2 slstm_at: 1 }
data { train { path: "tokens_train" } validation { path: "tokens_valid" } sequence_length: 64 }
train { steps: 40 global_batch: 12 micro_batch: 1 compute: F32 }
parallel { threads: 1 }
eval { every_steps: 10 num_windows: 8 }
checkpoint { every_steps: 10 }
END
undisturbed
record() { # what a run's metrics say, without clocks and what saves took
  grep -v '^{"checkpoint"\|"kind":"straggler"' "$1/metrics.jsonl" | sed 's/,"seconds":.*"data_digest"/,"data_digest"/; s/,"seconds":.*//'
}
same_in_all() { # also in what its metrics say
  diff <(record whole) <(record "$1") >log_diff || fail "$1: other metrics than on one host"
  same "$1"
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
  same_in_all two_replicas
  train_on "$work/hostfile2" 4 two_shards --set parallel.shard=2
  same_in_all two_shards
  printf 'node1 slots=1\nnode2 slots=1\n' >hostfile1
  train_on "$work/hostfile1" 2 two_stages --set parallel.pipe=2
  same_in_all two_stages
}
scenario_three() {
  printf 'node1 slots=1\nnode2 slots=1\nnode3 slots=1\n' >hostfile3
  # Half of it on three hosts, the rest on two others of them: the checkpoint belongs to no host.
  train_on "$work/hostfile3" 3 three --set train.max_tokens=15360
  grep "token budget used up at step 20" log_three >/dev/null || fail "three: did not stop half way"
  printf 'node1 slots=2\nnode2 slots=2\n' >hostfile2
  mpirun_on_1 --hostfile "$work/hostfile2" -np 4 "$carousel" train --run_dir three --set train.max_tokens=0 >log_three 2>&1 ||
    fail "three did not go on"
  same_in_all three
}
if [ $# -eq 0 ]; then set -- two three; fi
run_scenarios "$@"
echo "the bits of one host"
