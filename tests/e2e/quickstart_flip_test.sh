#!/usr/bin/env bash
# One flipped byte of the golden data must fail the quickstart: by a result where the byte can be
# seen in one, by the checksum everywhere.
# Usage: quickstart_flip_test.sh BUILD_DIR
set -eu
cd "$(dirname "$0")/../.."
build=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
prompt=gemma3-270m-prompt.safetensors
steps=gemma3-270m-steps.safetensors
failed=0

# flip FILE OFFSET MASK: in the copy.
flip() {
  local byte
  byte=$(od -An -tu1 -j "$2" -N 1 "$work/$1")
  # shellcheck disable=SC2059
  printf "\\x$(printf %x $((byte ^ $3)))" |
    dd of="$work/$1" bs=1 seek="$2" conv=notrunc status=none
}
# try NAME WANT PATTERN: WANT is pass or fail.
try() {
  local got=pass output
  output=$(RELAY_BUILD_DIR=$build RELAY_GOLDEN_DIR=$work deploy/quickstart.sh --no-build 2>&1) ||
    got=fail
  if [ "$got" != "$2" ] || ! grep -q -- "$3" <<<"$output"; then
    echo "FAIL $1: ${got}ed, wanted to $2 and say: $3"
    sed 's/^/  /' <<<"$output"
    failed=1
  else
    echo "ok   $1"
  fi
}
# Data of the files begins after 8 bytes and the header they tell.
data_of() {
  echo $((8 + $(od -An -tu8 -N 8 "$work/$1")))
}
fresh() {
  cp tests/golden/$prompt tests/golden/$steps "$work"
  chmod u+w "$work"/*.safetensors
}

fresh
try "an unflipped copy" pass 'match: largest error'
# layers.1.k, token 300: the upper byte of a bf16, so its exponent.
flip $prompt $(($(data_of $prompt) + 671744 + 300 * 512 + 101)) 64
try "a flipped byte of the prompt's K" fail 'MISMATCH: '
fresh
# layers.0.out, element 1000: the exponent of a float32.
flip $steps $(($(data_of $steps) + 17152 + 4 * 1000 + 3)) 64
try "a flipped byte of an expected result" fail 'MISMATCH: '
fresh
# layers.0.v, token 3, the lowest bit: behind the window, and below any tolerance.
flip $prompt $(($(data_of $prompt) + 335872 + 3 * 512)) 1
try "a flipped byte that no result shows" fail 'SHA256SUMS'
exit "$failed"
