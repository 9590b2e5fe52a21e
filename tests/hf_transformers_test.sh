#!/bin/sh
# Runs hf_transformers_test.py where Python with Transformers is installed; elsewhere says so and exits 77 (skipped).
# Another interpreter than python3: CAROUSEL_PYTHON=/path/to/venv/bin/python.
# usage: hf_transformers_test.sh PATH_OF_CAROUSEL
set -eu
python=${CAROUSEL_PYTHON:-python3}
if ! command -v "$python" >/dev/null; then
  echo "skipped: no $python"
  exit 77
fi
if ! "$python" -c 'import safetensors.torch, torch, transformers; transformers.xLSTMForCausalLM' 2>/dev/null; then
  echo "skipped: $python has no torch, safetensors and transformers with xLSTM (pip install torch transformers)"
  exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
here=$(dirname "$0")
HF_HUB_OFFLINE=1 "$python" "$here/hf_transformers_test.py" --carousel "$1" --work "$work"
