"""Tensors as C wants them: an address, checked, with no copy where memory allows.

Taken: numpy arrays (bfloat16 and float8 as ml_dtypes', or as their bits in uint16 and uint8), torch
CPU tensors, and any object with `__dlpack__` whose memory the CPU can read. What is not contiguous
is copied when it is read, and refused when it is written.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from relay._library import ffi
from relay.dtypes import DType, as_dtype
from relay.errors import InvalidArgument


class Memory(NamedTuple):
    """Contiguous memory of a tensor."""

    address: int
    dtype: DType  # UNSPECIFIED where only the caller knows what the bits mean
    itemsize: int
    shape: tuple[int, ...]
    owner: Any  # keeps the memory

    @property
    def pointer(self) -> Any:
        return ffi.cast("void *", self.address)


# ---- DLPack: the structs of its ABI, read in place; the capsule stays whole and frees itself


class _DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


_DLPACK_CPU = (1, 3)  # kDLCPU, kDLCUDAHost
_DLPACK_TYPES = {
    (2, 32): DType.F32,
    (2, 16): DType.F16,
    (4, 16): DType.BF16,
    (10, 8): DType.F8_E4M3,
    (1, 16): DType.UNSPECIFIED,
    (1, 8): DType.UNSPECIFIED,
}

_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype = ctypes.c_void_p
_get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


def _from_dlpack(name: str, tensor: Any) -> Memory | None:
    capsule = tensor.__dlpack__()
    dl = _DLTensor.from_address(_get_pointer(capsule, b"dltensor"))
    if dl.device_type not in _DLPACK_CPU:
        raise InvalidArgument(
            f"{name}: in device memory (DLPack device {dl.device_type}); move it to the CPU"
        )
    dtype = _DLPACK_TYPES.get((dl.code, dl.bits))
    if dtype is None or dl.lanes != 1:
        raise InvalidArgument(
            f"{name}: DLPack type {dl.code}, {dl.bits} bits is not a dtype of relay"
        )
    shape = tuple(dl.shape[i] for i in range(dl.ndim))
    if dl.strides:
        expected = 1
        for size, stride in zip(reversed(shape), reversed(dl.strides[: dl.ndim]), strict=True):
            if size > 1 and stride != expected:
                return None
            expected *= size
    address = (dl.data or 0) + dl.byte_offset
    return Memory(address, dtype, dl.bits // 8, shape, (tensor, capsule))


def _from_numpy(name: str, array: Any) -> Memory | None:
    if not array.flags.c_contiguous:
        return None
    if array.dtype.byteorder == ">":
        raise InvalidArgument(f"{name}: big-endian")
    bits = array.dtype.kind == "u" and array.dtype.itemsize in (1, 2)
    dtype = DType.UNSPECIFIED if bits else _dtype_of(name, array.dtype)
    address = array.__array_interface__["data"][0]
    return Memory(address, dtype, array.dtype.itemsize, array.shape, array)


def _from_torch(name: str, tensor: Any) -> Memory | None:
    if tensor.device.type != "cpu":
        raise InvalidArgument(f"{name}: on {tensor.device}; move it to the CPU")
    if not tensor.is_contiguous():
        return None
    return Memory(
        tensor.data_ptr(),
        _dtype_of(name, tensor.dtype),
        tensor.element_size(),
        tuple(tensor.shape),
        tensor,
    )


def _dtype_of(name: str, dtype: Any) -> DType:
    try:
        return as_dtype(dtype)
    except InvalidArgument as error:
        raise InvalidArgument(f"{name}: {error.message}") from None


def is_torch(tensor: Any) -> bool:
    return _is_torch_type(type(tensor))


@functools.cache
def _is_torch_type(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "torch" and hasattr(kind, "data_ptr")


@functools.cache
def _torch_dtypes() -> dict[DType, Any]:
    import torch

    return {DType.F32: torch.float32, DType.F16: torch.float16, DType.BF16: torch.bfloat16}


def _as_wanted(tensor: Any, dtype: DType, shape: tuple[int, ...]) -> Memory | None:
    """The shortest way for what an engine hands over in every layer: a torch tensor that is right."""
    if (
        is_torch(tensor)
        and tensor.dtype is _torch_dtypes().get(dtype)
        and tensor.shape == shape
        and tensor.is_contiguous()
        and tensor.is_cpu
    ):
        return Memory(tensor.data_ptr(), dtype, dtype.itemsize, shape, tensor)
    return None


def _memory(name: str, tensor: Any) -> Memory | None:
    """None: not contiguous."""
    if is_torch(tensor):
        return _from_torch(name, tensor)
    if isinstance(tensor, np.ndarray):
        return _from_numpy(name, tensor)
    if hasattr(tensor, "__dlpack__"):
        return _from_dlpack(name, tensor)
    raise InvalidArgument(f"{name}: {type(tensor).__name__} is no tensor (numpy, torch or DLPack)")


def _contiguous(name: str, tensor: Any) -> Any:
    if is_torch(tensor):
        return tensor.contiguous()
    try:
        return np.ascontiguousarray(
            np.from_dlpack(tensor) if not isinstance(tensor, np.ndarray) else tensor
        )
    except (BufferError, RuntimeError, TypeError):
        raise InvalidArgument(f"{name}: not contiguous, and cannot be copied here") from None


def _check(name: str, memory: Memory, dtype: DType, shape: Sequence[int]) -> None:
    if memory.shape != tuple(shape):
        raise InvalidArgument(f"{name}: expected shape {list(shape)}, got {list(memory.shape)}")
    same = memory.dtype == dtype
    if memory.dtype == DType.UNSPECIFIED:
        same = memory.itemsize == dtype.itemsize
    if not same:
        got = memory.dtype.name if memory.dtype else f"{8 * memory.itemsize}-bit integers"
        raise InvalidArgument(f"{name}: expected {dtype.name}, got {got}")


def readable(name: str, tensor: Any, dtype: DType, shape: tuple[int, ...]) -> Memory:
    """The tensor's memory, or a contiguous copy's. InvalidArgument with expected and got."""
    memory = _as_wanted(tensor, dtype, shape)
    if memory is not None:
        return memory
    memory = _memory(name, tensor)
    if memory is None:
        memory = _memory(name, _contiguous(name, tensor))
        assert memory is not None
    _check(name, memory, dtype, shape)
    return memory


def writable(name: str, tensor: Any, dtype: DType, shape: tuple[int, ...]) -> Memory:
    """The tensor's own memory. InvalidArgument also where it is read-only or not contiguous."""
    memory = _as_wanted(tensor, dtype, shape)
    if memory is not None:
        return memory
    memory = _memory(name, tensor)
    if memory is None:
        raise InvalidArgument(f"{name}: is written to and must be contiguous")
    if isinstance(tensor, np.ndarray) and not tensor.flags.writeable:
        raise InvalidArgument(f"{name}: read-only")
    _check(name, memory, dtype, shape)
    return memory


def dtype_of(name: str, tensor: Any, bits: DType = DType.UNSPECIFIED) -> DType:
    """The element type; `bits` for integers that hold bits."""
    if is_torch(tensor) or isinstance(tensor, np.ndarray):
        if isinstance(tensor, np.ndarray) and tensor.dtype.kind == "u":
            return bits
        return _dtype_of(name, tensor.dtype)
    memory = _memory(name, tensor)
    return (memory.dtype if memory is not None else DType.UNSPECIFIED) or bits


_NUMPY: dict[DType, np.dtype[Any]] = {
    DType.F32: np.dtype(np.float32),
    DType.F16: np.dtype(np.float16),
    DType.BF16: np.dtype(np.uint16),
    DType.F8_E4M3: np.dtype(np.uint8),
}


def numpy_dtype(dtype: DType, like: Any = None) -> np.dtype[Any]:
    """What numpy holds it as: `like`'s own type where that is it, else bits in integers."""
    if isinstance(like, np.ndarray) and like.dtype.kind != "u" and as_dtype(like.dtype) == dtype:
        return np.dtype(like.dtype)
    return _NUMPY[dtype]


def empty(like: Any, dtype: DType, shape: Sequence[int]) -> Any:
    """New memory of the kind `like` is: torch for torch, else numpy."""
    if is_torch(like):
        import torch

        return torch.empty(tuple(shape), dtype=_torch_dtypes()[dtype])
    return np.empty(tuple(shape), numpy_dtype(dtype, like))
