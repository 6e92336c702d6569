"""One forward pass of a model as one step: rows of the model's batch to rows of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from relay.dtypes import DType
from relay.errors import FailedPrecondition, InvalidArgument, RelayError
from relay.transformers import _context

if TYPE_CHECKING:
    from relay.step import Step
    from relay.transformers._engine import Engine, Sequence


class Batch:
    """The sequences of a model's batch, row by row. For one thread at a time.

    The step begins with the first attention call of a pass and ends with the last layer's; then the
    sequences are longer. A pass that breaks off leaves them as they were: the next one's step writes
    from where they are, and relayd drops what lies behind.
    """

    def __init__(self, engine: Engine, sequences: list[Sequence]):
        if not sequences:
            raise InvalidArgument("relay: no sequences")
        if any(s.engine is not engine for s in sequences):
            raise InvalidArgument("relay: a sequence of another model")
        self.engine = engine
        self.sequences = sequences
        self.step: Step | None = None
        self.rows = 0
        self._last = -1
        self._tokens = 0  # of each row in this pass, padding included
        self._valid: torch.Tensor | None = None  # [B,T] where not every token counts
        self.q_lens: list[int] = []
        self.unpadded = 0  # newest columns in which every row has a token

    def abandon(self) -> None:
        """Ends the step; the sequences stay as they were before the pass."""
        step, self.step, self._last = self.step, None, -1
        if step is not None:
            step.end()

    # ---- one attention call

    def attend(
        self, layer: int, query: Any, key: Any, value: Any, mask: Any, position_ids: Any
    ) -> torch.Tensor:
        """query [B,Hq,T,dqk], key [B,Hkv,T,dqk], value [B,Hkv,T,dv] -> [B,T,Hq,dv]."""
        if self.step is None or layer <= self._last:
            self._begin(query, mask, position_ids)
        try:
            if key.shape[2] != self._tokens:
                raise FailedPrecondition(
                    f"keys of {key.shape[2]} tokens in a pass over {self._tokens}: another cache than a "
                    "RelayCache is in use; pass one, or use_cache=False"
                )
            out = self._attend(layer, query, key, value)
        except BaseException as error:
            self.abandon()
            if isinstance(error, RelayError):
                self.engine.noticed(error)
            raise
        self._last = layer
        if layer == len(self.engine.spec) - 1:
            self._finish()
        return out

    def _attend(self, layer: int, query: Any, key: Any, value: Any) -> torch.Tensor:
        batch, tokens = query.shape[0], query.shape[2]
        valid = None if self._valid is None else self._valid[:, -tokens:]
        q = self._gather(query, valid)
        own = self.engine.spec.has_own_kv(layer)
        k, v = (self._gather(key, valid), self._gather(value, valid)) if own else (None, None)
        attend = _context.hooked("attend")
        if tokens != self._tokens:
            if own:
                raise FailedPrecondition(
                    f"layer {layer} has {tokens} rows in a pass of {self._tokens}"
                )
            out = self._newest_only(layer, q, tokens)
        elif attend is not None:
            out = attend(self, layer, q, k, v)
        else:
            out = self.call(layer, q, k, v)
        if valid is not None:
            spread = out.new_zeros(batch, tokens, *out.shape[1:])
            spread[valid] = out
            out = spread
        return out.view(batch, tokens, *out.shape[-2:]).to(query.device)

    @staticmethod
    def _gather(tensor: Any, valid: torch.Tensor | None) -> torch.Tensor:
        """[B,H,T,D] -> [R,H,D] of the tokens that count, on the CPU."""
        if valid is None and tensor.shape[2] == 1 and tensor.is_cpu:
            return tensor.squeeze(2).contiguous()  # decoding: the shortest way
        rows = tensor.transpose(1, 2)
        rows = rows.flatten(0, 1) if valid is None else rows[valid.to(rows.device)]
        return rows.to("cpu").contiguous()

    def _newest_only(self, layer: int, q: Any, tokens: int) -> torch.Tensor:
        """For models that, once no layer stores K/V any more, go on with the newest tokens only."""
        assert self.step is not None
        out = q.new_empty(q.shape[0], q.shape[1], self.engine.spec.layers[layer].dv)
        tickets, begin, end = [], 0, 0
        for row, n in enumerate(self.q_lens):
            end += n
            kept = tokens if self._valid is None else int(self._valid[row, -tokens:].sum())
            if kept:
                rows = slice(begin, begin + kept)
                span = (end - kept, kept)
                tickets.append(self.step.submit(layer, q[rows], rows=span, out=out[rows]))
                begin += kept
        for ticket in tickets:
            self.step.wait(ticket)
        return out

    def call(self, layer: int, q: Any, k: Any, v: Any) -> torch.Tensor:
        """What relayd says, in as many pieces as its messages need."""
        assert self.step is not None
        pieces = math.ceil(self.rows / self.engine.rows_per_call)
        if pieces == 1:
            return self.step.attend(layer, q, k, v)[0]
        each = math.ceil(self.rows / pieces)
        out = q.new_empty(self.rows, q.shape[1], self.engine.spec.layers[layer].dv)
        tickets = []
        for begin in range(0, self.rows, each):
            rows = slice(begin, min(begin + each, self.rows))
            new = (None, None) if k is None else (k[rows], v[rows])
            span = (begin, rows.stop - begin)
            tickets.append(self.step.submit(layer, q[rows], *new, rows=span, out=out[rows]))
        for ticket in tickets:
            self.step.wait(ticket)
        return out

    # ---- the step

    def _begin(self, query: Any, mask: Any, position_ids: Any) -> None:
        self.abandon()
        batch, tokens = query.shape[0], query.shape[2]
        self._tokens = tokens
        if batch != len(self.sequences):
            raise InvalidArgument(f"a batch of {batch} rows for {len(self.sequences)} sequences")
        self._valid = self._tokens_that_count(mask, batch, tokens)
        if self._valid is None:
            self.q_lens = [tokens] * batch
        else:
            self.q_lens = [int(n) for n in self._valid.sum(1)]
        self.rows = sum(self.q_lens)
        if self.rows == 0:
            raise InvalidArgument("attention_mask: no token of this pass counts")
        if self.rows > self.engine.rows_max:
            raise InvalidArgument(
                f"one pass has {self.rows} tokens; the server takes {self.engine.rows_max}. Prefill in "
                "pieces: generate(prefill_chunk_size=...), or relay.transformers.prefill"
            )
        self._check_positions(position_ids, tokens)
        entries = [
            (sequence.request, sequence.length, n)
            for sequence, n in zip(self.sequences, self.q_lens, strict=True)
            if n > 0
        ]
        options: dict[str, Any] = {"want_lse": False, "want_timings": self.engine.want_timings}
        change = _context.hooked("step")
        session = self.sequences[0].request.session
        if any(s.request.session is not session for s in self.sequences):
            raise FailedPrecondition("sequences of a session that was lost")
        self.step = session.step(entries, **(change(options) if change else options))

    @staticmethod
    def _tokens_that_count(mask: Any, batch: int, tokens: int) -> torch.Tensor | None:
        """[B,T] of the newest columns of relay_mask's [B,1,T,1] or a [B,kv]; None = all."""
        if mask is None:
            return None
        if mask.ndim == 4 and mask.dtype == torch.bool and mask.shape[1::2] == (1, 1):
            mask = mask[:, 0, :, 0]
        if mask.ndim != 2 or mask.shape[0] != batch or mask.shape[1] < tokens:
            raise InvalidArgument(
                f"attention_mask of shape {list(mask.shape)}: relay takes [B, tokens] masks of padding"
            )
        valid = mask[:, -tokens:].to("cpu", torch.bool)
        return None if bool(valid.all()) else valid

    def _check_positions(self, position_ids: Any, tokens: int) -> None:
        """The model has put its positions into K; relayd counts its own. They must agree."""
        if position_ids is None or position_ids.ndim != 2:
            return
        first = torch.tensor([s.next_position for s in self.sequences])
        got = position_ids.to("cpu").expand(len(self.sequences), -1)
        if self._valid is None:
            expected = first[:, None] + torch.arange(tokens)
            wrong = (got != expected).any(1)
        else:
            expected = first[:, None] + self._valid.cumsum(1) - 1
            wrong = ((got != expected) & self._valid).any(1)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise InvalidArgument(
                f"position_ids[{row}] are {got[row].tolist()[:4]}...; the sequence goes on at "
                f"{int(first[row])}"
            )

    def _finish(self) -> None:
        step, self.step, self._last = self.step, None, -1
        assert step is not None
        if self.engine.want_timings:
            self.engine.timings = step.timings
        step.end()
        for sequence, n in zip(self.sequences, self.q_lens, strict=True):
            sequence.length += n
        if self._valid is None:
            self.unpadded += self.q_lens[0]
        else:
            self.unpadded = int(self._valid.all(0).flip(0).cumprod(0).sum())


def io_dtype_of(dtype: torch.dtype) -> DType:
    known = {torch.float32: DType.F32, torch.float16: DType.F16, torch.bfloat16: DType.BF16}
    if dtype not in known:
        raise InvalidArgument(f"relay serves models in float32, float16 and bfloat16, not {dtype}")
    return known[dtype]
