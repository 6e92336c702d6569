"""What the maths needs to know of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from relay._library import ffi
from relay.dtypes import DType, DTypeLike, as_dtype
from relay.errors import InvalidArgument


@dataclass(frozen=True)
class LayerKind:
    """What one layer computes.

    Query head h reads KV head h // (num_q_heads // num_kv_heads). The score of a row at position p
    on key j is `cap(scale * q.k) + alibi_slopes[h] * (j - p)` with `cap(x) = softcap * tanh(x /
    softcap)`; key j is visible iff j <= p, and j > p - window (window > 0), and j // chunk ==
    p // chunk (chunk > 0).
    """

    num_q_heads: int
    num_kv_heads: int
    head_dim_qk: int  # a multiple of 8
    head_dim_v: int = 0  # 0 = head_dim_qk
    window: int = 0  # tokens, the row's own included; 0 = none
    chunk: int = 0  # tokens; 0 = none
    scale: float = 0.0  # 0 = 1 / sqrt(head_dim_qk)
    softcap: float = 0.0  # 0 = none
    v_from_k: bool = False  # V is the first head_dim_v elements of K; no V is stored
    alibi_slopes: tuple[float, ...] = ()  # empty or [num_q_heads]

    @property
    def dv(self) -> int:
        return self.head_dim_v or self.head_dim_qk


@dataclass(frozen=True)
class Model:
    """A model, or the slice of one that this process runs; layers are local and 0-based.

    key         says whose weights: 1 to 256 bytes, compared, never parsed. K/V of another revision
                must have another key.
    layers      the kind of each layer, [L]
    kv_dtype    of the K/V that relayd stores
    kv_layer    the layer whose K/V a layer uses (its own index = its own), [L]; empty = all own
    sinks       per layer [Hq] floats (one extra logit a head, -inf = none); empty = no sinks
    k_scale, v_scale   for F8_E4M3, per layer [Hkv]: value = stored * scale; empty = 1
    """

    key: str
    layers: tuple[LayerKind, ...]
    kv_dtype: DTypeLike = DType.BF16
    kv_layer: tuple[int, ...] = ()
    sinks: tuple[tuple[float, ...], ...] = ()
    k_scale: tuple[tuple[float, ...], ...] = ()
    v_scale: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        # Lists are welcome; what is kept is hashable and does not change.
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "kv_dtype", as_dtype(self.kv_dtype))
        object.__setattr__(self, "kv_layer", tuple(self.kv_layer))
        for name in ("sinks", "k_scale", "v_scale"):
            rows = tuple(tuple(float(x) for x in row) for row in getattr(self, name))
            object.__setattr__(self, name, rows)
            if rows and len(rows) != len(self.layers):
                raise InvalidArgument(f"{name}: {len(rows)} rows for {len(self.layers)} layers")
        if self.kv_layer and len(self.kv_layer) != len(self.layers):
            raise InvalidArgument(f"kv_layer: {len(self.kv_layer)} for {len(self.layers)} layers")

    def __len__(self) -> int:
        return len(self.layers)

    def has_own_kv(self, layer: int) -> bool:
        return not self.kv_layer or self.kv_layer[layer] == layer

    def kv_bytes_per_token(self) -> int:
        """K/V of one token in all layers, as relayd stores it."""
        size = as_dtype(self.kv_dtype).itemsize
        return size * sum(
            kind.num_kv_heads * (kind.head_dim_qk + (0 if kind.v_from_k else kind.dv))
            for i, kind in enumerate(self.layers)
            if self.has_own_kv(i)
        )


class CModel:
    """`struct relay_model` and the memory it points to."""

    def __init__(self, model: Model):
        self._keep: list[Any] = []
        kinds = list(dict.fromkeys(model.layers))
        made = ffi.new("struct relay_model *")
        made.key = self._hold(ffi.new("char[]", model.key.encode()))
        made.num_layers = len(model.layers)
        made.num_kinds = len(kinds)
        c_kinds = self._hold(ffi.new("struct relay_layer_kind[]", max(1, len(kinds))))
        for c_kind, kind in zip(c_kinds, kinds):
            self._fill(c_kind, kind)
        made.kinds = c_kinds
        made.layer_kind = self._numbers([kinds.index(kind) for kind in model.layers], np.uint32)
        made.kv_layer = self._numbers(model.kv_layer, np.uint32)
        made.kv_dtype = int(model.kv_dtype)
        for name in ("sinks", "k_scale", "v_scale"):
            flat = [x for row in getattr(model, name) for x in row]
            setattr(made, name, self._numbers(flat, np.float32))
        self.pointer = made

    def _fill(self, c_kind: Any, kind: LayerKind) -> None:
        for name in ("num_q_heads", "num_kv_heads", "head_dim_qk", "window", "chunk", "scale"):
            setattr(c_kind, name, getattr(kind, name))
        c_kind.head_dim_v = kind.dv
        c_kind.softcap = kind.softcap
        c_kind.v_from_k = kind.v_from_k
        if kind.alibi_slopes and len(kind.alibi_slopes) != kind.num_q_heads:
            raise InvalidArgument(
                f"alibi_slopes: expected {kind.num_q_heads}, got {len(kind.alibi_slopes)}"
            )
        c_kind.alibi_slopes = self._numbers(kind.alibi_slopes, np.float32)

    def _hold(self, memory: Any) -> Any:
        self._keep.append(memory)
        return memory

    def _numbers(self, values: Sequence[float], dtype: Any) -> Any:
        if not values:
            return ffi.NULL
        array = np.array(values, dtype)
        self._keep.append(array)
        kind = "uint32_t *" if dtype is np.uint32 else "float *"
        return ffi.cast(kind, array.__array_interface__["data"][0])


def check_kv(name: str, kind: LayerKind) -> None:
    if kind.v_from_k:
        raise InvalidArgument(f"{name}: this layer's V is part of its K; pass None")
