#!/bin/sh
# Writes a fresh seed corpus, replays it, then fuzzes from it for a bounded while.
#
#   run.sh REPLAY CORPUS [FUZZER]
#
# Exit 77 when there is no libFuzzer build; a failed replay fails first.
set -eu
replay=$1
corpus=$2
fuzzer=${3:-}

rm -rf "$corpus"
mkdir -p "$corpus"
"$replay" --corpus "$corpus"
"$replay" "$corpus"/*
if [ -z "$fuzzer" ]; then
    echo "skipped: no clang with a libFuzzer runtime"
    exit 77
fi
cd "$(dirname "$corpus")"
exec "$fuzzer" -runs=200000 -max_total_time=20 -max_len=4096 -print_final_stats=1 "$corpus"
