#!/usr/bin/env bash
# Installs the Debian packages that building and testing need. Does nothing when all are there. Root, or sudo, is needed
# only when something is missing. Usage: install_packages.sh [EXTRA_PACKAGE...]
set -euo pipefail

packages=(
  ca-certificates cmake g++ git ninja-build pkg-config
  libabsl-dev libcli11-dev libdnnl-dev libgtest-dev libhwloc-dev libisal-dev libopenmpi-dev libprotobuf-dev
  librandom123-dev libspdlog-dev libyaml-dev nlohmann-json3-dev openmpi-bin perl protobuf-compiler
  "$@"
)

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep '^install ok installed$' >/dev/null || missing+=("$package")
done
if [ "${#missing[@]}" -eq 0 ]; then exit 0; fi

if ! command -v apt-get >/dev/null; then
  echo "install_packages.sh: this machine has no apt-get; install the equivalents of: ${missing[*]}" >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "install_packages.sh: run this as root, or install sudo; missing packages: ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
echo "installing: ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
