"""Who is asking: what the attention function is to do for the forward pass it is called from.

Hugging Face's models hand their attention function tensors, not a request. Three ways lead to one:
the keyword `relay` of the forward call (kept by models that hand keywords on), a context variable
set around the call, and a RelayCache, whose update() notes the layer and the key tensor that it passed
on: the attention call that comes next for that layer, or with that very tensor, is the cache's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

# A list of Sequence (decode them), a Probe (describe the layers), or Local (compute here).
current: ContextVar[Any] = ContextVar("relay_attention", default=None)


@dataclass
class Local:
    """Attention is computed here, by one of Transformers' own functions."""

    implementation: str
    #: per layer_idx, the new tokens' (key, value) of each pass, [B,H,T,D]; None = not kept
    kept: dict[int, list[tuple[Any, Any]]] | None = field(default=None)


class _Pending(threading.local):
    """The cache that a forward pass of this thread is updating: a weak reference."""

    cache: Callable[[], Any] = staticmethod(lambda: None)


pending = _Pending()

# Tests plant faults here: an object with any of the methods describe(spec) -> spec,
# step(options) -> options, attend(batch, layer, q, k, v) -> out. None in earnest.
test_hook: Any = None


def hooked(name: str) -> Any:
    return getattr(test_hook, name, None)
