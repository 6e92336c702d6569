#!/usr/bin/env python3
"""Prints the longest files and functions: past about 500 and 70 lines, look for a second module.

Usage: sizes.py [ROOT]. Exit code 0, always: sizes are for people to judge.
"""

import re
import statistics
import sys

import source

SHOWN = 10
FUNCTION = re.compile(r"(\w+)\([^;{}]*\)\s*\Z")


def functions(text):
    """(name, first line, lines): with our format a body begins and ends in column 0."""
    lines = source.code_only(text).split("\n")
    start = None
    for i, line in enumerate(lines):
        if line == "{" and start is None:
            match = FUNCTION.search("\n".join(lines[max(0, i - 12):i]))
            start = (match.group(1) if match else "?", i)
        elif line.startswith("}") and start is not None:
            yield start[0], start[1], i - start[1] + 1
            start = None


def main():
    root = source.root_from_args()
    paths = [p for p in source.files(root, tops=source.ROOMS_TOP + ("tests",))
             if p.endswith((".c", ".h", ".cu", ".cuh"))]
    sized, bodies = [], []
    for path in paths:
        text = source.read(root, path)
        sized.append((text.count("\n"), path))
        for name, line, count in functions(text):
            bodies.append((count, "%s:%d %s" % (path, line, name)))
    if sized:
        print("%d files, median %d lines" % (len(sized), statistics.median(n for n, _ in sized)))
    for title, rows in (("files", sized), ("functions", bodies)):
        print("longest %s:" % title)
        for count, what in sorted(rows, reverse=True)[:SHOWN]:
            print("%6d %s" % (count, what))
    return 0


if __name__ == "__main__":
    sys.exit(main())
