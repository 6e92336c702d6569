#!/usr/bin/env bash
# Runs the examples with a relayd of their own and a virtual environment that is kept in the build
# folder. Usage: run.sh BUILD_DIR    (exit code 77: no virtual environment to be had)
set -u
here=$(cd "$(dirname "$0")" && pwd)
build=$(realpath "$1")
venv=$build/python-venv-$(sha256sum "$here/requirements.txt" | cut -c 1-12)
work=$(mktemp -d)
server=
trap 'if [ -n "$server" ]; then kill -KILL "$server"; fi; rm -rf "$work"' EXIT

if [ ! -e "$venv/ready" ]; then
  rm -rf "$venv"
  if ! { python3 -m venv "$venv" && "$venv/bin/pip" install -q -r "$here/requirements.txt"; } \
    >"$work/venv" 2>&1; then
    tail -n 5 "$work/venv"
    echo "no virtual environment with grpcio"
    exit 77
  fi
  touch "$venv/ready"
fi

mkfifo "$work/ready"
"$build/service/relayd" --listen "unix:$work/sock" --listen 127.0.0.1:0 --ready-fd 3 \
  3>"$work/ready" 2>"$work/log" &
server=$!
read -t 60 -r ready <"$work/ready" || true
case ${ready:-} in
'ready port='*) ;;
*)
  cat "$work/log"
  exit 1
  ;;
esac
failed=0
for example in grpcio_golden.py standard_services.py; do
  echo "== $example"
  "$venv/bin/python" "$here/$example" "127.0.0.1:${ready#ready port=}" || failed=1
done
kill -TERM "$server"
wait "$server" || failed=1
server=
exit "$failed"
