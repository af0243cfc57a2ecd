"""State dicts of one layout as one matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from zooplatform.errors import SchemaError
from zooplatform.layout import POPULATION_DTYPES, VectorLayout, layout_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from zooplatform.interfaces import Layout

__all__ = ["pack"]


def pack(
    states: Iterable[Mapping[str, torch.Tensor]],
) -> tuple[Layout, npt.NDArray[Any], npt.NDArray[np.uint8] | None]:
    """Lay N state dicts side by side.

    Returns:
        The layout, weights (N, P) of its main dtype, and (N, E) bytes of tensors of other dtypes or None.

    Raises:
        SchemaError: there are none, the layouts differ, or the main dtype is none that a population can hold.
    """
    listed = list(states)
    if not listed:
        raise SchemaError("There are no state dicts to store.")
    layout = layout_of(listed[0])
    vector = VectorLayout(layout)
    if vector.dtype not in POPULATION_DTYPES:
        raise SchemaError(
            f"A population holds float16, float32 or float64 weights, these are {vector.dtype}. Save the networks as "
            ".safetensors and ingest the files."
        )
    weights = np.empty((len(listed), vector.width), dtype=vector.dtype)
    aside = (
        np.empty((len(listed), vector.aside_bytes), dtype=np.uint8) if vector.aside_bytes else None
    )
    flat = torch.from_numpy(weights)
    names = [t.name for t in layout]
    shapes = [(t.shape, t.dtype) for t in layout]
    for row, state in enumerate(listed):
        given = [(tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in state.values()]
        if list(state) != names or given != shapes:
            raise SchemaError(f"State dict {row} has another layout than the first one.")
        tensors = [t.detach().cpu() for t in state.values()]
        main = [t.reshape(-1) for t, f in zip(tensors, vector.fields, strict=True) if not f.aside]
        torch.cat(main, out=flat[row])
        if aside is not None:
            for tensor, f in zip(tensors, vector.fields, strict=True):
                if f.aside:
                    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
                    aside[row, f.offset : f.offset + f.spec.size_bytes] = raw
    return layout, weights, aside
