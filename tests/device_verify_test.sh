#!/usr/bin/env bash
# The cells of the golden files on the emulated GPU, in every dtype.
#   device_verify_test.sh CAROUSEL
set -uo pipefail
carousel=$1
golden=$(cd "$(dirname "$0")" && pwd)/golden
out=$(mktemp)
trap 'rm -f "$out"' EXIT

"$carousel" verify --device simt "$golden/mlstm_tiny_igate.safetensors" >"$out" 2>&1
if grep -q "is not available" "$out"; then cat "$out"; exit 77; fi  # a program without the emulation

num_files=0
failures=0
for file in "$golden"/mlstm_*.safetensors "$golden"/slstm_*.safetensors; do
  num_files=$((num_files + 1))
  for dtype in f64 f32 bf16; do
    if "$carousel" verify --backend simt --dtype $dtype "$file" >"$out" 2>&1 && grep -q "on simt" "$out"; then
      echo "ok    $(basename "$file") in $dtype"
    else
      echo "FAIL: $(basename "$file") in $dtype"
      cat "$out"
      failures=$((failures + 1))
    fi
  done
done
[ $num_files -ge 8 ] || { echo "FAIL: only $num_files golden files of cells"; failures=$((failures + 1)); }
[ $failures -eq 0 ]
