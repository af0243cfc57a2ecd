"""Values that tokens hold, and everything else as bytes.

Legend for shapes: N networks, n elements of a tensor, b bytes of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zooplatform.interfaces import TensorSpec

__all__ = ["from_bytes", "is_token", "restore_nan", "to_bytes", "token_dtype", "torch_dtype"]

# Real numbers that float32 holds exactly, and float64. Integers, complex and packed types are kept as bytes.
_TOKEN_DTYPES = frozenset(
    {
        *("float64", "float32", "float16", "bfloat16"),
        *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
    }
)
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def torch_dtype(spec: TensorSpec) -> torch.dtype | None:
    """The dtype of a tensor; None for types of other formats, whose tensors are uint8 of (b,)."""
    found = getattr(torch, spec.dtype, None)
    return found if isinstance(found, torch.dtype) else None


def is_token(spec: TensorSpec) -> bool:
    """Whether the values of a tensor become tokens."""
    return spec.dtype in _TOKEN_DTYPES and torch_dtype(spec) is not None


def token_dtype(specs: Iterable[TensorSpec]) -> torch.dtype:
    """float64 where one of the tensors is, else float32: no value of a narrower type is rounded."""
    return torch.float64 if any(spec.dtype == "float64" for spec in specs) else torch.float32


def to_bytes(column: torch.Tensor) -> torch.Tensor:
    """(N, n) of any dtype as (N, b) uint8."""
    if column.numel() == 0:
        return torch.empty((len(column), 0), dtype=torch.uint8, device=column.device)
    # A clone, because `contiguous` would leave strides of single elements and lazy conjugation as they are.
    return column.clone(memory_format=torch.contiguous_format).view(torch.uint8)


def from_bytes(raw: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(N, b) uint8 as (N, n) of `dtype`, in fresh memory that is aligned for it."""
    if raw.numel() == 0:
        return torch.empty((len(raw), 0), dtype=dtype, device=raw.device)
    return raw.clone(memory_format=torch.contiguous_format).view(dtype)


def restore_nan(values: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """`values` (N, n), with the bits of `original` where both are NaN.

    A cast keeps every number but not the payload of a NaN.
    """
    integer = _INTEGERS[values.element_size()]
    both = values.to(torch.float64).isnan() & original.to(torch.float64).isnan()
    return torch.where(both, original.view(integer), values.view(integer)).view(values.dtype)
