#!/usr/bin/env bash
# Every public header compiles alone as C11 and as C++17 with nothing but ISO headers and its own
# folder; every internal header compiles alone as C11.
# Usage: headers.sh [ROOT]. Exit code 0 clean, 1 problems, 77 a compiler or protoc-c is missing.
set -u
root=$(cd "${1:-$(dirname "$0")/../..}" && pwd) || exit 1
cc=${CC:-cc}
cxx=${CXX:-c++}
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

for tool in "$cc" "$cxx" protoc-c pkg-config; do
  if ! command -v "$tool" >/dev/null; then
    echo "skipped: $tool is missing"
    exit 77
  fi
done

problems=0
looked_at=0
# compile HEADER LANGUAGE FLAGS...
compile() {
  local header=$1 language=$2
  shift 2
  local compiler=$cc
  [ "$language" = c ] || compiler=$cxx
  looked_at=$((looked_at + 1))
  # A file that includes it, since a header given as the main file warns about #pragma once and
  # unused statics; included twice, so that a missing guard shows.
  printf '#include "%s"\n#include "%s"\n' "$root/$header" "$root/$header" >"$work/alone.$language"
  if ! "$compiler" -fsyntax-only -Wall -Wextra -Werror "$@" "$work/alone.$language" \
    >"$work/out" 2>&1; then
    echo "$header: does not compile alone as $language"
    head -n 8 "$work/out"
    problems=$((problems + 1))
  fi
}

cd "$root" || exit 1
public=$(find kernels/include client/include -name '*.h' 2>/dev/null | sort)
for header in $public; do
  compile "$header" c -std=c11 -Wpedantic -Wstrict-prototypes -Wundef -Ikernels/include -Iclient/include
  compile "$header" cpp -std=c++17 -Wpedantic -Wundef -Ikernels/include -Iclient/include
done

mkdir "$work/generated"
protos=$(cd proto && find . -name '*.proto' | sed 's|^\./||')
if [ -n "$protos" ]; then
  # shellcheck disable=SC2086 # a list of file names without blanks
  (cd proto && protoc-c -I . --c_out="$work/generated" $protos) || exit 1
fi
flags="-std=c11 -D_GNU_SOURCE -Wno-unused-function -I. -Ikernels -Ikernels/include -Iclient/include \
  -Itests -isystem $work/generated $(pkg-config --cflags grpc libprotobuf-c libuv libcrypto \
  libxxhash inih libcjson 2>/dev/null)"
for header in $(find kernels proto service client tests/testlib -name '*.h' \
  -not -path 'kernels/include/*' -not -path 'client/include/*' -not -path 'kernels/cuda/*' | sort); do
  # shellcheck disable=SC2086 # flags are words
  compile "$header" c $flags
done

echo "headers: $problems problems in $looked_at compilations"
[ "$looked_at" -gt 0 ] && [ "$problems" -eq 0 ]
