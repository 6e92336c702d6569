#!/usr/bin/env bash
# The quickstart's run, with the binaries of a build that is there.
# Usage: quickstart_test.sh BUILD_DIR
set -eu
cd "$(dirname "$0")/../.."
output=$(RELAY_BUILD_DIR=$1 deploy/quickstart.sh --no-build 2>&1) || {
  echo "$output"
  echo "FAIL the quickstart did not pass"
  exit 1
}
for pattern in 'registered demo/system-prompt: 656 tokens' '4 steps, 2 layers: 32 rows compared' \
  'match: largest error of out' '32 requests, p50 of' 'ended with exit code 0'; do
  grep -q "$pattern" <<<"$output" || {
    echo "$output"
    echo "FAIL it does not say: $pattern"
    exit 1
  }
done
echo "ok   quickstart"
