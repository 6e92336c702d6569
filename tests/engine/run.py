"""Runs the engine tests: every function test_* of the modules *_test.py, in their order.

A test takes the harness; what it returns, if anything, is printed. It fails by raising.
"""

import argparse
import importlib
import os
import sys
import time
import traceback
import unittest
from pathlib import Path

MODULES = ["package", "seams", "memory", "gemma", "examples"]


class Harness:
    """What tests need to know: the relayd to start, and where what is costly to make is kept."""

    def __init__(self, relayd, cache):
        self.relayd, self.cache = Path(relayd), Path(cache)
        self.shared = {}  # between the tests of a module

    def server(self, *options, **kwargs):
        from server import Server

        return Server(self.relayd, "--backend", "cpu", *options, **kwargs)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--relayd", required=True)
    parser.add_argument("--cache", required=True)
    parser.add_argument("--only", action="append", choices=MODULES)
    parser.add_argument("--match", default="", help="only tests whose name holds this")
    parser.add_argument("--prepare", action="store_true", help="only make the converted weights")
    args = parser.parse_args()
    if args.prepare:
        return prepare(Harness(args.relayd, args.cache))
    passed = skipped = 0
    failures = []
    began = time.monotonic()
    for name in args.only or MODULES:
        harness = Harness(args.relayd, args.cache)
        print(f"== {name}", flush=True)
        module = importlib.import_module(f"{name}_test")
        for test in [v for k, v in vars(module).items() if k.startswith("test_") and args.match in k]:
            start = time.monotonic()
            try:
                said = test(harness)
                passed += 1
                verdict = "ok  "
            except unittest.SkipTest as reason:
                skipped += 1
                verdict, said = "skip", reason
            except Exception as error:
                failures.append(f"{name}.{test.__name__}: {error!r}"[:500])
                verdict, said = "FAIL", traceback.format_exc()
            lines = str(said).splitlines() if said is not None else []
            print(f"{verdict} {test.__name__} ({time.monotonic() - start:.1f} s)", *lines, sep="\n     ", flush=True)
        close = getattr(module, "close", None)
        if close is not None:
            close(harness)
    print(f"{time.monotonic() - began:.0f} s")
    print(*(f"FAIL {failure}" for failure in failures), sep="\n", end="\n" if failures else "")
    print(f"{passed} passed, {len(failures)} failed, {skipped} skipped")
    sys.stdout.flush()
    os._exit(1 if failures or not passed else 0)  # whatever a failed test left open


def prepare(harness):
    import gemma

    print(gemma.folder(harness))


main()
