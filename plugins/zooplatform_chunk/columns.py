"""Networks as columns: every tensor of N networks as (N, numbers), checked against the layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from zooplatform.errors import TokenizerError
from zooplatform.layout import VectorLayout
from zooplatform_chunk.values import from_bytes, torch_dtype

if TYPE_CHECKING:
    from zooplatform.interfaces import Layout, StateDict

__all__ = ["columns_of_population", "columns_of_state"]


def columns_of_state(state: StateDict, layout: Layout) -> dict[str, torch.Tensor]:
    """Every tensor as (1, numbers)."""
    remedy = "Give the state dict's own layout, layout_of(state)."
    unmatched = sorted(state.keys() ^ {spec.name for spec in layout})
    if unmatched:
        raise TokenizerError(
            f"Tensors of the state dict or of the layout without a counterpart: "
            f"{', '.join(unmatched[:10])}{' ...' if len(unmatched) > 10 else ''}. {remedy}"
        )
    columns = {}
    for spec in layout:
        tensor = state[spec.name].detach()
        if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
            raise TokenizerError(
                f"{spec.name} is not a plain tensor with values. Load the weights, dense and unwrapped."
            )
        if torch_dtype(spec) is None:
            wanted: object = (torch.uint8, spec.size_bytes)
            found: object = (tensor.dtype, tensor.numel())
        else:
            wanted, found = (torch_dtype(spec), spec.shape), (tensor.dtype, tuple(tensor.shape))
        if found != wanted:
            raise TokenizerError(f"{spec.name} is {found}, the layout has {wanted}. {remedy}")
        columns[spec.name] = tensor.reshape(1, -1)
    return columns


def columns_of_population(
    weights: torch.Tensor, aside: torch.Tensor | None, layout: Layout
) -> dict[str, torch.Tensor]:
    """Every tensor as (N, numbers), views of `weights` where it lies there."""
    vector = VectorLayout(layout)
    _check_matrix("weights", weights, len(weights), vector.width, vector.dtype)
    if aside is None:
        aside = torch.empty((len(weights), 0), dtype=torch.uint8)
    _check_matrix("aside", aside, len(weights), vector.aside_bytes, "uint8")
    columns = {}
    for field in vector.fields:
        spec = field.spec
        if not field.aside:
            column = weights[:, field.offset : field.offset + spec.num_elements]
        else:
            raw = aside[:, field.offset : field.offset + spec.size_bytes]
            column = from_bytes(raw, torch_dtype(spec) or torch.uint8)
        columns[spec.name] = column.detach()
    return columns


def _check_matrix(what: str, matrix: torch.Tensor, rows: int, width: int, dtype: str) -> None:
    found = (tuple(matrix.shape), str(matrix.dtype).removeprefix("torch."))
    if found != ((rows, width), dtype):
        raise TokenizerError(
            f"{what} is {found[0]} of {found[1]}; {rows} networks of this layout have "
            f"({rows}, {width}) of {dtype}. Give the layout of this population."
        )
