"""All that a fitted generator is made of, and the model that belongs to it.

Legend for shapes: B networks of a pass, P values of one network, T tokens of one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from zooplatform.errors import ConfigError
from zooplatform_igpg.prepared import Centring
from zooplatform_igpg.resolving import Resolver
from zooplatform_igpg.telling import build_writer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zooplatform.fitting import Blueprint
    from zooplatform_igpg.config import IgpgConfig
    from zooplatform_igpg.flatness import Flatness
    from zooplatform_igpg.prepared import Aligner
    from zooplatform_igpg.preparing import BasinTable
    from zooplatform_igpg.resolving import Kinds
    from zooplatform_igpg.spaces import Codec
    from zooplatform_igpg.telling import DatasetVectors
    from zooplatform_igpg.training import Writer
    from zooplatform_igpg.transformer import Places
    from zooplatform_igpg.understanding import Understanding

__all__ = ["Known"]


@dataclass
class Known:
    """A fitted generator.

    Attributes:
        config, seed: what it was fitted with.
        kinds: of networks.
        codec: weights to codes and back.
        tables: basins by blueprint.
        datasets: what data sets look like.
        architectures: (blueprints, A) vectors.
        understanding: of instructions.
        text: what the text encoder said of itself.
        has_levels: whether it is known how good training networks are.
        flatness: what noise networks bear, by blueprint and basin.
        aligner: puts hidden units into order, or None.
        writer: the model.
        device: where it is.
    """

    config: IgpgConfig
    seed: int
    kinds: Kinds
    codec: Codec
    tables: dict[int, BasinTable]
    datasets: DatasetVectors
    architectures: torch.Tensor
    understanding: Understanding
    text: Mapping[str, Any]
    has_levels: bool
    flatness: dict[int, dict[int, Flatness]] = field(default_factory=dict)
    aligner: Aligner | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    writer: Writer = field(init=False)
    resolver: Resolver = field(init=False)

    def __post_init__(self) -> None:
        conditions = self.config.conditions
        self.resolver = Resolver(
            self.kinds,
            self.understanding,
            (conditions.text, self.text),
            (conditions.images, self.datasets.described),
            self.datasets,
        )
        self._first_rows: dict[int, int] = {}
        rows = 0
        for number in sorted(self.tables):
            tokens = len(self.codec.places(number).levels)
            own = self.config.transformer.places != "counted"
            if own and tokens <= self.config.transformer.own_places:
                self._first_rows[number] = rows
                rows += tokens
        classes = self.datasets.classes
        self.writer = build_writer(
            self.config,
            self.codec,
            dataset_size=self.datasets.draws.shape[2],
            architecture_size=self.architectures.shape[1],
            datasets=len(self.kinds.datasets),
            basins=sum(len(table.datasets) for table in self.tables.values()),
            classes=0 if classes is None else classes.shape[2],
            rows=rows,
            seed=self.seed,
        ).to(self.device)

    def places(self, blueprint: int) -> Places:
        """Of the tokens of a blueprint, with their rows in the model's table."""
        return self.codec.places(blueprint)._replace(first_row=self._first_rows.get(blueprint, -1))

    def number_of(self, blueprint: Blueprint) -> int:
        """Which of the known blueprints this is; of several with its layout the one with its configuration.

        Raises:
            ConfigError: none has its layout.
        """
        ids = {number: self.kinds.blueprints[number].architecture_id for number in self.tables}
        same = [number for number in self.tables if ids[number] == blueprint.architecture_id]
        if not same:
            raise ConfigError(
                f"No network of architecture {blueprint.architecture_id} was fitted on. "
                f"Known: {', '.join(sorted(set(ids.values())))}."
            )
        exact = [n for n in same if self.kinds.blueprints[n].config == blueprint.config]
        return (exact or same)[0]

    def decode(
        self, codes: torch.Tensor, blueprint: int, basins: torch.Tensor, spread: float = 1.0
    ) -> torch.Tensor:
        """(B, P) weights of codes (B, T) of one blueprint; basins (B,); `spread` is how many times as far from the
        centre of the basin as the codes say."""
        table = self.tables[blueprint]
        weights = self.codec.decode(codes, blueprint, basins)
        if table.means is not None:
            vector = self.kinds.blueprints[blueprint].vector
            weights = Centring(table.means, vector).put_back(weights, basins, spread)
        if table.least is not None:
            weights = torch.maximum(weights, table.least)  # variances stay positive
        return weights
