#!/usr/bin/env python3
"""Whether wgmma kernels keep their queries, from their machine code.

Usage: tests/lint/operands.py FILE...

A FILE is a cubin, taken apart by nvdisasm (on the PATH), or what nvdisasm -c printed of one. A
kernel's queries are A operands in registers of products with keys, through all of a unit; weights
are those of products with values. ptxas 13.0 was seen to give the queries' registers to the weights
(head dim 64), without a word: the kernel then computes other scores from its second tile on. Fails
where the two share a register, and where no file has such products. Must not know what kernels are
built.
"""
import re
import shutil
import subprocess
import sys

# D, A in registers, the descriptor of B: transposed for values.
PRODUCT = re.compile(r"HGMMA\.\S+ R\d+, R(\d+), gdesc\[UR\d+\](\.tnspB)?")
OPERAND = 4  # registers of A


def text_of(path):
    if not path.endswith(".cubin"):
        with open(path, encoding="utf-8") as f:
            return f.read()
    return subprocess.run(["nvdisasm", "-c", path], check=True, capture_output=True, text=True).stdout


def operands_of(text):
    """Registers of A of products with keys, and with values."""
    found = (set(), set())
    for first, of_values in PRODUCT.findall(text):
        found[bool(of_values)].update(range(int(first), int(first) + OPERAND))
    return found


def main():
    if any(path.endswith(".cubin") for path in sys.argv[1:]) and shutil.which("nvdisasm") is None:
        print("there is no nvdisasm")
        return 77
    seen = bad = 0
    for path in sys.argv[1:]:
        queries, weights = operands_of(text_of(path))
        shared = sorted(queries & weights)
        seen += bool(queries and weights)
        if shared:
            bad += 1
            print(f"{path}: R{shared[0]} to R{shared[-1]} are of queries and of weights")
    print(f"{seen} kernels with queries in registers, {bad} of them lose some")
    return 1 if bad or not seen else 0


if __name__ == "__main__":
    sys.exit(main())
