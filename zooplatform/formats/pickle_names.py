"""The classes and functions that a pickle of weights may name, none of which is imported."""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zooplatform.formats.dtypes import ITEM_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LIKE_A_DTYPE", "MARKERS", "NUMPY_SCALARS", "STORAGE_DTYPES", "Global"]

STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
    # Of quantised tensors, which are refused by name later.
    "QInt8Storage": "int8",
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
}
# Named in a checkpoint as values, never called.
MARKERS = frozenset(
    (
        "torch.Tensor",
        "torch._tensor.Tensor",
        "torch.nn.parameter.Parameter",
        "torch.nn.parameter.Buffer",
        "torch.per_tensor_affine",
        "torch.per_tensor_symmetric",
        "torch.per_channel_affine",
        "torch.per_channel_symmetric",
        "torch.per_channel_affine_float_qparams",
        *(f"torch.{name}" for name in ITEM_BYTES),
        *(f"torch.{name}" for name in ("quint8", "qint8", "qint32", "quint4x2", "quint2x4")),
        *(f"torch.{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)),
    )
)
NUMPY_SCALARS = (
    "numpy.core.multiarray.",
    "numpy._core.multiarray.",
    "numpy.dtype",
    "numpy.ndarray",
)

# Dtypes that torch has and no catalog stores: raw bits, complex bfloat16, integers of less than a byte.
LIKE_A_DTYPE = re.compile(r"(bits|bcomplex|complex|float|quint|qint|uint|int)[0-9][0-9a-z_]*")


@dataclass(frozen=True, slots=True)
class Global:
    """A class or function that a pickle names: `call` stands for calling it."""

    name: str
    call: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        if self.call is None:
            raise pickle.UnpicklingError(f"{self.name} is called, which no checkpoint needs")
        return self.call(*args)
