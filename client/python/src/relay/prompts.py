"""Prompts: what is registered, and how K/V gets there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Union

from relay._library import call, ffi, lib, options, text
from relay._tensors import dtype_of, readable
from relay.dtypes import DType, DTypeLike, as_dtype
from relay.errors import InvalidArgument, RelayError
from relay.model import CModel, Model

KV = Union[tuple[Any, Any], None]  # (k [n,Hkv,dqk], v [n,Hkv,dv] or None), or None
Layers = Sequence[KV]  # [L]
Source = Callable[[int, int, int], KV]


class OnExists(IntEnum):
    """What to do when the id is registered already."""

    SAME_OR_FAIL = 0  # AlreadyExists when it differs
    KEEP = 1  # the old one is the answer
    REPLACE = 2  # a new generation; requests on the old one finish on it


class Tier(IntEnum):
    UNSPECIFIED = 0
    HOST = 1
    DEVICE = 2


@dataclass(frozen=True)
class Prompt:
    """A registered prompt, as it was when it was asked for."""

    prompt_id: str
    model_key: str
    variant: str
    generation: int  # opaque; a new one whenever the contents may be new
    content_key: bytes
    digest: bytes  # over the stored bytes
    num_tokens: int
    bytes: int  # of K/V stored
    references: int  # open requests on it
    hits: int  # requests opened on it so far
    idle_ttl_s: float
    created_unix_s: float
    last_used_unix_s: float
    tier: Tier
    pinned: bool
    doomed: bool  # unregistered or replaced, still in use
    labels: dict[str, str]

    @classmethod
    def from_c(cls, c: Any) -> Prompt:
        return cls(
            prompt_id=text(c.prompt_id),
            model_key=text(c.model_key),
            variant=text(c.variant),
            generation=c.generation,
            content_key=_bytes(c.content_key, c.content_key_bytes),
            digest=_bytes(c.digest, c.digest_bytes),
            num_tokens=c.num_tokens,
            bytes=c.bytes,
            references=c.references,
            hits=c.hits,
            idle_ttl_s=c.idle_ttl_ms / 1000,
            created_unix_s=c.created_unix_ms / 1000,
            last_used_unix_s=c.last_used_unix_ms / 1000,
            tier=Tier(c.tier),
            pinned=c.pinned,
            doomed=c.doomed,
            labels={text(c.labels[i].key): text(c.labels[i].value) for i in range(c.num_labels)},
        )


def _bytes(pointer: Any, n: int) -> bytes:
    return bytes(ffi.buffer(pointer, n)) if n else b""


def taken(out: Any) -> Prompt:
    """A prompt from its `struct relay_prompt **`, which is freed."""
    try:
        return Prompt.from_c(out[0])
    finally:
        lib().relay_prompt_free(out[0])


def fill_kv(
    c: Any, keep: list[Any], model: Model, layer: int, tokens: int, kv: KV, dtype: DType
) -> None:
    """Points a struct relay_kv at a layer's K/V, checked."""
    if not model.has_own_kv(layer):
        if kv is not None and any(t is not None for t in kv):
            raise InvalidArgument(f"layers[{layer}]: uses another layer's K/V; pass None")
        return
    if kv is None:
        raise InvalidArgument(f"layers[{layer}]: has K/V of its own; got None")
    kind = model.layers[layer]
    k = readable(f"layers[{layer}].k", kv[0], dtype, (tokens, kind.num_kv_heads, kind.head_dim_qk))
    keep.append(k)
    c.k = k.pointer
    c.dtype = int(dtype)
    if kind.v_from_k:
        return
    v = readable(f"layers[{layer}].v", kv[1], dtype, (tokens, kind.num_kv_heads, kind.dv))
    keep.append(v)
    c.v = v.pointer


def source_dtype(model: Model, layers: Layers, chosen: DTypeLike | None) -> DType:
    """Of the K/V given: as said, else the first tensor's own, else the model's."""
    stored = as_dtype(model.kv_dtype)
    if chosen is not None:
        return as_dtype(chosen)
    for kv in layers:
        if kv is not None:
            return dtype_of("k", kv[0], stored)
    return stored


class _Uploading:
    """The callbacks of one registration. What they raise is raised again by `register`."""

    def __init__(
        self,
        model: Model,
        dtype: DType,
        source: Source | None,
        progress: Callable[[int, int], Any] | None,
    ):
        self.model, self.dtype, self.source, self.progress = model, dtype, source, progress
        self.raised: BaseException | None = None
        self._kept: list[Any] = []

    def give(self, _user: Any, layer: int, begin: int, count: int, out: Any, err: Any) -> int:
        assert self.source is not None
        try:
            self._kept = []
            kv = self.source(layer, begin, count)
            fill_kv(out, self._kept, self.model, layer, count, kv, self.dtype)
            return 0
        except BaseException as error:
            self.raised = error
            code = error.code if isinstance(error, RelayError) else 1
            message = str(error).encode()[:255]
            ffi.memmove(err.msg, message + b"\0", len(message) + 1)
            err.code = int(code)
            return int(code)

    def tell(self, _user: Any, done: int, total: int) -> bool:
        assert self.progress is not None
        try:
            return self.progress(done, total) is not False
        except BaseException as error:
            self.raised = error
            return False


def register(
    client: Any,
    prompt_id: str,
    model: Model,
    layers: Layers | Source,
    *,
    num_tokens: int | None,
    dtype: DTypeLike | None,
    variant: str,
    content_key: bytes,
    on_exists: OnExists,
    idle_ttl_s: float,
    pinned: bool,
    labels: dict[str, str] | None,
    token_ids: Sequence[int] | None,
    progress: Callable[[int, int], Any] | None,
) -> Prompt:
    """See Client.register_prompt."""
    keep: list[Any] = []

    def hold(memory: Any) -> Any:
        keep.append(memory)
        return memory

    source = layers if callable(layers) else None
    given: Layers = [] if callable(layers) else list(layers)
    if num_tokens is None:
        num_tokens = len(token_ids) if token_ids is not None else _tokens_of(given)
    from_dtype = source_dtype(model, given, dtype)
    uploading = _Uploading(model, from_dtype, source, progress)
    c_model = hold(CModel(model))
    desc = options(
        "relay_prompt_desc",
        prompt_id=hold(ffi.new("char[]", prompt_id.encode())),
        model=c_model.pointer,
        num_tokens=num_tokens,
        source_dtype=int(from_dtype),
        variant=hold(ffi.new("char[]", variant.encode())),
        content_key=hold(ffi.new("char[]", content_key)) if content_key else None,
        content_key_bytes=len(content_key),
        on_exists=int(on_exists),
        idle_ttl_ms=round(idle_ttl_s * 1000),
        pinned=pinned,
    )
    if source is not None:
        desc.source = hold(ffi.callback("relay_kv_source_fn", uploading.give, error=2))
    else:
        if len(given) != len(model):
            raise InvalidArgument(f"layers: expected {len(model)}, got {len(given)}")
        desc.layers = c_layers = hold(ffi.new("struct relay_kv[]", max(1, len(given))))
        for i, kv in enumerate(given):
            fill_kv(c_layers[i], keep, model, i, num_tokens, kv, from_dtype)
    if progress is not None:
        desc.progress = hold(ffi.callback("relay_progress_fn", uploading.tell, error=False))
    if labels:
        desc.labels = c_labels = hold(ffi.new("struct relay_label[]", len(labels)))
        desc.num_labels = len(labels)
        for c_label, (key, value) in zip(c_labels, labels.items()):
            c_label.key = hold(ffi.new("char[]", key.encode()))
            c_label.value = hold(ffi.new("char[]", value.encode()))
    if token_ids is not None:
        if len(token_ids) != num_tokens:
            raise InvalidArgument(f"token_ids: expected {num_tokens}, got {len(token_ids)}")
        desc.token_ids = hold(ffi.new("uint32_t[]", [int(t) for t in token_ids]))
    out = ffi.new("struct relay_prompt **")
    try:
        call("relay_prompt_register", client, desc, out)
    except RelayError:
        if uploading.raised is not None:
            raise uploading.raised from None
        raise
    return taken(out)


def _tokens_of(layers: Layers) -> int:
    for kv in layers:
        if kv is not None:
            return int(kv[0].shape[0])
    raise InvalidArgument("num_tokens: not given, and no layer tells")
