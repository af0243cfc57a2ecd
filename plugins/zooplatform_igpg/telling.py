"""The steps of a fit: codes of all networks, what can be told of them, the model, and what came of it.

Legend for shapes: N networks, T tokens of one, I size of a data set's vector, U size of an understood text.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from zooplatform_igpg.conditions import ConditionEncoder, describe_layout
from zooplatform_igpg.images import embed_dataset, image_encoder, pooled
from zooplatform_igpg.instructions import describe_layers
from zooplatform_igpg.sides import CodeSide, Group, Tables
from zooplatform_igpg.training import Writer
from zooplatform_igpg.transformer import CodeTransformer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zooplatform.fitting import Blueprint, GeneratorData
    from zooplatform_igpg.config import IgpgConfig
    from zooplatform_igpg.prepared import PreparedNetworks
    from zooplatform_igpg.preparing import Preparation
    from zooplatform_igpg.resolving import Kinds
    from zooplatform_igpg.spaces import Codec
    from zooplatform_igpg.text import TextEncoder
    from zooplatform_igpg.understanding import Understanding

__all__ = [
    "DatasetVectors",
    "architecture_vectors",
    "build_writer",
    "dataset_vectors",
    "encode_side",
    "tables_of",
]

_CLIP = 3.0  # standard deviations beyond which a data set is as different as can be told


class DatasetVectors:
    """What the known data sets look like.

    Attributes:
        raw_mean, raw_spread: (I,) of the vectors of all draws, which those of any data set are told in.
        draws: (D, draws, I), NaN for data sets without images.
        classes: (D, draws, K, I / 2), or None.
        described: what the image encoder said of itself.
    """

    def __init__(
        self,
        raw_mean: torch.Tensor,
        raw_spread: torch.Tensor,
        draws: torch.Tensor,
        classes: torch.Tensor | None,
        described: Mapping[str, Any],
    ) -> None:
        self.raw_mean, self.raw_spread = raw_mean, raw_spread
        self.draws, self.classes, self.described = draws, classes, dict(described)

    def told(self, vectors: torch.Tensor) -> torch.Tensor:
        """(..., I) in units of the known data sets."""
        return ((vectors - self.raw_mean) / self.raw_spread).clamp(-_CLIP, _CLIP)

    def told_classes(self, classes: torch.Tensor) -> torch.Tensor:
        """(..., I / 2) the same of vectors of classes."""
        half = len(self.raw_mean) // 2
        return ((classes - self.raw_mean[:half]) / self.raw_spread[:half]).clamp(-_CLIP, _CLIP)

    @property
    def typical(self) -> torch.Tensor:
        """(D, I) the mean over the draws."""
        return self.draws.mean(dim=1)


def dataset_vectors(
    config: IgpgConfig, data: GeneratorData, names: Sequence[str], seed: int
) -> DatasetVectors:
    """The data sets through the image encoder, several draws of examples each."""
    encoder = image_encoder(config.conditions.images)
    count, per_class = config.conditions.draws, config.conditions.per_class
    size = 2 * encoder.dim
    most = max([data.images[n].num_classes for n in names if n in data.images], default=1)
    raw = torch.full((max(1, len(names)), count, size), math.nan)
    classes = torch.full((max(1, len(names)), count, most, encoder.dim), math.nan)
    for number, name in enumerate(names):
        if name not in data.images:
            continue
        for draw in range(count):
            examples = data.images[name].examples(per_class, seed * 1009 + draw)
            found = embed_dataset(encoder, examples)
            raw[number, draw] = pooled(found)
            classes[number, draw, : len(found)] = found
    known = raw[raw[..., 0].isfinite()]  # (draws of all, I)
    mean, spread = torch.zeros(size), torch.ones(size)
    if len(known):
        mean, spread = known.mean(dim=0), known.std(dim=0, unbiased=False)
        # Draws of one data set differ little: what is as good as constant is not blown up.
        spread = spread.clamp_min(0.05 * known.abs().mean(dim=0).clamp_min(1e-3))
    result = DatasetVectors(mean, spread, raw, None, encoder.describe())
    result.draws = result.told(raw)
    if config.conditions.class_tokens:
        result.classes = result.told_classes(classes)
    return result


def architecture_vectors(
    config: IgpgConfig, blueprints: Sequence[Blueprint], encoder: TextEncoder
) -> torch.Tensor:
    """(blueprints, A)."""
    if config.conditions.describe_architecture == "text":
        return encoder.encode([describe_layers(one) for one in blueprints])
    return torch.stack([describe_layout(one) for one in blueprints])


def tables_of(
    config: IgpgConfig,
    kinds: Kinds,
    networks: PreparedNetworks,
    preparation: Preparation,
    levels: np.ndarray[Any, np.dtype[np.int64]],
    understanding: Understanding,
    encoder: TextEncoder,
    datasets: DatasetVectors,
    architectures: torch.Tensor,
    seed: int,
) -> Tables:
    """What can be told of the networks of one side."""
    from zooplatform_igpg.resolving import Cell

    captioner = kinds.captioner()
    draw = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 37])))
    facts = networks.networks.facts
    listed = [
        (Cell(fact.blueprint, fact.dataset), int(level))
        for fact, level in zip(facts, levels, strict=True)
    ]
    known = sorted(set(listed))
    texts = [
        captioner.caption(_subject(kinds, cell, level), draw).text
        for cell, level in known
        for _ in range(config.conditions.captions)
    ]
    with torch.no_grad():
        hidden = understanding(encoder.encode(texts))
    number = {one: at for at, one in enumerate(known)}
    basins = torch.full((len(facts),), -1, dtype=torch.int64)
    if config.space.basins != 0 and networks.basins is not None:
        first = [preparation.tables[fact.blueprint].first for fact in facts]
        basins = torch.from_numpy(networks.basins + np.array(first))
    place = {name: at for at, name in enumerate(kinds.datasets)}
    return Tables(
        texts=hidden.view(len(known), config.conditions.captions, -1),
        datasets=datasets.draws,
        classes=datasets.classes,
        architectures=architectures,
        text=torch.tensor([number[one] for one in listed]),
        dataset=torch.tensor([place.get(fact.dataset, -1) for fact in facts]),
        architecture=torch.tensor([fact.blueprint for fact in facts]),
        level=torch.from_numpy(levels.copy()),
        basin=basins,
    )


def _subject(kinds: Kinds, cell: Any, level: int) -> Any:
    """Of data sets that are only in the validation networks nothing is said."""
    if cell.dataset and cell.dataset not in kinds.datasets:
        return kinds.subject(cell._replace(dataset=""), level)
    return kinds.subject(cell, level)


def encode_side(
    codec: Codec,
    networks: PreparedNetworks,
    copies: Sequence[PreparedNetworks],
    tables: Tables,
    config: IgpgConfig,
) -> CodeSide:
    """The codes of one side, by blueprint."""
    groups = []
    for blueprint in sorted(set(networks.networks.blueprints.tolist())):
        own = networks.of_blueprint(blueprint)
        layers = [_codes(codec, view, own, blueprint) for view in (networks, *copies)]
        groups.append(
            Group(
                codes=torch.stack(layers),
                rows=torch.from_numpy(own),
                places=codec.places(blueprint),
                mask=codec.mask(blueprint),
            )
        )
    return CodeSide(groups, tables, config.transformer.context, config.transformer.window)


def _codes(codec: Codec, networks: PreparedNetworks, own: Any, blueprint: int) -> torch.Tensor:
    """(N, T) int32 of the networks of a blueprint; data set by data set, since images may be looked at."""
    names = np.array([networks.networks.facts[row].dataset for row in own])
    found: torch.Tensor | None = None
    for name in sorted(set(names.tolist())):
        mine = np.flatnonzero(names == name)
        for start in range(0, len(mine), 128):
            part = mine[start : start + 128]
            weights = networks.read(own[part]).weights
            assert networks.basins is not None
            basins = torch.from_numpy(networks.basins[own[part]])
            codes = codec.encode(weights, blueprint, basins, name).to(torch.int32)
            if found is None:
                found = torch.zeros((len(own), codes.shape[1]), dtype=torch.int32)
            found[torch.from_numpy(part)] = codes
    assert found is not None
    return found


def build_writer(
    config: IgpgConfig,
    codec: Codec,
    *,
    dataset_size: int,
    architecture_size: int,
    datasets: int,
    basins: int,
    classes: int,
    rows: int,
    seed: int,
) -> Writer:
    """A new model, its parameters drawn by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = CodeTransformer(config.transformer, codec.code_vectors(), rows)
        conditions = ConditionEncoder(
            config.transformer.dim,
            dataset_size=dataset_size,
            architecture_size=architecture_size,
            datasets=datasets,
            levels=config.conditions.levels,
            basins=basins,
            classes=classes,
        )
        return Writer(conditions, transformer)
