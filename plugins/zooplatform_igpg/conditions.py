"""The prefix of a sequence: tokens that say what the network is for.

One token each for the instruction, the data set, the architecture, how good it is and the basin; a further one for each
class of the data set where that is asked for. Every one can be missing, in training by chance, and has then a learnt
token that says so (IGPG section 2.3 puts the embeddings of data set and architecture before the codes; leaving them out
in training is Ho and Salimans 2022, arXiv 2207.12598).

Legend for shapes: B networks, C tokens of the prefix, D width of the transformer, U size of an understood text, I size
of a data set's vector, A size of an architecture's, K classes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from zooplatform.interfaces import LAYER_TYPES
from zooplatform_igpg.text import HashText
from zooplatform_igpg.understanding import HIDDEN

if TYPE_CHECKING:
    from zooplatform.fitting import Blueprint

__all__ = [
    "LAYOUT_SIZE",
    "ConditionEncoder",
    "Told",
    "describe_layout",
    "leave_out",
    "told_on",
    "untold",
]

_KINDS = ("text", "dataset", "architecture", "level", "basin")
_GUIDED = (
    "text",
    "dataset",
    "level",
)  # what guidance is about; the others say what is to be written at all
_LAYERS, _PER_LAYER, _WORDS = 24, len(LAYER_TYPES) + 4, 64
LAYOUT_SIZE = _LAYERS * _PER_LAYER + len(LAYER_TYPES) + 2 + _WORDS


class Told(NamedTuple):
    """What B networks are told; NaN or -1 where something is missing.

    Attributes:
        text: (B, U) an understood instruction.
        dataset: (B, I) the vector of a data set, in units of those known.
        name: (B,) the number of a known data set.
        architecture: (B, A).
        level: (B,) how good.
        basin: (B,).
        classes: (B, K, I / 2) vectors of the classes, or None.
    """

    text: torch.Tensor
    dataset: torch.Tensor
    name: torch.Tensor
    architecture: torch.Tensor
    level: torch.Tensor
    basin: torch.Tensor
    classes: torch.Tensor | None = None


class ConditionEncoder(nn.Module):
    """What networks are told to the prefix.

    Args:
        dim: D.
        dataset_size, architecture_size: I and A.
        datasets, levels, basins: how many are known.
        classes: tokens of classes, 0 for none.
    """

    def __init__(
        self,
        dim: int,
        *,
        dataset_size: int,
        architecture_size: int,
        datasets: int,
        levels: int,
        basins: int,
        classes: int = 0,
    ) -> None:
        super().__init__()
        self.text = nn.Linear(HIDDEN, dim)
        self.dataset = nn.Linear(dataset_size, dim)
        self.name = nn.Embedding(max(1, datasets), dim)
        self.architecture = nn.Linear(architecture_size, dim)
        self.level = nn.Embedding(max(1, levels), dim)
        self.basin = nn.Embedding(max(1, basins), dim)
        self.missing = nn.Parameter(0.02 * torch.randn(len(_KINDS) + 1, dim))
        self.kind = nn.Parameter(0.02 * torch.randn(len(_KINDS), dim))
        self.classes = classes
        self.of_class = nn.Linear(dataset_size // 2, dim)
        self.number = nn.Embedding(max(1, classes), dim)
        self.norm = nn.LayerNorm(dim)
        for table in (self.name, self.level, self.basin, self.number):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, told: Told) -> torch.Tensor:
        """(B, C, D)."""
        tokens = [
            self._vector(self.text, told.text, 0),
            self._vector(self.dataset, told.dataset, 1)
            + _looked_up(self.name, told.name) * (told.name >= 0)[:, None],
            self._vector(self.architecture, told.architecture, 2),
            self._number(self.level, told.level, 3),
            self._number(self.basin, told.basin, 4),
        ]
        prefix = torch.stack(tokens, dim=1) + self.kind
        if self.classes:
            prefix = torch.cat([prefix, self._of_classes(told)], dim=1)
        result: torch.Tensor = self.norm(prefix)
        return result

    def _vector(self, layer: nn.Linear, given: torch.Tensor, kind: int) -> torch.Tensor:
        there = given.isfinite().all(dim=1, keepdim=True)
        return torch.where(there, layer(given.nan_to_num()), self.missing[kind])

    def _number(self, table: nn.Embedding, given: torch.Tensor, kind: int) -> torch.Tensor:
        return torch.where((given >= 0)[:, None], _looked_up(table, given), self.missing[kind])

    def _of_classes(self, told: Told) -> torch.Tensor:
        batch = len(told.text)
        tokens = self.missing[-1].expand(batch, self.classes, -1)
        if told.classes is not None:
            count = min(self.classes, told.classes.shape[1])
            given = told.classes[:, :count]
            there = given.isfinite().all(dim=2, keepdim=True)
            own = torch.where(there, self.of_class(given.nan_to_num()), tokens[:, :count])
            tokens = torch.cat([own, tokens[:, count:]], dim=1)
        return tokens + self.number.weight[: self.classes]


def _looked_up(table: nn.Embedding, given: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = table(given.clamp_min(0))
    return found


def leave_out(told: Told, drop: float, drop_all: float, generator: torch.Generator) -> Told:
    """The same with parts missing by chance: each of them, and all that guidance is about together."""
    batch = len(told.text)
    gone = torch.rand((batch, len(_KINDS) + 1), generator=generator) < drop
    everything = torch.rand(batch, generator=generator) < drop_all
    for number, kind in enumerate(_KINDS):
        if kind in _GUIDED:
            gone[:, number] |= everything
    no_name = gone[:, -1] | gone[:, 1]
    return _without(told, gone.to(told.text.device), no_name.to(told.text.device))


def told_on(told: Told, device: torch.device) -> Told:
    """The same on a device."""
    classes = None if told.classes is None else told.classes.to(device)
    text, dataset, name, architecture, level, basin = (
        part.to(device) for part in told[:6] if part is not None
    )
    return Told(text, dataset, name, architecture, level, basin, classes)


def untold(told: Told) -> Told:
    """The same without all that guidance is about."""
    batch = len(told.text)
    gone = torch.tensor([kind in _GUIDED for kind in _KINDS], device=told.text.device)
    no_name = torch.ones(batch, dtype=torch.bool, device=told.text.device)
    return _without(told, gone.expand(batch, -1), no_name)


def _without(told: Told, gone: torch.Tensor, no_name: torch.Tensor) -> Told:
    classes = told.classes
    if classes is not None:
        classes = classes.masked_fill(gone[:, 1, None, None], math.nan)
    return Told(
        text=told.text.masked_fill(gone[:, 0, None], math.nan),
        dataset=told.dataset.masked_fill(gone[:, 1, None], math.nan),
        name=told.name.masked_fill(no_name, -1),
        architecture=told.architecture.masked_fill(gone[:, 2, None], math.nan),
        level=told.level.masked_fill(gone[:, 3], -1),
        basin=told.basin.masked_fill(gone[:, 4], -1),
        classes=classes,
    )


def describe_layout(blueprint: Blueprint) -> torch.Tensor:
    """(A,) an architecture as numbers: type and sizes of its first layers, how many there are of each type, how large
    it is, and the words of its configuration (the activation) hashed."""
    found = torch.zeros(LAYOUT_SIZE)
    fields = blueprint.vector.by_name
    layers = blueprint.vector.layers()
    for number, layer in enumerate(layers):
        kind = LAYER_TYPES.index(layer.type) if layer.type in LAYER_TYPES else len(LAYER_TYPES) - 1
        found[_LAYERS * _PER_LAYER + kind] += 0.2
        if number < _LAYERS:
            at = number * _PER_LAYER
            shape = (*fields[layer.tensors[0]].spec.shape, 1, 1, 1, 1)[:4]
            found[at + kind] = 1
            sizes = torch.tensor(shape, dtype=torch.float32)
            found[at + len(LAYER_TYPES) : at + _PER_LAYER] = (1 + sizes).log() / 4
    at = _LAYERS * _PER_LAYER + len(LAYER_TYPES)
    found[at] = math.log1p(blueprint.vector.num_parameters) / 10
    found[at + 1] = len(layers) / 20
    words = " ".join(_words(blueprint.config))
    found[-_WORDS:] = HashText(_WORDS).encode([words])[0, :_WORDS]
    return found


def _words(value: object) -> list[str]:
    """The texts of a configuration that are settings, not names or lists of layers."""
    if not isinstance(value, dict):
        return []
    plain = {k: v for k, v in value.items() if isinstance(v, str) and k != "names"}
    return [f"{key} {text}" for key, text in sorted(plain.items())]
