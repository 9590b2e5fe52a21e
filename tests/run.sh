#!/usr/bin/env bash
# Installs what is missing, builds, runs every test. On a bare Debian 12 machine, with or without a GPU:
#   ./tests/run.sh                 everything
#   ./tests/run.sh -R mlstm        only tests whose name matches (arguments go to ctest)
#   ./tests/run.sh --tools         installs the tools of all tests, too: an ssh server, Slurm, bindfs, Chromium
# The tests that need those are skipped without them. They are services, in part, and nothing to install on somebody's machine
# unasked: without --tools it happens only where no service manager runs that would start them, as in a container.
# Where the CUDA toolkit is installed, the CUDA programs are built too, which checks that no kernel spills registers; their
# tests need a GPU (kernels/bench/gpu_check.sh). The kernels' logic is tested everywhere, on their emulation.
set -euo pipefail
cd "$(dirname "$0")/.."

tools=no
if [ "${1:-}" = --tools ]; then
  tools=yes
  shift
elif [ ! -d /run/systemd/system ] && [ "$(id -u)" -eq 0 ]; then
  tools=yes
fi

./launcher/scripts/install_packages.sh
if [ "$tools" = yes ]; then
  ./launcher/scripts/install_packages.sh bindfs chromium iproute2 munge openssh-client openssh-server slurm-wlm ||
    echo "The tools of some tests could not be installed: these tests will be skipped." >&2
fi
cmake --preset cpu -DCAROUSEL_TESTS=ON -DCAROUSEL_CUDA=OFF
cmake --build --preset cpu
ctest --preset cpu -j "$(nproc)" "$@"

if [ $# -gt 0 ]; then exit 0; fi
if ! command -v nvcc >/dev/null && [ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
  echo "The CUDA toolkit is not installed here: the CUDA programs were not built."
  exit 0
fi
# In the same folder, where everything but the kernels is compiled already; carousel is left as it was tested.
cmake --preset cpu -DCAROUSEL_CUDA=ON
cmake --build --preset cpu --target carousel gpu_tests conformance_cuda
cmake --preset cpu -DCAROUSEL_CUDA=OFF
cmake --build --preset cpu --target carousel
