#!/bin/sh
# Runs xlstm_large_test.py where Python with the package xlstm and its kernels is installed; elsewhere says so and exits
# 77 (skipped). Another interpreter than python3: CAROUSEL_PYTHON=/path/to/venv/bin/python.
# usage: xlstm_large_test.sh PATH_OF_CAROUSEL
set -eu
python=${CAROUSEL_PYTHON:-python3}
if ! command -v "$python" >/dev/null; then
  echo "skipped: no $python"
  exit 77
fi
if ! "$python" -c 'import omegaconf, safetensors.torch, torch, xlstm.xlstm_large.from_pretrained' 2>/dev/null; then
  echo "skipped: $python has no torch, safetensors, omegaconf and xlstm with mlstm_kernels" \
    "(pip install xlstm mlstm_kernels omegaconf)"
  exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
here=$(dirname "$0")
"$python" "$here/xlstm_large_test.py" --carousel "$1" --work "$work"
