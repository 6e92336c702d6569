"""What Transformers calls: the attention function "relay" and its mask function."""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from relay.errors import FailedPrecondition, Unimplemented
from relay.transformers import _context
from relay.transformers._describe import Probe
from relay.transformers._engine import Sequence


def relay_attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    relay: Any = None,
    **options: Any,
) -> Any:
    """query [B,Hq,T,dqk], key, value [B,Hkv,T,d] of the new tokens -> ([B,T,Hq,dv], None)."""
    asked = relay if relay is not None else _context.current.get()
    if isinstance(asked, _context.Local):
        if asked.kept is not None:
            new = -query.shape[2]
            kept = asked.kept.setdefault(module.layer_idx, [])
            kept.append((key[:, :, new:], value[:, :, new:]))
        function = _local(asked.implementation, module)
        return function(module, query, key, value, attention_mask, **options)
    if isinstance(asked, Probe):
        options.setdefault("alibi_slopes", getattr(module, "alibi_slopes", None))
        return asked.attend(module, query, key, value, attention_mask, options), None
    if options.get("dropout"):
        raise Unimplemented("relay has no dropout: put the model in eval mode")
    if query.requires_grad and torch.is_grad_enabled():
        raise Unimplemented("relay has no gradients: run under torch.no_grad()")
    batch = _batch(asked, module, key)
    layer = batch.engine.layer_of.get(module.layer_idx)
    if layer is None:
        raise FailedPrecondition(
            f"layer {module.layer_idx} was not there when the model was attached"
        )
    return batch.attend(layer, query, key, value, attention_mask, options.get("position_ids")), None


def _batch(asked: Any, module: Any, key: Any) -> Any:
    if asked is not None:
        sequences = [asked] if isinstance(asked, Sequence) else list(asked)
        if not sequences or not all(isinstance(s, Sequence) for s in sequences):
            raise FailedPrecondition("relay=: expected the sequences of the batch's rows")
        return sequences[0].engine.batch_of(sequences)
    cache = _context.pending.cache()
    if cache is None or not cache.passed_on(module.layer_idx, key):
        raise FailedPrecondition(
            "attention without a request: pass past_key_values=RelayCache(...), or use_cache=False "
            "and relay=[...], or wrap the call in engine.decoding(...) or engine.local()"
        )
    return cache.batch


def _local(name: str, module: Any) -> Any:
    """One of Transformers' own; a model's eager one is in the model's file."""
    if name == "eager":
        return sys.modules[type(module).__module__].eager_attention_forward
    return ALL_ATTENTION_FUNCTIONS[name]


def relay_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Any = causal_mask_function,
    attention_mask: Any = None,
    use_vmap: bool = False,
    **options: Any,
) -> Any:
    """[B,1,T,1]: which of the new tokens count; None = all. What a row sees is relayd's to know."""
    asked = _context.current.get()
    custom = use_vmap or "or_masks" in getattr(mask_function, "__qualname__", "")
    if isinstance(asked, _context.Local):
        return ALL_MASK_ATTENTION_FUNCTIONS[asked.implementation](
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            use_vmap=use_vmap,
            **options,
        )
    if isinstance(asked, Probe):
        return asked.mask(mask_function, custom)
    if custom:
        raise Unimplemented("a mask that is more than causal, window and chunk")
    if attention_mask is None:
        return None
    return attention_mask[:, -q_length:].to(torch.bool)[:, None, :, None]


def register() -> None:
    """Makes attn_implementation="relay" known to Transformers."""
    AttentionInterface.register("relay", relay_attention)
    AttentionMaskInterface.register("relay", relay_mask)
