"""A model attached to a relayd: its description, a session, and the sequences being decoded."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from typing import Any

import torch

from relay.client import Client
from relay.dtypes import DTypeLike
from relay.errors import FailedPrecondition, InvalidArgument, RelayError, ResourceExhausted
from relay.prompts import Prompt
from relay.session import Request, Session
from relay.step import Timings
from relay.transformers import _context
from relay.transformers._batch import Batch, io_dtype_of
from relay.transformers._describe import describe, fingerprint, probe

_engines: weakref.WeakKeyDictionary[Any, Engine] = weakref.WeakKeyDictionary()
_PIECE_BYTES = 16 << 20  # of one direction: how large a layer's message gets before it is split


class Sequence:
    """One sequence being decoded: a row of the model's batch. Made by Engine.open.

    length          its context tokens in relayd, after the prompt
    prompt_tokens   S
    """

    def __init__(self, engine: Engine, request: Request):
        self.engine = engine
        self.request = request
        self.prompt_tokens = request.prompt_tokens
        self.length = 0

    @property
    def next_position(self) -> int:
        """Where its next token goes: prompt_tokens + length."""
        return self.prompt_tokens + self.length

    def positions(self, tokens: int = 1) -> torch.Tensor:
        """position_ids of its next tokens, [tokens]."""
        return torch.arange(self.next_position, self.next_position + tokens)

    def truncate(self, length: int) -> None:
        """Forgets context tokens from `length` on; the next pass writes over them."""
        if not 0 <= length <= self.length:
            raise InvalidArgument(f"truncate to {length}: the sequence has {self.length}")
        self.length = length

    def close(self) -> None:
        self.request.close()

    def __enter__(self) -> Sequence:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Engine:
    """See attach. Context manager; close() gives the model its own attention back."""

    def __init__(
        self,
        model: Any,
        client: Client,
        *,
        owns_client: bool,
        model_key: str | None,
        kv_dtype: DTypeLike | None,
        want_timings: bool,
        session_options: dict[str, Any],
    ):
        self._model = weakref.ref(model)
        self.client = client
        self._owns_client = owns_client
        self._session_options = session_options
        self._session: Session | None = None
        self._lock = threading.Lock()
        self._suspect = False
        self._dropped: list[Request] = []  # of caches that nobody closed
        self._local = threading.local()
        self.want_timings = want_timings
        self.timings: Timings | None = None
        before = model.config._attn_implementation
        #: what computes where relayd is not asked: prefill of prompts
        self.local_implementation: str = "eager" if before in (None, "relay") else before
        model.set_attn_implementation("relay")
        try:
            found = probe(model)
            self.spec, self.layer_of = describe(found, model_key or fingerprint(model), kv_dtype)
            change = _context.hooked("describe")
            if change is not None:
                self.spec = change(self.spec)
            assert found.dtype is not None
            self.io_dtype = io_dtype_of(found.dtype)
            info = client.server_info()
        except BaseException:
            model.set_attn_implementation(self.local_implementation)
            raise
        self.rows_max = session_options.get("rows_max") or info.rows_max or 1
        self._response_bytes_max = min(info.response_bytes_max or 4 << 20, 32 << 20)
        self.rows_per_call = self._rows_per_call(info.message_bytes_max or 4 << 20)

    def _rows_per_call(self, message_bytes_max: int) -> int:
        size, kinds = self.io_dtype.itemsize, self.spec.layers
        sent = max(
            size * (k.num_q_heads * k.head_dim_qk + k.num_kv_heads * (k.head_dim_qk + k.dv))
            for k in kinds
        )
        answered = max(size * k.num_q_heads * k.dv for k in kinds)
        head = 4096  # scalars and field headers around the tensors
        return max(
            1,
            min(
                (min(_PIECE_BYTES, message_bytes_max) - head) // sent,
                (min(_PIECE_BYTES, self._response_bytes_max) - head) // answered,
            ),
        )

    # ---- life

    @property
    def model(self) -> Any:
        model = self._model()
        if model is None:
            raise FailedPrecondition("the model is gone")
        return model

    @property
    def session(self) -> Session:
        """The open session; a new one after the old was lost, which is looked at after errors."""
        with self._lock:
            if self._session is not None and self._suspect and not self._session.alive():
                self._session.close()
                self._session, self._dropped = None, []
            self._suspect = False
            if self._session is None:
                self._session = self.client.session(
                    self.spec,
                    io_dtype=self.io_dtype,
                    response_bytes_max=self._response_bytes_max,
                    **self._session_options,
                )
            return self._session

    def noticed(self, error: RelayError) -> None:
        """After an error that can mean a lost session, the next open() looks whether it is.

        Sequences of a lost session stay lost: their K/V was in it.
        """
        self._suspect |= not isinstance(error, (InvalidArgument, ResourceExhausted))

    def close(self) -> None:
        """Ends the session and its sequences; the model computes attention itself again."""
        session, self._session = self._session, None
        if session is not None:
            session.close()
        model = self._model()
        if model is not None and _engines.get(model) is self:
            del _engines[model]
            model.set_attn_implementation(self.local_implementation)
        if self._owns_client:
            self.client.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- sequences

    def open(self, prompt_id: str | None = None, **options: Any) -> Sequence:
        """A new sequence on a prompt, or on none. Options: relay.Session.request's."""
        return self.open_many([prompt_id], **options)[0]

    def open_many(self, prompt_ids: SequenceOf[str | None], **options: Any) -> list[Sequence]:
        """One for each, all or none, in one call."""
        session = self.session
        dropped, self._dropped[:] = list(self._dropped), []
        try:
            self.drop(dropped)
            opened = session.requests(prompt_ids, **options)
        except RelayError as error:
            self.noticed(error)
            if self.session is session:
                raise
            opened = self.session.requests(prompt_ids, **options)
        return [Sequence(self, request) for request in opened]

    def drop(self, requests: list[Request]) -> None:
        """Closes those that are not lost."""
        session = self._session
        if session is not None and not self._suspect:
            session.close_requests([r for r in requests if r.session is session])

    def get_prompt(self, prompt_id: str) -> Prompt:
        """What is registered under the id for this model. Raises NotFound."""
        return self.client.get_prompt(self.spec.key, prompt_id)

    def batch_of(self, sequences: list[Sequence]) -> Batch:
        """This thread's batch of these sequences; the one before it ends its step."""
        batch: Batch | None = getattr(self._local, "batch", None)
        if batch is not None:
            if len(batch.sequences) == len(sequences) and all(
                a is b for a, b in zip(batch.sequences, sequences, strict=True)
            ):
                return batch
            batch.abandon()
        batch = self._local.batch = Batch(self, list(sequences))
        return batch

    # ---- where attention is computed

    @contextlib.contextmanager
    def decoding(self, sequences: list[Sequence]) -> Iterator[None]:
        """Passes inside belong to these sequences: for models that do not hand `relay=` on."""
        token = _context.current.set(sequences)
        try:
            yield
        finally:
            _context.current.reset(token)

    @contextlib.contextmanager
    def local(self) -> Iterator[None]:
        """Passes inside are computed here, by the attention the model had before."""
        with self.computing_here(None):
            yield

    @contextlib.contextmanager
    def computing_here(self, kept: dict[int, list[tuple[Any, Any]]] | None) -> Iterator[None]:
        """As local(); keeps the new tokens' keys and values of every pass."""
        token = _context.current.set(_context.Local(self.local_implementation, kept))
        try:
            yield
        finally:
            _context.current.reset(token)


def attach(
    model: Any,
    relayd: Client | str,
    *,
    model_key: str | None = None,
    kv_dtype: DTypeLike | None = None,
    want_timings: bool = False,
    **session_options: Any,
) -> Engine:
    """Hands a model's attention and K/V over to a relayd.

    model       a causal language model of Transformers whose attention goes through its attention
                interface; in eval mode, in float32, float16 or bfloat16. For one on an accelerator
                tensors are copied to the CPU and back per layer.
    relayd      a relay.Client, or a target for one that the engine then owns
    model_key   says whose weights: whoever gives the same key shares prompts, so it must name the
                revision. None = a name and a hash over part of the weights.
    kv_dtype    what relayd stores K/V in; None = the model's dtype
    session_options   those of relay.Client.session

    Runs the model once, over one token, to see what its layers compute. Raises Unimplemented for a
    model that computes something relayd does not. A second attach replaces the first.
    """
    old = _engines.get(model)
    if old is not None:
        old.close()
    owned = isinstance(relayd, str)
    client = Client(relayd) if isinstance(relayd, str) else relayd
    try:
        engine = Engine(
            model,
            client,
            owns_client=owned,
            model_key=model_key,
            kv_dtype=kv_dtype,
            want_timings=want_timings,
            session_options=session_options,
        )
    except BaseException:
        if owned:
            client.close()
        raise
    _engines[model] = engine
    return engine


def engine_of(model: Any) -> Engine:
    """The engine a model is attached to. Raises FailedPrecondition where it is to none."""
    if isinstance(model, Engine):
        return model
    engine = _engines.get(model)
    if engine is None:
        raise FailedPrecondition("the model is not attached: call relay.transformers.attach first")
    return engine
