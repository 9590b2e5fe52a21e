#!/usr/bin/env bash
# Builds the CUDA programs on a machine with the toolkit (no GPU needed) and gathers in one folder what a machine with a
# GPU needs to check and time them: programs, the shared libraries that are not part of every Linux, golden files, configs.
# Such a machine needs its driver and the CUDA libraries (cuBLASLt; cuDNN for its part of the check), nothing else.
#
#   kernels/bench/make_portable.sh OUT [BUILD_DIR]     BUILD_DIR: default build-portable
#   NCCL=ON kernels/bench/make_portable.sh ...         with NCCL, whose library the programs then need everywhere
#   ... carry OUT, or OUT.tar.xz, to the machine with the GPU ...
#   OUT/gpu_check.sh report.md
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
if [ $# -lt 1 ] || [ "${1:0:1}" = "-" ]; then
  sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit 2
fi
out=$1
build=${2:-$root/build-portable}

cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DCAROUSEL_CUDA=ON -DCAROUSEL_MPI=OFF \
  -DCAROUSEL_PORTABLE=ON -DCAROUSEL_TESTS=ON -DCAROUSEL_NCCL="${NCCL:-OFF}"
cmake --build "$build" --target carousel gpu_tests conformance_cuda conformance_simt gpu_probes
programs=(launcher/carousel tests/gpu_tests kernels/conformance_cuda kernels/gpu_probes)
if cmake --build "$build" --target help | grep '^cudnn_candidates:' >/dev/null; then  # where cuDNN was found
  cmake --build "$build" --target cudnn_candidates
  programs+=(kernels/cudnn_candidates)
fi
if [ "${NCCL:-OFF}" = ON ]; then
  cmake --build "$build" --target nccl_gpu_check
  programs+=(tests/nccl_gpu_check)
fi

rm -rf "$out"
mkdir -p "$out/bin" "$out/lib" "$out/golden"
for program in "${programs[@]}"; do
  strip -o "$out/bin/$(basename "$program")" "$build/$program"
done
# Every library but those of the C library, the driver and CUDA. The C++ library, Abseil and Protobuf are linked in.
ldd "$out"/bin/* | awk '$2 == "=>" && $3 ~ /^\// { print $3 }' | sort -u |
  grep -vE '/(libc|libm|libdl|librt|libpthread|libresolv|ld-linux[^/]*|libcuda|libcudart|libcublas|libcublasLt|libcudnn|libnccl)\.so' |
  while read -r library; do cp -L "$library" "$out/lib/"; done
"$build/kernels/simt/conformance_simt" --write "$out/conformance.bin"
cp "$root"/tests/golden/*.safetensors "$out/golden/"
cp -r "$root/configs" "$out/configs"
find "$out/configs" -name '*.cc' -o -name '*.h' -o -name CMakeLists.txt | xargs rm -f
cp "$root/kernels/bench/gpu_check.sh" "$root/kernels/bench/nccl_one_gpu.sh" "$root/kernels/bench/compare_public.py" "$out/"
git -C "$root" rev-parse HEAD >"$out/COMMIT" 2>/dev/null || echo unknown >"$out/COMMIT"
tar -C "$(dirname "$out")" -cf - "$(basename "$out")" | xz -T0 -3 >"$out.tar.xz"
du -sh "$out" "$out.tar.xz"
