#!/bin/sh
# Runs xlstm_package_test.py where Python with the package xlstm is installed; elsewhere says so and exits 77 (skipped).
# Another interpreter than python3: CAROUSEL_PYTHON=/path/to/venv/bin/python.
# usage: xlstm_package_test.sh PATH_OF_CAROUSEL
set -eu
python=${CAROUSEL_PYTHON:-python3}
if ! command -v "$python" >/dev/null; then
  echo "skipped: no $python"
  exit 77
fi
if ! "$python" -c 'import dacite, safetensors.torch, torch, xlstm; xlstm.xLSTMLMModel' 2>/dev/null; then
  echo "skipped: $python has no torch, safetensors, dacite and xlstm (pip install xlstm dacite)"
  exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
here=$(dirname "$0")
"$python" "$here/xlstm_package_test.py" --carousel "$1" --work "$work"
