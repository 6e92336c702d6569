"""Faults planted through the seam's one hook: each is a mistake that an attention service can make.

Describes (in loops.py) changes what relayd is told; these change how a pass is put together.
"""

import math

import torch

import relay


class Parts:
    """Prompt part and context part asked for apart and merged here. With natural weights that is no
    fault but the control of this machinery."""

    def __init__(self, engine, prompt):
        self.session = engine.client.session(engine.spec, io_dtype=engine.io_dtype)
        self.prompt, self.mirrors, self.window = prompt, {}, [k.window for k in engine.spec.layers]

    def close(self):
        self.session.close()

    def step(self, options):
        return {**options, "part": relay.Part.CONTEXT_ONLY, "want_lse": True}

    def prompt_part(self, batch, layer, q):
        """(out, lse) of the rows over the prompt alone, from requests that mirror the sequences."""
        for sequence in batch.sequences:
            if sequence not in self.mirrors:
                self.mirrors[sequence] = self.session.request(self.prompt)
        entries = [(self.mirrors[s], s.length, n) for s, n in zip(batch.sequences, batch.q_lens, strict=True)]
        with self.session.step(entries, part=relay.Part.PROMPT_ONLY) as step:
            return step.attend(layer, q)

    def weight(self, lse):
        return lse

    def merge(self, a, lse_a, b, lse_b):
        lse_a, lse_b = self.weight(lse_a.double()), self.weight(lse_b.double())
        lse = torch.logaddexp(lse_a, lse_b)
        return (a * (lse_a - lse).exp()[..., None] + b * (lse_b - lse).exp()[..., None]).to(a.dtype)

    def attend(self, batch, layer, q, k, v):
        return self.merge(*self.prompt_part(batch, layer, q), *batch.step.attend(layer, q, k, v))


class WrongBase(Parts):
    """LSE in base 2, merged as if it were natural."""

    def weight(self, lse):
        return lse / math.log(2)


class PromptDropped:
    """Rows see their context only."""

    def step(self, options):
        return {**options, "part": relay.Part.CONTEXT_ONLY}


class NotCausal(Parts):
    """Rows of a prefill see the tokens after them, as far as the pass goes."""

    def __init__(self, engine, prompt):
        super().__init__(engine, prompt)
        self.held = {}  # (sequence, layer) -> [k, v] of the context so far

    def step(self, options):
        return options

    def attend(self, batch, layer, q, k, v):
        batch.call(layer, q, k, v)  # stores
        out_p, lse_p = self.prompt_part(batch, layer, q)
        merged, begin = [], 0
        for sequence, n in zip(batch.sequences, batch.q_lens, strict=True):
            rows = slice(begin, begin + n)
            before = self.held.get((sequence, layer), [k[:0], v[:0]])
            keys, values = (torch.cat(pair) for pair in zip(before, (k[rows], v[rows]), strict=True))
            self.held[sequence, layer] = [keys, values]
            out_c, lse_c = self.bidirectional(batch.engine.spec.layers[layer], q[rows], keys, values, sequence.length)
            merged.append(self.merge(out_p[rows], lse_p[rows], out_c, lse_c))
            begin += n
        return torch.cat(merged)

    @staticmethod
    def bidirectional(kind, q, keys, values, first):
        """q [n,Hq,D] at context positions first.. on keys [m,Hkv,D]: out, lse; windows kept."""
        repeat = kind.num_q_heads // kind.num_kv_heads
        keys, values = keys.repeat_interleave(repeat, 1), values.repeat_interleave(repeat, 1)
        scores = torch.einsum("nhd,mhd->nhm", q, keys) * kind.scale
        if kind.window:
            p, j = torch.arange(first, first + len(q))[:, None], torch.arange(len(keys))[None]
            scores = scores.masked_fill((j <= p - kind.window)[:, None], float("-inf"))
        lse = scores.logsumexp(-1)
        return torch.einsum("nhm,mhd->nhd", (scores - lse[..., None]).exp(), values), lse
