"""Names and widths of element types.

A name is torch's without the prefix; element types that torch does not know keep their format's name and stay bytes.
"""

from __future__ import annotations

from math import prod

__all__ = ["ITEM_BYTES", "SAFETENSORS", "numpy_name", "stored_bytes"]

# Bytes of one element, for every dtype whose elements are whole bytes in torch.
ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint64": 8,
    "uint32": 4,
    "uint16": 2,
    "uint8": 1,
    "bool": 1,
    "complex32": 4,
    "complex64": 8,
    "complex128": 16,
}

# Code in a safetensors header -> (torch's name or our own, bits of one element).
SAFETENSORS = {
    "BOOL": ("bool", 8),
    "F4": ("float4_e2m1fn_x2", 4),
    "F6_E2M3": ("f6_e2m3", 6),
    "F6_E3M2": ("f6_e3m2", 6),
    "U8": ("uint8", 8),
    "I8": ("int8", 8),
    "F8_E5M2": ("float8_e5m2", 8),
    "F8_E4M3": ("float8_e4m3fn", 8),
    "F8_E8M0": ("float8_e8m0fnu", 8),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 8),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 8),
    "I16": ("int16", 16),
    "U16": ("uint16", 16),
    "F16": ("float16", 16),
    "BF16": ("bfloat16", 16),
    "I32": ("int32", 32),
    "U32": ("uint32", 32),
    "F32": ("float32", 32),
    "C64": ("complex64", 64),
    "F64": ("float64", 64),
    "I64": ("int64", 64),
    "U64": ("uint64", 64),
}

_NUMPY = {
    **{("f", width): f"float{8 * width}" for width in (2, 4, 8)},
    **{("i", width): f"int{8 * width}" for width in (1, 2, 4, 8)},
    **{("u", width): f"uint{8 * width}" for width in (1, 2, 4, 8)},
    **{("c", width): f"complex{8 * width}" for width in (8, 16)},
    ("b", 1): "bool",
}


def numpy_name(kind: str, itemsize: int) -> str | None:
    """torch's name of a numpy dtype given by kind and width, or None where torch has none (objects, text, float128)."""
    return _NUMPY.get((kind, itemsize))


def stored_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a contiguous tensor of a dtype that torch knows."""
    return prod(shape) * ITEM_BYTES[dtype]
