"""The networks of a fit as codes are made of them: hidden units in order, what is common to a basin subtracted.

Legend for shapes: N networks, P values of one, M basins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from zooplatform.datasets import Batch, WeightDataset
from zooplatform.errors import ConfigError
from zooplatform.fitting import network_batches
from zooplatform.symmetry import permute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from zooplatform.fitting import GeneratorData, NetworkFacts
    from zooplatform.layout import VectorLayout

    Rows = npt.NDArray[np.int64]

__all__ = ["Aligner", "Centring", "Networks", "PreparedNetworks", "accuracy_of", "variances"]

_BATCH = 256
_LEAST_VARIANCE = 1e-8
# A reference and a level are chosen by what training networks know best of themselves; tests come last.
_ACCURACIES = ("train_accuracy", "validation_accuracy", "accuracy", "test_accuracy")


def accuracy_of(fact: NetworkFacts) -> float:
    """The accuracy of a network by its facts, NaN where none is known; that on training images if there is one."""
    known = [name for name in _ACCURACIES if name in fact.metrics]
    return float(fact.metrics[known[0]]) if known else float("nan")


class Networks:
    """One side of a fit: the usable networks, and what is known of each.

    Attributes:
        data: where weights are read from.
        rows: (N,) numbers in `data`; networks with NaN or infinite weights are left out.
        facts: of each.
        blueprints: (N,) numbers of blueprints.
        left_out: how many there are not.
    """

    def __init__(self, data: WeightDataset, known: Mapping[str, NetworkFacts]) -> None:
        self.data = data
        kept = []
        for indices, batch in network_batches(data, _BATCH):
            good = batch.weights.isfinite().all(dim=1).numpy()
            kept.append(indices[good])
        self.rows: Rows = np.sort(np.concatenate(kept)) if kept else np.empty(0, np.int64)
        self.left_out = len(data) - len(self.rows)
        missing = [data.ids[row] for row in self.rows if data.ids[row] not in known]
        if missing:
            raise ConfigError(f"Nothing is known of network {missing[0]}: `facts` lacks it.")
        self.facts = tuple(known[data.ids[row]] for row in self.rows)
        self.blueprints: Rows = np.array([fact.blueprint for fact in self.facts], np.int64)
        if not len(self.rows):
            raise ConfigError("There is no network with finite weights. Change the query.")

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, chosen: Rows) -> Iterator[tuple[Rows, torch.Tensor]]:
        """Networks of one blueprint by their places in `rows`: places (B,) and weights (B, P) float32."""
        for start in range(0, len(chosen), _BATCH):
            part = chosen[start : start + _BATCH]
            yield part, self.data.read(self.rows[part]).weights.float()


def variances(vector: VectorLayout) -> torch.Tensor:
    """(P,) bool: which values are running variances of normalisation layers, and so never negative."""
    found = torch.zeros(vector.width, dtype=torch.bool)
    for field in vector.fields:
        if not field.aside and field.spec.name.rpartition(".")[2] == "running_var":
            found[field.offset : field.offset + field.spec.num_elements] = True
    return found


class Centring:
    """Takes out of networks what is common to their basin, and puts it back: a difference, of variances a ratio.

    Args:
        centres: (M, P).
        vector: the layout.
    """

    def __init__(self, centres: torch.Tensor, vector: VectorLayout) -> None:
        self.centres = centres
        self._ratio = variances(vector)

    def take_out(self, weights: torch.Tensor, basins: torch.Tensor) -> torch.Tensor:
        """(B, P) networks of basins (B,) as differences."""
        centres = self.centres[basins]
        found = weights - centres
        if self._ratio.any():
            at = self._ratio
            found[:, at] = weights[:, at] / centres[:, at].clamp_min(_LEAST_VARIANCE)
        return found

    def put_back(
        self, differences: torch.Tensor, basins: torch.Tensor, spread: float = 1.0
    ) -> torch.Tensor:
        """The reverse of `take_out`, differences first made so many times as large."""
        centres = self.centres[basins]
        found = spread * differences + centres
        if self._ratio.any():
            at = self._ratio
            ratio = differences[:, at].clamp_min(0) ** spread
            found[:, at] = ratio * centres[:, at].clamp_min(_LEAST_VARIANCE)
        return found


class Aligner:
    """Puts hidden units into the order in which weights lie nearest to a reference, one for each layout.

    Args:
        references: (P,) by architecture id.
    """

    def __init__(self, references: Mapping[str, torch.Tensor]) -> None:
        self.references = dict(references)

    @classmethod
    def choose(cls, networks: Networks, data: GeneratorData) -> Aligner:
        """The most accurate training network of every layout."""
        best: dict[str, tuple[float, int]] = {}
        for place, fact in enumerate(networks.facts):
            layout = data.blueprints[fact.blueprint].architecture_id
            accuracy = np.nan_to_num(accuracy_of(fact), nan=-1.0)
            if layout not in best or accuracy > best[layout][0]:
                best[layout] = (accuracy, place)
        return cls(
            {
                layout: networks.data.read([networks.rows[place]]).weights[0].float()
                for layout, (_, place) in best.items()
            }
        )

    def __call__(
        self, weights: torch.Tensor, vector: VectorLayout, architecture_id: str
    ) -> torch.Tensor:
        from zooplatform.symmetry import match

        return match(weights, self.references[architecture_id], vector)


class PreparedNetworks(WeightDataset):
    """Networks as a tokenizer is to see them: a `WeightDataset` whose weights are changed when they are read.

    Args:
        networks: which.
        aligner: how hidden units are put into order; None leaves them.
        centring: by blueprint, what is taken out of its networks; None takes nothing.
        basins: (N,) which of them is each network's.
        shuffle: seed of a random order of the hidden units of each; None keeps them.
    """

    def __init__(
        self,
        networks: Networks,
        *,
        aligner: Aligner | None = None,
        centring: Mapping[int, Centring] | None = None,
        basins: Rows | None = None,
        shuffle: int | None = None,
    ) -> None:
        source = networks.data
        self.networks, self.aligner, self.centring = networks, aligner, dict(centring or {})
        self.basins, self.shuffle = basins, shuffle
        self.ids = tuple(source.ids[row] for row in networks.rows)
        self.targets, self.target = source.targets[networks.rows], source.target
        self.notes = source.notes
        listed = [source.architecture_ids[row] for row in networks.rows]
        self._names = tuple(sorted(set(listed)))
        number = {name: at for at, name in enumerate(self._names)}
        self._group_of = np.array([number[name] for name in listed], np.int64)
        self._aligned: dict[int, torch.Tensor] = {}  # alignment is worth keeping: milliseconds each

    def adopt(self, other: PreparedNetworks) -> None:
        """Take over what another view of the same networks has aligned."""
        self._aligned = other._aligned

    @property
    def architectures(self) -> dict[str, VectorLayout]:
        every = self.networks.data.architectures
        return {name: every[name] for name in self._names}

    def read(self, indices: Sequence[int] | Rows) -> Batch:
        """See `WeightDataset.read`; weights are float32."""
        rows = np.asarray(indices, np.int64)
        batch = self.networks.data.read(self.networks.rows[rows])
        vector = self.architectures[batch.architecture_id]
        weights = self._in_order(rows, batch.weights.float(), vector, batch.architecture_id)
        if self.shuffle is not None:
            draw = torch.Generator()
            for at, row in enumerate(rows.tolist()):  # the same for a network, whatever its batch
                draw.manual_seed(self.shuffle * 1_000_003 + row)
                weights[at] = permute(weights[at : at + 1], vector, draw)[0]
        if self.centring and self.basins is not None:
            blueprints = self.networks.blueprints[rows]
            for blueprint in np.unique(blueprints).tolist():
                own = torch.from_numpy(np.flatnonzero(blueprints == blueprint))
                basins = torch.from_numpy(self.basins[rows[own.numpy()]])
                weights[own] = self.centring[blueprint].take_out(weights[own], basins)
        return batch._replace(weights=weights)

    def read_aside(self, indices: Sequence[int] | Rows) -> npt.NDArray[np.uint8]:
        """See `WeightDataset.read_aside`."""
        return self.networks.data.read_aside(self.networks.rows[np.asarray(indices, np.int64)])

    def _in_order(
        self, rows: Rows, weights: torch.Tensor, vector: VectorLayout, architecture_id: str
    ) -> torch.Tensor:
        if self.aligner is None:
            return weights.clone()
        new = [at for at, row in enumerate(rows.tolist()) if row not in self._aligned]
        if new:
            found = self.aligner(weights[new], vector, architecture_id)
            for at, one in zip(new, found, strict=True):
                self._aligned[int(rows[at])] = one
        return torch.stack([self._aligned[row] for row in rows.tolist()])

    def of_blueprint(self, blueprint: int) -> Rows:
        """The numbers of the networks of a blueprint."""
        found: Rows = np.flatnonzero(self.networks.blueprints == blueprint)
        return found

    def weights_of(self, chosen: Rows, each: Callable[[Rows, torch.Tensor], None]) -> None:
        """Call with batches of networks of one blueprint: their numbers (B,) and weights (B, P)."""
        for start in range(0, len(chosen), _BATCH):
            part = chosen[start : start + _BATCH]
            each(part, self.read(part).weights)
