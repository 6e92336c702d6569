#!/usr/bin/env bash
# Proves the lints: in a copy of the tree each finds the violation that is planted for it, names the
# file, and finds nothing before.
# Usage: planted.sh [ROOT [RELAYD]]. Exit code 0 all found, 1 a lint is blind, 77 none could run.
set -u
root=$(cd "${1:-$(dirname "$0")/../..}" && pwd) || exit 1
relayd=${2:-$root/build/release/service/relayd}
lint=$root/tests/lint
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT

mkdir "$work/tree"
(cd "$root" && tar -cf - --exclude=build --exclude=__pycache__ \
  .clang-format kernels proto service client tests) | tar -xf - -C "$work/tree"

found=0
blind=0
skipped=0
# plant NAME FILE TEXT -- LINT ARGS...: appends TEXT to FILE of the copy. The lint must then fail and
# say something new about the file; what it says of the clean copy is kept per lint.
plant() {
  local name=$1 file=$2 text=$3
  shift 4
  local before
  before=$work/before.$(basename "$1")
  if [ ! -e "$before" ]; then
    "$@" >"$before" 2>&1
    echo $? >"$before.code"
  fi
  if [ "$(cat "$before.code")" -eq 77 ]; then
    echo "skip  $name: $(tail -n 1 "$before")"
    skipped=$((skipped + 1))
    return
  fi
  local kept=no
  if [ -e "$work/tree/$file" ]; then
    kept=yes
    cp "$work/tree/$file" "$work/kept"
  fi
  printf '%b' "$text" >>"$work/tree/$file"
  "$@" >"$work/after" 2>&1
  local code=$?
  if [ "$kept" = yes ]; then
    cp "$work/kept" "$work/tree/$file"
  else
    rm -f "$work/tree/$file"
  fi
  if [ "$code" -ne 0 ] && [ "$code" -ne 77 ] &&
    grep -vxFf "$before" "$work/after" | grep -q "$(basename "$file")"; then
    echo "found $name"
    found=$((found + 1))
  else
    echo "BLIND $name: exit code $code"
    tail -n 5 "$work/after"
    blind=$((blind + 1))
  fi
}

tree=$work/tree
inc=("$lint/includes.py" "$tree")
plant "gRPC in session" service/session/session.c '#include <grpc/grpc.h>\n' -- "${inc[@]}"
plant "libuv in rpc" service/rpc/planted.c '#include <uv.h>\n' -- "${inc[@]}"
plant "generated protobuf in store" service/store/planted.c \
  '#include <relay/v1/relay.pb-c.h>\n' -- "${inc[@]}"
plant "OpenSSL in batch" service/batch/planted.c '#include <openssl/evp.h>\n' -- "${inc[@]}"
plant "CUDA outside kernels/cuda" kernels/cpu/planted.c '#include <cuda_runtime.h>\n' -- "${inc[@]}"
plant "upwards: store includes session" service/store/planted.c \
  '#include "service/session/session.h"\n' -- "${inc[@]}"
plant "sideways: ops includes store" service/ops/planted.c \
  '#include "service/store/store.h"\n' -- "${inc[@]}"
plant "the service in kernels" kernels/plan/planted.c '#include "service/base/log.h"\n' -- "${inc[@]}"
plant "one backend in another" kernels/cpu/planted.c '#include "ref/ref_internal.h"\n' -- "${inc[@]}"
plant "more than status.h in base" service/base/planted.c '#include <relay/plan.h>\n' -- "${inc[@]}"
plant "POSIX in a public header" kernels/include/relay/types.h '#include <pthread.h>\n' -- "${inc[@]}"
plant "an unknown header" service/base/planted.c '#include <glib.h>\n' -- "${inc[@]}"
plant "a file outside every room" kernels/planted.c '#include <stdio.h>\n' -- "${inc[@]}"
plant "a link that the table forbids" service/store/CMakeLists.txt \
  'target_link_libraries(relayd_store PRIVATE PkgConfig::GRPC)\n' -- "${inc[@]}"

hdr=("$lint/headers.sh" "$tree")
plant "a public header that lacks an include" kernels/include/relay/planted.h \
  'uint32_t relay_planted(void);\n' -- "${hdr[@]}"
plant "a public header that C++ refuses" kernels/include/relay/planted.h \
  'static inline int relay_planted(int class)\n{\n    return class;\n}\n' -- "${hdr[@]}"
plant "an internal header that lacks an include" service/base/planted.h \
  'bool relayd_planted(void);\n' -- "${hdr[@]}"

plant "unformatted code" service/base/planted.c 'int relayd_planted( int x ){return x;}\n' -- \
  "$lint/format.sh" "$tree"

ban=("$lint/banned.py" "$tree")
plant "strcpy" tests/testlib/planted.c 'void f(char *a, char *b) { strcpy(a, b); }\n' -- "${ban[@]}"
plant "sprintf" client/cli/planted.c 'void f(char *a) { sprintf(a, "x"); }\n' -- "${ban[@]}"
plant "exit in a library" service/base/planted.c 'void f(void) { exit(1); }\n' -- "${ban[@]}"
plant "printf in a library" kernels/core/planted.c 'void f(void) { printf("x"); }\n' -- "${ban[@]}"
plant "stderr in a library" client/lib/planted.c 'void f(void) { fprintf(stderr, "x"); }\n' -- "${ban[@]}"
plant "malloc of a product" service/base/planted.c \
  'void *f(size_t n) { return malloc(n * sizeof(int)); }\n' -- "${ban[@]}"
plant "the wall clock" service/session/planted.c \
  'void f(void) { clock_gettime(CLOCK_REALTIME, 0); }\n' -- "${ban[@]}"
plant "time" client/lib/planted.c 'long f(void) { return time(0); }\n' -- "${ban[@]}"
plant "a timed wait on the wall clock" service/ops/planted.c \
  'void f(void) { pthread_cond_timedwait(0, 0, 0); }\n' -- "${ban[@]}"

doc=("$lint/comments.py" "$tree")
plant "an RPC message without a comment" proto/relay/v1/relay.proto \
  '\nmessage Planted {\n  uint32 planted = 1;\n}\n' -- "${doc[@]}"
plant "a public function without a comment" kernels/include/relay/status.h \
  '\nRELAY_EXPORT void relay_planted(void);\n' -- "${doc[@]}"

# registers.py reads a log, not the tree.
cat >"$work/ptxas" <<'END'
ptxas info    : Compiling entry function '_ZN5relay6attendINS_6configI6__halfLb0ELi128ELi2ELb0ELi1EEEEEv1p' for 'sm_80'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 231 registers, used 16 barriers
END
if "$lint/registers.py" "$work/ptxas" >"$work/after" 2>&1 && grep -q '^mma_f16_128 *sm_80 *231' "$work/after" &&
  sed -i 's/0 bytes spill loads/8 bytes spill loads/' "$work/ptxas" &&
  ! "$lint/registers.py" "$work/ptxas" >"$work/after" 2>&1 && grep -q 'mma_f16_128 for sm_80 spills 8' "$work/after"; then
  found=$((found + 1))
else
  echo "BLIND registers that spill"
  blind=$((blind + 1))
fi

# operands.py reads machine code.
cat >"$work/sass" <<'END'
        HGMMA.64x64x16.F32.BF16 R24, R104, gdesc[UR4], RZ, !UPT ;
        HGMMA.64x64x16.F32.BF16 R24, R108, gdesc[UR12], R24, gsb0 ;
        HGMMA.64x64x16.F32.BF16 R56, R112, gdesc[UR4].tnspB, R56, gsb0 ;
END
if "$lint/operands.py" "$work/sass" >"$work/after" 2>&1 && sed -i 's/R112/R106/' "$work/sass" &&
  ! "$lint/operands.py" "$work/sass" >"$work/after" 2>&1 && grep -q 'R106 to R109' "$work/after"; then
  found=$((found + 1))
else
  echo "BLIND queries that weights take the place of"
  blind=$((blind + 1))
fi

plant "an old OPTIONS.md" service/config/OPTIONS.md 'planted\n' -- \
  "$lint/options.sh" "$tree" "$relayd"

echo "planted: $found found, $blind missed, $skipped skipped"
[ "$blind" -eq 0 ] || exit 1
[ "$found" -gt 0 ] || exit 77
