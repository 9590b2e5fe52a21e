#!/usr/bin/env bash
# One node of Slurm, with its own configuration, state and keys on a host of its own (virtual_hosts.sh): the template of
# launcher/cluster is submitted, preempted by a job of higher priority, saves, is queued again, and ends with the weights of a run
# that nobody disturbed. Nothing of the machine's own Slurm or munge is touched.
#   slurm_test.sh CAROUSEL [SCENARIO...]     scenarios: preempt srun
# Skipped (77), with the reason, where Slurm or namespaces are missing.
set -euo pipefail
carousel=$1
shift
source_dir=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=tests/host_run_testing.sh
. "$source_dir/tests/host_run_testing.sh"
skip_if_missing munge munged
skip_if_missing slurm-wlm slurmctld slurmd sbatch srun
explain() {
  local log
  on 1 scontrol show jobs || true
  for log in *.log slurm/*.log; do
    if [ -f "$log" ]; then echo "--- $log"; tail -40 "$log"; fi
  done
}

make_tokens
cat >tiny.textproto <<END
model { embedding_dim: 64 num_blocks: 2 num_heads: 2 chunk_length: 16 igate_bias_init: -2 }
data { train { path: "tokens_train" } sequence_length: 64 }
train { steps: 1200 global_batch: 8 micro_batch: 1 compute: F32 }
parallel { threads: 1 }
checkpoint { every_steps: 5000 }
END

# ---- Slurm
start_hosts 1 "$work/hosts"
mkdir -p slurm/state slurm/spool
chmod 700 slurm/state
dd if=/dev/urandom of=slurm/munge.key bs=1024 count=1 status=none
chmod 400 slurm/munge.key
cat >slurm/slurm.conf <<END
ClusterName=carousel
SlurmctldHost=node1(10.77.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that was queued again may start after cred_expire seconds; the default is 120.
AuthInfo=socket=$work/slurm/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$work/slurm/state
SlurmdSpoolDir=$work/slurm/spool
SlurmctldPidFile=$work/slurm/slurmctld.pid
SlurmdPidFile=$work/slurm/slurmd.pid
SlurmctldLogFile=$work/slurm/slurmctld.log
SlurmdLogFile=$work/slurm/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,default_queue_depth=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
MpiDefault=none
ReturnToService=2
KillWait=20
NodeName=node1 NodeAddr=10.77.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=low Nodes=node1 Default=YES PriorityTier=1 GraceTime=60 MaxTime=INFINITE State=UP
PartitionName=high Nodes=node1 PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
END
export SLURM_CONF=$work/slurm/slurm.conf PATH=$PATH:/usr/sbin
daemon() { # daemon NAME COMMAND...: ends with the host
  local name=$1
  shift
  on 1 "$@" >"slurm/$name.log" 2>&1 </dev/null &
}
daemon munged munged --foreground --force --key-file="$work/slurm/munge.key" --socket="$work/slurm/munge.socket" \
  --pid-file="$work/slurm/munged.pid" --seed-file="$work/slurm/munged.seed"
wait_until 60 test -S slurm/munge.socket || { cat slurm/munged.log; echo "skipped: munged does not start here"; exit 77; }
daemon slurmctld.out slurmctld -D -f "$SLURM_CONF"
daemon slurmd.out slurmd -D -f "$SLURM_CONF" -N node1
node_is_idle() { on 1 sinfo --noheader --format=%T 2>/dev/null | grep '^idle' >/dev/null; }
wait_until 60 node_is_idle || { tail -n 20 slurm/*.log; echo "skipped: slurmctld and slurmd do not start here"; exit 77; }

export OMPI_MCA_rmaps_base_oversubscribe=1 CAROUSEL=$carousel CAROUSEL_DEVICE=cpu CAROUSEL_GRACE=50
submit() { # submit NAME OPTION... -- TRAIN_OPTION...: the template, for one node without GPUs; prints the job's number
  local name=$1 options=()
  shift
  while [ "$1" != -- ]; do options+=("$1") && shift; done
  shift
  on 1 sbatch --parsable --job-name="$name" --nodes=1 --ntasks-per-node=2 --gpus-per-node=0 --cpus-per-task=1 --time=10 \
    --output="$work/$name.log" "${options[@]}" "$source_dir/launcher/cluster/slurm.sbatch" "$@"
}
state_of() { on 1 squeue --noheader --jobs="$1" --states=all --format=%T 2>/dev/null; }
is() { [ "$(state_of "$1")" = "$2" ]; }
is_over() { case $(state_of "$1") in COMPLETED | FAILED | CANCELLED | TIMEOUT | "") return 0 ;; *) return 1 ;; esac }
undisturbed

scenario_preempt() {
  local job urgent
  job=$(submit preempted -- --config tiny.textproto --run_dir preempted)
  wait_until 60 has_steps preempted 20 || fail "the job does not train"
  urgent=$(on 1 sbatch --parsable --partition=high --ntasks=2 --output="$work/urgent.log" --wrap 'sleep 2; date +%s')
  wait_until 60 is "$urgent" RUNNING || is_over "$urgent" || fail "the job of higher priority does not start"
  [ "$(ls preempted/checkpoints)" != "" ] || fail "nothing was saved before the other job began"
  local saved
  saved=$(steps_of preempted)
  [ "$saved" -lt 1200 ] || fail "the job was done before it was preempted"
  wait_until 60 is_over "$urgent" || fail "the job of higher priority does not end"
  wait_until 300 is_over "$job" || fail "the preempted job does not go on"
  is "$job" COMPLETED || fail "the preempted job ended as $(state_of "$job")"
  same preempted
  [ "$(grep -c 'finished at step 1200' preempted.log)" -eq 1 ] || fail "the log does not tell of the end"
  ! grep -i "lost steps" preempted.log || fail "steps were lost"
}
# srun starts the ranks instead of mpirun.
scenario_srun() {
  local job
  job=$(CAROUSEL_LAUNCHER=srun submit by_srun -- --config tiny.textproto --run_dir by_srun)
  wait_until 300 is_over "$job" || fail "the job does not end"
  is "$job" COMPLETED || fail "the job ended as $(state_of "$job")"
  same by_srun
}
if [ $# -eq 0 ]; then set -- preempt srun; fi
run_scenarios "$@"
echo "the bits of a run that nobody disturbed"
