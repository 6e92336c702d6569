#!/usr/bin/env bash
# Runs benches and says what they measured; never fails on slowness.
#
# Usage: tests/bench/run.sh rpc [--json]       what RPCs cost, against a bare gRPC echo
#        tests/bench/run.sh kernels [OPTIONS]  kernels_bench, which explains its options
#        tests/bench/run.sh pool [--threads N] what handing a small step to the threads costs
#        tests/bench/run.sh service [--json]   a step of 32 rows through relayd, over the library call
#        tests/bench/run.sh cpu [--peers] [--json] [OPTIONS]
#                                              the cpu backend on a grid of cells against its machine,
#                                              with --peers PyTorch by turns with it, in 15 minutes;
#                                              cpu_grid.py explains the OPTIONS (a part of the grid, a
#                                              file to go on from)
#        tests/bench/run.sh gpu [--peers] [OPTIONS]
#                                              the cuda backend on a grid of cells (preset cuda, a GPU),
#                                              beside what peers took on an H200; gpu_bench explains
#                                              its OPTIONS. With --peers those of them that are
#                                              installed take turns with ours; gpu_peers.py explains
#                                              the OPTIONS then
#   --json            one JSON object a line, as the benches print them
#   RELAY_BUILD_DIR   build folder (build/release); its relayd, relayctl and benches must be built
#   RELAY_BENCH_PYTHON  a Python with torch, for --peers; without it the environment that
#                     tests/engine/run.sh made (cpu), or python3 (gpu)
#   RELAY_BENCH_NICE  a command in front of all, e.g. "chrt -f 10" on a machine with other work
#
# rpc is: unary and stream calls of 384 KiB in and 256 KiB out, by turns with a bare C core echo of
# the same bytes, over a unix socket and TCP, and once more with an echo that keeps its heap as
# relayd does; admission of a step of 256 requests and its plan; two sessions on one prompt of 8192
# tokens, shared against plain. cpu and gpu end with a table, and a plot in BUILD/cpu.svg or gpu.svg;
# gpu's build folder is build/cuda.
set -eu
cd "$(dirname "$0")/../.."
build=${RELAY_BUILD_DIR:-build/release}
read -r -a nice <<<"${RELAY_BENCH_NICE:-env}"

usage() {
  sed -n '2,30s/^# \{0,1\}//p' "$0" >&2
  exit 64
}

show() {
  if [ "$json" = yes ]; then
    cat
  else
    sed -e 's/[{}"]//g' -e 's/^/\n/' -e 's/, /\n  /g'
  fi
}

# Two sessions on a long prompt, against a relayd of its own.
shared_prompt() {
  local work server
  work=$(mktemp -d)
  "${nice[@]}" "$build/service/relayd" --listen "unix:$work/sock" 2>"$work/log" &
  server=$!
  trap '{ kill "$server"; wait "$server"; } 2>/dev/null; rm -rf "$work"' RETURN
  for _ in $(seq 200); do
    "$build/client/relayctl" --target "unix://$work/sock" health >/dev/null 2>&1 && break
    sleep 0.1
  done
  "${nice[@]}" "$build/client/relayctl" --target "unix://$work/sock" bench --prompt 8192 --batch 16 \
    --layers 4 --sessions 2 --steps 20 --align-us 200000 --json
}

# A Python that has torch.
peer_python() {
  local cache=${ENGINE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/relay-engine} venv
  for venv in "$cache"/engine-venv-*; do
    if [ -e "$venv/ready" ]; then
      echo "$venv/bin/python"
      return
    fi
  done
  echo "run.sh: no torch in $cache; tests/engine/run.sh $build makes an environment" >&2
  return 1
}

cpu() {
  local json=no python=python3 peers="" lines
  while [ $# -gt 0 ]; do
    case $1 in
    --json) json=yes ;;
    --peers) peers=--peers ;;
    *) break ;;
    esac
    shift
  done
  if [ -n "$peers" ]; then
    python=${RELAY_BENCH_PYTHON:-$(peer_python)} || exit 1
  fi
  set -- "${nice[@]}" "$python" tests/bench/cpu_grid.py --build "$build" ${peers:+"$peers"} "$@"
  if [ "$json" = yes ]; then
    exec "$@"
  fi
  lines=$(mktemp)
  # shellcheck disable=SC2064 # the name as it is now
  trap "rm -f '$lines'" EXIT
  "$@" | tee "$lines" >&2
  python3 tests/bench/cpu_table.py "$lines" --plot "$build/cpu.svg"
}

gpu() {
  local work peers=tests/bench/peers_h200.jsonl
  build=${RELAY_BUILD_DIR:-build/cuda}
  work=$(mktemp -d)
  # shellcheck disable=SC2064 # the name as it is now
  trap "rm -rf '$work'" EXIT
  if [ "${1:-}" = --peers ]; then
    shift
    "${RELAY_BENCH_PYTHON:-python3}" tests/bench/gpu_peers.py --bench "$build/tests/bench/gpu_bench" \
      --out "$work/ours" --peers-out "$work/peers" "$@" >&2
    peers=$work/peers
  else
    [ $# -gt 0 ] || set -- --grid
    "$build/tests/bench/gpu_bench" --out "$work/ours" "$@" >&2
  fi
  python3 tests/bench/gpu_table.py "$work/ours" --peers "$peers" --plot "$build/gpu.svg"
}

[ $# -ge 1 ] || usage
what=$1
shift
case $what in
kernels | pool) exec "${nice[@]}" "$build/tests/bench/${what}_bench" "$@" ;;
service)
  exec python3 tests/bench/service_overhead.py --build "$build" --nice "${nice[*]}" "$@"
  ;;
cpu)
  cpu "$@"
  exit
  ;;
gpu)
  gpu "$@"
  exit
  ;;
rpc) ;;
*) usage ;;
esac
json=no
case ${1:-} in
'') ;;
--json) json=yes ;;
*) usage ;;
esac
for program in service/relayd client/relayctl tests/bench/rpc_bench tests/bench/rpc_admission_bench; do
  if [ ! -x "$build/$program" ]; then
    echo "run.sh: $build/$program is not built" >&2
    exit 1
  fi
done
{
  "${nice[@]}" "$build/tests/bench/rpc_bench"
  "${nice[@]}" "$build/tests/bench/rpc_bench" --tcp
  "${nice[@]}" "$build/tests/bench/rpc_bench" --keep-heap
  "${nice[@]}" "$build/tests/bench/rpc_admission_bench"
  shared_prompt
} | show
