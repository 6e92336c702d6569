"""Gemma 3 270M with real weights: the tokens of Transformers' own attention, through relayd.

Token equality alone is a weak test: with this model a window off by one leaves every token the same.
So logits are compared with an fp64 run, with a prompt past the window of 512 tokens and a turn past it
too, and planted faults must each be caught by the very same comparison.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers

import gemma
import relay
import relay.transformers as rt
from faults import NotCausal, Parts, PromptDropped, WrongBase
from loops import (
    GATE,
    Describes,
    difference,
    forced_relay,
    generate_relay,
    planted,
    reference_logits,
)
from small_models import kind, none

transformers.logging.set_verbosity_error()
TOKENS = 48
FAULT_USERS, FAULT_TOKENS = [0, 3], 4
PROMPT = "library/1"


def setup(harness):
    """The model, the users, what Transformers generates by itself, and the fp64 logits."""
    shared = harness.shared
    if "model" in shared:
        return shared
    shared["folder"] = gemma.folder(harness)
    shared["model"], shared["tokenizer"] = model, tokenizer = gemma.load(shared["folder"])
    shared["system"], shared["users"] = system, users = gemma.token_ids(tokenizer)
    assert len(system) > 600 and max(map(len, users)) > gemma.WINDOW
    longest = max(map(len, users))
    ids = torch.tensor([[0] * (longest - len(user)) + system + user for user in users])
    mask = torch.tensor([[0] * (longest - len(user)) + [1] * len(system + user) for user in users])
    out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=TOKENS, do_sample=False,
                         return_dict_in_generate=True, output_logits=True)
    shared["tokens"] = out.sequences[:, ids.shape[1]:].tolist()
    shared["own"] = list(torch.stack(out.logits, 1))
    double, _ = gemma.load(shared["folder"])
    double = double.double()
    shared["expected"] = [reference_logits(double, system, u, t) for u, t in zip(users, shared["tokens"], strict=True)]
    shared["server"] = harness.server()
    shared["client"] = relay.Client(shared["server"].target, timeout_s=10)
    return shared


def close(harness):
    if "server" in harness.shared:
        harness.shared["client"].close()
        code = harness.shared["server"].stop()
        harness.shared["server"].close()
        assert code == 0, code


@contextlib.contextmanager
def attached(shared, hook=None, **options):
    options.setdefault("kv_dtype", "f32")
    with planted(hook), rt.attach(shared["model"], shared["client"], **options) as engine:
        rt.register_system_prompt(shared["model"], shared["tokenizer"], gemma.SYSTEM, PROMPT)
        yield engine


def worst(shared, got, users=None, count=TOKENS):
    expected = [shared["expected"][i][:count] for i in users or range(len(got))]
    return max(map(difference, got, expected))


def test_transformers_itself(harness):
    """The gate is one that Transformers' own attention in fp32 keeps; the tokens are no near ties."""
    shared = setup(harness)
    own = worst(shared, shared["own"])
    assert own < GATE, own
    top = [e.topk(2).values for e in shared["expected"]]
    margin = min(float((t[:, 0] - t[:, 1]).min()) for t in top)
    assert margin > 4 * own, margin
    said = [shared["tokenizer"].decode(t).split("\n")[0].strip() for t in shared["tokens"]]
    return f"largest difference from fp64 {own:.1e}, smallest margin of a token {margin:.3f}\n" + "\n".join(said)


def test_generate(harness):
    """generate() with a RelayCache: 4 users in one padded batch, 48 greedy tokens each."""
    shared = setup(harness)
    with attached(shared) as engine:
        kinds = engine.spec.layers
        assert len(kinds) == 18 and [i for i, k in enumerate(kinds) if not k.window] == [5, 11, 17]
        tokens, steps = generate_relay(shared["model"], PROMPT, shared["users"], TOKENS, system=shared["system"])
    assert tokens == shared["tokens"]
    got = [torch.stack([step[row] for step in steps]) for row in range(len(tokens))]
    error = worst(shared, got)
    assert error < GATE, error
    return f"tokens equal; largest difference of a logit {error:.1e}"


def test_loop(harness):
    """The plain loop, ragged, no padding. Fed with Transformers' tokens it would choose the same."""
    shared = setup(harness)
    with attached(shared) as engine:
        got = forced_relay(engine, PROMPT, shared["users"], shared["tokens"])
        info = shared["client"].server_info()
    assert [g.argmax(-1).tolist() for g in got] == shared["tokens"]
    error = worst(shared, got)
    assert error < GATE, error
    expected = len(shared["system"]) * engine.spec.kv_bytes_per_token()
    return f"tokens equal; largest difference {error:.1e}; prompt K/V {info.prompt_bytes_used} bytes ({expected} unpaged)"


def test_bfloat16_pages(harness):
    """K/V stored in bfloat16: logits only, since tokens may differ where two are close."""
    shared = setup(harness)
    with attached(shared, kv_dtype="bf16", model_key="gemma, bf16 pages") as engine:
        forced = [t[:16] for t in shared["tokens"]]
        got = forced_relay(engine, PROMPT, shared["users"], forced)
    error = worst(shared, got, range(4), 16)
    same = sum(a == b for g, t in zip(got, forced, strict=True) for a, b in zip(g.argmax(-1).tolist(), t, strict=True))
    assert GATE < error < 0.5, error  # more than f32 pages: it is bfloat16 that was stored
    return f"largest difference {error:.2f}; {same} of 64 tokens the same"


def test_two_processes(harness):
    """Two workers at once on one prompt that neither computes; the service holds it once."""
    shared = setup(harness)
    with attached(shared):
        before = shared["client"].server_info()
        generation = shared["client"].list_prompts(id_prefix=PROMPT)[0].generation
        script = str(Path(__file__).with_name("gemma_worker.py"))
        workers = [
            subprocess.Popen([sys.executable, script, str(shared["folder"]), shared["server"].target, str(TOKENS), *users],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             env={**os.environ, "OMP_NUM_THREADS": "1"})
            for users in ("02", "13")
        ]
        outputs = [worker.communicate(timeout=600) for worker in workers]
        for worker, (_, error) in zip(workers, outputs, strict=True):
            assert worker.returncode == 0, error
        (zero, two), (one, three) = (json.loads(out) for out, _ in outputs)
        after = shared["client"].server_info()
        assert shared["client"].list_prompts(id_prefix=PROMPT)[0].generation == generation
    assert [zero, one, two, three] == shared["tokens"]
    assert after.prompt_bytes_used == before.prompt_bytes_used and after.prompts == before.prompts
    return "tokens equal"


class At(transformers.LogitsProcessor):
    """Does something once, before the n-th token is chosen."""

    def __init__(self, n, action):
        self.n, self.action = n, action

    def __call__(self, input_ids, scores):
        self.n -= 1
        if self.n == 0:
            self.action()
        return scores


def test_restart(harness):
    """The service dies in mid-generation, and comes back, or has come back already: the error is one
    of relay's, in time; then a re-run on a new cache is right."""
    shared = setup(harness)
    model, server, said = shared["model"], shared["server"], []

    def kill_and_start():
        server.kill()
        server.start()

    users = shared["users"][:2]
    for name, action in (("down", server.kill), ("back", kill_and_start)):
        with attached(shared):
            start = time.monotonic()
            try:
                generate_relay(model, PROMPT, users, 12, logits_processor=[At(6, action)])
                raise AssertionError("generated without a service")
            except relay.RelayError as error:
                said.append(f"{name}: {error!r} after {time.monotonic() - start:.1f} s")
                assert isinstance(error, (relay.Unavailable, relay.FailedPrecondition, relay.NotFound, relay.DeadlineExceeded))
            if name == "down":
                try:
                    rt.RelayCache(model, PROMPT)
                    raise AssertionError("a cache without a service")
                except (relay.Unavailable, relay.DeadlineExceeded):
                    pass
                server.start()
            try:
                rt.RelayCache(model, PROMPT)
                raise AssertionError("the prompt outlived the service")
            except relay.NotFound:
                pass
            rt.register_system_prompt(model, shared["tokenizer"], gemma.SYSTEM, PROMPT)
            tokens, _ = generate_relay(model, PROMPT, users, 12)
            assert tokens == [t[:12] for t in shared["tokens"][:2]]
    return "\n".join(said)


def forced_with(shared, engine):
    users = [shared["users"][i] for i in FAULT_USERS]
    got = forced_relay(engine, PROMPT, users, [shared["tokens"][i][:FAULT_TOKENS] for i in FAULT_USERS])
    same = all(g.argmax(-1).tolist() == shared["tokens"][i][:FAULT_TOKENS] for g, i in zip(got, FAULT_USERS, strict=True))
    return worst(shared, got, FAULT_USERS, FAULT_TOKENS), same


def test_planted_faults(harness):
    """Each is caught by the gate that the unfaulted runs keep, the control of the merge among them."""
    shared = setup(harness)
    good, bad = {}, {}
    described = {"window + 1": kind(window=lambda w: w + 1), "window - 1": kind(window=lambda w: w - 1),
                 "no window": kind(window=none)}
    with attached(shared) as engine:
        good["none"] = forced_with(shared, engine)
        for name, fault, found in [("merged here", Parts, good), ("LSE of base 2", WrongBase, bad),
                                   ("not causal", NotCausal, bad)]:
            hook = fault(engine, PROMPT)
            with planted(hook):
                found[name] = forced_with(shared, engine)
            hook.close()
        with planted(PromptDropped()):
            bad["prompt dropped"] = forced_with(shared, engine)
    for name, change in described.items():
        with attached(shared, Describes(change), model_key=f"gemma, {name}") as engine:
            bad[name] = forced_with(shared, engine)
    said = "\n".join(f"{name}: {error:.1e}{', tokens the same' if same else ''}"
                     for name, (error, same) in {**good, **bad}.items())
    assert all(error < GATE for error, _ in good.values()), said
    assert all(error > GATE for error, _ in bad.values()), said
    return said
