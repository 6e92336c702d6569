#!/usr/bin/env python3
"""The GPU grid with its peers by turns: gpu_bench, then each peer, and again, cell by cell.

Usage: gpu_peers.py --bench GPU_BENCH --out OURS.jsonl --peers-out PEERS.jsonl [--cells LIST]
                    [--best N --known FILE] [--turns N] [--seconds N]

Peers, as far as they can be imported (flashinfer-python, fa3-fwd, triton; BF16, head dim 128, page 16,
pages of contexts permuted; the prompt's pages shared):
  decode           FlashInfer's paged decode over each request's whole K/V
  batch_attention  FlashInfer's persistent BatchAttention over the same
  cascade_fa2      FlashInfer's MultiLevelCascadeAttention with FA2 levels
  fa3_relay        FlashAttention-3 on the prompt and on the contexts, which lie contiguous for it,
                   and a merge of the two
Each is a CUDA graph of 16 launches or more over layers with K/V of their own, more than 400 MB
together; its plan is made before and not counted. gpu_bench does the same with ours. A number is
the median of all replays, in microseconds a layer. --best takes those that --known
(peers_h200.jsonl) has as the N quickest of a cell. Cells are HEADS:BATCH:PROMPT:CONTEXT, heads
q/kv; those in both files already are left out.
OURS and PEERS are what gpu_table.py reads. Versions are printed first.
"""

import argparse
import gc
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time

import torch

KEY = ("heads", "batch", "prompt", "context")
DIM = 128
PAGE = 16
KV_BYTES = 400e6
LAUNCHES = 16
REPLAYS = 5
DEVICE = "cuda"

try:
    import flashinfer
except ImportError:
    flashinfer = None
try:
    import triton
    import triton.language as tl
    from fa3_fwd_interface import flash_attn_with_kvcache as fa3
except ImportError:
    fa3 = None

if fa3 is not None:

    @triton.jit
    def merge_two(a, a_lse, b, b_lse, out, dim: tl.constexpr):
        """Rows of outputs [rows, dim] by their LSEs, natural logarithms."""
        row = tl.program_id(0)
        at = row * dim + tl.arange(0, dim)
        weight = 1.0 / (1.0 + tl.exp(tl.load(b_lse + row) - tl.load(a_lse + row)))
        x = tl.load(a + at).to(tl.float32)
        y = tl.load(b + at).to(tl.float32)
        tl.store(out + at, (y + (x - y) * weight).to(tl.bfloat16))


class Cell:
    """Tensors of one cell: K/V [pages, 2, page, kv heads, dim] and queries [batch, q heads, dim]."""

    def __init__(self, heads, batch, prompt, context):
        self.q_heads, self.kv_heads = (int(x) for x in heads.split("/"))
        self.batch, self.prompt, self.context = batch, prompt, context
        self.prompt_pages, self.own_pages = prompt // PAGE, context // PAGE
        layer_bytes = 4 * self.kv_heads * DIM * (prompt + batch * context)
        self.layers = max(4, min(40, int(KV_BYTES // layer_bytes) + 1))
        self.launches = max(self.layers, LAUNCHES)
        pages = self.prompt_pages + batch * self.own_pages
        shape = (pages, 2, PAGE, self.kv_heads, DIM)
        self.kv = [
            torch.randn(shape, dtype=torch.bfloat16, device=DEVICE) for _ in range(self.layers)
        ]
        self.q = [
            torch.randn(batch, self.q_heads, DIM, dtype=torch.bfloat16, device=DEVICE)
            for _ in range(self.layers)
        ]
        own = torch.randperm(batch * self.own_pages, device=DEVICE).int() + self.prompt_pages
        self.own_table = own.view(batch, self.own_pages)
        self.shared = torch.arange(self.prompt_pages, dtype=torch.int32, device=DEVICE)
        self.whole_table = torch.cat([self.shared.expand(batch, -1), self.own_table], dim=1)

    def steps(self, count, step=1):
        return torch.arange(count + 1, dtype=torch.int32, device=DEVICE) * step

    def full(self, value):
        return torch.full((self.batch,), value, dtype=torch.int32, device=DEVICE)


def decode(cell, workspace):
    run = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
        workspace[0], "NHD", use_cuda_graph=True, use_tensor_cores=True,
        paged_kv_indptr_buffer=cell.steps(cell.batch, cell.whole_table.shape[1]),
        paged_kv_indices_buffer=cell.whole_table.reshape(-1).clone(),
        paged_kv_last_page_len_buffer=cell.full(PAGE), backend="fa2")
    run.plan(cell.steps(cell.batch, cell.whole_table.shape[1]), cell.whole_table.reshape(-1),
             cell.full(PAGE), cell.q_heads, cell.kv_heads, DIM, PAGE,
             q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16)
    return lambda i: run.run(cell.q[i], cell.kv[i])


def batch_attention(cell, workspace):
    run = flashinfer.BatchAttention(kv_layout="NHD")
    run.float_workspace_buffer = workspace[1]
    run.plan(cell.steps(cell.batch), cell.steps(cell.batch, cell.whole_table.shape[1]),
             cell.whole_table.reshape(-1), cell.full(cell.prompt + cell.context), cell.q_heads,
             cell.kv_heads, DIM, DIM, PAGE, causal=False, q_data_type=torch.bfloat16,
             kv_data_type=torch.bfloat16)
    return lambda i: run.run(cell.q[i], cell.kv[i])[0]


def cascade_fa2(cell, workspace):
    whole = torch.tensor([0, cell.batch], dtype=torch.int32, device=DEVICE)
    prompt = torch.tensor([0, cell.prompt_pages], dtype=torch.int32, device=DEVICE)
    queries = [whole, cell.steps(cell.batch)]
    pointers = [prompt, cell.steps(cell.batch, cell.own_pages)]
    indices = [cell.shared, cell.own_table.reshape(-1)]
    last = [cell.full(PAGE)[:1].clone(), cell.full(PAGE)]
    run = flashinfer.MultiLevelCascadeAttentionWrapper(
        2, workspace[0], "NHD", True, *([x.clone() for x in buffers]
                                        for buffers in (queries, pointers, indices, last)))
    for level in run._batch_prefill_wrappers:  # "auto" takes FA3, which is slower here
        level._backend = "fa2"
    run.plan(queries, pointers, indices, last, cell.q_heads, cell.kv_heads, DIM, PAGE,
             q_data_type=torch.bfloat16)
    return lambda i: run.run(cell.q[i], cell.kv[i])


def fa3_relay(cell, _):
    rows = cell.own_table.reshape(-1).long()
    own = [[x[rows, j].reshape(cell.batch, cell.context, cell.kv_heads, DIM).contiguous()
            for j in (0, 1)] for x in cell.kv]
    shared = [[x[:cell.prompt_pages, j].reshape(1, cell.prompt, cell.kv_heads, DIM).contiguous()
               for j in (0, 1)] for x in cell.kv]
    prompt_tokens = cell.full(cell.prompt)[:1].clone()
    own_tokens = cell.full(cell.context)

    def run(i):
        a, a_lse, *_ = fa3(cell.q[i].view(1, cell.batch, cell.q_heads, DIM), *shared[i],
                           cache_seqlens=prompt_tokens, num_splits=0, return_softmax_lse=True)
        b, b_lse, *_ = fa3(cell.q[i].view(cell.batch, 1, cell.q_heads, DIM), *own[i],
                           cache_seqlens=own_tokens, num_splits=0, return_softmax_lse=True)
        a_lse = a_lse.view(cell.q_heads, cell.batch).t().contiguous()
        out = torch.empty_like(cell.q[i])
        merge_two[(cell.batch * cell.q_heads,)](a, a_lse, b, b_lse, out, DIM)
        return out

    return run


PEERS = {"decode": decode, "batch_attention": batch_attention, "cascade_fa2": cascade_fa2,
         "fa3_relay": fa3_relay}


def names():
    return [n for n in PEERS if (fa3 if n == "fa3_relay" else flashinfer) is not None]


def graph_of(run, cell):
    for i in range(2):
        run(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = [run(i % cell.layers) for i in range(cell.launches)]
    graph.replay()
    torch.cuda.synchronize()
    return graph, out[0].clone().view(-1).float()


def replay(graph, launches):
    times = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / launches)
    return times


class Ours:
    """gpu_bench, which answers a cell with a line."""

    def __init__(self, path):
        self.process = subprocess.Popen([path, "--relay-only", "--cells", "-"], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def time(self, key):
        self.process.stdin.write("{}:{}:{}:{}\n".format(*key))
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def grid():
    return [(heads, batch, prompt, context) for heads in ("32/8", "8/1", "32/32")
            for context in (128, 1024) for prompt in (512, 2048, 8192, 32768)
            for batch in (1, 8, 32, 64, 128, 256)]


def read(path):
    if path is None or not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as f:
        return {tuple(c[k] for k in KEY): c for c in map(json.loads, f)}


def bench(key, which, ours, workspace, turns):
    """(our line, its us the median of the turns; microseconds of each peer)."""
    cell = Cell(*key)
    graphs, first = {}, None
    runs = [PEERS[name](cell, workspace) for name in which]  # graphs read what these hold
    for name, run in zip(which, runs):
        graph, out = graph_of(run, cell)
        if first is not None and (out - first).abs().max().item() > 1e-2:
            print(f"{key}: {name} differs from the others", file=sys.stderr)
        first = out if first is None else first
        graphs[name] = graph
    times = {name: [] for name in which}
    lines = []
    for _ in range(turns):
        lines.append(ours.time(key))
        for name, graph in graphs.items():
            times[name] += replay(graph, cell.launches)
    line = lines[0]
    line["us"] = round(statistics.median(x["us"] for x in lines), 2)
    return line, {name: round(statistics.median(t), 2) for name, t in times.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bench", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--peers-out", required=True)
    parser.add_argument("--cells")
    parser.add_argument("--best", type=int)
    parser.add_argument("--known")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1e9)
    args = parser.parse_args()
    for package in ("flashinfer-python", "fa3-fwd", "triton", "torch"):
        try:
            print(package, importlib.metadata.version(package), file=sys.stderr)
        except importlib.metadata.PackageNotFoundError:
            print(package, "is not there", file=sys.stderr)
    cells = grid()
    if args.cells:
        cells = [tuple(int(x) if x.isdigit() else x for x in cell.split(":"))
                 for cell in args.cells.split(",")]
    known = read(args.known)
    done = read(args.out).keys() & read(args.peers_out).keys()
    workspace = [torch.empty(n << 20, dtype=torch.uint8, device=DEVICE) for n in (512, 3072)]
    ours = Ours(args.bench)
    start = time.monotonic()
    with (open(args.out, "a", encoding="utf-8") as out,
          open(args.peers_out, "a", encoding="utf-8") as peers_out):
        for key in cells:
            if key in done or time.monotonic() - start > args.seconds:
                continue
            which = names()
            if args.best and key in known:
                which = sorted((n for n in which if known[key].get(n)),
                               key=lambda n: known[key][n])[:args.best]
            line, peers = bench(key, which, ours, workspace, args.turns)
            print(json.dumps(line), file=out, flush=True)
            print(json.dumps({**dict(zip(KEY, key)), **peers}), file=peers_out, flush=True)
            gc.collect()
            torch.cuda.empty_cache()
    ours.close()


if __name__ == "__main__":
    main()
