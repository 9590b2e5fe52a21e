#!/usr/bin/env bash
# The templates of launcher/cluster do what they say: their commands are commands of this program, signals reach `carousel launch`,
# and only a run that was stopped is queued again. Slurm itself: slurm_test.sh; the YAML: cluster_yaml_test.cc.
#   cluster_files_test.sh CAROUSEL
set -euo pipefail
carousel=$1
source_dir=$(cd "$(dirname "$0")/.." && pwd)
templates=$source_dir/launcher/cluster
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
fail() { echo "FAIL: $*" >&2; for log in log*; do echo "--- $log"; cat "$log"; done; exit 1; }
says() { grep -e "$2" "$1" >/dev/null || fail "$1 does not say: $2"; }

for script in "$templates"/slurm.sbatch "$templates"/*.sh; do
  bash -n "$script" || fail "$script"
  [ -x "$script" ] || fail "$script cannot be executed"
done
# Every option of sbatch stands before the first command, where sbatch looks for it.
first=$(grep -n -v -e '^#' -e '^$' "$templates/slurm.sbatch" | sed -n '1s/:.*//p')
last=$(grep -n '^#SBATCH' "$templates/slurm.sbatch" | sed -n '$s/:.*//p')
[ "$last" -lt "$first" ] || fail "an #SBATCH line is behind a command"

"$carousel" data synth --output corpus.txt --bytes 20000 >/dev/null
"$carousel" data build --input corpus.txt --output tokens >/dev/null
cat >tiny.textproto <<END
model { embedding_dim: 64 num_blocks: 1 num_heads: 2 }
data { train { path: "$work/tokens_train" } sequence_length: 64 }
train { steps: 2 global_batch: 16 micro_batch: 1 }
END
[ -e tokens_train.bin ] || sed -i 's/_train"/"/' tiny.textproto

# ---- the commands, as far as they can be checked without the machines
DRY_RUN=1 CAROUSEL=$carousel HOSTFILE=$templates/hosts CAROUSEL_DEVICE=cpu "$templates/hostfile.sh" --config tiny.textproto \
  --run_dir run >log_hostfile 2>&1 || fail "hostfile.sh"
says log_hostfile "mpirun .*-np 16 .*--hostfile"
says log_hostfile "train --device cpu --config tiny.textproto --run_dir run"
# What it hands to mpirun without a supervisor.
mkdir bin
printf '#!/bin/sh\nenv | grep -e ^OMPI_MCA_ -e ^NCCL_ | sort\necho mpirun "$@"\n' >bin/mpirun
chmod +x bin/mpirun
PATH=$work/bin:$PATH SUPERVISED=0 CAROUSEL_NETWORK=eth1 "$templates/hostfile.sh" --run_dir run >log_plain 2>&1 || fail "hostfile.sh, plain"
says log_plain "^mpirun --hostfile hosts --bind-to none -x NCCL_SOCKET_IFNAME carousel train --device cuda --run_dir run"
says log_plain "^NCCL_SOCKET_IFNAME=eth1"
says log_plain "^OMPI_MCA_btl_tcp_if_include=eth1"
says log_plain "^OMPI_MCA_oob_tcp_if_include=eth1"
PATH=$work/bin:$PATH SUPERVISED=0 CAROUSEL_NETWORK=10.1.0.0/16 "$templates/hostfile.sh" --run_dir run >log_plain 2>&1
says log_plain "^OMPI_MCA_oob_tcp_if_include=10.1.0.0/16"
! grep NCCL log_plain || fail "NCCL cannot take a network by number"

# slurm.sbatch, with a `carousel` that only looks at the command.
cat >bin/dry_carousel <<END
#!/bin/sh
command=\$1; shift
exec "$carousel" "\$command" --dry_run "\$@"
END
chmod +x bin/dry_carousel
ln -s "$(type -P true)" bin/srun
slurm=(env PATH="$work/bin:$PATH" SLURM_JOB_ID=7 SLURM_JOB_NODELIST='node[1-2]' SLURM_TASKS_PER_NODE='8(x2)' SLURM_NTASKS=16)
"${slurm[@]}" CAROUSEL="$work/bin/dry_carousel" CAROUSEL_LAUNCHER=srun CAROUSEL_DEVICE=cpu "$templates/slurm.sbatch" \
  --config tiny.textproto --run_dir run >log_slurm 2>&1 || fail "slurm.sbatch"
says log_slurm "srun --mpi=pmix --ntasks=16"
says log_slurm "train --device cpu --config tiny.textproto --run_dir run"

# ---- signals and requeue: a `carousel` that ends as it is told
cat >bin/stand_in <<'END'
#!/bin/bash
trap 'echo "got USR2"; exit 75' USR2
echo "began $*"
for _ in $(seq 100); do sleep 0.1; done
exit "${STAND_IN_CODE:-0}"
END
printf '#!/bin/sh\necho "scontrol $*"\n' >bin/scontrol
chmod +x bin/stand_in bin/scontrol
for signal in USR2 TERM; do
  "${slurm[@]}" CAROUSEL="$work/bin/stand_in" "$templates/slurm.sbatch" --run_dir run >"log_$signal" 2>&1 &
  job=$!
  for _ in $(seq 100); do
    grep began "log_$signal" >/dev/null 2>&1 && break
    sleep 0.1
  done
  kill "-$signal" "$job"
  for _ in $(seq 100); do
    grep "scontrol requeue 7" "log_$signal" >/dev/null && break
    sleep 0.1
  done
  says "log_$signal" "got USR2"
  says "log_$signal" "scontrol requeue 7"
  # Slurm would end it here; it waits for that.
  pkill -KILL -P "$job" 2>/dev/null || true
  kill -KILL "$job" 2>/dev/null || true
  wait "$job" 2>/dev/null || true
done
for code in 0 64 70 73; do
  printf '#!/bin/sh\nexit %s\n' "$code" >bin/ends
  chmod +x bin/ends
  got=0
  "${slurm[@]}" CAROUSEL="$work/bin/ends" "$templates/slurm.sbatch" --run_dir run >log_end 2>&1 || got=$?
  [ "$got" -eq "$code" ] || fail "exit code $code became $got"
  ! grep scontrol log_end || fail "exit code $code was queued again"
done
echo "the templates do what they say"
