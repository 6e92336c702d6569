"""Sessions and requests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Union

from relay._library import call, ffi, lib, options
from relay.dtypes import DType, DTypeLike, as_dtype
from relay.errors import FailedPrecondition, InvalidArgument, NotFound
from relay.model import CModel, Model
from relay.prompts import Layers, fill_kv, source_dtype
from relay.step import Part, Sharing, Step

if TYPE_CHECKING:
    from relay.client import Client

Entry = Union[tuple["Request", int], tuple["Request", int, int]]


class Session:
    """Owns requests. Made by Client.session; any number of threads may use it at once."""

    def __init__(self, client: Client, model: Model, **opt: Any):
        self._c: Any = None
        self._steps: set[Step] = set()  # not ended
        self.client = client
        self.model = model
        self.io_dtype: DType = as_dtype(opt["io_dtype"])
        self.out_dtype: DType = as_dtype(opt["out_dtype"]) or self.io_dtype
        c_options = options(
            "relay_session_options",
            io_dtype=int(self.io_dtype),
            out_dtype=int(self.out_dtype),
            lease_ms=round(opt["lease_s"] * 1000),
            rows_max=opt["rows_max"],
            response_bytes_max=opt["response_bytes_max"],
            keepalive=opt["keepalive"],
            stream=opt["stream"],
            spin_us=opt["spin_us"],
        )
        out = ffi.new("struct relay_session **")
        c_model = CModel(model)  # holds what its pointer points to
        call("relay_session_open", client.handle(), c_model.pointer, c_options, out)
        self._c = out[0]

    def close(self) -> None:
        """Ends open steps, tells the server, ends its requests. Twice is fine."""
        c, self._c = self._c, None
        if c is not None:
            for step in list(self._steps):
                step.end()
            lib().relay_session_close(c)
        self.client._sessions.discard(self)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def handle(self) -> Any:
        """`struct relay_session *`."""
        if self._c is None:
            raise FailedPrecondition("the session is closed")
        return self._c

    @property
    def lease_s(self) -> float:
        return float(lib().relay_session_lease_ms(self.handle())) / 1000

    @property
    def server_epoch(self) -> int:
        """The server's when the session opened; another one later means that all is lost."""
        return int(lib().relay_session_server_epoch(self.handle()))

    @property
    def draining(self) -> bool:
        """The server is going away: end the steps and open a session elsewhere."""
        return bool(lib().relay_session_draining(self.handle()))

    def alive(self) -> bool:
        """Whether the server still knows the session; renews its lease. Raises Unavailable."""
        try:
            call("relay_requests_close", self.handle(), ffi.new("uint64_t[]", [0]), 1)
        except (NotFound, FailedPrecondition):
            return False
        return True

    # ---- requests

    def request(
        self,
        prompt_id: str | None = None,
        *,
        variant: str = "",
        generation: int = 0,
        content_key: bytes = b"",
        tokens_reserved: int = 0,
    ) -> Request:
        """Opens one sequence, on a prompt or on none.

        variant, content_key   must equal the prompt's (FailedPrecondition)
        generation   0 = the newest (Aborted when the prompt's is another)
        tokens_reserved   context tokens to reserve memory for now

        Raises NotFound for an unknown prompt.
        """
        return self.requests(
            [prompt_id],
            variant=variant,
            generation=generation,
            content_key=content_key,
            tokens_reserved=tokens_reserved,
        )[0]

    def requests(
        self,
        prompt_ids: Sequence[str | None],
        *,
        variant: str = "",
        generation: int = 0,
        content_key: bytes = b"",
        tokens_reserved: int = 0,
    ) -> list[Request]:
        """Opens a sequence for each of prompt_ids, all or none."""
        n = len(prompt_ids)
        if n == 0:
            return []
        size = ffi.sizeof("struct relay_request_options")
        c_options = ffi.new("struct relay_request_options[]", n)
        keep = [ffi.new("char[]", variant.encode()), ffi.new("char[]", content_key)]
        for c, prompt_id in zip(c_options, prompt_ids, strict=True):
            c.size = size
            keep.append(ffi.new("char[]", (prompt_id or "").encode()))
            c.prompt_id = keep[-1]
            c.variant = keep[0]
            c.generation = generation
            if content_key:
                c.content_key = keep[1]
                c.content_key_bytes = len(content_key)
            c.tokens_reserved = tokens_reserved
        out = ffi.new("struct relay_request[]", n)
        call("relay_requests_open", self.handle(), c_options, n, out)
        return [Request(self, c, prompt_id) for c, prompt_id in zip(out, prompt_ids, strict=True)]

    def close_requests(self, requests: Iterable[Request]) -> None:
        """Several in one call; those the server does not know are ignored."""
        handles = [r.handle for r in requests if not r._closed]
        for request in requests:
            request._closed = True
        if handles:
            call(
                "relay_requests_close", self.handle(), ffi.new("uint64_t[]", handles), len(handles)
            )

    # ---- steps

    def step(
        self,
        entries: Sequence[Entry],
        *,
        step_id: int = 0,
        part: Part = Part.FULL,
        sharing: Sharing = Sharing.AUTO,
        timeout_s: float = 0.0,
        deadline_us: int = 0,
        align_us: int = 0,
        want_lse: bool = True,
        want_timings: bool = True,
        wait_admitted: bool = False,
    ) -> Step:
        """Begins a step: new tokens of a batch of requests, through all layers.

        entries     (request, position) or (request, position, q_len): position is the context index
                    of the first new token (0 = right after the prompt), q_len the rows (1)
        step_id     0 = the session's next; else larger than every one before
        timeout_s   of each wait, reconnecting included; 0 = the client's
        deadline_us from the server's receipt; layers launched later raise DeadlineExceeded
        align_us    how long a layer may wait for other sessions' steps on the same prompt
        wait_admitted   wait for the server's verdict here, not at the first layer

        Rows of tensors are the entries' rows in order. A request has one open step; an older one
        ends. Raises InvalidArgument, and with wait_admitted what Step.attend raises.
        """
        made = Step(
            self,
            entries,
            step_id=step_id,
            part=int(part),
            sharing=int(sharing),
            timeout_ms=round(timeout_s * 1000),
            timeout_us=deadline_us,
            align_us=align_us,
            want_lse=want_lse,
            want_timings=want_timings,
            wait_admitted=wait_admitted,
        )
        self._steps.add(made)
        return made


class Request:
    """One sequence being decoded: a prompt (or none) and a context of its own."""

    def __init__(self, session: Session, c: Any, prompt_id: str | None):
        self.session = session
        self.prompt_id = prompt_id
        self._closed = False
        self.handle: int = c.handle
        self.generation: int = c.generation  # of its prompt; 0 = no prompt
        self.prompt_tokens: int = c.prompt_tokens  # S: context begins at this position
        self.length: int = c.length  # context tokens that every layer holds, when last asked
        self.held_max: int = c.held_max  # of the layer that holds most
        self.last_step_id: int = c.last_step_id

    def refresh(self) -> Request:
        """Asks the server for length, held_max and last_step_id. Raises NotFound."""
        out = ffi.new("struct relay_request *")
        call(
            "relay_requests_get",
            self.session.handle(),
            ffi.new("uint64_t[]", [self.handle]),
            1,
            out,
        )
        self.length, self.held_max, self.last_step_id = out.length, out.held_max, out.last_step_id
        return self

    def append(
        self, layers: Layers, *, token_begin: int | None = None, dtype: DTypeLike | None = None
    ) -> None:
        """Adds prefilled context tokens to all layers: per layer (k [n,Hkv,dqk], v [n,Hkv,dv]).

        token_begin   context index of the first; None = after what is held (asks the server).
        Layers never get shorter. Raises FailedPrecondition for a gap, NotFound, ResourceExhausted.
        """
        model = self.session.model
        if len(layers) != len(model):
            raise InvalidArgument(f"layers: expected {len(model)}, got {len(layers)}")
        first = next((kv for kv in layers if kv is not None), None)
        if first is None:
            raise InvalidArgument("layers: no K/V given")
        if token_begin is None:
            token_begin = self.refresh().length
        count = int(first[0].shape[0])
        from_dtype = source_dtype(model, layers, dtype)
        c_layers = ffi.new("struct relay_kv[]", len(layers))
        keep: list[Any] = []
        for i, kv in enumerate(layers):
            fill_kv(c_layers[i], keep, model, i, count, kv, from_dtype)
        call(
            "relay_request_append", self.session.handle(), self.handle, token_begin, count, c_layers
        )

    def truncate(self, tokens_keep: int) -> None:
        """Cuts the context to its first tokens_keep tokens. OutOfRange where it holds fewer."""
        handles, keep = ffi.new("uint64_t[]", [self.handle]), ffi.new("uint32_t[]", [tokens_keep])
        call("relay_requests_truncate", self.session.handle(), handles, keep, 1)

    def close(self) -> None:
        """Frees its K/V. Twice is fine; after the session's close too."""
        if not self._closed and self.session._c is not None:
            self.session.close_requests([self])
        self._closed = True

    def __enter__(self) -> Request:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
