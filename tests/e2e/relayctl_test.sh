#!/usr/bin/env bash
# relayctl against a real relayd: every command, what it prints and its exit code.
# Usage: relayctl_test.sh BUILD_DIR
set -u
cd "$(dirname "$0")/../.." || exit 1
build=$1
relayctl=$build/client/relayctl
golden=${RELAY_GOLDEN_DIR:-tests/golden}
prompt=$golden/gemma3-270m-prompt.safetensors
steps=$golden/gemma3-270m-steps.safetensors
work=$(mktemp -d)
server=
trap 'if [ -n "$server" ]; then kill -KILL "$server"; fi; rm -rf "$work"' EXIT
failed=0

# check NAME EXIT_CODE PATTERN COMMAND...: the exit code, and a line that matches on either stream.
check() {
  local name=$1 want=$2 pattern=$3 code
  shift 3
  "$@" >"$work/out" 2>&1
  code=$?
  if [ "$code" -ne "$want" ] || ! grep -Eq -- "$pattern" "$work/out"; then
    echo "FAIL $name: exit code $code (wanted $want), wanted /$pattern/ in:"
    sed 's/^/  /' "$work/out"
    failed=1
  else
    echo "ok   $name"
  fi
}

export RELAY_TARGET="unix://$work/sock"
check "health without a server" 1 'UNAVAILABLE: no server at unix://' "$relayctl" health
mkfifo "$work/ready"
"$build/service/relayd" --listen "unix:$work/sock" --listen 127.0.0.1:0 --ready-fd 3 \
  3>"$work/ready" 2>"$work/log" &
server=$!
read -t 60 -r ready <"$work/ready" || true
case ${ready:-} in
'ready port='*) port=${ready#ready port=} ;;
*)
  cat "$work/log"
  exit 1
  ;;
esac
key=(--model-key m)

check "health" 0 '^\{"serving":true\}$' "$relayctl" health
check "health as text" 0 '^serving +yes$' "$relayctl" health --text
check "info" 0 '"backend":"cpu".*"prompts":0' "$relayctl" info
check "info over TCP" 0 '"sessions":0' "$relayctl" --target "127.0.0.1:$port" info
check "register" 0 '"prompt_id":"a/b".*"num_tokens":656.*"labels":\{"k":"v"\}' \
  "$relayctl" register "$prompt" "${key[@]}" --id a/b --label k=v --variant x
check "register the same again" 0 '^registered a/b: 656 tokens' \
  "$relayctl" register "$prompt" "${key[@]}" --id a/b --variant x --text
check "register a bad id" 1 'INVALID_ARGUMENT: .*prompt_id' \
  "$relayctl" register "$prompt" "${key[@]}" --id 'a b'
check "register no file" 1 'NOT_FOUND: .*cannot be opened' \
  "$relayctl" register "$work/none" "${key[@]}" --id c
check "register what is no such file" 1 'INVALID_ARGUMENT: safetensors' \
  "$relayctl" register "$0" "${key[@]}" --id c
check "register a file without K/V" 1 'INVALID_ARGUMENT: the file has no tensor layers.0.k' \
  "$relayctl" register "$steps" "${key[@]}" --id c
check "list" 0 '^\{"prompts":\[\{"prompt_id":"a/b".*\}\]\}$' "$relayctl" list
check "list by prefix" 0 '^\{"prompts":\[\]\}$' "$relayctl" list --prefix b
check "list as text" 0 '^a/b +m +656 ' "$relayctl" list --text
check "get" 0 '"variant":"x"' "$relayctl" get a/b "${key[@]}"
check "get of another generation" 1 'ABORTED' "$relayctl" get a/b "${key[@]}" --generation 5
check "update" 0 '"idle_ttl_ms":9000000.*"pinned":true' \
  "$relayctl" update a/b "${key[@]}" --pin --idle-ttl-ms 9000000
check "attend" 0 '"rows_compared":32,.*"match":true' \
  "$relayctl" attend "$steps" "${key[@]}" --id a/b --variant x
check "attend plain" 0 '^match: ' \
  "$relayctl" attend "$steps" "${key[@]}" --id a/b --variant x --sharing never --text
check "attend and measure" 0 '"relay":\{"calls":3,.*"plain":\{"calls":3,' \
  "$relayctl" attend "$steps" "${key[@]}" --id a/b --variant x --batch 9 --measure 3
check "attend with no tolerance" 3 '^MISMATCH: ' \
  "$relayctl" attend "$steps" "${key[@]}" --id a/b --variant x --text --out-tolerance 0
check "attend of another variant" 1 'FAILED_PRECONDITION: ' \
  "$relayctl" attend "$steps" "${key[@]}" --id a/b
check "attend on no prompt" 1 'NOT_FOUND: ' "$relayctl" attend "$steps" "${key[@]}" --id none
check "unregister" 0 '"prompt_id":"a/b"' "$relayctl" unregister a/b "${key[@]}"
check "unregister again" 1 'NOT_FOUND: ' "$relayctl" unregister a/b "${key[@]}"
bench=(bench --heads 4/2 --head-dim 64 --batch 3 --prompt 300 --context 7 --layers 2 --steps 4)
check "bench" 0 '"prompt_layer_bytes":153600,"relay":\{"calls":16,.*"plain":\{"calls":16,.*speedup' \
  "$relayctl" "${bench[@]}"
check "bench, one kind, aligned" 0 '"dtype":"F32","sessions":3.*"relay":\{"calls":24,[^p]*' \
  "$relayctl" "${bench[@]}" --sharing auto --dtype f32 --sessions 3 --align-us 1000
check "bench as text" 0 '^plain +[1-9].* KiB ' "$relayctl" "${bench[@]}" --sharing never --text
check "bench of no such heads" 2 'heads cannot be' "$relayctl" bench --heads 5/2
check "top" 0 '"launches":[1-9].*"prompt_list":\[\]\}$' "$relayctl" top --once
check "top as text" 0 '^sessions 0  requests 0 ' "$relayctl" top --once --text
check "nothing is left" 0 '"prompt_bytes_used":0,.*"sessions":0,"requests":0,"prompts":0' \
  "$relayctl" info
check "wrong usage" 2 'what is "extra"' "$relayctl" info extra
check "help" 0 '^usage: relayctl attend FILE' "$relayctl" attend --help

kill -TERM "$server"
wait "$server"
code=$?
server=
if [ "$code" -ne 0 ]; then
  echo "FAIL relayd ended with exit code $code"
  failed=1
fi
exit "$failed"
