#!/usr/bin/env python3
"""A table, and a plot, of what cpu_grid.py printed.

Usage: cpu_table.py [FILE] [--plot OUT.svg]

The table is Markdown: a line a cell, what does not hold marked by `!`: us above limit_us; relay
slower than 0.97 of plain; slower than PyTorch's relay or plain; less than 4 times as fast as its
relay where four floors fit into its time. Below it, each of these counted. --plot draws the cells,
the smallest floor first, times on a log scale.
"""

import argparse
import json
import math
import sys

COLUMNS = [
    "heads",
    "d",
    "B",
    "S",
    "ctx",
    "us",
    "plain",
    "bound",
    "share",
    "us/limit",
    "torch relay",
    "torch plain",
]
SERIES = [
    ("floor_us", "floor", "#999999"),
    ("limit_us", "limit", "#d08000"),
    ("us", "relayd", "#0060c0"),
    ("plain_us", "relayd, not shared", "#80b0e0"),
    ("torch_relay_us", "torch relay", "#c00000"),
    ("torch_plain_us", "torch plain", "#e09090"),
]


def verdicts(c):
    """Name of each rule: does it hold? Rules that say nothing of the cell are left out."""
    out = {
        "us <= limit_us": c["us"] <= c["limit_us"],
        "relay >= 0.97 of plain": c["plain_us"] >= 0.97 * c["us"],
        "same bits": c["same_bits"],
    }
    if "torch_relay_us" in c:
        out["not slower than torch's relay"] = c["torch_relay_us"] >= c["us"]
        out["not slower than torch's plain"] = c["torch_plain_us"] >= c["us"]
        if c["torch_relay_us"] >= 4 * c["floor_us"]:
            out["4 times torch's relay"] = c["torch_relay_us"] >= 4 * c["us"]
    if "error_l2" in c:
        out["error no worse than torch's relay"] = c["error_l2"] <= c["torch_relay_error_l2"]
    return out


def mark(text, ok):
    return text if ok else text + " !"


def row(c):
    v = verdicts(c)
    cells = [c["heads"], c["head_dim"], c["batch"], c["prompt"], c["context"], f"{c['us']:.0f}"]
    cells.append(mark(f"{c['plain_us'] / c['us']:.2f}x", v["relay >= 0.97 of plain"]))
    cells += [
        c["bound"],
        f"{c['share']:.2f}",
        mark(f"{c['us'] / c['limit_us']:.2f}", v["us <= limit_us"]),
    ]
    if "torch_relay_us" in c:
        ok = v["not slower than torch's relay"] and v.get("4 times torch's relay", True)
        cells.append(mark(f"{c['torch_relay_us'] / c['us']:.1f}x", ok))
        cells.append(
            mark(f"{c['torch_plain_us'] / c['us']:.1f}x", v["not slower than torch's plain"])
        )
    else:
        cells += ["", ""]
    return cells


def table(machines, cells):
    for m in machines:
        torch = f"; torch {m['torch']}" if "torch" in m else ""
        rates = ", ".join(f"{k} {v}" for k, v in m.items() if k.endswith(("gbs", "gflops", "_g")))
        print(f"{m['cpu']}, {m['threads']} threads, {m['isa']}: {rates}{torch}\n")
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for c in cells:
        print("| " + " | ".join(str(x) for x in row(c)) + " |")
    count = {}
    for c in cells:
        for name, ok in verdicts(c).items():
            n = count.setdefault(name, [0, 0])
            n[0] += ok
            n[1] += 1
    print()
    for name, (ok, of) in count.items():
        print(f"- {name}: {ok} of {of}")


def plot(cells, path):
    cells = sorted(cells, key=lambda c: c["floor_us"])
    left, top, width, height = 60, 20, 20 + 8 * len(cells), 420
    times = [c[key] for c in cells for key, _, _ in SERIES if key in c]
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))

    def at(i, us):
        return left + 14 + 8 * i, top + height * (high - math.log10(us)) / (high - low)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 180}" height="{top + height + 40}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    for e in range(low, high + 1):
        y = at(0, 10.0**e)[1]
        out.append(
            f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        )
        out.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**e:g} us</text>')
    for n, (key, name, colour) in enumerate(s for s in SERIES if s[0] in cells[0]):
        points = [at(i, c[key]) for i, c in enumerate(cells) if key in c]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        out.append(
            f'<text x="{left + width + 10}" y="{top + 14 + 18 * n}" fill="{colour}">{name}</text>'
        )
    out.append(
        f'<text x="{left + width / 2}" y="{top + height + 24}" text-anchor="middle">{len(cells)} cells, '
        "smallest floor first</text></svg>"
    )
    with open(path, "w") as f:
        f.write("\n".join(out) + "\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file", nargs="?")
    parser.add_argument("--plot")
    args = parser.parse_args()
    with open(args.file) if args.file else sys.stdin as f:
        lines = [json.loads(line) for line in f]
    cells = [x for x in lines if x["name"] == "cell"]
    if not cells:
        sys.exit("cpu_table: no cells")
    table([x for x in lines if x["name"] == "machine"], cells)
    if args.plot:
        plot(cells, args.plot)


main()
