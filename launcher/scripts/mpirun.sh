#!/usr/bin/env bash
# mpirun with the settings that containers and small machines need, so that nobody has to know them:
#   ./launcher/scripts/mpirun.sh -np 4 build/launcher/carousel train --config configs/demo_bytes.textproto
# All arguments go to mpirun. What the caller has set in the environment is kept. Only Open MPI reads these.
set -euo pipefail

if ! command -v mpirun >/dev/null; then
  echo "mpirun.sh: mpirun was not found; install it (Debian: openmpi-bin), or start the program without it" >&2
  exit 1
fi
# Root in a container is the usual case; Open MPI refuses it unless told twice.
export OMPI_ALLOW_RUN_AS_ROOT=${OMPI_ALLOW_RUN_AS_ROOT:-1}
export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=${OMPI_ALLOW_RUN_AS_ROOT_CONFIRM:-1}
# More ranks than cores is slow, not wrong.
export OMPI_MCA_rmaps_base_oversubscribe=${OMPI_MCA_rmaps_base_oversubscribe:-1}
# By default every rank is pinned to one core. The program divides the cores among its ranks itself.
export OMPI_MCA_hwloc_base_binding_policy=${OMPI_MCA_hwloc_base_binding_policy:-none}
# Ranks that wait give their core to those that compute.
export OMPI_MCA_mpi_yield_when_idle=${OMPI_MCA_mpi_yield_when_idle:-1}
# After Ctrl-C or SIGTERM the ranks have this many seconds to save (Open MPI's default is one). Longer is no good: Open MPI 4.1
# always waits it out twice, also when a rank has failed. To stop a large run safely, send SIGUSR2 to mpirun: it has no limit.
export OMPI_MCA_odls_base_sigkill_timeout=${OMPI_MCA_odls_base_sigkill_timeout:-2}
exec mpirun "$@"
