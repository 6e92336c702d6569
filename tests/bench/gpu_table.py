#!/usr/bin/env python3
"""Tables, and a plot, of what gpu_bench --out wrote.

Usage: gpu_table.py FILE [--peers FILE] [--plot OUT.svg]

A Markdown table for each head count and context length: microseconds a layer, and the share of the
roofline, floor_us / us. With --peers (JSON lines: heads, batch, prompt, context, and one number for
each peer; peers_h200.jsonl has those of FlashInfer 0.7.2.post1 and fa3-fwd 0.0.3 on one H200, in a
run of their own) ours / the best of them, `!` where ours is more than 0.98 of it. Below, the cells
counted. --plot draws the share of the roofline: a panel for each table, batch by prompt.
"""

import argparse
import json
import statistics
import sys

KEY = ("heads", "batch", "prompt", "context")
AHEAD = 0.98
PLAIN = 1.03
SIDE = 46


def key(cell):
    return tuple(cell[k] for k in KEY)


def read(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def best_of(peers):
    return {
        key(p): min(v for k, v in p.items() if k not in KEY and isinstance(v, (int, float)))
        for p in peers
    }


def text_of(cell, best):
    if best is None:
        return f"{cell['us']:.1f} ({cell['floor_share']:.2f})"
    return f"{cell['us']:.1f} / {best:.1f}" + (" !" if cell["us"] > AHEAD * best else "")


def panels_of(cells):
    """{(heads, context): {(batch, prompt): cell}}, in the order of the file."""
    panels = {}
    for c in cells:
        panels.setdefault((c["heads"], c["context"]), {})[c["batch"], c["prompt"]] = c
    return panels


def axes(panel):
    return sorted({b for b, _ in panel}), sorted({p for _, p in panel})


def table(cells, best):
    first = cells[0]
    print(f"{first['device']}, copy {first['copy_TBs']} TB/s, K/V {first.get('kv', 'BF16')}\n")
    for (heads, context), panel in panels_of(cells).items():
        batches, prompts = axes(panel)
        print(f"| {heads}, context {context} | " + " | ".join(f"S {p}" for p in prompts) + " |")
        print("|" + "---|" * (len(prompts) + 1))
        for b in batches:
            row = [panel.get((b, p)) for p in prompts]
            texts = [text_of(c, best.get(key(c))) if c else "" for c in row]
            print(f"| B {b} | " + " | ".join(texts) + " |")
        print()
    known = [c["us"] / best[key(c)] for c in cells if key(c) in best]
    if known:
        ahead = sum(x <= AHEAD for x in known)
        print(f"- at most {AHEAD} of the best peer: {ahead} of {len(known)}", end="")
        print(f", median {statistics.median(known):.2f}")
    plain = [c for c in cells if c["plain_us"]]
    if plain:
        ok = sum(c["us"] <= PLAIN * c["plain_us"] for c in plain)
        print(f"- at most {PLAIN} of our own plain path: {ok} of {len(plain)}")
    near = sum(c["us"] <= 1.15 * c["floor_us"] + 3 for c in cells)
    print(f"- at most 1.15 floors and 3 us: {near} of {len(cells)}")


def colour(share):
    """Red at 0 over yellow to green at 1."""
    x = max(0.0, min(1.0, share))
    return f"rgb({int(230 * min(1, 2 - 2 * x))},{int(200 * min(1, 2 * x))},90)"


def plot(cells, path):
    out, top = [], 30
    for (heads, context), panel in panels_of(cells).items():
        batches, prompts = axes(panel)
        out.append(f'<text x="10" y="{top}">{heads}, context {context}: share of the roofline</text>')
        for j, p in enumerate(prompts):
            out.append(f'<text x="{70 + SIDE * j}" y="{top + 16}">S {p}</text>')
        for i, b in enumerate(batches):
            y = top + 22 + 22 * i
            out.append(f'<text x="10" y="{y + 15}">B {b}</text>')
            for j, p in enumerate(prompts):
                if (b, p) in panel:
                    share = panel[b, p]["floor_share"]
                    x = 66 + SIDE * j
                    out.append(
                        f'<rect x="{x}" y="{y}" width="{SIDE - 2}" height="20" fill="{colour(share)}"/>'
                        f'<text x="{x + 8}" y="{y + 15}">{share:.2f}</text>'
                    )
        top += 22 * len(batches) + 60
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="420" height="{top}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="white"/>'
    )
    with open(path, "w", encoding="utf-8") as f:
        f.write("\n".join([head, *out, "</svg>"]) + "\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("file")
    parser.add_argument("--peers")
    parser.add_argument("--plot")
    args = parser.parse_args()
    cells = [c for c in read(args.file) if c.get("variant", "default") == "default"]
    if not cells:
        sys.exit("gpu_table: no cells")
    table(cells, best_of(read(args.peers)) if args.peers else {})
    if args.plot:
        plot(cells, args.plot)


main()
