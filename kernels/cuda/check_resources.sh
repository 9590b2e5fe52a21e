#!/usr/bin/env bash
# Runs a compiler (its command line follows) and fails if a kernel got fewer resources than it was written for:
#   - any kernel spills registers,
#   - ptxas makes wgmma wait where the kernel does not (its remarks C7510 to C7519) or ignores setmaxnreg (C7508, C7509),
#   - a kernel that resources_allowed.txt does not name keeps an array or anything else in local memory, or has more static
#     shared memory than our launches assume (32 KB; device_launch.h). Dynamic shared memory is the
#     launchers' choice: they ask the device, and tests/*config_test.cc hold every shipped shape to 163 KB (sm_80) or 227 KB.
# Reads what `nvcc -Xptxas -v` prints, and keeps a table of all kernels beside the object file: OBJECT.resources with
# architecture, registers, stack bytes, spilled bytes, static shared bytes, kernel. Other output passes through.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

object=""
for ((i = 1; i < $#; ++i)); do
  if [ "${!i}" = "-o" ]; then j=$((i + 1)); object=${!j}; fi
done
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$@" 2>"$log"
status=$?
# what is not a report of ptxas
grep -vE '^ptxas info|^ +[0-9]+ bytes stack frame|^$' "$log" >&2
if [ "$status" -ne 0 ] || [ -z "$object" ]; then exit "$status"; fi
if ! grep -q '^ptxas info' "$log"; then
  echo "error: the compiler said nothing of registers; compile with -Xptxas -v" >&2
  rm -f "$object"
  exit 1
fi

serialised=$(grep -E "\(C751[0-9]\)|\(C750[89]\)|wgmma.mma_async instructions are serialized|setmaxnreg.* ignored" "$log")
if [ -n "$serialised" ]; then
  echo "error: $serialised" >&2
  rm -f "$object"
  exit 1
fi

demangle=cat
if command -v c++filt >/dev/null; then demangle="c++filt -p"; fi
awk '
  /Compiling entry function/ { split($0, part, "\x27"); kernel = part[2]; arch = part[4]; stack = spill = 0 }
  /bytes stack frame/ { if ($1 > stack) stack = $1; spill += $5 + $9 }  # its own and those of functions it calls
  /Used [0-9]+ registers/ {
    for (i = 1; i <= NF; ++i) if ($i == "Used") registers = $(i + 1)
    shared = 0
    for (i = 1; i <= NF; ++i) if ($i ~ /^smem/) shared = $(i - 2)
    if (kernel != "") print arch, registers, stack + 0, spill + 0, shared + 0, kernel
    kernel = ""
  }' "$log" | while read -r arch registers stack spill shared kernel; do
  printf '%s %s %s %s %s %s\n' "$arch" "$registers" "$stack" "$spill" "$shared" "$($demangle <<<"$kernel")"
done | sort >"$object.resources"

bad=$(awk -v allowed_file="$here/resources_allowed.txt" '
  BEGIN { while ((getline line < allowed_file) > 0) if (line !~ /^#/ && line != "") allowed[line] = 1 }
  {
    name = $6; for (i = 7; i <= NF; ++i) name = name " " $i
    if ($4 > 0) print "error: " $1 ": " name " spills " $4 " bytes of registers"
    excused = 0
    for (pattern in allowed) if (name ~ pattern) excused = 1
    if ($5 > 32768 && !excused) print "error: " $1 ": " name " has " $5 " bytes of static shared memory"
    if ($3 > 0 && !excused) print "error: " $1 ": " name " keeps " $3 " bytes in local memory"
  }' "$object.resources")
if [ -n "$bad" ]; then
  echo "$bad" >&2
  rm -f "$object"
  exit 1
fi
