"""Dtype names, sizes and decoding. Names are torch's without the prefix; no torch is imported until it is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zooplatform.errors import SchemaError

if TYPE_CHECKING:
    import torch

__all__ = [
    "FLOATING",
    "FloatValues",
    "as_float",
    "from_buffer",
    "is_floating",
    "item_size",
    "torch_dtype",
]

# name -> bytes per element as torch counts elements
_SIZES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1,
    "complex64": 8, "complex128": 16, "complex32": 4,
}  # fmt: skip

FLOATING = frozenset(n for n in _SIZES if n.startswith(("float", "bfloat", "complex")))

# What numpy reads natively; all other known types go through torch, block by block.
_NUMPY = {
    "float64", "float32", "float16", "int64", "int32", "int16", "int8",
    "uint64", "uint32", "uint16", "uint8", "bool", "complex64", "complex128",
}  # fmt: skip


def item_size(dtype: str) -> int | None:
    """Bytes per element, or None for types that torch does not know."""
    return _SIZES.get(dtype)


def is_floating(dtype: str) -> bool:
    """Whether values of the type are weights rather than counters: floating, complex or a stored-only type."""
    return dtype in FLOATING or dtype not in _SIZES


def torch_dtype(dtype: str) -> torch.dtype:
    """The torch dtype of a name.

    Raises:
        SchemaError: this torch does not know it.
    """
    import torch

    found = getattr(torch, dtype, None) if dtype in _SIZES else None
    if not isinstance(found, torch.dtype):
        raise SchemaError(
            f"torch {torch.__version__} has no dtype {dtype!r}; the stored bytes stay readable as uint8."
        )
    return found


def from_buffer(data: Any, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor over a writable buffer, without copying; types that torch does not know come as uint8 of (bytes,)."""
    import torch

    raw = np.frombuffer(data, dtype=np.uint8)
    if dtype not in _SIZES:
        return torch.from_numpy(raw)
    if raw.size == 0:
        return torch.empty(shape, dtype=torch_dtype(dtype))
    return torch.from_numpy(raw).view(torch_dtype(dtype)).reshape(shape)


class FloatValues:
    """A flat tensor that is decoded to float64 in blocks."""

    def __init__(self, raw: npt.NDArray[Any], dtype: str) -> None:
        self._raw, self._dtype = raw, dtype

    def __len__(self) -> int:
        return len(self._raw)

    def block(self, start: int, stop: int) -> npt.NDArray[np.float64]:
        """A fresh float64 array of elements start..stop."""
        return self._decode(self._raw[start:stop])

    def sample(self, count: int) -> npt.NDArray[np.float64]:
        """At most `count` evenly spaced values."""
        if len(self._raw) <= count:
            return self._decode(self._raw)
        return self._decode(self._raw[(np.arange(count, dtype=np.int64) * len(self._raw)) // count])

    def _decode(self, raw: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        with np.errstate(invalid="ignore", over="ignore"):  # signalling NaN become quiet ones
            return self._widen(raw)

    def _widen(self, raw: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        if self._dtype in _NUMPY:
            if raw.dtype.kind == "c":
                raw = np.abs(raw)
            plain: npt.NDArray[np.float64] = raw.astype(np.float64)
            return plain
        import torch

        tensor = torch.from_numpy(np.array(raw)).view(torch_dtype(self._dtype))
        decoded: npt.NDArray[np.float64] = tensor.to(torch.float32).numpy().astype(np.float64)
        return decoded


def as_float(data: memoryview, dtype: str) -> FloatValues | None:
    """The values of a tensor, or None where bytes are not one number each."""
    size = item_size(dtype)
    if size is None or dtype in ("float4_e2m1fn_x2", "complex32"):
        return None
    raw = np.frombuffer(data, dtype=np.uint8)
    if dtype in _NUMPY:
        return FloatValues(raw.view(np.dtype(dtype)), dtype)
    return FloatValues(raw.view(f"u{size}") if size > 1 else raw, dtype)
