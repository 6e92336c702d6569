#!/usr/bin/env python3
"""What a step of 32 rows costs through relayd, over the bare library call.

By turns kernels_bench, which calls the library, and relayctl bench against a relayd over a unix
socket; the same shape, prompt, contexts and layers (enough that K/V comes from memory). A JSON line
a shape, medians of the turns; then, without --json, a table.

  library_us   relay_backend_run and wait of a layer, in a process of its own
  compute_us   the same inside relayd, as its answers say
  layer_us     a layer's call as the client sees it: tensors there, result back
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time

SHAPES = [("32/32", 128), ("32/8", 128), ("8/1", 128), ("4/1", 256)]
BATCH, CONTEXT = 32, 128
WALKED = 256 << 20  # bytes of K/V


def run(command):
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure(args, heads, dim, prompt, target):
    kv_heads = int(heads.split("/")[1])
    layer = 4 * kv_heads * dim * (prompt + BATCH * CONTEXT)
    shape = [
        "--heads",
        heads,
        "--head-dim",
        str(dim),
        "--prompt",
        str(prompt),
        "--batch",
        str(BATCH),
    ]
    shape += ["--context", str(CONTEXT), "--layers", str(min(64, WALKED // layer + 1))]
    bare, compute, seen = [], [], []
    for _ in range(args.turns):
        line = run(args.nice + [f"{args.build}/tests/bench/kernels_bench", *shape, "--steps", "7"])
        bare.append(line["us"])
        client = [f"{args.build}/client/relayctl", "--target", target, "bench", *shape]
        line = run(
            args.nice + client + ["--sessions", "1", "--sharing", "auto", "--steps", "10", "--json"]
        )
        compute.append(line["relay"]["compute_p50_us"])
        seen.append(line["relay"]["layer_p50_us"])
    return {
        "name": "service_overhead",
        "heads": heads,
        "head_dim": dim,
        "batch": BATCH,
        "prompt": prompt,
        "context": CONTEXT,
        "library_us": round(statistics.median(bare), 1),
        "compute_us": statistics.median(compute),
        "layer_us": statistics.median(seen),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--build", default="build/release")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--nice", type=str.split, default=[], help="a command in front of all")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    lines = []
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/log", "w") as log:
        command = args.nice + [f"{args.build}/service/relayd", "--listen", f"unix:{folder}/sock"]
        server = subprocess.Popen(command, stderr=log)
        try:
            target = f"unix://{folder}/sock"
            health = [f"{args.build}/client/relayctl", "--target", target, "health"]
            for _ in range(200):
                if subprocess.run(health, capture_output=True).returncode == 0:
                    break
                time.sleep(0.1)
            for heads, dim in SHAPES:
                lines.append(measure(args, heads, dim, args.prompt, target))
                if args.json:
                    print(json.dumps(lines[-1]), flush=True)
        finally:
            server.terminate()
            server.wait()
    if not args.json:
        print(
            "| heads | d | library us | compute us | layer us | over the library |\n|---|---|---|---|---|---|"
        )
        for x in lines:
            over = x["layer_us"] - x["library_us"]
            print(
                f"| {x['heads']} | {x['head_dim']} | {x['library_us']:.0f} | {x['compute_us']:.0f} | "
                f"{x['layer_us']:.0f} | {over:.0f} us, {100 * over / x['library_us']:.0f} % |"
            )


if __name__ == "__main__":
    main()
