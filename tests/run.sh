#!/usr/bin/env bash
# Installs what is missing, builds, runs every test. On a bare Debian 12 machine, with or without a GPU:
#   ./tests/run.sh                 everything
#   ./tests/run.sh -R mlstm        only tests whose name matches (arguments go to ctest)
# Where the CUDA toolkit is installed, the CUDA programs are built too, which checks that no kernel spills registers; their
# tests need a GPU (kernels/bench/gpu_check.sh). The kernels' logic is tested everywhere, on their emulation.
set -euo pipefail
cd "$(dirname "$0")/.."

./launcher/scripts/install_packages.sh
cmake --preset cpu -DCAROUSEL_TESTS=ON
cmake --build --preset cpu
ctest --preset cpu -j "$(nproc)" "$@"

if [ $# -gt 0 ]; then exit 0; fi
if ! command -v nvcc >/dev/null && [ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
  echo "The CUDA toolkit is not installed here: the CUDA programs were not built."
  exit 0
fi
cmake --preset cuda
cmake --build --preset cuda --target carousel gpu_tests conformance_cuda
