#!/usr/bin/env bash
# The golden files on the emulated GPU: cells in every dtype, whole models and a training curve in f32.
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
# verify FILE DTYPE
verify() {
  if "$carousel" verify --backend simt --dtype "$2" "$1" >"$out" 2>&1 && grep -q "on simt" "$out"; then
    echo "ok    $(basename "$1") in $2"
  else
    echo "FAIL: $(basename "$1") in $2"
    cat "$out"
    failures=$((failures + 1))
  fi
}
for file in "$golden"/mlstm_*.safetensors "$golden"/slstm_*.safetensors; do
  num_files=$((num_files + 1))
  for dtype in f64 f32 bf16; do verify "$file" $dtype; done
done
for name in large_a large_nosoftcap v1_mixed v1_mlstm_only v1_slstm_only curve_large; do
  verify "$golden/$name.safetensors" f32
done
[ $num_files -ge 8 ] || { echo "FAIL: only $num_files golden files of cells"; failures=$((failures + 1)); }
[ $failures -eq 0 ]
