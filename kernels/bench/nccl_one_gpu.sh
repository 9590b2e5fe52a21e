#!/usr/bin/env bash
# Tries NCCL on a machine with one GPU: one rank, then two ranks that share the GPU, and says whether each works.
#
#   nccl_one_gpu.sh [--device N] [--ranks N] [PROGRAM]
#     --device N   the GPU to use (default 0)
#     --ranks N    how many ranks share it (default 2)
#     PROGRAM      nccl_gpu_check of a build with CAROUSEL_CUDA=ON and CAROUSEL_NCCL=ON; found in bin/ beside this script,
#                  or in a folder build* of the checkout
#
# NCCL refuses two ranks whose host and PCI address are equal. Every rank gets a NCCL_HOSTID of its own here, so NCCL takes
# the ranks for separate hosts, never looks for memory they could share, and sends everything over sockets. What is expected:
# - one rank: passes within seconds; if not, NCCL or the driver is at fault, and the second part says nothing;
# - two ranks: each is a process with a context of its own, and without MPS the GPU gives them turns. A kernel of NCCL waits
#   for its peer's, so every exchange costs a few turns (milliseconds): slow, but it ends. It fails if a version of NCCL
#   compares GPUs in another way (it then says "Duplicate GPU detected"), and shows as a time-out if the turns starve it;
#   `nvidia-cuda-mps-control -d` before this script lets the kernels run side by side.
#
# Exits 0: both work. 1: not even one rank works. 3: one rank works, several on one GPU do not. 77: cannot be tried here.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
device=0 ranks=2 program="" limit=300
while [ $# -gt 0 ]; do
  case $1 in
    --device) device=$2; shift ;;
    --ranks) ranks=$2; shift ;;
    -h | --help) sed -n '2,20s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) echo "nccl_one_gpu.sh: unknown option $1; see --help" >&2; exit 2 ;;
    *) program=$1 ;;
  esac
  shift
done
for candidate in "$here"/bin/nccl_gpu_check "$here"/../../build*/tests/nccl_gpu_check; do
  if [ -z "$program" ] && [ -x "$candidate" ]; then program=$candidate; fi
done
if [ -z "$program" ]; then
  echo "nccl_one_gpu.sh: there is no nccl_gpu_check; build it: cmake --preset cuda -DCAROUSEL_NCCL=ON, target nccl_gpu_check" >&2
  exit 77
fi
if ! nvidia-smi -L >/dev/null 2>&1; then
  echo "nccl_one_gpu.sh: there is no GPU here (nvidia-smi lists none)" >&2
  exit 77
fi
if ldd "$program" | grep 'libnccl.*not found' >/dev/null; then
  echo "nccl_one_gpu.sh: libnccl.so.2 was not found; install NCCL or name its folder in LD_LIBRARY_PATH" >&2
  exit 77
fi

# Sockets of this machine alone, whatever networks it has.
export NCCL_NET=Socket NCCL_IB_DISABLE=1 NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-lo}" NCCL_DEBUG="${NCCL_DEBUG:-WARN}"

# try N: runs N ranks; says how it ended.
try() {
  local start=$SECONDS status what="$1 rank$([ "$1" -eq 1 ] || echo s) on GPU $device"
  timeout --kill-after=10 "$limit" "$program" "$1" "$device"
  status=$?
  case $status in
    0) echo "NCCL WORKS with $what ($((SECONDS - start)) s)" ;;
    124 | 137) echo "NCCL DOES NOT WORK with $what: not ended after $limit s" ;;
    *) echo "NCCL DOES NOT WORK with $what: exit code $status, see above" ;;
  esac
  return $status
}
try 1 || exit 1
try "$ranks" || exit 3
