#!/usr/bin/env bash
# A real engine on relayd: the Python package, the seam for Transformers on small random models, and
# Gemma 3 270M with real weights. Ends with "N passed, N failed".
#
# Usage: run.sh BUILD_DIR [--only MODULE]...   (package, seams, gemma, examples; default: all)
# BUILD_DIR holds relayd and librelay, built. The environment (1.8 GB) and the converted weights
# (1.1 GB) are kept there, named by what they are made from; ENGINE_CACHE names another place.
# Exit code: 0, 1 something failed, 77 no environment to be had.
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$(realpath "$here/../..")
build=$(realpath "$1") || exit 1
shift
cache=${ENGINE_CACHE:-$build}
venv=$cache/engine-venv-$(cat "$here/requirements.txt" "$here/stub_cuda.py" | sha256sum | cut -c 1-12)

if [ ! -e "$venv/ready" ]; then
  echo "making $venv"
  rm -rf "$venv"
  if ! { python3 -m venv "$venv" \
    && "$venv/bin/pip" install -q --no-deps -r "$here/requirements.txt" \
    && "$venv/bin/python" "$here/stub_cuda.py" "$venv" \
    && "$venv/bin/python" -c 'import torch, transformers, accelerate, gguf'; } >"$venv.log" 2>&1; then
    tail -n 5 "$venv.log"
    echo "no environment with torch and transformers"
    exit 77
  fi
  touch "$venv/ready"
fi
# The package as a user gets it, around this build's librelay.
if ! RELAY_LIBRARY=$build/client/librelay.so "$venv/bin/pip" install -q --no-deps \
  --no-build-isolation --force-reinstall "$root/client/python" >"$venv.log" 2>&1; then
  tail -n 20 "$venv.log"
  echo "0 passed, 1 failed"
  exit 1
fi
# Waiting threads that spin would take the cores from relayd.
export HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=PASSIVE
unset RELAY_LIBRARY
exec "$venv/bin/python" "$here/run.py" --relayd "$build/service/relayd" --cache "$cache" "$@"
