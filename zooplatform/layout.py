"""Layouts and ids: how the tensors of a network become one vector, and how things are named by what they are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import xxhash

from zooplatform.dtypes import is_floating
from zooplatform.interfaces import LayerSpec, Layout, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import torch

__all__ = [
    "POPULATION_DTYPES",
    "Field",
    "VectorLayout",
    "architecture_id",
    "checkpoint_id",
    "is_parameter",
    "layout_of",
    "model_id",
]

# Dtypes of the weights of a population: those that numpy, Arrow and DuckDB all have.
POPULATION_DTYPES = ("float16", "float32", "float64")


def _digest(*parts: str) -> str:
    """64 bits of a hash over length-prefixed parts, as hex."""
    hasher = xxhash.xxh3_128()
    for part in parts:
        data = part.encode()
        hasher.update(len(data).to_bytes(8, "little"))
        hasher.update(data)
    return hasher.hexdigest()[:16]


def architecture_id(layout: Layout) -> str:
    """Hash of names, dtypes and shapes in order."""
    return _digest(*(f"{t.name}\0{t.dtype}\0{','.join(map(str, t.shape))}" for t in layout))


def model_id(key: str, revision: str) -> str:
    """Hash of the key within the source and the revision."""
    return _digest("model", key, revision)


def checkpoint_id(model: str, step: int | None, epoch: float | None) -> str:
    """Hash of the model and when the checkpoint was taken (the step, or the epoch where there is no step)."""
    when = f"step {step}" if step is not None else f"epoch {epoch}"
    return _digest("checkpoint", model, when)


def layout_of(state: Mapping[str, torch.Tensor]) -> Layout:
    """The layout of a torch state dict."""
    return tuple(
        TensorSpec(
            name,
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape),
            tensor.numel() * tensor.element_size(),
        )
        for name, tensor in state.items()
    )


@dataclass(frozen=True, slots=True)
class Field:
    """Where a tensor lies: `offset` is its first element in the weight vector, or its first byte aside."""

    spec: TensorSpec
    offset: int
    aside: bool
    layer_index: int | None = None
    layer_type: str | None = None


def is_parameter(spec: TensorSpec) -> bool:
    """Whether a tensor is trained, going by torch's names for the buffers of its normalisation layers."""
    buffer = spec.name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked")
    return is_floating(spec.dtype) and not buffer


class VectorLayout:
    """A layout as a vector: tensors of the main dtype side by side, all others as bytes aside.

    The main dtype is the floating one that holds most bytes.
    """

    def __init__(self, layout: Layout, layers: Sequence[LayerSpec] = ()) -> None:
        self.layout = layout
        sizes: Counter[str] = Counter()
        for spec in layout:
            sizes[spec.dtype] += spec.size_bytes
        floating = [d for d in sizes if is_floating(d)]
        # Ties go to the dtype that comes first, so that the choice depends on the layout alone.
        self.dtype = max(floating or sizes or ["float32"], key=lambda d: sizes[d])
        owner = {name: layer for layer in layers for name in layer.tensors}
        fields = []
        at_main = at_aside = 0
        for spec in layout:
            aside = spec.dtype != self.dtype
            layer = owner.get(spec.name)
            fields.append(
                Field(
                    spec,
                    at_aside if aside else at_main,
                    aside,
                    None if layer is None else layer.index,
                    None if layer is None else layer.type,
                )
            )
            if aside:
                at_aside += spec.size_bytes
            else:
                at_main += spec.num_elements
        self.fields = tuple(fields)
        self.width, self.aside_bytes = at_main, at_aside

    @cached_property
    def by_name(self) -> dict[str, Field]:
        return {f.spec.name: f for f in self.fields}

    @property
    def num_parameters(self) -> int:
        """Elements of trainable tensors: integer buffers and running statistics do not count."""
        return sum(t.num_elements for t in self.layout if is_parameter(t))

    @property
    def size_bytes(self) -> int:
        return sum(t.size_bytes for t in self.layout)

    def rows(self) -> list[dict[str, Any]]:
        """The `layout` column of `architectures`."""
        return [
            {
                "name": f.spec.name,
                "shape": list(f.spec.shape),
                "dtype": f.spec.dtype,
                "offset": f.offset,
                "numel": f.spec.num_elements,
                "size_bytes": f.spec.size_bytes,
                "aside": f.aside,
                "layer_index": f.layer_index,
                "layer_type": f.layer_type,
            }
            for f in self.fields
        ]

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> VectorLayout:
        """The reverse of `rows`."""
        listed = list(rows)
        layout = tuple(
            TensorSpec(r["name"], r["dtype"], tuple(r["shape"]), r["size_bytes"]) for r in listed
        )
        layers: dict[int, tuple[str, list[str]]] = {}
        for r in listed:
            if r["layer_index"] is not None:
                layers.setdefault(r["layer_index"], (r["layer_type"], []))[1].append(r["name"])
        specs = [
            LayerSpec(index, names[0].rpartition(".")[0], type_, tuple(names))
            for index, (type_, names) in sorted(layers.items())
        ]
        return cls(layout, specs)

    def layers(self) -> tuple[LayerSpec, ...]:
        """Layers with their tensors, in order."""
        found: dict[int, tuple[str, list[str]]] = {}
        for f in self.fields:
            if f.layer_index is not None and f.layer_type is not None:
                found.setdefault(f.layer_index, (f.layer_type, []))[1].append(f.spec.name)
        return tuple(
            LayerSpec(i, names[0].rpartition(".")[0], t, tuple(names))
            for i, (t, names) in sorted(found.items())
        )
