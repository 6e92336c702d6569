#!/usr/bin/env python3
"""What others build on is commented: public headers say their purpose and threading, their functions
what they do; the contract's messages and fields say shape, dtype and unit.

A group of declarations without blank lines between them shares the comment above its first, or one
inside it. Usage: comments.py [ROOT]. Exit code 0 clean, 1 problems.
"""

import re
import sys

import source

PUBLIC = ("kernels/include", "client/include")
# A header may lean on the one whose types it continues.
THREADS = re.compile(r"thread|pure|immutable|rules of \w+\.h", re.IGNORECASE)


def groups(text):
    """(first line number, lines) of runs without an empty line."""
    run, first = [], 0
    for number, line in enumerate(text.split("\n") + [""], 1):
        if line.strip():
            if not run:
                first = number
            run.append(line)
        elif run:
            yield first, run
            run = []


def check_header(path, text):
    head = re.match(r"\s*/\*(.*?)\*/", text, re.DOTALL)
    if head is None or len(head.group(1).split()) < 5:
        yield 1, "no comment at the head that says what the header is for"
    elif not THREADS.search(head.group(1)):
        yield 1, "the head does not say which threads may use it"
    for first, run in groups(text):
        declares = any(re.search(r"\bRELAY_EXPORT\b.*\(|\bRELAY_EXPORT\b", line) and
                       not line.lstrip().startswith("#define") for line in run)
        if declares and not any("/*" in line or "*/" in line for line in run):
            yield first, "functions without a comment"


def check_proto(path, text):
    for first, run in groups(text):
        declares = [line for line in run
                    if re.match(r"\s*(rpc |message |enum |service |(repeated )?[\w.]+ \w+ = \d+)", line)]
        if declares and not any("//" in line for line in run):
            yield first, "no comment on: %s" % declares[0].strip()


def main():
    root = source.root_from_args()
    headers = source.files(root, tops=PUBLIC, endings=(".h",))
    protos = source.files(root, tops=("proto/relay",), endings=(".proto",))
    problems = []
    for paths, check in ((headers, check_header), (protos, check_proto)):
        for path in paths:
            for line, problem in check(path, source.read(root, path)):
                problems.append("%s:%d: %s" % (path, line, problem))
    return source.finish("comments", problems, len(headers) + len(protos))


if __name__ == "__main__":
    sys.exit(main())
