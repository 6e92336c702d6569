"""The cache that holds no K/V: lengths, and the requests in relayd that hold it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence as SequenceOf
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from relay.errors import FailedPrecondition, InvalidArgument, Unimplemented
from relay.session import Request
from relay.transformers import _context
from relay.transformers._batch import Batch
from relay.transformers._engine import Engine, engine_of


class _Length(CacheLayerMixin):  # type: ignore[misc]
    """How many columns a layer has seen: prompt, padding, tokens."""

    is_sliding = False
    is_croppable = True
    is_compileable = False

    def __init__(self, seen: int) -> None:
        super().__init__()
        self.seen = seen

    def lazy_initialization(self, *_: Any, **__: Any) -> None:
        self.is_initialized = True

    def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
        self.is_initialized = True
        self.seen += key_states.shape[-2]
        return key_states, value_states

    def get_mask_sizes(self, query_length: Any) -> tuple[int, int]:
        tokens = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.seen + tokens, 0

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        self.seen += tokens_to_remove

    def reorder_cache(self, beam_idx: Any) -> None:
        raise Unimplemented(
            "beam search needs requests that can be forked, which relayd does not do yet; "
            "use greedy search or sampling (num_return_sequences works)"
        )


class RelayCache(Cache):  # type: ignore[misc]
    """past_key_values of a model that is attached: `model.generate(..., past_key_values=cache)`.

    prompt      the id of the prompt that every row begins with, or None. A pass's input_ids begin
                after it; generate() wants the whole input and leaves out the first S columns itself
                (see inputs). All rows have the same prompt.
    options     of the requests: relay.Session.request's

    Rows are requests, opened with the first pass. One generate() at a time; a second one goes on
    where the first ended. Padding, on either side, is left out of relayd altogether. Close it, use
    it as a context manager, or leave it to the garbage collector: then its requests end when the
    engine next opens some.

    Raises NotFound for an unknown prompt, FailedPrecondition where the model is not attached.
    """

    def __init__(self, model: Any, prompt: str | None = None, **options: Any):
        self.engine: Engine = engine_of(model)
        self.prompt = prompt
        self._options = options
        self.prompt_tokens = 0
        if prompt:
            found = self.engine.get_prompt(prompt)
            self.prompt_tokens = found.num_tokens
            self._options.setdefault("generation", found.generation)
        count = 1 + max(self.engine.layer_of)
        if set(self.engine.layer_of) != set(range(count)):
            raise Unimplemented("a model with layers that are not attention: use relay=[...]")
        super().__init__(layers=[_Length(self.prompt_tokens) for _ in range(count)])
        self.batch: Batch | None = None
        self._keys: list[Any] = []  # handed on in this pass
        self._newest = -1  # layer that was updated last
        self._awaited = False  # its attention call has not come yet
        self._requests: list[Request] = []
        self._end = weakref.finalize(self, self.engine._dropped.extend, self._requests)

    def update(
        self, key_states: Any, value_states: Any, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Any, Any]:
        """Counts; what the attention function is handed is what comes in here."""
        if not self._end.alive:
            raise FailedPrecondition("the cache is closed")
        if self.batch is None:
            self._open(key_states.shape[0])
        assert self.batch is not None
        if layer_idx <= self._newest or not self._keys:
            self._begin()
        self._newest, self._awaited = layer_idx, True
        self._keys.append(key_states)
        _context.pending.cache = weakref.ref(self)
        self.layers[layer_idx].update(key_states, value_states)
        return key_states, value_states

    def passed_on(self, layer_idx: int, key: Any) -> bool:
        """Whether an attention call is this cache's: a layer's own first one after its update (its
        key may be made from what was cached), or one that uses an earlier layer's key."""
        awaited, self._awaited = self._awaited and layer_idx == self._newest, False
        return awaited or any(key is mine for mine in self._keys)

    def _open(self, rows: int) -> None:
        sequences = self.engine.open_many([self.prompt] * rows, **self._options)
        self._requests.extend(s.request for s in sequences)
        self.batch = Batch(self.engine, sequences)

    def _begin(self) -> None:
        """A pass begins: all layers must have seen the same."""
        self._keys.clear()
        spec, layer_of = self.engine.spec, self.engine.layer_of
        seen = {layer.seen for i, layer in enumerate(self.layers) if spec.has_own_kv(layer_of[i])}
        if len(seen) > 1:
            raise FailedPrecondition("a pass with this cache broke off; make a new cache")

    @property
    def lengths(self) -> list[int]:
        """Context tokens of each row in relayd, without padding and prompt."""
        return [s.length for s in self.batch.sequences] if self.batch else []

    def inputs(
        self,
        rows: SequenceOf[SequenceOf[int]],
        pad_token_id: int,
        prompt_ids: SequenceOf[int] | None = None,
    ) -> dict[str, torch.Tensor]:
        """input_ids and attention_mask for generate(): the prompt, padding, then each row's tokens.

        rows        token ids after the prompt, of any lengths
        prompt_ids  the prompt's. Its columns are never run; they matter to logits processors that
                    look at the whole input. None = padding stands in for them.
        """
        if not rows or not all(rows):
            raise InvalidArgument("rows: each needs a token at least")
        prompt = list(prompt_ids) if prompt_ids is not None else [pad_token_id] * self.prompt_tokens
        if len(prompt) != self.prompt_tokens:
            raise InvalidArgument(f"prompt_ids: expected {self.prompt_tokens}, got {len(prompt)}")
        longest = max(len(row) for row in rows)
        ids = [[*prompt, *[pad_token_id] * (longest - len(row)), *row] for row in rows]
        counts = [[1] * len(prompt) + [0] * (longest - len(row)) + [1] * len(row) for row in rows]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(counts)}

    # ---- what else Transformers asks of a cache

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the newest -tokens_to_remove columns (assisted decoding's rollback)."""
        if tokens_to_remove > 0:
            raise InvalidArgument("crop takes a negative number: how many tokens to remove")
        if tokens_to_remove == 0 or self.batch is None:
            return
        if self.batch.unpadded + tokens_to_remove < 0:
            raise InvalidArgument(
                f"crop by {-tokens_to_remove}: only the newest {self.batch.unpadded} are without padding"
            )
        super().crop(tokens_to_remove)
        self.batch.unpadded += tokens_to_remove
        for sequence in self.batch.sequences:
            sequence.truncate(sequence.length + tokens_to_remove)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.batch is not None:
            raise Unimplemented(
                "rows that hold tokens cannot be repeated: relayd does not fork yet"
            )

    def batch_select_indices(self, indices: Any) -> None:
        if self.batch is not None:
            raise Unimplemented("rows cannot be picked once a pass has run")

    def reset(self) -> None:
        """Forgets all but the prompt."""
        for layer in self.layers:
            layer.seen = self.prompt_tokens
        if self.batch is not None:
            self.batch.abandon()
            for sequence in self.batch.sequences:
                sequence.truncate(0)

    def close(self) -> None:
        """Frees its requests' K/V. Twice is fine."""
        if self._end.detach() is None:
            return
        if self.batch is not None:
            self.batch.abandon()
            self.engine.drop(self._requests)
        self.batch = None

    def __enter__(self) -> RelayCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
