#!/usr/bin/env bash
# Reads the checkpoints of several meshes with the Python library safetensors (checkpoint_shards_test.py) where that is
# installed; elsewhere says so and exits 77 (skipped).
# Another interpreter than python3: CAROUSEL_PYTHON=/path/to/venv/bin/python.
#   checkpoint_shards_test.sh CAROUSEL
set -euo pipefail
carousel=$1
python=${CAROUSEL_PYTHON:-python3}
if ! "$python" -c 'import numpy, safetensors' 2>/dev/null; then
  echo "skipped: $python has no numpy and safetensors (pip install numpy safetensors)"
  exit 77
fi
source_dir=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cp "$source_dir/LICENSE" text.txt
"$carousel" data build --input text.txt --output tokens --validation_fraction 0.1 >/dev/null
# check RANKS COMPUTE [AXIS...]
check() {
  local ranks=$1 compute=$2 options=()
  shift 2
  for axis in "$@"; do options+=(--set "parallel.$axis"); done
  cat >tiny.textproto <<END
model { embedding_dim: 64 num_blocks: 2 num_heads: 4 chunk_length: 16 slstm_at: [1] slstm_conv_kernel: 4 use_bias: true }
data { train { path: "tokens_train" } sequence_length: 64 }
train { steps: 2 global_batch: 8 micro_batch: 1 compute: $compute }
parallel { threads: 1 }
END
  rm -rf run
  "$source_dir/launcher/scripts/mpirun.sh" -np "$ranks" "$carousel" train --config tiny.textproto --run_dir run "${options[@]}" \
    >log 2>&1 || { cat log; exit 1; }
  "$python" "$source_dir/tests/checkpoint_shards_test.py" run/checkpoints/step-000000002
}
check 1 F32
check 4 F32 shard=2 tensor=2
check 8 F64 replicate=2 pipe=2 tensor=2
check 2 BF16 sequence=2
