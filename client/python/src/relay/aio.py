"""The client for asyncio: the same calls, awaited.

Every call runs on a thread of a small pool, and librelay blocks there, outside of Python's lock:
the event loop stays free, and as many calls are under way as the pool has threads. This is no native
asynchronous transport, and one await costs two thread switches (some 50 us); what many sessions
decode at once is worth more than what one call loses. Cancelling an await does not cancel the call:
it ends by itself, at most at its timeout, and what it does to the server is done.

    async with relay.aio.Client("unix:///run/relayd/relayd.sock") as client:
        async with await client.session(model) as session:
            async with await session.request("support/v3") as request:
                async with await session.step([(request, 0)]) as step:
                    out, lse = await step.attend(0, q, k, v)

A step still belongs to one task at a time.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import relay

T = TypeVar("T")


class _Runner:
    """The pool of one client."""

    def __init__(self, threads: int):
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="relay")

    async def __call__(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        bound = functools.partial(function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self.pool, bound)


class Client:
    """See relay.Client. threads: how many calls can be under way at once."""

    def __init__(self, target: str, *, threads: int = 8, **options: Any):
        self._run = _Runner(threads)
        self.sync = relay.Client(target, **options)

    async def close(self) -> None:
        await self._run(self.sync.close)
        self._run.pool.shutdown(wait=False)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def server_info(self) -> relay.ServerInfo:
        return await self._run(self.sync.server_info)

    async def healthy(self, service: str = "") -> bool:
        return await self._run(self.sync.healthy, service)

    async def register_prompt(
        self, prompt_id: str, model: relay.Model, layers: Any, **options: Any
    ) -> relay.Prompt:
        """See relay.Client.register_prompt; a source or progress function runs on a pool thread."""
        return await self._run(self.sync.register_prompt, prompt_id, model, layers, **options)

    async def get_prompt(self, model_key: str, prompt_id: str, **options: Any) -> relay.Prompt:
        return await self._run(self.sync.get_prompt, model_key, prompt_id, **options)

    async def list_prompts(self, model_key: str = "", id_prefix: str = "") -> list[relay.Prompt]:
        return await self._run(self.sync.list_prompts, model_key, id_prefix)

    async def update_prompt(self, model_key: str, prompt_id: str, **options: Any) -> relay.Prompt:
        return await self._run(self.sync.update_prompt, model_key, prompt_id, **options)

    async def unregister_prompt(
        self, model_key: str, prompt_id: str, **options: Any
    ) -> relay.Prompt:
        return await self._run(self.sync.unregister_prompt, model_key, prompt_id, **options)

    async def session(self, model: relay.Model, **options: Any) -> Session:
        return Session(self._run, await self._run(self.sync.session, model, **options))


class Session:
    """See relay.Session."""

    def __init__(self, run: _Runner, sync: relay.Session):
        self._run, self.sync = run, sync

    async def close(self) -> None:
        await self._run(self.sync.close)

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def request(self, prompt_id: str | None = None, **options: Any) -> Request:
        return Request(self._run, await self._run(self.sync.request, prompt_id, **options))

    async def requests(self, prompt_ids: Sequence[str | None], **options: Any) -> list[Request]:
        opened = await self._run(self.sync.requests, prompt_ids, **options)
        return [Request(self._run, request) for request in opened]

    async def step(self, entries: Sequence[tuple[Any, ...]], **options: Any) -> Step:
        """Entries hold this module's requests, or relay's."""
        plain = [(getattr(request, "sync", request), *rest) for request, *rest in entries]
        return Step(self._run, await self._run(self.sync.step, plain, **options))


class Request:
    """See relay.Request, whose numbers are in `sync`."""

    def __init__(self, run: _Runner, sync: relay.Request):
        self._run, self.sync = run, sync

    async def close(self) -> None:
        await self._run(self.sync.close)

    async def __aenter__(self) -> Request:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def refresh(self) -> Request:
        await self._run(self.sync.refresh)
        return self

    async def append(self, layers: Any, **options: Any) -> None:
        await self._run(self.sync.append, layers, **options)

    async def truncate(self, tokens_keep: int) -> None:
        await self._run(self.sync.truncate, tokens_keep)


class Step:
    """See relay.Step. attend is submit and wait in one go on the pool."""

    def __init__(self, run: _Runner, sync: relay.Step):
        self._run, self.sync = run, sync

    async def end(self) -> None:
        await self._run(self.sync.end)

    async def __aenter__(self) -> Step:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()

    async def attend(
        self, layer: int, q: Any, k: Any = None, v: Any = None, **options: Any
    ) -> tuple[Any, Any]:
        return await self._run(self.sync.attend, layer, q, k, v, **options)

    async def submit(
        self, layer: int, q: Any, k: Any = None, v: Any = None, **options: Any
    ) -> relay.Ticket:
        return await self._run(self.sync.submit, layer, q, k, v, **options)

    async def wait(self, ticket: relay.Ticket) -> tuple[Any, Any]:
        return await self._run(self.sync.wait, ticket)
