#!/usr/bin/env bash
# From a fresh Debian 12 to attention over a real system prompt: installs what is missing, builds,
# starts relayd on the CPU, registers the prompt's K/V over gRPC, attends to it from another process,
# checks every result, measures, stops clean. Exit code 0 only when all of that is so.
#
# Usage: deploy/quickstart.sh [--no-build]
#   --no-build        install and build nothing: use the binaries of RELAY_BUILD_DIR
#   RELAY_BUILD_DIR   build folder (build/release)
#   RELAY_GOLDEN_DIR  folder with the recorded tensors (tests/golden)
set -euo pipefail
golden_dir=${RELAY_GOLDEN_DIR:+$(realpath "$RELAY_GOLDEN_DIR")}
build_dir=${RELAY_BUILD_DIR:+$(realpath "$RELAY_BUILD_DIR")}
cd "$(dirname "$0")/.."
golden_dir=${golden_dir:-$PWD/tests/golden}
build_dir=${build_dir:-build/release}
prompt=$golden_dir/gemma3-270m-prompt.safetensors
steps=$golden_dir/gemma3-270m-steps.safetensors
with_build=yes
case ${1:-} in
'') ;;
--no-build) with_build=no ;;
*)
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 64
  ;;
esac

work=$(mktemp -d)
server=
leave() {
  if [ -n "$server" ]; then
    kill -KILL "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
  fi
  rm -rf "$work"
}
trap leave EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
  echo "quickstart: $*" >&2
  exit 1
}
# Runs a noisy command quietly; what it said is shown when it fails.
quiet() {
  if ! "$@" >"$work/output" 2>&1; then
    tail -n 40 "$work/output" >&2
    fail "this failed: $*"
  fi
}

if [ "$with_build" = yes ]; then
  echo "1/5 install: what is missing, from the distribution"
  quiet deploy/install-deps.sh
  tail -n 1 "$work/output" | cut -c 1-100 | sed 's/^/    /'
  echo "2/5 build: relayd and relayctl in $build_dir"
  quiet cmake --preset release -B "$build_dir"
  quiet cmake --build "$build_dir" --parallel "$(nproc)" --target relayd relayctl
else
  echo "1/5 install: left out"
  echo "2/5 build: left out, using $build_dir"
fi
relayd=$build_dir/service/relayd
relayctl=$build_dir/client/relayctl
[ -x "$relayd" ] && [ -x "$relayctl" ] || fail "no relayd and relayctl in $build_dir"

echo "3/5 start: relayd on a unix socket of its own and a free port of 127.0.0.1"
mkfifo "$work/ready"
"$relayd" --listen "unix:$work/relayd.sock" --listen 127.0.0.1:0 --ready-fd 3 \
  3>"$work/ready" 2>"$work/log" &
server=$!
# Ends without a line when relayd ends first: then nobody holds the other side.
read -t 60 -r ready <"$work/ready" || true
case ${ready:-} in
'ready port='*) echo "    $ready, pid $server" ;;
*)
  cat "$work/log" >&2
  fail "relayd did not become ready"
  ;;
esac
export RELAY_TARGET="unix://$work/relayd.sock"
named=(--model-key gemma3-270m@q4_k_m --id demo/system-prompt --text)

failed=
# A flipped byte need not be visible in the results: the low bits of a number are below any
# tolerance, and the window layer never shows its first tokens.
if ! sums=$(cd "$golden_dir" && sha256sum --check --quiet "$OLDPWD/tests/golden/SHA256SUMS" 2>&1); then
  failed="the golden data are not those of tests/golden/SHA256SUMS"
  echo "    $(head -n 1 <<<"$sums")"
fi

echo "4/5 register the K/V of a real system prompt, then attend from a second process"
"$relayctl" register "$prompt" "${named[@]}" | sed 's/^/    /'
"$relayctl" attend "$steps" "${named[@]}" | sed 's/^/    /' || failed="results differ from the recorded ones"
echo
"$relayctl" attend "$steps" "${named[@]}" --batch 32 --measure 50 | sed -n '/^relay/,$s/^/    /p' ||
  failed="results differ from the recorded ones"

echo "5/5 stop: SIGTERM"
kill -TERM "$server"
code=0
wait "$server" || code=$?
server=
[ "$code" -eq 0 ] || fail "relayd ended with exit code $code"
echo "    relayd drained and ended with exit code 0"
[ -z "$failed" ] || fail "$failed"
echo "quickstart: done. Next: $relayctl --help, $relayd --help, README.md"
