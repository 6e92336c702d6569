"""The connection to a relayd."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from relay import prompts
from relay._library import call, ffi, lib, options, text
from relay.dtypes import DTypeLike
from relay.errors import FailedPrecondition
from relay.model import Model
from relay.prompts import Layers, OnExists, Prompt, Source
from relay.session import Session

_open_clients: set[Client] = set()  # until closed, so that nothing of them is lost on the way


@dataclass(frozen=True)
class ServerInfo:
    """What a server says of itself; 0 and "" where it says nothing."""

    version: str
    backend: str
    device: str
    isa: str
    uptime_s: float
    server_epoch: int  # changes when the server restarts: all sessions and requests are lost
    prompt_bytes_used: int
    prompt_bytes_max: int
    request_bytes_used: int
    request_bytes_max: int
    message_bytes_max: int
    response_bytes_max: int
    rows_max: int  # of one step
    entries_max: int
    sessions: int
    requests: int
    prompts: int
    uploads: int
    calls_in_flight: int
    threads: int
    page_tokens: int
    batch_invariant: bool
    rpcs_open: int
    # Counts since the server started.
    calls: int  # attention calls answered
    calls_failed: int  # of them, not computed
    launches: int
    rows: int
    compute_us: int
    prompt_bytes_read: int  # K/V read by launches: prompts', contexts'
    kv_bytes_read: int
    bytes_received: int  # of messages
    bytes_sent: int


class Client:
    """A relayd and how to reach it. Any number of threads may use one client at once.

        with relay.Client("unix:///run/relayd/relayd.sock") as client:
            client.register_prompt("support/v3", model, layers)
            with client.session(model, io_dtype="bf16") as session: ...

    target      "unix:///path", "unix:path", "host:port", "[v6]:port", "dns:///host:port". Nothing
                is connected: the first call does that.
    timeout_s   of one call, repeats included
    upload_stall_s   an upload without progress for so long has failed
    retries     how often a call that is safe to repeat is repeated on UNAVAILABLE; the default
                outlasts 1.6 to 3.2 s without a server
    receive_bytes_max   of one message from the server
    keepalive_s      pings on a silent connection; 0 = none, else at least 10

    Raises InvalidArgument for a target or an option that cannot work. Any call may raise
    Unavailable, DeadlineExceeded, ResourceExhausted and Internal. A client does not survive a fork:
    open it in the process that uses it.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float = 30.0,
        upload_stall_s: float | None = None,
        retries: int | None = None,
        receive_bytes_max: int | None = None,
        keepalive_s: float | None = None,
    ):
        self._c: Any = None
        self._pid = os.getpid()
        self._sessions: set[Session] = set()
        self._lock = threading.Lock()
        self.target = target
        opt = options(
            "relay_client_options",
            timeout_ms=round(timeout_s * 1000),
            upload_stall_ms=None if upload_stall_s is None else round(upload_stall_s * 1000),
            retries_max=retries,
            receive_bytes_max=receive_bytes_max,
            keepalive_time_ms=None if keepalive_s is None else round(keepalive_s * 1000),
        )
        out = ffi.new("struct relay_client **")
        call("relay_client_open", target.encode(), opt, out)
        self._c = out[0]
        _open_clients.add(self)

    # ---- life

    def close(self) -> None:
        """Closes its sessions and itself. Twice is fine. No other thread may be inside a call."""
        with self._lock:
            c, self._c = self._c, None
        if c is None or os.getpid() != self._pid:
            return
        for session in list(self._sessions):
            session.close()
        lib().relay_client_close(c)
        _open_clients.discard(self)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"relay.Client({self.target!r}{'' if self._c else ', closed'})"

    def handle(self) -> Any:
        """`struct relay_client *`, for calls of librelay that this package does not wrap."""
        if self._c is None:
            raise FailedPrecondition("the client is closed")
        if os.getpid() != self._pid:
            raise FailedPrecondition(
                "the client was opened before a fork; open one in this process"
            )
        return self._c

    # ---- server

    def server_info(self) -> ServerInfo:
        """Version, backend, limits and what is held now. No side effects."""
        out = ffi.new("struct relay_server_info **")
        call("relay_client_server_info", self.handle(), out)
        try:
            c = out[0]
            values: dict[str, Any] = {"uptime_s": c.uptime_ms / 1000}
            for name in ServerInfo.__dataclass_fields__:
                if name != "uptime_s":
                    value = getattr(c, name)
                    values[name] = value if isinstance(value, (int, bool)) else text(value)
            return ServerInfo(**values)
        finally:
            lib().relay_server_info_free(out[0])

    def healthy(self, service: str = "") -> bool:
        """grpc.health.v1 of "" (the whole server) or "relay.v1.RelayAttention".

        Raises NotFound for a service it does not know, Unavailable where no server answers.
        """
        out = ffi.new("bool *")
        call("relay_client_health", self.handle(), service.encode(), out)
        return bool(out[0])

    # ---- prompts

    def register_prompt(
        self,
        prompt_id: str,
        model: Model,
        layers: Layers | Source,
        *,
        num_tokens: int | None = None,
        dtype: DTypeLike | None = None,
        variant: str = "",
        content_key: bytes = b"",
        on_exists: OnExists = OnExists.SAME_OR_FAIL,
        idle_ttl_s: float = 0.0,
        pinned: bool = False,
        labels: dict[str, str] | None = None,
        token_ids: Sequence[int] | None = None,
        progress: Callable[[int, int], Any] | None = None,
    ) -> Prompt:
        """Uploads a prompt's K/V and publishes it; nothing is visible before all of it is there.

        prompt_id   matches [A-Za-z0-9._:/@#+-]{1,128}
        layers      per layer (k, v): k [S,Hkv,dqk] after RoPE, v [S,Hkv,dv], tokens at positions
                    0..S-1; None for a layer that uses another's, v None with v_from_k. Or a
                    function (layer, token_begin, token_count) -> (k, v) of those tokens, asked on
                    this thread in ascending order (a resumed upload asks again).
        num_tokens  S; needed with a function
        dtype       of what is given, if it is not the tensors' own or the model's kv_dtype
        variant     adapter, image hashes, RoPE mode: must be equal when a request opens
        content_key at most 64 bytes, a hash of model, variant and tokens: decides sameness
        idle_ttl_s  seconds without use until it goes; 0 = the server's choice
        pinned      never goes by idleness or eviction
        progress    (bytes_done, bytes_total) now and then; False stops

        A broken upload is resumed. Raises InvalidArgument, Unimplemented (no kernel for a shape),
        AlreadyExists, ResourceExhausted (budget), DataLoss, Cancelled (progress said False).
        """
        return prompts.register(
            self.handle(),
            prompt_id,
            model,
            layers,
            num_tokens=num_tokens,
            dtype=dtype,
            variant=variant,
            content_key=content_key,
            on_exists=on_exists,
            idle_ttl_s=idle_ttl_s,
            pinned=pinned,
            labels=labels,
            token_ids=token_ids,
            progress=progress,
        )

    def get_prompt(self, model_key: str, prompt_id: str, *, generation: int = 0) -> Prompt:
        """The newest (or that) generation. Raises NotFound, Aborted (another generation)."""
        out = ffi.new("struct relay_prompt **")
        names = model_key.encode(), prompt_id.encode()
        call("relay_prompt_get", self.handle(), *names, generation, out)
        return prompts.taken(out)

    def list_prompts(self, model_key: str = "", id_prefix: str = "") -> list[Prompt]:
        """All, or those of a model, or those whose id begins so; ascending by (model key, id)."""
        found: list[Prompt] = []

        def add(_user: Any, c: Any) -> bool:
            found.append(Prompt.from_c(c))
            return True

        callback = ffi.callback("relay_prompt_fn", add, error=False)
        names = [s.encode() if s else ffi.NULL for s in (model_key, id_prefix)]
        call("relay_prompts_list", self.handle(), *names, callback, ffi.NULL)
        return found

    def update_prompt(
        self,
        model_key: str,
        prompt_id: str,
        *,
        generation: int = 0,
        pinned: bool | None = None,
        idle_ttl_s: float | None = None,
        touch: bool = False,
    ) -> Prompt:
        """Changes what is not None; touch counts as a use. Raises NotFound, Aborted."""
        update = options(
            "relay_prompt_update",
            generation=generation,
            set_pinned=pinned is not None,
            pinned=bool(pinned),
            set_idle_ttl=idle_ttl_s is not None,
            idle_ttl_ms=round((idle_ttl_s or 0) * 1000),
            touch=touch,
        )
        out = ffi.new("struct relay_prompt **")
        call(
            "relay_prompt_update",
            self.handle(),
            model_key.encode(),
            prompt_id.encode(),
            update,
            out,
        )
        return prompts.taken(out)

    def unregister_prompt(self, model_key: str, prompt_id: str, *, generation: int = 0) -> Prompt:
        """A prompt in use is doomed: not found any more, freed when its last request closes.

        Returns it as it was. Raises NotFound, Aborted.
        """
        out = ffi.new("struct relay_prompt **")
        names = model_key.encode(), prompt_id.encode()
        call("relay_prompt_unregister", self.handle(), *names, generation, out)
        return prompts.taken(out)

    # ---- sessions

    def session(
        self,
        model: Model,
        *,
        io_dtype: DTypeLike = "f32",
        out_dtype: DTypeLike | None = None,
        lease_s: float = 0.0,
        rows_max: int = 0,
        response_bytes_max: int = 0,
        keepalive: bool = True,
        stream: bool = True,
        spin_us: int = 0,
    ) -> Session:
        """Opens a session: who owns requests. Use it as a context manager, or close it.

        io_dtype    of q and of new k, v        out_dtype   of out; None = io_dtype
        lease_s     seconds unused until the server ends it, requests and all; 0 = its choice
        rows_max    most rows of one step; 0 = the server's limit
        response_bytes_max   of one layer's answer; 0 = 4 MiB
        keepalive   keep the lease while nobody calls
        stream      steps go over one stream; False: a unary call a layer
        spin_us     poll so long for an answer before sleeping; costs a core

        Raises InvalidArgument, Unimplemented (no kernel for a shape), FailedPrecondition (the server
        knows model.key with another description). Not repeated on Unavailable.
        """
        made = Session(
            self,
            model,
            io_dtype=io_dtype,
            out_dtype=out_dtype,
            lease_s=lease_s,
            rows_max=rows_max,
            response_bytes_max=response_bytes_max,
            keepalive=keepalive,
            stream=stream,
            spin_us=spin_us,
        )
        self._sessions.add(made)  # until closed
        return made


@atexit.register
def _close_all() -> None:
    # gRPC's threads must not outlive the interpreter's.
    for client in list(_open_clients):
        client.close()
