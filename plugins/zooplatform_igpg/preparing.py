"""What a fit does before there are codes: which networks, in which order their units, of which basins, how good.

Legend for shapes: N networks, P values of one, M basins of a blueprint.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from zooplatform.errors import ConfigError
from zooplatform_igpg.basins import Viewer, find_basins, views
from zooplatform_igpg.prepared import (
    Aligner,
    Centring,
    Networks,
    PreparedNetworks,
    accuracy_of,
    variances,
)
from zooplatform_igpg.resolving import Cell

if TYPE_CHECKING:
    import numpy.typing as npt

    from zooplatform.fitting import GeneratorData
    from zooplatform_igpg.config import IgpgConfig

    Rows = npt.NDArray[np.int64]

__all__ = ["BasinTable", "Preparation", "prepare"]

_ENOUGH = 64  # networks that the size of each tensor is taken from


@dataclass
class BasinTable:
    """The basins of one blueprint.

    Attributes:
        datasets: (M,) the data set of each.
        counts: (M,) training networks of each.
        centres: (M, R) as the viewer sees them.
        means: (M, P) what is subtracted, None where nothing is.
        scale: (P,) of the viewer.
        first: number of the first one among the basins of all blueprints.
        least: (P,) below which a value is none (variances), or None.
    """

    datasets: list[str]
    counts: list[int]
    centres: torch.Tensor
    means: torch.Tensor | None
    scale: torch.Tensor
    first: int = 0
    least: torch.Tensor | None = None

    def of_dataset(self, dataset: str) -> list[int]:
        """The basins of a data set."""
        return [at for at, name in enumerate(self.datasets) if name == dataset]

    def nearest(self, seen: torch.Tensor, among: list[int]) -> torch.Tensor:
        """(N,) of networks (N, R) the nearest of these basins."""
        centres = self.centres[among]
        return torch.tensor(among)[torch.cdist(seen, centres).argmin(dim=1)]


@dataclass
class Preparation:
    """Networks ready for codes.

    Attributes:
        train, validation: the networks as they are coded; of the latter only those whose blueprint is trained on.
        copies: the training networks again, hidden units permuted.
        cells: number of training networks of each kind.
        tables: basins by blueprint.
        aligner: or None.
        train_levels, validation_levels: (N,) how good each is, -1 if that is not known.
        scores: of the numbers of basins that were tried, by cell.
        notes: what was left out.
    """

    train: PreparedNetworks
    validation: PreparedNetworks | None
    copies: list[PreparedNetworks]
    cells: dict[Cell, int]
    tables: dict[int, BasinTable]
    aligner: Aligner | None
    train_levels: Rows
    validation_levels: Rows
    scores: dict[str, dict[int, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def num_basins(self) -> int:
        return sum(len(table.datasets) for table in self.tables.values())


def prepare(config: IgpgConfig, data: GeneratorData, seed: int) -> Preparation:
    """Look at all networks of a fit.

    Raises:
        ConfigError: there are too few networks.
    """
    train = Networks(data.train, data.facts)
    validation = Networks(data.validation, data.facts) if len(data.validation) else None
    notes = []
    for part, side in (("training", train), ("validation", validation)):
        if side is not None and side.left_out:
            notes.append(f"{side.left_out} {part} networks left out: NaN or infinite weights.")
    if len(train) < 2:
        raise ConfigError(f"{len(train)} network is too few to learn from. Change the query.")
    if validation is not None:
        known = np.isin(validation.blueprints, train.blueprints)
        if not known.all():
            notes.append(
                f"{int((~known).sum())} validation networks left out: no training network is of their architecture."
            )
            validation = _only(validation, known)
    cells: Counter[Cell] = Counter(Cell(f.blueprint, f.dataset) for f in train.facts)
    aligner = Aligner.choose(train, data) if config.space.align else None
    ordered = PreparedNetworks(train, aligner=aligner)
    checked = None if validation is None else PreparedNetworks(validation, aligner=aligner)
    result = Preparation(
        train=ordered, validation=checked, copies=[], cells=dict(cells), tables={}, aligner=aligner,
        train_levels=np.empty(0, np.int64), validation_levels=np.empty(0, np.int64), notes=notes,
    )  # fmt: skip
    basins = np.zeros(len(train), np.int64)
    checked_basins = np.zeros(0 if validation is None else len(validation), np.int64)
    first = 0
    for blueprint in sorted({cell.blueprint for cell in cells}):
        table = _table(config, data, result, blueprint, basins, checked_basins, seed)
        table.first, first = first, first + len(table.datasets)
        result.tables[blueprint] = table
    centring = {
        b: Centring(table.means, data.blueprints[b].vector)
        for b, table in result.tables.items()
        if table.means is not None
    }
    again: dict[str, Any] = {"aligner": aligner, "centring": centring}
    result.train = PreparedNetworks(train, basins=basins, **again)
    result.train.adopt(ordered)
    if validation is not None and checked is not None:
        result.validation = PreparedNetworks(validation, basins=checked_basins, **again)
        result.validation.adopt(checked)
    for copy in range(config.space.augment):
        shuffled = PreparedNetworks(train, basins=basins, shuffle=int(_number(seed, copy)), **again)
        shuffled.adopt(ordered)
        result.copies.append(shuffled)
    result.train_levels, result.validation_levels = _levels(config, train, validation)
    return result


def _only(networks: Networks, kept: npt.NDArray[np.bool_]) -> Networks | None:
    if not kept.any():
        return None
    networks.rows, networks.blueprints = networks.rows[kept], networks.blueprints[kept]
    networks.facts = tuple(f for f, keep in zip(networks.facts, kept, strict=True) if keep)
    return networks


def _table(
    config: IgpgConfig,
    data: GeneratorData,
    result: Preparation,
    blueprint: int,
    basins: Rows,
    checked_basins: Rows,
    seed: int,
) -> BasinTable:
    """The basins of a blueprint; fills in those of its networks."""
    vector = data.blueprints[blueprint].vector
    train, validation = result.train, result.validation
    own = train.of_blueprint(blueprint)
    viewer = Viewer.of(vector, train.read(own[:_ENOUGH]).weights, seed)
    checked = np.empty(0, np.int64) if validation is None else validation.of_blueprint(blueprint)
    seen = views(train, own, viewer)
    seen_checked = (
        torch.zeros((0, seen.shape[1]))
        if validation is None or not len(checked)
        else views(validation, checked, viewer)
    )
    names = np.array([train.networks.facts[row].dataset for row in own])
    names_checked = np.array(
        [] if validation is None else [validation.networks.facts[r].dataset for r in checked]
    )
    wanted = config.space.basins
    if config.space.augment:
        wanted = 0  # permuted networks are of no basin
    datasets: list[str] = []
    counts: list[int] = []
    centres: list[torch.Tensor] = []
    for dataset in sorted(set(names.tolist())):
        mine, other = np.flatnonzero(names == dataset), np.flatnonzero(names_checked == dataset)
        found = find_basins(
            seen[torch.from_numpy(mine)], seen_checked[torch.from_numpy(other)], wanted or 1, seed
        )
        basins[own[mine]] = found.train + len(datasets)
        if len(other):
            checked_basins[checked[other]] = found.validation + len(datasets)
        number = len(found.centres)
        result.scores[f"{blueprint}/{dataset}"] = found.scores
        datasets += [dataset] * number
        counts += np.bincount(found.train, minlength=number).tolist()
        centres.append(found.centres)
    table = BasinTable(datasets, counts, torch.cat(centres), None, viewer.scale)
    strange: Rows = np.flatnonzero(~np.isin(names_checked, datasets))
    if len(strange):  # of data sets that no training network of this blueprint is for
        near = table.nearest(seen_checked[torch.as_tensor(strange)], list(range(len(datasets))))
        checked_basins[checked[strange]] = near.numpy()
    if config.space.center != "none":
        table.means = _means(config, train, own, basins, table)
    table.least = _least(train, own, vector)
    return table


def _means(
    config: IgpgConfig, train: PreparedNetworks, own: Rows, basins: Rows, table: BasinTable
) -> torch.Tensor:
    """(M, P) the mean of each basin, or of all basins of its data set."""
    number = len(table.datasets)
    sums: list[torch.Tensor] = []

    def add(rows: Rows, weights: torch.Tensor) -> None:
        if not sums:
            sums.append(torch.zeros((number, weights.shape[1]), dtype=torch.float64))
        sums[0].index_add_(0, torch.from_numpy(basins[rows]), weights.double())

    train.weights_of(own, add)
    counts = torch.tensor(table.counts, dtype=torch.float64)[:, None]
    if config.space.center == "mean":
        for dataset in set(table.datasets):
            same = table.of_dataset(dataset)
            sums[0][same] = sums[0][same].sum(0) / counts[same].sum() * counts[same]
    return (sums[0] / counts.clamp_min(1)).float()


def _least(train: PreparedNetworks, own: Rows, vector: Any) -> torch.Tensor | None:
    """(P,) half of the least variance that a training network has at each place; minus infinity elsewhere."""
    at = variances(vector)
    if not at.any():
        return None
    least = torch.full((vector.width,), float("inf"))

    def look(_: Rows, weights: torch.Tensor) -> None:
        torch.minimum(least, weights.amin(dim=0), out=least)

    train.weights_of(own, look)
    return torch.where(at, (least / 2).clamp_min(1e-8), -torch.inf)


def _levels(config: IgpgConfig, train: Networks, validation: Networks | None) -> tuple[Rows, Rows]:
    """How good networks are among those of their kind: equal parts of the training networks."""
    sides = [train] + ([] if validation is None else [validation])
    found = [np.full(len(side), -1, np.int64) for side in sides]
    if config.conditions.level_condition and config.conditions.levels > 1:
        accuracy = [np.array([accuracy_of(fact) for fact in side.facts]) for side in sides]
        kinds = [[(f.blueprint, f.dataset) for f in side.facts] for side in sides]
        for kind in set(kinds[0]):
            own = [np.array([k == kind for k in listed], bool) for listed in kinds]
            known = accuracy[0][own[0]]
            known = known[np.isfinite(known)]
            if not len(known):
                continue
            edges = np.quantile(
                known, np.arange(1, config.conditions.levels) / config.conditions.levels
            )
            for levels, values, mine in zip(found, accuracy, own, strict=True):
                here = mine & np.isfinite(values)
                levels[here] = np.searchsorted(edges, values[here], side="right")
    return found[0], (found[1] if len(found) > 1 else np.empty(0, np.int64))


def _number(seed: int, copy: int) -> int:
    return int(np.random.SeedSequence([seed, 23, copy]).generate_state(1)[0])
