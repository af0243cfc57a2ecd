"""Networks as an encoder reads them, prepared once where memory allows.

Legend for shapes: N networks, B networks of a batch, P values of one network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from zooplatform.errors import ConfigError
from zooplatform.fit_state import digest
from zooplatform.fitting import network_batches
from zooplatform.interfaces import NetworkBatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt

    from zooplatform.datasets import WeightDataset
    from zooplatform.layout import VectorLayout
    from zooplatform_sne.encoder import NetworkEncoder

__all__ = ["Networks", "PreparedBatch", "PreparedData", "usable_rows"]

_READ_VALUES = 1 << 22  # values of weights that are read and prepared at once
_CALIBRATION = 4096  # networks of an architecture that an encoder is calibrated on


class PreparedBatch(NamedTuple):
    """B networks of one architecture: what the encoder prepared, their targets, and weights (B, P) where needed."""

    prepared: Mapping[str, torch.Tensor]
    vector: VectorLayout
    targets: torch.Tensor
    weights: torch.Tensor | None


def usable_rows(weights: torch.Tensor) -> torch.Tensor:
    """(B,) bool: networks without NaN or infinity in float32, from (B, P)."""
    return weights.to(torch.float32).isfinite().all(dim=1)


class Networks:
    """The networks of a data set whose weights and targets are numbers.

    Attributes:
        data: the data set.
        rows: (N,) their places in it.
        targets: (N,) float64.
        left_out: how many have NaN or infinite weights.
    """

    def __init__(self, data: WeightDataset) -> None:
        good = np.zeros(len(data), bool)
        sums = np.zeros(len(data))
        for indices, batch in read_batches(data):
            good[indices] = usable_rows(batch.weights).numpy()
            sums[indices] = batch.weights.double().sum(dim=1).numpy()
        self.data = data
        self.rows = np.flatnonzero(good)
        self.left_out = len(data) - len(self.rows)
        if not len(self.rows):
            raise ConfigError(
                f"All {len(data)} networks of {data!r} have NaN or infinite weights. Choose others in the query."
            )
        self.targets = data.targets[self.rows]
        self.digest = digest(
            [data.ids[row] for row in self.rows], self.targets.tobytes(), sums[self.rows].tobytes()
        )


class PreparedData:
    """Batches of `Networks` for one encoder.

    What `encoder.prepare` gives is kept for all networks up to `cache_bytes`; beyond, and where the weights are changed
    for every batch, networks are read and prepared when they are asked for.

    Args:
        networks: N networks.
        encoder: prepares and augments; no parameter of it is used.
        device: where batches are given.
        training: augment, by the encoder, what `take` gives with a generator.
        weights: give the weights with a batch.
        cache_bytes: see above.
    """

    def __init__(
        self,
        networks: Networks,
        encoder: NetworkEncoder,
        *,
        device: torch.device,
        training: bool,
        weights: bool = False,
        cache_bytes: int = 4 << 30,
    ) -> None:
        self.networks, self.device = networks, device
        self.targets = networks.targets
        self._encoder = encoder
        self._augment, self._weights = training and encoder.augments, weights
        self._layouts = networks.data.architectures
        self._place = np.full(len(networks.data), -1, np.int64)
        self._place[networks.rows] = np.arange(len(networks.rows))
        self._group = np.array(networks.data.architecture_ids, dtype=object)[networks.rows]
        self._kept: dict[str, dict[str, torch.Tensor]] = {}
        self._kept_at = np.zeros(len(networks.rows), np.int64)
        if not self._augment and not weights and self._estimate() <= cache_bytes:
            self._keep()

    def __len__(self) -> int:
        return len(self.targets)

    def digest(self) -> str:
        """Names the networks, their weights and targets."""
        return self.networks.digest

    def order(
        self, batch_size: int, *, seed: int | None = None, epoch: int = 0
    ) -> list[npt.NDArray[np.int64]]:
        """Batches of one architecture each, as places in these N networks; see `WeightDataset.order`."""
        batches = self.networks.data.order(batch_size, seed=seed, epoch=epoch)
        placed = [self._place[batch] for batch in batches]
        return [kept for places in placed if len(kept := places[places >= 0])]

    def take(
        self, indices: npt.NDArray[np.int64], generator: torch.Generator | None = None
    ) -> PreparedBatch:
        """Networks of one architecture; augmented where a generator is given and they are for training."""
        name = self._group[indices[0]]
        vector = self._layouts[name]
        targets = torch.from_numpy(self.targets[indices]).to(self.device, torch.float32)
        if name in self._kept:
            at = torch.from_numpy(self._kept_at[indices]).to(self.device)
            held = self._kept[name]
            return PreparedBatch({k: v[at] for k, v in held.items()}, vector, targets, None)
        batch = self._read(indices)
        weights = batch.weights.to(self.device)
        if self._augment and generator is not None:
            weights = self._encoder.augment(weights, vector, generator)
        prepared = self._prepare(batch._replace(weights=weights))
        return PreparedBatch(prepared, vector, targets, weights if self._weights else None)

    def calibration(self) -> list[tuple[Mapping[str, torch.Tensor], VectorLayout]]:
        """By architecture, what was prepared of networks evenly spaced in the order of the data set."""
        found: list[tuple[Mapping[str, torch.Tensor], VectorLayout]] = []
        for name in dict.fromkeys(self._group):
            own = np.flatnonzero(self._group == name)
            chosen = own[:: -(-len(own) // _CALIBRATION)]
            size = max(1, _READ_VALUES // max(1, self._layouts[name].width))
            parts = [
                self.take(chosen[at : at + size]).prepared for at in range(0, len(chosen), size)
            ]
            joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
            found.append((joined, self._layouts[name]))
        return found

    def _read(self, indices: npt.NDArray[np.int64]) -> NetworkBatch:
        weights, _, ids, name = self.networks.data.read(self.networks.rows[indices])
        return NetworkBatch(weights, self._layouts[name], tuple(ids), name)

    def _prepare(self, batch: NetworkBatch) -> dict[str, torch.Tensor]:
        prepared = self._encoder.prepare(batch)
        return {name: value.to(self.device) for name, value in prepared.items()}

    def _estimate(self) -> int:
        """Bytes that all prepared networks take, from one network of each architecture."""
        total = 0
        for name in dict.fromkeys(self._group):
            own = np.flatnonzero(self._group == name)
            one = self._encoder.prepare(self._read(own[:1]))
            total += len(own) * sum(v.numel() * v.element_size() for v in one.values())
        return total

    def _keep(self) -> None:
        parts: dict[str, list[dict[str, torch.Tensor]]] = {}
        counts: dict[str, int] = {}
        for indices, batch in read_batches(self.networks.data):
            places = self._place[indices]
            inside = places >= 0
            if not inside.any():
                continue
            name = batch.architecture_id
            prepared = self._prepare(
                batch._replace(weights=batch.weights[torch.from_numpy(inside)])
            )
            start = counts.get(name, 0)
            self._kept_at[places[inside]] = np.arange(start, start + inside.sum())
            counts[name] = start + int(inside.sum())
            parts.setdefault(name, []).append(prepared)
        for name, pieces in parts.items():
            self._kept[name] = {key: torch.cat([p[key] for p in pieces]) for key in pieces[0]}


def read_batches(data: WeightDataset) -> Iterator[tuple[npt.NDArray[np.int64], NetworkBatch]]:
    """Every network once, as many at a time as memory allows for the widest architecture."""
    widest = max(vector.width for vector in data.architectures.values())
    return network_batches(data, min(4096, max(1, _READ_VALUES // max(1, widest))))
