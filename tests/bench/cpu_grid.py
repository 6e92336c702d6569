#!/usr/bin/env python3
"""The cpu backend on a grid of cells, and with --peers PyTorch's attention beside it, by turns.

Prints a JSON line for the machine and one a cell: what cpu_roofline prints (us, plain_us, bound,
share, limit_us ..) and, with --peers, torch_relay_us, torch_plain_us and the errors against fp64 of
all three on the same tensors, where those are small enough to be handed over. K/V comes from memory:
layers of more than four times the last-level cache are walked.

--file FILE keeps what is printed; a cell that is in it is not measured again, so an interrupted run
goes on where it was. The time for each cell follows from what is left of --minutes.
"""

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HEADS = ["32/32", "32/8", "8/1", "4/1:256"]
SHARED_MAX = 64 << 20  # bytes of K/V of a cell that is handed to the peer
TURNS = 4


def numbers(text):
    return [int(x) for x in text.split(",")]


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--build", default="build/release", help="build folder (build/release)")
    parser.add_argument("--peers", action="store_true", help="measure PyTorch too; needs torch")
    parser.add_argument(
        "--heads", default=",".join(HEADS), help="Q/KV or Q/KV:DIM, .. (%(default)s)"
    )
    parser.add_argument("--batch", type=numbers, default=[1, 8, 32, 64, 128])
    parser.add_argument("--prompt", type=numbers, default=[512, 2048, 8192])
    parser.add_argument("--context", type=numbers, default=[128, 1024])
    parser.add_argument(
        "--cells", default="", metavar="FROM:TO", help="only these of the grid, counted from 0"
    )
    parser.add_argument(
        "--minutes", type=float, default=12.0, help="for the whole grid, about (%(default)s)"
    )
    parser.add_argument("--file", type=Path, help="keep the lines here and go on from it")
    parser.add_argument("--isa", default="")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--nice", default="", help="a command in front of cpu_roofline")
    return parser.parse_args()


def grid(args):
    cells = []
    for heads, b, s, c in itertools.product(
        args.heads.split(","), args.batch, args.prompt, args.context
    ):
        heads, _, dim = heads.partition(":")
        q, _, kv = heads.partition("/")
        cells.append((int(q), int(kv or q), int(dim or 128), b, s, c))
    first, _, last = args.cells.partition(":")
    return cells[int(first or 0) : int(last) if last else len(cells)]


def key_of(line):
    q, _, kv = line["heads"].partition("/")
    return (int(q), int(kv), line["head_dim"], line["batch"], line["prompt"], line["context"])


class Ours:
    """cpu_roofline, taking orders."""

    def __init__(self, args):
        command = args.nice.split() + [f"{args.build}/tests/bench/cpu_roofline", "--serve"]
        command += ["--isa", args.isa] if args.isa else []
        command += ["--threads", str(args.threads)] if args.threads else []
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.machine = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"cpu_grid: cpu_roofline ended with {self.process.wait()}")
        return json.loads(line)

    def order(self, line):
        print(line, file=self.process.stdin, flush=True)
        return self.answer()

    def close(self):
        self.process.stdin.close()
        return self.process.wait()


def measure(ours, peers, cell, seconds):
    """One cell's line. `seconds` are shared by all that is measured."""
    q, kv, dim, batch, prompt, context = cell
    shared = 4 * kv * dim * (prompt + batch * context) <= SHARED_MAX
    folder = tempfile.mkdtemp(prefix="cpu_grid_") if peers and shared else ""
    try:
        ours.order(f"cell {' '.join(map(str, cell))} {folder}".rstrip())
        peer = peers.Cell(cell, folder) if peers else None
        parts = 3 if peer else 1
        end = time.monotonic() + seconds
        for turn in range(TURNS):
            if turn >= 2 and time.monotonic() > end:
                break  # a large cell
            slice_s = seconds / TURNS / parts
            ours.order(f"time {max(1, int(slice_s * 1000))}")
            if peer:
                peer.time_relay(slice_s)
                peer.time_plain(slice_s)
                time.sleep(0.002)  # until its threads have stopped waiting for more
        line = ours.order("end")
        if peer:
            line |= peer.medians()
            line |= peer.errors() if folder else {}
        return line
    finally:
        if folder:
            shutil.rmtree(folder)


def main():
    args = arguments()
    peers = None
    if args.peers:
        import torch_peer as peers
    done = {}
    if args.file and args.file.exists():
        lines = [json.loads(line) for line in args.file.read_text().splitlines()]
        done = {key_of(line): line for line in lines if line["name"] == "cell"}
    kept = args.file.open("a") if args.file else None

    def say(line, keep=True):
        print(json.dumps(line), flush=True)
        if keep and kept:
            print(json.dumps(line), file=kept, flush=True)

    ours = Ours(args)
    say(ours.machine | ({"torch": peers.version()} if peers else {}))
    end = time.monotonic() + args.minutes * 60
    overhead = 1.0  # of a cell, beside measuring; learnt
    cells = grid(args)
    todo = [c for c in cells if c not in done]
    for c in cells:
        if c in done:
            say(done[c], keep=False)
    for i, cell in enumerate(todo):
        start = time.monotonic()
        seconds = (end - start) / (len(todo) - i) - overhead
        seconds = min(max(seconds, 0.2), 6.0)
        say(measure(ours, peers, cell, seconds))
        overhead += 0.2 * (max(0.0, time.monotonic() - start - seconds) - overhead)
    return ours.close()


if __name__ == "__main__":
    sys.exit(main())
