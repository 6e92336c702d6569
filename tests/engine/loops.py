"""Ways to run a model on relayd, and the fp64 run they are measured against."""

import contextlib

import torch

import relay.transformers as rt
from relay.transformers import _context

GATE = 1e-3  # largest difference of a logit from the fp64 run's; fp32 engines differ by 1e-5 to 2e-4


@contextlib.contextmanager
def planted(hook):
    """A fault, through the seam's one hook."""
    _context.test_hook = hook
    try:
        yield
    finally:
        _context.test_hook = None


class Describes:
    """A fault in what relayd is told of the model."""

    def __init__(self, change):
        self.describe = change


def reference_logits(model, system, user, tokens):
    """fp64 logits [n,V] from which each of tokens [n] was, or would have been, taken."""
    ids = torch.tensor([[*system, *user, *tokens[:-1]]])
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, logits_to_keep=len(tokens)).logits[0]


def generate_own(model, system, user, count):
    """What Transformers generates by itself, with its own attention and cache: tokens [n]."""
    ids = torch.tensor([[*system, *user]])
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return out[0, ids.shape[1]:].tolist()


def generate_relay(model, prompt, users, count, pad=0, system=None, **options):
    """generate() with a RelayCache, all users in one padded batch: tokens [B,n], logits [n][B,V]."""
    with rt.RelayCache(model, prompt) as cache:
        inputs = cache.inputs(users, pad, system)
        options = {"do_sample": False, **options}
        out = model.generate(**inputs, past_key_values=cache, max_new_tokens=count, return_dict_in_generate=True,
                             output_logits=True, **options)
    return out.sequences[:, inputs["input_ids"].shape[1]:].tolist(), out.logits


def forced_relay(engine, prompt, users, forced, chunk_tokens=1024, append=False):
    """The plain loop, ragged, fed with given tokens: logits [n,V] per user."""
    sequences = engine.open_many([prompt] * len(users))
    try:
        logits = [[rt.prefill(engine, s, u, chunk_tokens=chunk_tokens, append=append)]
                  for s, u in zip(sequences, users, strict=True)]
        for i in range(len(forced[0]) - 1):
            ids = torch.tensor([[tokens[i]] for tokens in forced])
            with torch.no_grad():
                out = engine.model(input_ids=ids, position_ids=rt.positions(sequences), use_cache=False,
                                   relay=sequences, logits_to_keep=1).logits[:, -1]
            for row, got in zip(logits, out, strict=True):
                row.append(got)
        return [torch.stack(row) for row in logits]
    finally:
        for sequence in sequences:
            sequence.close()


def greedy_relay(engine, prompt, users, count):
    """The plain loop, ragged, greedy: tokens [n] per user."""
    sequences = engine.open_many([prompt] * len(users))
    try:
        logits = [rt.prefill(engine, s, u) for s, u in zip(sequences, users, strict=True)]
        tokens = [[int(row.argmax())] for row in logits]
        for _ in range(count - 1):
            ids = torch.tensor([[row[-1]] for row in tokens])
            with torch.no_grad():
                out = engine.model(input_ids=ids, position_ids=rt.positions(sequences), use_cache=False,
                                   relay=sequences, logits_to_keep=1).logits[:, -1]
            for row, token in zip(tokens, out.argmax(-1).tolist(), strict=True):
                row.append(token)
        return tokens
    finally:
        for sequence in sequences:
            sequence.close()


def difference(got, expected):
    """Largest difference of logits; infinite where one is not a number."""
    diff = (got.double() - expected.double()).abs().max()
    return float(diff) if bool(torch.isfinite(diff)) else float("inf")
