"""Prefill: of a prompt, once, for everybody; of a sequence's own first tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence as SequenceOf
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from relay.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from relay.prompts import OnExists, Prompt
from relay.transformers._engine import Engine, Sequence, engine_of


def token_ids_of(tokenizer: Any, text: str | SequenceOf[int]) -> list[int]:
    """A text's token ids, with what the tokenizer puts in front; ids as they are."""
    if isinstance(text, str):
        return [int(t) for t in tokenizer(text)["input_ids"]]
    return [int(t) for t in text]


def content_key_of(engine: Engine, token_ids: SequenceOf[int], variant: str = "") -> bytes:
    """What decides whether two registrations are the same: model, variant and tokens."""
    digest = hashlib.sha256(f"{engine.spec.key}\0{variant}\0".encode())
    digest.update(b"".join(int(t).to_bytes(4, "little") for t in token_ids))
    return digest.digest()


def register_system_prompt(
    model: Any,
    tokenizer: Any,
    text: str | SequenceOf[int],
    prompt_id: str,
    *,
    variant: str = "",
    chunk_tokens: int = 1024,
    replace: bool = False,
    **options: Any,
) -> str:
    """Makes a text a prompt that every process can decode on; returns its id.

    Where the id is registered with the same model and tokens already, nothing is computed: a second
    process only looks it up. Else the model runs over the text once, here, chunk_tokens at a time,
    and the K/V of all layers is uploaded.

    model       attached, or its engine
    text        or its token ids; a text's begin with what the tokenizer puts in front
    replace     where the id is registered with other contents, put a new generation in its place;
                else AlreadyExists
    options     those of relay.Client.register_prompt (pinned, idle_ttl_s, labels, progress)
    """
    engine = engine_of(model)
    ids = token_ids_of(tokenizer, text)
    if not ids:
        raise InvalidArgument("the prompt has no tokens")
    content_key = content_key_of(engine, ids, variant)
    try:
        found: Prompt | None = engine.get_prompt(prompt_id)
    except NotFound:
        found = None
    if found is not None and found.content_key == content_key:
        return prompt_id
    if found is not None and not replace:
        raise AlreadyExists(f"prompt {prompt_id!r} is registered with other contents")
    layers = compute_kv(engine, ids, chunk_tokens)
    engine.client.register_prompt(
        prompt_id,
        engine.spec,
        layers,
        num_tokens=len(ids),
        variant=variant,
        content_key=content_key,
        on_exists=OnExists.REPLACE if replace else OnExists.SAME_OR_FAIL,
        token_ids=ids,
        **options,
    )
    return prompt_id


def compute_kv(engine: Engine, token_ids: SequenceOf[int], chunk_tokens: int = 1024) -> list[Any]:
    """K/V of tokens at positions 0.., computed here: per layer of relayd (k [S,Hkv,dqk], v [S,Hkv,dv])
    in the model's dtype on the CPU, None for a layer without its own."""
    return _run_here(engine, token_ids, chunk_tokens)[0]


def _run_here(
    engine: Engine, token_ids: SequenceOf[int], chunk_tokens: int
) -> tuple[list[Any], torch.Tensor]:
    """K/V, and the last token's logits [V]."""
    model = engine.model
    ids = torch.tensor([list(token_ids)], dtype=torch.long, device=model.device)
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    kept: dict[int, list[tuple[Any, Any]]] = {}  # a window layer's cache would not keep every token
    logits = torch.empty(0)
    with torch.no_grad(), engine.computing_here(kept):
        for begin in range(0, ids.shape[1], chunk_tokens):
            chunk = ids[:, begin : begin + chunk_tokens]
            positions = torch.arange(begin, begin + chunk.shape[1], device=ids.device)[None]
            out = model(
                input_ids=chunk,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            logits = out.logits[0, -1]
    layers: list[Any] = [None] * len(engine.spec)
    for layer_idx, i in engine.layer_of.items():
        if engine.spec.has_own_kv(i):
            parts = zip(*kept.pop(layer_idx), strict=True)
            whole = (torch.cat(part, dim=2)[0].transpose(0, 1) for part in parts)
            layers[i] = tuple(t.to("cpu").contiguous() for t in whole)
    return layers, logits


def prefill(
    model: Any,
    sequence: Sequence,
    token_ids: SequenceOf[int],
    *,
    chunk_tokens: int = 1024,
    append: bool = False,
) -> torch.Tensor:
    """Runs a sequence's own first tokens; returns the last one's logits, [V].

    append=False   the rows of each chunk are attended to in relayd, causally, over prompt and context
    append=True    attention is computed here and the K/V appended at the end: for sequences that
                   have neither a prompt nor a context yet
    """
    engine = engine_of(model)
    ids = [int(t) for t in token_ids]
    if not ids:
        raise InvalidArgument("no tokens")
    if append:
        if sequence.next_position != 0:
            raise FailedPrecondition("append=True needs a sequence without prompt and context")
        layers, logits = _run_here(engine, ids, chunk_tokens)
        sequence.request.append(layers, token_begin=0)
        sequence.length = len(ids)
        return logits
    chunk_tokens = min(chunk_tokens, engine.rows_max)
    logits = torch.empty(0)
    for begin in range(0, len(ids), chunk_tokens):
        chunk = torch.tensor([ids[begin : begin + chunk_tokens]], device=engine.model.device)
        positions = sequence.positions(chunk.shape[1])[None].to(chunk.device)
        with torch.no_grad(), engine.decoding([sequence]):
            out = engine.model(
                input_ids=chunk, position_ids=positions, use_cache=False, logits_to_keep=1
            )
        logits = out.logits[0, -1]
    return logits


def positions(sequences: SequenceOf[Sequence], tokens: int = 1) -> torch.Tensor:
    """position_ids of the next tokens of several sequences, [B,tokens]."""
    return torch.stack([s.positions(tokens) for s in sequences])
