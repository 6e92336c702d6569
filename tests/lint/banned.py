#!/usr/bin/env python3
"""Calls nobody makes here, each with its reason.

Usage: banned.py [ROOT]. Exit code 0 clean, 1 problems.
"""

import re
import sys

import source

EVERYWHERE = {
    "strcpy": "no bound; snprintf or memcpy",
    "strcat": "no bound; snprintf",
    "strncat": "its bound is not the buffer's size; snprintf",
    "sprintf": "no bound; snprintf",
    "vsprintf": "no bound; vsnprintf",
    "gets": "no bound; fgets",
    "atoi": "no errors; strtol with a look at the end",
    "atol": "no errors; strtol with a look at the end",
    "atoll": "no errors; strtoll with a look at the end",
    "atof": "no errors; strtod with a look at the end",
    "rand": "hidden state shared by threads; testlib/rng.h, or getrandom",
    "srand": "hidden state shared by threads; testlib/rng.h, or getrandom",
    "random": "hidden state shared by threads; testlib/rng.h, or getrandom",
    "alloca": "no limit, no error",
    "strtok": "hidden state shared by threads; strtok_r",
    "strerror_l": "strerror",
    "tmpnam": "a race; mkstemp",
    "mktemp": "a race; mkstemp",
    "gmtime": "hidden state shared by threads; gmtime_r",
    "localtime": "hidden state shared by threads; localtime_r",
}
# A library returns codes and logs through service/base/log: it neither ends nor writes for its host.
LIBRARIES = {name: "libraries return codes" for name in
             ("exit", "_exit", "_Exit", "quick_exit", "abort", "assert")}
LIBRARIES.update({name: "libraries do not write to stdout or stderr; RELAYD_LOG, or the caller's "
                  "stream" for name in ("printf", "vprintf", "puts", "putchar", "perror", "psignal")})

# What is decided by time is decided by the monotonic clock: the other one jumps. It is shown to people
# by these two files only.
WALL_CLOCK = re.compile(r"\bCLOCK_REALTIME\w*|\bGPR_CLOCK_REALTIME\b|"
                        r"(?<![\w.>])(?:time|gettimeofday|timespec_get|ftime)\s*\(")
WALL_CLOCK_FILES = ("service/base/clock.c", "service/base/log.c")
TIMED_WAIT = re.compile(r"\bpthread_cond_timedwait\s*\(")

STANDARD_STREAM = re.compile(r"\bf(?:printf|puts|putc|write)\s*\([^;]*\b(?:stderr|stdout)\b")
# calloc and reallocarray check the product; malloc and realloc take what overflowed.
PRODUCT = re.compile(r"\b(malloc|realloc)\s*\(([^;{}]*)")


def is_library(path):
    return not path.startswith(("tests/", "client/cli/", "proto/gen/")) and path != "service/main.c"


def argument_has_product(text):
    """Is the size a plain product? Within the call's own parentheses; sizeof(*p) is none, and a sum
    (a head and its array) is its author's to check: no function does it for him."""
    depth, end = 1, len(text)
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0:
            end = i
            break
    text = text[:end]
    text = re.sub(r"\bsizeof\s*\([^()]*\)|\bsizeof\s+\w+", "sizeof_", text)
    flat = text
    while "(" in flat and re.search(r"\([^()]*\)", flat):
        flat = re.sub(r"\([^()]*\)", "_", flat)
    if "+" in flat:
        return False
    return re.search(r"[\w)\]]\s*\*\s*[\w(]", text) is not None


def check(path, text):
    code = source.code_only(text)
    rules = dict(EVERYWHERE)
    if is_library(path):
        rules.update(LIBRARIES)
    for name, reason in rules.items():
        # Not a member, not a declaration of an attribute such as format(printf, 1, 2).
        for match in re.finditer(r"(?<![\w.>])%s\s*\(" % name, code):
            yield match.start(), "%s: %s" % (name, reason)
    if is_library(path):
        for match in WALL_CLOCK.finditer(code):
            if path not in WALL_CLOCK_FILES:
                yield match.start(), "the wall clock: it jumps; relayd_clock_now_ns, CLOCK_MONOTONIC"
        for match in TIMED_WAIT.finditer(code):
            if "pthread_condattr_setclock" not in code:
                yield match.start(), ("pthread_cond_timedwait on the wall clock: "
                                      "pthread_condattr_setclock, CLOCK_MONOTONIC")
        for match in STANDARD_STREAM.finditer(code):
            yield match.start(), "standard streams: libraries log, or write to a stream they are given"
        for match in PRODUCT.finditer(code):
            if argument_has_product(match.group(2)):
                yield match.start(), ("%s of a product: calloc or reallocarray, which check it"
                                      % match.group(1))


def main():
    root = source.root_from_args()
    paths = source.files(root, tops=source.ROOMS_TOP + ("tests",))
    problems = []
    for path in paths:
        text = source.read(root, path)
        for offset, problem in check(path, text):
            problems.append("%s:%d: %s" % (path, source.line_of(text, offset), problem))
    return source.finish("banned", problems, len(paths))


if __name__ == "__main__":
    sys.exit(main())
