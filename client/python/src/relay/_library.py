"""librelay through cffi: found, loaded at the first use, and called.

Loaded late so that `relay.v1`, the plain gRPC stubs, works without it.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from relay._defaults import DEFAULTS
from relay._ffi import ffi
from relay.errors import error_for

__all__ = ["call", "ffi", "lib", "options", "text"]


def _candidates() -> list[str]:
    chosen = os.environ.get("RELAY_LIBRARY")
    if chosen:
        return [chosen]
    beside = Path(__file__).with_name("librelay.so")
    return [*([str(beside)] if beside.exists() else []), "librelay.so.0", "librelay.so"]


@functools.cache
def lib() -> Any:
    """librelay: RELAY_LIBRARY, else the one beside this package, else the loader's."""
    tried = []
    for name in _candidates():
        try:
            return ffi.dlopen(name)
        except OSError as error:
            tried.append(str(error))
    raise ImportError("librelay was not found: " + "; ".join(tried))


def options(struct: str, **fields: Any) -> Any:
    """A new options struct: the header's defaults, then `fields` that are not None."""
    made = ffi.new(f"struct {struct} *")
    names = [name for name, _ in ffi.typeof(f"struct {struct}").fields]
    made.size = ffi.sizeof(f"struct {struct}")
    for name, value in zip(names[1:], DEFAULTS[struct], strict=True):
        if isinstance(value, str):
            value = getattr(lib(), value)
        if value is not None:
            setattr(made, name, value)
    for name, value in fields.items():
        if value is not None:
            setattr(made, name, value)
    return made


def call(name: str, *arguments: Any) -> None:
    """Calls a function whose last parameter is an error record; raises what it says."""
    err = ffi.new("struct relay_error *")
    code = getattr(lib(), name)(*arguments, err)
    if code != 0:
        raise error_for(int(code), text(err.msg))


def text(pointer: Any) -> str:
    """A C string; "" for NULL."""
    return ffi.string(pointer).decode("utf-8", "replace") if pointer else ""
