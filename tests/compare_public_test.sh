#!/usr/bin/env bash
# The comparison with public kernels, what of it needs no GPU: compare_public_test.py.   compare_public_test.sh CAROUSEL
set -euo pipefail
python=${CAROUSEL_PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null; then
  echo "skipped: $python is not Python 3.8 or newer"
  exit 77
fi
exec "$python" -B "$(dirname "${BASH_SOURCE[0]}")/compare_public_test.py" "$1"
