#!/usr/bin/env bash
# service/config/OPTIONS.md is what this relayd prints of its options.
# Usage: options.sh ROOT RELAYD. Exit code 0 clean, 1 it is old, 77 relayd is not built.
set -u
root=${1:-$(dirname "$0")/../..}
relayd=${2:-$root/build/release/service/relayd}
if [ ! -x "$relayd" ]; then
  echo "skipped: $relayd is not built"
  exit 77
fi
if ! "$relayd" --help-markdown | diff -u "$root/service/config/OPTIONS.md" -; then
  echo "options: write service/config/OPTIONS.md again: relayd --help-markdown"
  exit 1
fi
