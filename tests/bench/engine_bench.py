#!/usr/bin/env python3
"""A Transformers engine on relayd against the same engine with its own attention (sdpa) and cache.

Decode steps of B users on one system prompt, each with a few tokens of its own: tokens/s, and what a
layer's attention costs the engine. Its own: sdpa and the cache's update, with the quicker of
Transformers' dynamic and static caches. With relayd: the whole call, of which compute_us is the
service's kernels; the rest is the way there and back. The sides' steps alternate, so that all see the
same machine; medians. JSON, a line a measurement, then a table. Within --seconds-max.

`memory` is the other part: 4 processes on one prompt, and how relayd's resident memory grows.

Usage: tests/engine/run.sh BUILD_DIR --bench [--only gemma|llama|memory]... [--prompts 700,4000]
       [--batches 1,4,16] [--steps 12] [--own-cache dynamic|static|both] [--seconds-max 420]
which runs it with OMP_WAIT_POLICY=PASSIVE: threads that spin while they wait take the cores from
relayd.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path

import torch
import transformers
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicCache, StaticCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))
import gemma  # noqa: E402
from server import Server  # noqa: E402

import relay  # noqa: E402
import relay.transformers as rt  # noqa: E402
from relay.transformers import _attention  # noqa: E402

STARTED = time.monotonic()
OWN_TOKENS = 16  # of each user, after the prompt
spent = {"attention": 0.0, "cache": 0.0}


def timed(what, function):
    def wrapper(*args, **kwargs):
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[what] += time.perf_counter() - start

    return wrapper


class TimedDynamicCache(DynamicCache):
    """Transformers' default: grows, which copies all of it in every step."""

    update = timed("cache", DynamicCache.update)


class TimedStaticCache(StaticCache):
    """Room for the whole sequence from the start: nothing is copied."""

    update = timed("cache", StaticCache.update)


AttentionInterface.register("timed_sdpa", timed("attention", sdpa_attention_forward))
AttentionMaskInterface.register("timed_sdpa", sdpa_mask)
AttentionInterface.register("relay", timed("attention", _attention.relay_attention))


def llama():
    """Full attention in all layers, random weights."""
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=32000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=16, num_attention_heads=16,
        num_key_value_heads=4, head_dim=64, max_position_embeddings=8192, attn_implementation="sdpa")).eval()


class Own:
    """Transformers alone: each row of the batch has the prompt's K/V in its own cache."""

    def __init__(self, model, layers, batch, tokens, kind, steps):
        self.model = model
        if kind == "static":
            length = len(layers[0][0]) + tokens.shape[1] + steps + 1
            self.cache = TimedStaticCache(config=model.config, max_cache_len=length)
        else:
            self.cache = TimedDynamicCache(config=model.config)
        for i, (k, v) in enumerate(layers):
            self.cache.update(*(t.transpose(0, 1)[None].expand(batch, -1, -1, -1) for t in (k, v)), i)
        self.run(tokens)

    def run(self, tokens):
        with torch.no_grad():
            return self.model(input_ids=tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits[:, -1]

    def close(self):
        self.cache = None


class Relay:
    """The same through relayd."""

    def __init__(self, engine, prompt_id, batch, tokens):
        self.engine, self.sequences = engine, engine.open_many([prompt_id] * batch)
        self.run(tokens)

    def run(self, tokens):
        with torch.no_grad():
            return self.engine.model(input_ids=tokens, position_ids=rt.positions(self.sequences, tokens.shape[1]),
                                     use_cache=False, relay=self.sequences, logits_to_keep=1).logits[:, -1]

    def close(self):
        for sequence in self.sequences:
            sequence.close()


def step(side, tokens):
    """(logits, seconds, attention seconds, cache seconds)."""
    spent.update(attention=0.0, cache=0.0)
    start = time.perf_counter()
    logits = side.run(tokens)
    return logits, time.perf_counter() - start, spent["attention"], spent["cache"]


def compare(name, model, engine, client, layers, prompt_tokens, batch, steps, kinds):
    """All sides, step by step in turn, fed with the same tokens. Transformers' own side is the quicker
    of its caches."""
    generator = torch.Generator().manual_seed(batch)
    tokens = torch.randint(5, 1000, (batch, OWN_TOKENS), generator=generator)

    def use(kind):
        model.config._attn_implementation = "relay" if kind == "relay" else "timed_sdpa"

    use("own")
    sides = {kind: Own(model, layers, batch, tokens, kind, steps) for kind in kinds}
    use("relay")
    sides["relay"] = Relay(engine, "bench", batch, tokens)
    rows = {kind: [] for kind in sides}
    difference = 0.0
    for i in range(steps + 1):
        tokens = torch.randint(5, 1000, (batch, 1), generator=generator)
        before, logits = client.server_info(), {}
        for kind, side in sides.items():
            use(kind)
            logits[kind], *times = step(side, tokens)
            rows[kind].append(times)
        after = client.server_info()
        rows["relay"][-1] += [(after.compute_us - before.compute_us) / 1e6, after.prompt_bytes_read - before.prompt_bytes_read]
        difference = max(difference, *(float((logits["relay"] - logits[kind]).abs().max()) for kind in kinds))
    for side in sides.values():
        side.close()
    # The first step warms up.
    medians = {kind: [statistics.median(column) for column in zip(*found[1:])] for kind, found in rows.items()}
    quicker = min(kinds, key=lambda kind: medians[kind][0])
    a, b = medians[quicker], medians["relay"]
    count, us = len(engine.spec), 1e6 / len(engine.spec)
    measured = {
        "bench": "engine", "model": name, "prompt_tokens": prompt_tokens, "batch": batch, "layers": count, "steps": steps,
        "own_cache": quicker, **{f"own_{kind}_tokens_per_s": round(batch / medians[kind][0], 2) for kind in kinds},
        "own_tokens_per_s": round(batch / a[0], 2), "relay_tokens_per_s": round(batch / b[0], 2), "ratio": round(a[0] / b[0], 2),
        "own_layer_us": round((a[1] + a[2]) * us), "own_layer_sdpa_us": round(a[1] * us), "own_layer_cache_us": round(a[2] * us),
        "relay_layer_us": round(b[1] * us), "relay_layer_compute_us": round(b[3] * us),
        "relay_layer_rest_us": round((b[1] - b[3]) * us), "prompt_bytes_read_per_step": round(b[4]),
        "logits_difference": float(f"{difference:.1e}"), "torch_threads": torch.get_num_threads()}
    print(json.dumps(measured), flush=True)
    return measured


def decode(name, model, args, prompts, batches, found):
    generator = torch.Generator().manual_seed(1)
    kinds = ["dynamic", "static"] if args.own_cache == "both" else [args.own_cache]
    for prompt_tokens in prompts:
        with Server(args.relayd, "--backend", "cpu") as server, relay.Client(server.target) as client:
            with rt.attach(model, client, kv_dtype="f32", model_key=name) as engine:
                ids = torch.randint(5, 1000, (prompt_tokens,), generator=generator).tolist()
                layers = rt.compute_kv(engine, ids)
                client.register_prompt("bench", engine.spec, layers)
                for batch in batches:
                    if time.monotonic() - STARTED > args.seconds_max:
                        print(f"# out of time: {name}, prompt {prompt_tokens}, batch {batch} left out", file=sys.stderr)
                        continue
                    found.append(compare(name, model, engine, client, layers, prompt_tokens, batch, args.steps, kinds))


def table(found):
    print("\n| model | prompt | B | own tokens/s (cache) | relayd tokens/s | ratio | own us a layer: sdpa + cache "
          "| relayd us a layer: kernels + rest |\n|---|---|---|---|---|---|---|---|")
    for m in found:
        print(f"| {m['model']} | {m['prompt_tokens']} | {m['batch']} | {m['own_tokens_per_s']} ({m['own_cache']}) "
              f"| {m['relay_tokens_per_s']} | {m['ratio']} | {m['own_layer_sdpa_us']} + {m['own_layer_cache_us']} "
              f"| {m['relay_layer_compute_us']} + {m['relay_layer_rest_us']} |")


# ---- memory


def context_worker(target, prompt_tokens, users, tokens):
    """Says how far it is on stdout, and goes on when told."""
    model = llama()
    with rt.attach(model, target, kv_dtype="f32", model_key="llama") as engine:
        engine.get_prompt("bench")
        sequences = engine.open_many(["bench"] * users)
        fed = torch.randint(5, 1000, (users, tokens))
        with torch.no_grad():
            model(input_ids=fed, position_ids=rt.positions(sequences, tokens), use_cache=False, relay=sequences, logits_to_keep=1)
        print("done", flush=True)
        sys.stdin.readline()


def memory(relayd, prompt_tokens, users=2, tokens=64, processes=4):
    """relayd's resident memory: with the prompt, and after each process that decodes on it."""
    with Server(relayd, "--backend", "cpu") as server, relay.Client(server.target) as client:
        model = llama()
        with rt.attach(model, client, kv_dtype="f32", model_key="llama") as engine:
            empty = server.memory()
            ids = torch.randint(5, 1000, (prompt_tokens,)).tolist()
            client.register_prompt("bench", engine.spec, rt.compute_kv(engine, ids))
            token_bytes = engine.spec.kv_bytes_per_token()
        del model
        resident, held = [server.memory()], []
        workers = []
        for _ in range(processes):
            words = [sys.executable, __file__, "--worker", server.target, str(prompt_tokens), str(users), str(tokens)]
            workers.append(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            assert workers[-1].stdout.readline().strip() == "done"
            resident.append(server.memory())
            info = client.server_info()
            held.append([info.prompt_bytes_used, info.request_bytes_used])
        for worker in workers:
            worker.communicate("\n")
        print(json.dumps({
            "bench": "engine.memory", "model": "llama", "prompt_tokens": prompt_tokens, "processes": processes,
            "users_each": users, "context_tokens_each": tokens, "prompt_kv_bytes": prompt_tokens * token_bytes,
            "context_kv_bytes_each": users * tokens * token_bytes, "empty_rss": empty, "prompt_rss": resident[0],
            "growth_by_process": [b - a for a, b in zip(resident, resident[1:])],
            "prompt_bytes_held": [p for p, _ in held], "context_bytes_held": [c for _, c in held]}), flush=True)


def main():
    if sys.argv[1:2] == ["--worker"]:
        return context_worker(sys.argv[2], *map(int, sys.argv[3:]))
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--relayd", required=True)
    parser.add_argument("--cache", help="folder of the converted weights, as tests/engine/run.sh makes them")
    parser.add_argument("--only", action="append", choices=["gemma", "llama", "memory"])
    parser.add_argument("--prompts", default="700,4000")
    parser.add_argument("--batches", default="1,4,16")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--own-cache", choices=["dynamic", "static", "both"], default="both")
    parser.add_argument("--seconds-max", type=float, default=420, help="cells that would begin later are left out")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    prompts, batches = ([int(n) for n in text.split(",")] for text in (args.prompts, args.batches))
    parts = args.only or ["gemma", "llama", "memory"]
    found = []
    if "memory" in parts:
        memory(args.relayd, max(prompts))
    if "gemma" in parts and args.cache:
        folder = gemma.folder(types.SimpleNamespace(cache=Path(args.cache)))
        decode("gemma3-270m", gemma.load(folder)[0], args, prompts, batches, found)
    if "llama" in parts:
        decode("llama", llama(), args, prompts, batches, found)
    table(found)


main()
