"""Element types, by whatever name a caller knows them."""

from __future__ import annotations

import functools
from enum import IntEnum
from typing import Any, Union

from relay.errors import InvalidArgument


class DType(IntEnum):
    """Element types of tensors; the numbers are the wire's."""

    UNSPECIFIED = 0
    F32 = 1
    F16 = 2
    BF16 = 3
    F8_E4M3 = 4

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return (0, 4, 2, 2, 1)[self]


DTypeLike = Union[DType, str, Any]  # also numpy's, torch's and ml_dtypes' types

_NAMES = {
    "f32": DType.F32,
    "float32": DType.F32,
    "f16": DType.F16,
    "float16": DType.F16,
    "half": DType.F16,
    "bf16": DType.BF16,
    "bfloat16": DType.BF16,
    "f8_e4m3": DType.F8_E4M3,
    "float8_e4m3fn": DType.F8_E4M3,
}


def as_dtype(value: DTypeLike | None) -> DType:
    """`"bf16"`, `numpy.float32`, `torch.bfloat16`, ... as a DType. None is UNSPECIFIED.

    Raises InvalidArgument for what is none of them.
    """
    if value is None:
        return DType.UNSPECIFIED
    if isinstance(value, DType):
        return value
    try:
        return _named(value)
    except TypeError:  # cannot even be looked up
        raise InvalidArgument(f"dtype {value!r}: not one of f32, f16, bf16, f8_e4m3") from None


@functools.cache
def _named(value: Any) -> DType:
    name = value if isinstance(value, str) else getattr(value, "name", None)
    if not isinstance(name, str):
        name = getattr(value, "__name__", None) or str(value)
    found = _NAMES.get(name.rsplit(".", 1)[-1].lower())
    if found is None:
        raise InvalidArgument(f"dtype {value!r}: not one of f32, f16, bf16, f8_e4m3")
    return found
