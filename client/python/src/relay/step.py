"""Steps: new tokens of a batch of requests, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from relay._library import call, ffi, lib, options
from relay._tensors import empty, readable, writable
from relay.dtypes import DType
from relay.errors import FailedPrecondition, InvalidArgument
from relay.model import LayerKind, check_kv

if TYPE_CHECKING:
    from relay.session import Session


class Part(IntEnum):
    """Which keys a step attends to. Parts leave sinks out: whoever merges adds them."""

    FULL = 0
    PROMPT_ONLY = 1  # k and v stay with the caller
    CONTEXT_ONLY = 2


class Sharing(IntEnum):
    """Whether rows on one prompt read it once, or each for itself: for tests and measurements."""

    AUTO = 0
    ALWAYS = 1
    NEVER = 2


@dataclass(frozen=True)
class Timings:
    """Of the last call that was waited for. Bytes and batch are of the launch that served it."""

    queue_us: int
    plan_us: int
    compute_us: int
    batch_rows: int
    batch_sessions: int
    prompt_bytes: int  # K/V of prompts read
    kv_bytes: int  # K/V of contexts read
    total_us: int  # measured here, from submit to answer


class Ticket:
    """A submitted call: Step.wait takes it, once."""

    __slots__ = ("_keep", "_number", "lse", "out")

    def __init__(self, number: int, out: Any, lse: Any, keep: tuple[Any, ...]):
        self._number: int | None = number
        self.out, self.lse = out, lse
        self._keep = keep  # what C reads and writes until the wait is over


class Step:
    """Made by Session.step. One thread at a time. End it, or use it as a context manager.

    Nothing is sent by a thread behind the caller's back: submit sends, wait moves things on.
    """

    def __init__(self, session: Session, entries: Sequence[Any], **opt: Any):
        self._c: Any = None
        self._tickets: set[Ticket] = set()
        self.session = session
        self._want_lse: bool = opt["want_lse"]
        c_entries = ffi.new("struct relay_step_entry[]", max(1, len(entries)))
        for c, entry in zip(c_entries, entries):
            request, position, *q_len = entry
            c.request, c.position = request.handle, position
            c.q_len = q_len[0] if q_len else 1
            if c.q_len == 0:
                raise InvalidArgument("q_len: 0 rows; leave the entry out")
        out = ffi.new("struct relay_step **")
        c_options = options("relay_step_options", **opt)
        call("relay_step_begin", session.handle(), c_entries, len(entries), c_options, out)
        self._c = out[0]
        self.rows: int = lib().relay_step_rows(self._c)
        self.step_id: int = lib().relay_step_id(self._c)

    def end(self) -> None:
        """Tells the server; calls not waited for are given up. Twice is fine."""
        c, self._c = self._c, None
        if c is not None:
            lib().relay_step_end(c)
        self.session._steps.discard(self)
        self._tickets.clear()

    def __enter__(self) -> Step:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def handle(self) -> Any:
        """`struct relay_step *`."""
        if self._c is None:
            raise FailedPrecondition("the step has ended")
        return self._c

    def attend(
        self, layer: int, q: Any, k: Any = None, v: Any = None, *, out: Any = None, lse: Any = None
    ) -> tuple[Any, Any]:
        """One layer, waited for: stores k, v at the entries' positions, attends to prompt + context.

        q   [R,Hq,dqk]  io_dtype        out [R,Hq,dv] out_dtype
        k   [R,Hkv,dqk] io_dtype        lse [R,Hq]    float32, natural logarithm, -inf = saw nothing
        v   [R,Hkv,dv]  io_dtype, None with v_from_k

        k and v both None: read only (the tokens are held already, PROMPT_ONLY, or the layer uses
        another's K/V). Returns (out, lse): those given, else new ones of q's kind (numpy, with
        bfloat16 as its bits in uint16 unless q is an ml_dtypes array; torch for torch); lse is None
        unless the step wants it.

        Safe to repeat with the same step. One bad entry fails the call and nothing is stored.
        Raises NotFound (request, session), Aborted (a newer step was accepted), FailedPrecondition
        (a gap, a newer step took the request, the server has restarted), InvalidArgument,
        DeadlineExceeded, ResourceExhausted.
        """
        return self.wait(self.submit(layer, q, k, v, out=out, lse=lse))

    def submit(
        self,
        layer: int,
        q: Any,
        k: Any = None,
        v: Any = None,
        *,
        rows: tuple[int, int] | None = None,
        out: Any = None,
        lse: Any = None,
    ) -> Ticket:
        """Sends one layer and does not wait; wait(ticket) must come before the tensors are touched.

        rows   (begin, count): only these rows of the step, which the tensors then hold; pieces of a
               layer in ascending order
        """
        c = self.handle()
        kinds = self.session.model.layers
        if not 0 <= layer < len(kinds):
            raise InvalidArgument(f"layer {layer}: the model has {len(kinds)}")
        begin, count = rows if rows is not None else (0, self.rows)
        read = self._inputs(kinds[layer], count, q, k, v)
        io_out, shape = self.session.out_dtype, (count, kinds[layer].num_q_heads, kinds[layer].dv)
        out = empty(q, io_out, shape) if out is None else out
        c_out = writable("out", out, io_out, shape)
        c_lse = None
        if self._want_lse:
            lse = empty(q, DType.F32, shape[:2]) if lse is None else lse
            c_lse = writable("lse", lse, DType.F32, shape[:2])
        elif lse is not None:
            raise InvalidArgument("lse: the step was begun with want_lse=False")
        number = ffi.new("uint64_t *")
        pointers = [ffi.NULL if memory is None else memory.pointer for memory in (*read, c_out)]
        c_lse_pointer = ffi.NULL if c_lse is None else ffi.cast("float *", c_lse.address)
        if rows is None:
            call("relay_step_submit", c, layer, *pointers, c_lse_pointer, number)
        else:
            call("relay_step_submit_rows", c, layer, begin, count, *pointers, c_lse_pointer, number)
        ticket = Ticket(number[0], out, lse, (*read, c_out, c_lse))
        self._tickets.add(ticket)
        return ticket

    def wait(self, ticket: Ticket) -> tuple[Any, Any]:
        """(out, lse) of a submitted call, in any order. Raises what attend raises."""
        number, ticket._number = ticket._number, None
        if number is None or ticket not in self._tickets:
            raise FailedPrecondition("the ticket was waited for already, or is another step's")
        try:
            call("relay_step_wait", self.handle(), number)
        finally:
            self._tickets.discard(ticket)
        return ticket.out, ticket.lse

    def _inputs(self, kind: LayerKind, rows: int, q: Any, k: Any, v: Any) -> tuple[Any, Any, Any]:
        io = self.session.io_dtype
        c_q = readable("q", q, io, (rows, kind.num_q_heads, kind.head_dim_qk))
        if v is not None and kind.v_from_k:
            check_kv("v", kind)
        if k is None and v is None:
            return c_q, None, None
        if k is None or (v is None and not kind.v_from_k):
            raise InvalidArgument("k and v: give both or none")
        c_k = readable("k", k, io, (rows, kind.num_kv_heads, kind.head_dim_qk))
        c_v = None if v is None else readable("v", v, io, (rows, kind.num_kv_heads, kind.dv))
        return c_q, c_k, c_v

    @property
    def timings(self) -> Timings:
        """What the server measured for the last call waited for."""
        c = lib().relay_step_timings(self.handle())
        return Timings(**{name: getattr(c, name) for name in Timings.__dataclass_fields__})

    @property
    def kv_tokens_free(self) -> int:
        """Context tokens that could still be reserved when the step was admitted; 0 before."""
        return int(lib().relay_step_kv_tokens_free(self.handle()))
