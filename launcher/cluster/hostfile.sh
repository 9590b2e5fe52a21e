#!/usr/bin/env bash
# A training run on machines that no scheduler manages, by mpirun and ssh:
#   HOSTFILE=hosts ./hostfile.sh --config configs/xlstm_7b.textproto --run_dir /shared/runs/7b
# What stands behind the script's name are options of `carousel train`. Start it on one of the machines, in tmux or by systemd, so
# that it outlives your session. What the machines need:
#   - the same program at the same path, and the same Open MPI;
#   - a file system that they share, for the run directory (the config and the data may be on it too);
#   - ssh without a password from here to each: `ssh node2 true` must not ask anything;
#   - a network on which each reaches each at any port, named below where there are several.
# Ctrl-C or SIGTERM to this script saves and ends the run; the same command goes on. DRY_RUN=1 shows what would be run.
set -euo pipefail

carousel=${CAROUSEL:-carousel}       # ADAPT: the program, with its path if it is not in PATH
hostfile=${HOSTFILE:-hosts}          # ADAPT
device=${CAROUSEL_DEVICE:-cuda}      # ADAPT: cuda, or cpu
network=${CAROUSEL_NETWORK:-}        # ADAPT: interface or network of MPI, as eth0 or 10.1.0.0/16; empty: Open MPI tries all

# Bridges of containers and other interfaces that lead nowhere make Open MPI wait: the network says which ones count.
if [ -n "$network" ]; then
  export OMPI_MCA_btl_tcp_if_include=$network OMPI_MCA_oob_tcp_if_include=$network
  if [[ $network != */* ]]; then export NCCL_SOCKET_IFNAME=${NCCL_SOCKET_IFNAME:-$network}; fi  # NCCL knows names only
fi

if [ "${SUPERVISED:-1}" = 0 ]; then
  # Ranks alone, for a first try: nothing starts them again. To save and end them: SIGUSR2 to mpirun.
  exec mpirun --hostfile "$hostfile" --bind-to none ${NCCL_SOCKET_IFNAME:+-x NCCL_SOCKET_IFNAME} "$carousel" train \
    --device "$device" "$@"
fi
# With carousel launch a lost rank or machine means a restart from the newest checkpoint, on the machines that answer.
exec "$carousel" launch --hostfile "$hostfile" ${DRY_RUN:+--dry_run} train --device "$device" "$@"
