#!/usr/bin/env bash
# All C, C++ and CUDA files are as clang-format 14 writes them with the .clang-format at the top.
# Pinned, because every version formats something differently.
# Usage: format.sh [ROOT]. Exit code 0 clean, 1 problems, 77 clang-format-14 is missing.
set -u
root=$(cd "${1:-$(dirname "$0")/../..}" && pwd) || exit 1
tool=${CLANG_FORMAT:-clang-format-14}
if ! command -v "$tool" >/dev/null; then
  echo "skipped: $tool is missing"
  exit 77
fi
cd "$root" || exit 1
files=$(find kernels proto service client tests -type f \
  \( -name '*.c' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' \) -not -path '*/build/*' | sort)
if [ -z "$files" ]; then
  echo "format: nothing to look at: wrong folder?"
  exit 1
fi
out=$(printf '%s\n' "$files" | xargs "$tool" --dry-run -Werror --style=file 2>&1)
code=$?
printf '%s\n' "$out" | grep 'error:' | cut -d: -f1,2 | sort -u
printf 'format: %s problems in %s files\n' "$(printf '%s\n' "$out" | grep -c 'error:')" \
  "$(printf '%s\n' "$files" | wc -l)"
[ "$code" -eq 0 ]
