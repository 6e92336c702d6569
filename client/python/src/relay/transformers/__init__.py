"""The seam for Hugging Face Transformers: a model's attention and K/V live in relayd.

    import relay.transformers as rt

    rt.attach(model, "unix:///run/relayd/relayd.sock")
    rt.register_system_prompt(model, tokenizer, SYSTEM, "support/v3")     # once; others find it
    with rt.RelayCache(model, "support/v3") as cache:
        inputs = cache.inputs([tokenizer(user, add_special_tokens=False)["input_ids"]], pad_id)
        model.generate(**inputs, past_key_values=cache, max_new_tokens=100)

or token by token, for rows of any lengths that come and go as they like:

    sequences = [engine.open("support/v3") for _ in users]
    logits = [rt.prefill(model, s, ids) for s, ids in zip(sequences, users)]
    model(input_ids=next[:, None], position_ids=rt.positions(sequences), use_cache=False,
          relay=sequences)

Importing this makes attn_implementation="relay" known to Transformers. Models keep their weights,
projections and positions; per layer they send q and the new tokens' k and v (after RoPE) and get
the attention's output. Inference only.
"""

from relay.transformers._attention import register
from relay.transformers._cache import RelayCache
from relay.transformers._engine import Engine, Sequence, attach, engine_of
from relay.transformers._prompts import (
    compute_kv,
    content_key_of,
    positions,
    prefill,
    register_system_prompt,
)

__all__ = [
    "Engine",
    "RelayCache",
    "Sequence",
    "attach",
    "compute_kv",
    "content_key_of",
    "engine_of",
    "positions",
    "prefill",
    "register_system_prompt",
]

register()
