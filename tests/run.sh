#!/usr/bin/env bash
# Runs all the tests and ends with one line: N passed, N failed, N skipped.
#
# Usage: tests/run.sh [--quick | --full] [--engine] [--only STEP]... [--no-deps] [--inside-chroot]
#   --quick          the release build's tests only
#   --full           also what takes long: every conformance shape, the whole suite in the chroot
#   --engine         also a real engine with real weights: downloads 1.1 GB, once
#   --only STEP      one step (may be given again): deps python release dev tsan fuzz quickstart
#                    chroot cuda conformance engine
#   --no-deps        install nothing
#   --inside-chroot  leave out what cannot run inside itself
#
# Steps: deps installs what is missing; python runs the standard gRPC clients in a virtual
# environment, which later steps use too; release, dev (ASan, UBSan) and tsan build in build/STEP and
# run ctest; fuzz fuzzes briefly; quickstart is the README's other command; chroot runs both commands
# on a fresh Debian in a folder (needs root); cuda compiles the kernels for GPUs alone, for sm_80 and
# sm_90a, where there is nvcc, and none may spill registers (running them takes a GPU: preset cuda,
# then ctest); conformance, with --full only, is the suite on the cpu backend with the shapes that
# take minutes each; engine, with --engine, is Transformers on relayd.
# A step that cannot run says why and counts as one skipped. Each step's log is build/logs/STEP.log.
# Exit code: 0 nothing failed, 1 something did, 64 bad arguments.
set -u
cd "$(dirname "$0")/.." || exit 1

usual_steps="deps python release dev tsan fuzz quickstart cuda chroot"
all_steps="$usual_steps conformance engine"
mode=normal
inside=no
engine=no
only=""
steps=$usual_steps
while [ $# -gt 0 ]; do
  case $1 in
  --quick) mode=quick ;;
  --full)
    mode=full
    steps="$steps conformance"
    ;;
  --engine) engine=yes ;;
  --no-deps) steps=${steps/deps /} ;;
  --inside-chroot) inside=yes ;;
  --only)
    if [ $# -lt 2 ] || [[ " $all_steps " != *" $2 "* ]]; then
      echo "run.sh: --only wants one of: $all_steps" >&2
      exit 64
    fi
    only="$only $2"
    shift
    ;;
  *)
    sed -n '2,21s/^# \{0,1\}//p' "$0" >&2
    exit 64
    ;;
  esac
  shift
done
[ "$mode" != quick ] || steps="${steps%%dev*}"
[ "$inside" = no ] || steps=${steps/ chroot/}
[ "$engine" = no ] || steps="$steps engine"
[ -z "$only" ] || steps=$only

logs=build/logs
mkdir -p "$logs"
jobs=$(nproc 2>/dev/null || echo 2)
if command -v ccache >/dev/null; then
  export CMAKE_C_COMPILER_LAUNCHER=${CMAKE_C_COMPILER_LAUNCHER-ccache}
fi
export UBSAN_OPTIONS=print_stacktrace=1
# libgrpc and libuv are not instrumented; reports that begin inside them are false. Our own hand-overs
# through them are atomics. No suppression file: unit.service.base.race_planted proves the sight.
export TSAN_OPTIONS="ignore_noninstrumented_modules=1 second_deadlock_stack=1"

passed=0
failed=0
skipped=0
count() { # PASSED FAILED SKIPPED
  passed=$((passed + $1))
  failed=$((failed + $2))
  skipped=$((skipped + $3))
}

# A step's function returns 0 passed, 77 skipped (the last line of its output is the reason), else
# failed; steps that run ctest add their own counts and return 0 or 1 for what is around them.
attribute() { # FILE NAME: an attribute of the first <testsuite>
  sed -n "s/.*[[:space:]]$2=\"\([0-9]*\)\".*/\1/p" "$1" | head -n 1
}
run_ctest() { # PRESET CTEST_ARGUMENTS...
  local dir=build/$1 xml=$PWD/$logs/$1.xml code total bad missing off
  shift
  rm -f "$xml"
  "${without_aslr[@]+"${without_aslr[@]}"}" ctest --test-dir "$dir" --output-on-failure -j "$jobs" \
    --output-junit "$xml" "$@"
  code=$?
  if [ ! -s "$xml" ]; then
    echo "ctest wrote no result"
    return 1
  fi
  total=$(attribute "$xml" tests)
  bad=$(attribute "$xml" failures)
  missing=$(attribute "$xml" skipped)
  off=$(attribute "$xml" disabled)
  if [ "${total:-0}" -eq 0 ]; then
    echo "no test matched"
    return 1
  fi
  echo "$((total - bad - missing - off)) $bad $((missing + off))" >"$logs/counts"
  [ "$code" -eq 0 ] || [ "$bad" -gt 0 ]
}
build() { # PRESET: configures and builds build/PRESET
  local python
  python=$(ls -td "$PWD"/build/release/python-venv-*/ready 2>/dev/null | head -n 1)
  cmake --preset "$1" ${python:+"-DRELAY_TEST_PYTHON=${python%/ready}/bin/python"} &&
    cmake --build --preset "$1" -j "$jobs"
}

step_deps() {
  deploy/install-deps.sh --test
}
step_release() {
  build release && run_ctest release -LE fuzz
}
step_dev() {
  # ref's large shapes: a minute of scalar code that the small ones walk too.
  build dev && run_ctest dev -E '^conformance\.ref\.shapes$' -LE 'fuzz|lint|bench'
}
step_tsan() {
  # Old sanitizer runtimes know no memory layout with as much randomness as new kernels have.
  without_aslr=()
  if setarch "$(uname -m)" -R true 2>/dev/null; then
    without_aslr=(setarch "$(uname -m)" -R)
  fi
  build tsan && run_ctest tsan -R "$tsan_tests" -E "$tsan_left_out" -LE 'fuzz|lint|bench'
}
# Where threads meet: the service, the client, the backend's pool. Not the large shapes and not the
# real prompt, whose arithmetic alone takes minutes when every access is watched.
tsan_tests='^(unit\.(service|client|kernels\.cpu)\.|conformance\.cpu\.(attention|buffer|errors|merge|regression)$|e2e\.)'
tsan_left_out='^e2e\.quickstart'
step_fuzz() {
  build release && run_ctest release -L fuzz
}
step_python() {
  if [ ! -x client/python/examples/run.sh ]; then
    echo "there is no client/python/examples/run.sh"
    return 77
  fi
  build release && client/python/examples/run.sh build/release
}
step_conformance() {
  local suite good=0 bad=0
  build release || return 1
  for suite in build/release/tests/conformance/test_conformance_*; do
    echo "== $suite cpu --full"
    if "$suite" cpu --full; then
      good=$((good + 1))
    else
      bad=$((bad + 1))
    fi
  done
  echo "$good $bad 0" >"$logs/counts"
  [ "$bad" -eq 0 ]
}
step_engine() {
  local code
  build release || return 1
  tests/engine/run.sh build/release | tee "$logs/engine.out"
  code=${PIPESTATUS[0]}
  sed -n '$s/^\([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p' "$logs/engine.out" \
    >"$logs/counts"
  return "$code"
}
step_quickstart() {
  deploy/quickstart.sh
}
step_cuda() {
  if ! command -v nvcc >/dev/null && [ ! -x /usr/local/cuda/bin/nvcc ]; then
    echo "there is no nvcc"
    return 77
  fi
  # Of bfloat16's kernels all, of float16's, which differ in a type, none: they would double the time.
  local flags=-Xptxas=-v kept=$PWD/build/cuda-kernels/kept
  if command -v nvdisasm >/dev/null; then
    rm -rf "$kept"
    mkdir -p "$kept"
    flags+=" --keep --keep-dir $kept"
  fi
  cmake -S kernels -B build/cuda-kernels -G Ninja -DCMAKE_BUILD_TYPE=Release -DRELAY_WERROR=ON \
    -DRELAY_CUDA=ON -DRELAY_KERNELS=_bf16_ -DCMAKE_CUDA_FLAGS="$flags" || return
  # What has been compiled before would say nothing about its registers.
  cmake --build build/cuda-kernels --clean-first -j "$jobs" 2>&1 | tee "$logs/cuda.out"
  [ "${PIPESTATUS[0]}" = 0 ] && tests/lint/registers.py "$logs/cuda.out" || return
  if ! command -v nvdisasm >/dev/null; then
    echo "there is no nvdisasm: nobody looked at what registers wgmma takes its operands from"
    return
  fi
  tests/lint/operands.py "$kept"/attend_wgmma_*.cubin
}
step_chroot() {
  if [ "$mode" = full ]; then
    tests/chroot.sh
  else
    tests/chroot.sh --quick
  fi
}

without_aslr=()
started=$SECONDS
for step in $steps; do
  begin=$SECONDS
  rm -f "$logs/counts"
  echo "== $step"
  "step_$step" >"$logs/$step.log" 2>&1
  code=$?
  if [ -s "$logs/counts" ]; then
    read -r p f s <"$logs/counts"
    count "$p" "$f" "$s"
    echo "   $p passed, $f failed, $s skipped"
    [ "$code" -eq 0 ] || [ "$f" -gt 0 ] || count 0 1 0
    # Of each test that did not pass: ctest's line, and what the test said.
    awk '/^ *[0-9]+\/[0-9]+ Test / {shown = /\*\*\*/} /^ +Start +[0-9]+:/ {next} /^$/ {shown = 0} shown' \
      "$logs/$step.log" | head -n 60 | sed 's/^ */   | /'
  elif [ "$code" -eq 0 ]; then
    count 1 0 0
    echo "   passed"
  elif [ "$code" -eq 77 ]; then
    count 0 0 1
    echo "   skipped: $(tail -n 1 "$logs/$step.log")"
  else
    count 0 1 0
    echo "   failed with exit code $code"
  fi
  if [ "$code" -ne 0 ] && [ "$code" -ne 77 ]; then
    echo "   the end of $logs/$step.log:"
    tail -n 40 "$logs/$step.log" | sed 's/^/   | /'
  fi
  echo "   $((SECONDS - begin)) s"
done
echo "== $((SECONDS - started)) s in all"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
