"""A Hugging Face model in relayd's words, read from what its attention calls really pass.

One forward pass over one token, with an attention function that only looks: shapes, scale, softcap,
sinks and slopes come from the calls, the window and the chunk from asking the mask function which
keys a row sees. Nothing is guessed from a config, so an architecture that this file has never heard
of works, or is refused here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from relay.dtypes import DTypeLike, as_dtype
from relay.errors import Unimplemented
from relay.model import LayerKind, Model
from relay.transformers import _context

_FAR = 1 << 22  # a position past any window


@dataclass
class _Seen:
    """What a layer's attention call had."""

    kind: LayerKind
    sinks: tuple[float, ...]
    key: torch.Tensor


@dataclass
class Probe:
    """Collects the attention calls of one pass. masks: the mask function behind a mask tensor."""

    layers: dict[int, _Seen] = field(default_factory=dict)
    masks: list[tuple[torch.Tensor, Callable[..., Any]]] = field(default_factory=list)
    dtype: torch.dtype | None = None

    def mask(self, mask_function: Callable[..., Any], custom: bool) -> torch.Tensor:
        if custom:
            raise Unimplemented("the model's mask is more than causal, window and chunk")
        token = torch.ones(1, 1, dtype=torch.bool)
        self.masks.append((token, mask_function))
        return token

    def attend(
        self, module: Any, query: Any, key: Any, value: Any, mask: Any, options: dict[str, Any]
    ) -> torch.Tensor:
        if not getattr(module, "is_causal", True):
            raise Unimplemented(f"{type(module).__name__}: not causal")
        window, chunk = options.get("sliding_window") or 0, 0
        functions = [f for token, f in self.masks if token is mask]
        if functions:
            window, chunk = visible(functions[0])
        elif mask is not None:
            raise Unimplemented(f"{type(module).__name__}: a mask made by the model itself")
        self.layers[module.layer_idx] = _Seen(
            kind=LayerKind(
                num_q_heads=query.shape[1],
                num_kv_heads=key.shape[1],
                head_dim_qk=query.shape[3],
                head_dim_v=value.shape[3],
                window=window,
                chunk=chunk,
                scale=float(options.get("scaling") or 0.0),
                softcap=float(options.get("softcap") or 0.0),
                alibi_slopes=_floats(options.get("alibi_slopes")),
            ),
            sinks=_floats(options.get("s_aux")),
            key=key,
        )
        self.dtype = query.dtype
        batch, heads, rows = query.shape[:3]
        return query.new_zeros(batch, rows, heads, value.shape[3])


def _floats(tensor: Any) -> tuple[float, ...]:
    return (
        () if tensor is None else tuple(torch.as_tensor(tensor).detach().float().flatten().tolist())
    )


def visible(mask_function: Callable[..., Any]) -> tuple[int, int]:
    """(window, chunk) of a mask function (batch, head, q, kv) -> visible; 0 = none.

    Finds the first key that a few rows see, then checks keys around every edge. Unimplemented for
    a mask that is not causal with a window or chunks.
    """

    def sees(q: int, kv: int) -> bool:
        zero = torch.zeros((), dtype=torch.long)
        return bool(mask_function(zero, zero, torch.tensor(q), torch.tensor(kv)))

    def first(q: int) -> int:
        low, high = 0, q  # sees(q, q); what is seen is an interval that ends at q
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if sees(q, middle) else (middle + 1, high)
        return low

    refused = Unimplemented("the model's mask is not causal with at most a window or chunks")
    if not sees(_FAR, _FAR):
        raise refused
    begin = first(_FAR)
    window = chunk = 0
    if begin > 0:
        window = _FAR - begin + 1
        if first(_FAR + 1) != begin + 1:  # the edge does not move with the row: chunks
            window, step = 0, 1
            while sees(_FAR + step, begin):
                step *= 2
            low, high = step // 2, step  # the row where the chunk is over
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if sees(_FAR + middle, begin) else (low, middle)
            chunk = _FAR + high - begin
    for q in (0, 1, 7, max(window, chunk, 8), 3 * max(window, chunk, 8) + 5, _FAR - 3):
        low = max(0, q - window + 1) if window else (q // chunk * chunk if chunk else 0)
        for kv in {0, 1, low - 1, low, low + 1, (low + q) // 2, q - 1, q, q + 1, q + 2, q + 1000}:
            if kv >= 0 and sees(q, kv) != (low <= kv <= q):
                raise refused
    return window, chunk


def probe(model: Any) -> Probe:
    """Runs the looking pass."""
    found = Probe()
    token = _context.current.set(found)
    try:
        with torch.no_grad():
            model(
                input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False
            )
    finally:
        _context.current.reset(token)
    if not found.layers:
        raise Unimplemented(
            f"{type(model).__name__} does not use Transformers' attention interface"
        )
    return found


def describe(found: Probe, key: str, kv_dtype: DTypeLike | None) -> tuple[Model, dict[int, int]]:
    """relayd's model, and the model's layer_idx -> relayd's layer."""
    order = sorted(found.layers)
    seen = [found.layers[i] for i in order]
    # A layer that was handed the key tensor of an earlier one has no K/V of its own.
    kv_layer = []
    for i, layer in enumerate(seen):
        kv_layer.append(next(j for j in range(i + 1) if _same_memory(seen[j].key, layer.key)))
    sinks: list[tuple[float, ...]] = []
    if any(layer.sinks for layer in seen):
        sinks = [layer.sinks or (float("-inf"),) * layer.kind.num_q_heads for layer in seen]
    spec = Model(
        key=key,
        layers=tuple(layer.kind for layer in seen),
        kv_dtype=as_dtype(found.dtype if kv_dtype is None else kv_dtype),
        kv_layer=tuple(kv_layer) if kv_layer != list(range(len(seen))) else (),
        sinks=tuple(sinks),
    )
    return spec, {layer_idx: i for i, layer_idx in enumerate(order)}


def _same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a is b or (a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.numel() > 0)


def fingerprint(model: Any) -> str:
    """A model key: the name, and a hash of the shapes and of some bytes of every weight.

    Two revisions that differ only where no byte is looked at would be taken for one: give a key of
    your own where that can happen.
    """
    digest = hashlib.sha256(str(model.dtype).encode())
    for name, weight in model.named_parameters():
        flat = weight.detach().reshape(-1)
        picked = flat[:: max(1, flat.numel() // 64)][:64].float().cpu().numpy()
        digest.update(f"{name} {tuple(weight.shape)} ".encode() + picked.tobytes())
    name = str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
    return f"{name.rstrip('/').rsplit('/', 1)[-1][:200]}@{digest.hexdigest()[:16]}"
