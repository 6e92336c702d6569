#!/usr/bin/env python3
"""Registers and spills of every GPU kernel, from what nvcc -Xptxas=-v printed.

Usage: tests/lint/registers.py LOG

Prints a table and fails where a kernel keeps registers in local memory, where ptxas says that it
put waits between wgmma instructions, and where LOG names no attention kernel. Must not know how
kernels are built.
"""
import re
import sys

ATTEND = re.compile(r"6attendINS_6configI(13__nv_bfloat16|6__half)Lb([01])ELi(\d+)ELi(\d+)ELb([01])ELi(\d)E")
SERIALISED = re.compile(r"wgmma.*serializ|serializ.*wgmma", re.IGNORECASE)


def name_of(mangled):
    """The name of variants.cmake, or the function's."""
    m = ATTEND.search(mangled)
    if not m:
        return re.sub(r"^_ZN\d+[a-z]+\d+([a-z_]+?)(I|E).*", r"\1", mangled)
    dtype, f8, dim, _, wgmma, groups = m.groups()
    engine = "pair" if groups == "2" else "wgmma" if wgmma == "1" else "mma"
    return "_".join([engine, "bf16" if "bfloat" in dtype else "f16"] + ["f8"] * int(f8) + [dim])


def kernels_of(lines):
    """Yields (name, architecture, registers, bytes spilled)."""
    name = arch = None
    spilled = 0
    for line in lines:
        if m := re.search(r"Compiling entry function '(\S+)' for '(\w+)'", line):
            name, arch, spilled = name_of(m[1]), m[2], 0
        elif m := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spilled = max(int(m[1]), int(m[2]))
        elif (m := re.search(r"Used (\d+) registers", line)) and name:
            yield name, arch, int(m[1]), spilled
            name = None


def main():
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 64
    with open(sys.argv[1], encoding="utf-8", errors="replace") as f:
        lines = f.read().splitlines()
    kernels = sorted(set(kernels_of(lines)))
    wrong = [line for line in lines if SERIALISED.search(line)]
    print(f"{'kernel':<20} {'for':<7} {'registers':>9} {'spilled':>8}")
    for name, arch, registers, spilled in kernels:
        print(f"{name:<20} {arch:<7} {registers:>9} {spilled:>6} B")
        if spilled:
            wrong.append(f"{name} for {arch} spills {spilled} bytes")
    if not any(name.startswith(("mma", "wgmma", "pair")) for name, *_ in kernels):
        wrong.append("no attention kernel was compiled")
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
