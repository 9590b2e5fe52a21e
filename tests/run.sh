#!/usr/bin/env bash
# Installs what is missing, builds, runs every test. On a bare Debian 12 machine, with or without a GPU:
#   ./tests/run.sh                 everything
#   ./tests/run.sh -R mlstm        only tests whose name matches (arguments go to ctest)
set -euo pipefail
cd "$(dirname "$0")/.."

./launcher/scripts/install_packages.sh
cmake --preset cpu -DCAROUSEL_TESTS=ON
cmake --build --preset cpu
ctest --preset cpu -j "$(nproc)" "$@"
