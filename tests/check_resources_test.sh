#!/usr/bin/env bash
# kernels/cuda/check_resources.sh with compilers that only talk: what it must refuse, and what it must let pass.
set -uo pipefail
check=$(cd "$(dirname "$0")/.." && pwd)/kernels/cuda/check_resources.sh
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

# expect STATUS NAME REPORT: the exit status for a compiler that prints REPORT to stderr and writes the object.
expect() {
  printf '#!/usr/bin/env bash\ncat >&2 <<"END"\n%s\nEND\ntouch "${@: -1}"\n' "$3" >"$work/compiler"
  chmod +x "$work/compiler"
  rm -f "$work/x.o"
  "$check" "$work/compiler" -c x.cu -o "$work/x.o" 2>"$work/said"
  local status=$?
  if [ $status -ne "$1" ]; then echo "FAIL $2: exit status $status, should be $1"; cat "$work/said"; failed=1; fi
  if [ $status -ne 0 ] && [ -e "$work/x.o" ]; then echo "FAIL $2: left the object file"; failed=1; fi
}
# kernel NAME STACK SPILL SHARED
kernel() {
  printf "ptxas info    : Compiling entry function '%s' for 'sm_90a'\nptxas info    : Function properties for %s\n" "$1" "$1"
  printf '    %s bytes stack frame, %s bytes spill stores, 0 bytes spill loads\n' "$2" "$3"
  printf 'ptxas info    : Used 40 registers, used 1 barriers, %s bytes smem, 400 bytes cmem[0]\n' "$4"
}
expect 0 "a clean kernel" "$(kernel NormKernel 0 0 1024)"
expect 0 "two clean kernels" "$(kernel NormKernel 0 0 1024; kernel OtherKernel 0 0 0)"
expect 1 "spilled registers" "$(kernel NormKernel 0 8 0)"
expect 1 "spills of the second kernel" "$(kernel NormKernel 0 0 0; kernel OtherKernel 0 16 0)"
expect 1 "an array in local memory" "$(kernel NormKernel 160 0 0)"
expect 0 "local memory that is allowed" "$(kernel CheckIdsKernel 32 0 0)"
expect 1 "spills where local memory is allowed" "$(kernel CheckIdsKernel 32 4 0)"
expect 1 "too much static shared memory" "$(kernel NormKernel 0 0 40000)"
expect 1 "spills of a function that a kernel calls" "$(kernel NormKernel 0 0 0 | sed '3a ptxas info    : Function properties for helper\n    16 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads')"
expect 1 "waits that ptxas adds to wgmma" "$(echo "ptxas info    : (C7517) warpgroup.wait is injected in around line 7 by compiler"; kernel NormKernel 0 0 0)"
expect 1 "setmaxnreg ignored" "$(echo "ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored to maintain minimum register requirements."; kernel NormKernel 0 0 0)"
expect 1 "a compiler that says nothing of registers" "note: all is well"
expect 0 "a file without kernels" "ptxas info    : 0 bytes gmem"
printf '#!/bin/sh\necho "x.cu(3): error: no" >&2\nexit 2\n' >"$work/compiler"
"$check" "$work/compiler" -c x.cu -o "$work/x.o" 2>"$work/said"
if [ $? -ne 2 ] || ! grep -q 'error: no' "$work/said"; then echo "FAIL a compiler's own error"; failed=1; fi
exit $failed
