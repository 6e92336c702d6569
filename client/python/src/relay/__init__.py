"""Client of relayd, an attention service that keeps the K/V of shared prompts.

    import relay

    with relay.Client("unix:///run/relayd/relayd.sock") as client:
        model = relay.Model("mine@r1", [relay.LayerKind(32, 8, 128)] * 32, kv_dtype="bf16")
        client.register_prompt("support/v3", model, layers)         # [(k, v)] of every layer
        with client.session(model, io_dtype="bf16") as session:
            with session.request("support/v3") as request:
                with session.step([(request, 0)]) as step:
                    for layer in range(32):
                        out, lse = step.attend(layer, q, k, v)      # [1,32,128], ...

Letters in docstrings: R rows, Hq query heads, Hkv KV heads, D head dim (dqk, dv), S prompt tokens,
L layers. Tensors are row-major and contiguous: numpy arrays, torch CPU tensors, or anything that
speaks DLPack. Times are seconds unless a name ends in `_us`.

`relay.aio` is the same for asyncio, `relay.transformers` the seam for Hugging Face Transformers,
`relay.v1` the plain gRPC stubs.
"""

from relay.client import Client, ServerInfo
from relay.dtypes import DType
from relay.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    Code,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    RelayError,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Unknown,
)
from relay.model import LayerKind, Model
from relay.prompts import OnExists, Prompt, Tier
from relay.session import Request, Session
from relay.step import Part, Sharing, Step, Ticket, Timings

__version__ = "0.1.0"
__all__ = [
    "Aborted",
    "AlreadyExists",
    "Cancelled",
    "Client",
    "Code",
    "DType",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "LayerKind",
    "Model",
    "NotFound",
    "OnExists",
    "OutOfRange",
    "Part",
    "PermissionDenied",
    "Prompt",
    "RelayError",
    "Request",
    "ResourceExhausted",
    "ServerInfo",
    "Session",
    "Sharing",
    "Step",
    "Ticket",
    "Tier",
    "Timings",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
]
