"""Tensors and storages as a pickle describes them, before any byte of them is read."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zooplatform.formats.dtypes import ITEM_BYTES
from zooplatform.formats.limits import check_shape
from zooplatform.formats.pickle_names import Global

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["PlannedStorage", "PlannedTensor", "obstacle", "only_tensor", "planned_view"]


@dataclass(frozen=True, slots=True)
class PlannedStorage:
    """Bytes that the file claims to hold under `key`."""

    key: str
    dtype: str
    num_elements: int

    @property
    def size_bytes(self) -> int:
        return self.num_elements * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, eq=False)
class PlannedTensor:
    """A tensor as the pickle describes it; `obstacle` says why it is none that can be stored, or is empty."""

    storage: PlannedStorage | None
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    obstacle: str = ""

    @property
    def num_elements(self) -> int:
        count = 1
        for dim in self.shape:
            count *= dim
        return count

    @property
    def size_bytes(self) -> int:
        return self.num_elements * ITEM_BYTES[self.dtype]


def planned_view(
    storage: Any,
    offset: Any,
    size: Sequence[Any],
    stride: Sequence[Any],
    dtype: Any,
    subject: object,
) -> PlannedTensor:
    """A strided view of a storage, checked against it."""
    if not isinstance(storage, PlannedStorage) or type(offset) is not int or offset < 0:
        raise pickle.UnpicklingError("a tensor without a storage")
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or len(size) != len(stride):
        raise pickle.UnpicklingError("a tensor whose shape and strides do not go together")
    name = storage.dtype
    if dtype is not None:
        name = dtype.name.removeprefix("torch.") if isinstance(dtype, Global) else ""
        if name not in ITEM_BYTES:
            return PlannedTensor(None, "uint8", 0, (), (), f"has the dtype {name or 'unknown'}")
    shape = check_shape(size, "of a pickle", subject)
    steps = check_shape(stride, "of a pickle", subject)
    if 0 not in shape:
        last = offset + sum((dim - 1) * step for dim, step in zip(shape, steps, strict=True))
        if (last + 1) * ITEM_BYTES[name] > storage.size_bytes:
            raise pickle.UnpicklingError("a tensor that reaches beyond its storage")
    return PlannedTensor(storage, name, offset, shape, steps)


def only_tensor(data: Any) -> PlannedTensor:
    if not isinstance(data, PlannedTensor):
        raise pickle.UnpicklingError("a parameter that holds no tensor")
    return data


def obstacle(why: str) -> Callable[..., PlannedTensor]:
    return lambda *args: PlannedTensor(None, "uint8", 0, (), (), why)
