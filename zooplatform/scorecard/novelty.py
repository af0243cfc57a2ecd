"""How new networks are: distances of weights over all orders of hidden units, and what networks answer alike.

Distances are between trained values; running statistics of normalisations, which the images decide, are left out. They
are compared with what the zoo itself has: how far each training run on the data set is from the nearest other one,
found in the same way. Runs on other data sets count as training networks, which may be copied, but not for that: those
of one recipe begin with the same weights, and the small distance to such a twin would make everything else look new.
Only networks of one layout can be compared.

Legend for shapes: n networks, M training networks, R training runs (their last networks), N images, P values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from zooplatform.errors import ConfigError
from zooplatform.layout import is_parameter
from zooplatform.scorecard.rows import Diversity, Novelty
from zooplatform.symmetry import matching

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from torch import Tensor

    from zooplatform.layout import VectorLayout
    from zooplatform.scorecard.networks import Bench, Networks
    from zooplatform.scorecard.sides import Side

__all__ = [
    "Nearest",
    "TrainingSide",
    "disagreements",
    "diversity",
    "error_overlaps",
    "pairwise_distance",
]

# Networks whose pairs are matched, and runs whose nearest other run is looked for, at most.
_MOST_PAIRED = 20
_MOST_LEFT_OUT = 200


class Nearest(NamedTuple):
    """The nearest training network of n networks: its place (n,) among the training networks, -1 for broken networks,
    `distance` (n,) and `relative` (n,) to what the zoo has, float64."""

    place: Tensor
    distance: npt.NDArray[np.float64]
    relative: npt.NDArray[np.float64]


class TrainingSide:
    """The networks that generators were fitted on, and what the zoo itself measures.

    Args:
        side: M networks, of every data set.
        bench: asks networks about images.
        x: (N, *shape) test images on which answers are compared.
        y: (N,) their classes.
        seed: of the choice of runs that are left out.

    Attributes:
        zoo_distance: by architecture id, the median over training runs of the distance to the nearest other run; of
            those that were needed so far.
        own: the last networks of the runs on the data set, as places among the M.
        zoo: the zoo's own novelty, each run left out in turn.

    Raises:
        ConfigError: there are no two training runs to compare, or all are copies of each other.
    """

    def __init__(
        self,
        side: Side,
        *,
        bench: Bench,
        x: Tensor,
        y: Tensor,
        seed: int = 0,
    ) -> None:
        networks = self.networks = side.networks
        self.own = tuple(side.last())
        self._everywhere, self._on_dataset = side.everywhere(), side.on_dataset()
        self._runs = np.array(side.runs, dtype=object)
        self._bench, self._x, self._y, self._seed = bench, x, y, seed
        self._answers: dict[int, Tensor] = {}
        self._of_own = bench.answers(networks.take(self.own), x).classes  # (R, N)
        self._parts: dict[str, tuple[VectorLayout, Tensor, Tensor]] = {}
        for name, blueprint, places, weights in networks.by_architecture():
            values = trained_values(weights, blueprint.vector)
            self._parts[name] = blueprint.vector, places, values
        self.zoo_distance: dict[str, float] = {}
        left_out: dict[int, tuple[float, int]] = {}
        mine = set(self.own)
        for name, (_, places, _) in self._parts.items():
            # Other architectures are looked at when somebody makes networks of them.
            if mine & set(places.tolist()):
                left_out |= self._leave_out(name)
        self.zoo = self._left_out_novelty(left_out)

    def _leave_out(self, name: str) -> dict[int, tuple[float, int]]:
        """Measure what the zoo has for an architecture; distance and nearest other run by place of a last network."""
        vector, places, weights = self._parts[name]
        counted = self._among(self._on_dataset, places)
        if len(set(self._runs[places[counted].numpy()])) > 1:
            asked = self._among(self.own, places) or self._among(self._lasts(), places)
        else:
            # Nobody trained it on this data set: what it has on others stands for it.
            counted = list(range(len(places)))
            asked = self._among(self._everywhere, places)
        if len(asked) > _MOST_LEFT_OUT:
            draw = np.random.default_rng(self._seed)
            asked = sorted(draw.choice(asked, _MOST_LEFT_OUT, replace=False).tolist())
        distance, nearest = self._other_run(asked, counted, vector, places, weights)
        known = distance[np.isfinite(distance)]
        self.zoo_distance[name] = float(np.median(known)) if len(known) else 0.0
        return {
            int(places[at]): (float(value), int(places[other]))
            for at, value, other in zip(asked, distance, nearest, strict=True)
            if np.isfinite(value)
        }

    @staticmethod
    def _among(chosen: Sequence[int], places: Tensor) -> list[int]:
        """Rows of an architecture whose places are chosen."""
        wanted = set(chosen)
        return [row for row, place in enumerate(places.tolist()) if place in wanted]

    def _lasts(self) -> list[int]:
        """Places of the last networks of all runs on the data set, of any architecture."""
        on_it = set(self._on_dataset)
        return [place for place in self._everywhere if place in on_it]

    def _other_run(
        self,
        asked: Sequence[int],
        counted: Sequence[int],
        vector: VectorLayout,
        places: Tensor,
        weights: Tensor,
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Distance (a,) and row (a,) of the nearest network of another run, among rows that count."""
        runs = self._runs[places.numpy()]
        apart = torch.from_numpy(runs[list(asked)][:, None] != runs[list(counted)][None])
        distance, index = matching.nearest(
            weights[list(asked)], weights[list(counted)], vector, apart=apart
        )
        rows = np.array(counted)[index.numpy()]
        return distance.double().numpy(), rows

    def _left_out_novelty(self, left_out: dict[int, tuple[float, int]]) -> Novelty:
        if not left_out:
            raise ConfigError(
                "The training networks are of one run, so how far runs are from each other is not known and novelty "
                "cannot be measured. Fit the generator on several runs."
            )
        places = list(left_out)
        chosen = self.networks.take(places)
        names = [blueprint.architecture_id for blueprint in chosen.blueprints()]
        distance = np.array([left_out[place][0] for place in places])
        relative = distance / self._scale(names)
        nearest_place = torch.tensor([left_out[place][1] for place in places])
        classes = self._bench.answers(chosen, self._x).classes
        apart = self._runs[places][:, None] != self._runs[list(self.own)][None]
        return self._novelty(
            Nearest(nearest_place, distance, relative), classes, torch.from_numpy(apart)
        )

    def _scale(self, names: Sequence[str]) -> npt.NDArray[np.float64]:
        """(n,) the zoo's own distance for networks of these architectures."""
        for name in names:
            if name not in self.zoo_distance and name in self._parts:
                self._leave_out(name)
            if not self.zoo_distance.get(name):
                raise ConfigError(
                    f"How new networks of architecture {name} are cannot be told: there are no two training runs of it "
                    "that differ. Ask for an architecture that several training runs have."
                )
        return np.array([self.zoo_distance[name] for name in names])

    def nearest(self, networks: Networks) -> Nearest:
        """The nearest training network of each.

        Raises:
            ConfigError: no two training runs have the architecture of a network.
            NotInstalledError: scipy is missing.
        """
        distance = np.full(len(networks), np.inf)
        relative = np.full(len(networks), np.inf)
        place = torch.full((len(networks),), -1, dtype=torch.int64)
        for name, blueprint, places, weights in networks.by_architecture():
            scale = self._scale([name])[0]
            vector, theirs, values = self._parts[name]
            own = trained_values(weights, blueprint.vector)
            found, at = matching.nearest(own, values, vector)
            distance[places.numpy()] = found.double().numpy()
            relative[places.numpy()] = found.double().numpy() / scale
            place[places] = torch.where(at < 0, -1, theirs[at.clamp(min=0)])
        return Nearest(place, distance, relative)

    def novelty(self, networks: Networks, classes: Tensor) -> Novelty:
        """How new networks are.

        Args:
            networks: n of them.
            classes: (n, N) what they answer on the images of this side.

        Raises:
            ConfigError: every network has values that are not finite, or as `nearest`.
        """
        return self._novelty(self.nearest(networks), classes)

    def _novelty(self, nearest: Nearest, classes: Tensor, apart: Tensor | None = None) -> Novelty:
        """`apart` (n, R) says which of the own runs count; all without it."""
        whole = (nearest.place >= 0).nonzero().squeeze(1)
        if not len(whole):
            raise ConfigError(
                "All networks have values that are not finite, so that nothing can be said of them."
            )
        own = classes[whole]
        theirs = self._answers_of(nearest.place[whole].tolist())
        wrong, wrong_theirs = own != self._y, theirs != self._y
        differ = disagreements(own, self._of_own)
        overlap = error_overlaps(wrong, self._of_own != self._y)
        if apart is not None:
            differ = differ.masked_fill(~apart[whole], torch.inf)
            overlap = overlap.masked_fill(~apart[whole], -torch.inf)
        relative = nearest.relative[whole.numpy()]
        low, high = np.quantile(relative, (0.1, 0.9))
        pairs = error_overlaps(wrong[:, None], wrong_theirs[:, None])
        return Novelty(
            relative=float(relative.mean()),
            relative_q10=float(low),
            relative_q90=float(high),
            distance=float(nearest.distance[whole.numpy()].mean()),
            disagreement=float((own != theirs).double().mean()),
            least_disagreement=float(differ.amin(dim=1).mean()),
            error_overlap=float(pairs.mean()),
            most_error_overlap=float(overlap.amax(dim=1).mean()),
            broken=len(nearest.place) - len(whole),
        )

    def _answers_of(self, indices: Sequence[int]) -> Tensor:
        """(n, N) classes of training networks; each is asked once."""
        new = sorted(set(indices) - self._answers.keys())
        if new:
            asked = self._bench.answers(self.networks.take(new), self._x).classes
            self._answers |= dict(zip(new, asked, strict=True))
        return torch.stack([self._answers[index] for index in indices])


def trained_values(weights: Tensor, vector: VectorLayout) -> Tensor:
    """(B, P) with the running statistics set to zero."""
    others = [f for f in vector.fields if not f.aside and not is_parameter(f.spec)]
    if not others:
        return weights
    result = weights.clone()
    for one in others:
        result[:, one.offset : one.offset + one.spec.num_elements] = 0
    return result


def disagreements(classes: Tensor, others: Tensor) -> Tensor:
    """(n, M) float64: share of images on which networks (n, N) and (M, N) answer differently."""
    return torch.stack([(one != others).double().mean(dim=1) for one in classes])


def error_overlaps(wrong: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of the images that networks get wrong, 1 where neither errs; float64.

    Args:
        wrong: (n, N) bool, or (n, 1, N) for pairs.
        others: (M, N) bool, or (n, 1, N) for pairs.

    Returns:
        (n, M) for every network with every other, (n, 1) for pairs.
    """
    if wrong.dim() == 3:
        both = (wrong & others).double().sum(dim=2)
        either = (wrong | others).double().sum(dim=2)
    else:
        # Counts up to 2^24 are exact in float32, which is multiplied much faster.
        own, theirs = wrong.float(), others.float()
        both = (own @ theirs.T).double()
        either = own.sum(1, dtype=torch.float64)[:, None] + theirs.sum(1, dtype=torch.float64)
        either = either - both
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def pairwise_distance(networks: Networks, most: int = _MOST_PAIRED) -> float | None:
    """Mean distance between the first networks, over all orders of hidden units.

    Pairs of unlike architecture do not count; None where there is no other.
    """
    finite = networks.finite().nonzero().squeeze(1).tolist()[:most]
    total, count = 0.0, 0
    for _, blueprint, _, weights in networks.take(finite).by_architecture():
        values = trained_values(weights, blueprint.vector)
        first, second = torch.triu_indices(len(values), len(values), offset=1)
        if not len(first):
            continue
        moved = matching.match(values[first], values[second], blueprint.vector)
        total += float((moved - values[second]).double().norm(dim=1).sum())
        count += len(first)
    return total / count if count else None


def diversity(networks: Networks, classes: Tensor, zoo: Diversity | None = None) -> Diversity:
    """How n networks differ from each other.

    Args:
        networks: n of them.
        classes: (n, N) their answers.
        zoo: that of training runs, to be relative to.
    """
    distance = pairwise_distance(networks)
    disagreement = None
    if len(classes) > 1:
        rows = disagreements(classes, classes)
        disagreement = float(rows.sum() / (len(rows) * (len(rows) - 1)))

    def share(value: float | None, of: float | None) -> float | None:
        return value / of if value is not None and of else None

    return Diversity(
        distinct=networks.distinct(),
        distance=distance,
        relative_distance=share(distance, zoo.distance if zoo else None),
        disagreement=disagreement,
        relative_disagreement=share(disagreement, zoo.disagreement if zoo else None),
    )
