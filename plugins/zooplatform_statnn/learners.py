"""What learns from inputs of networks: the interface that a backend fills, and ridge regression.

Legend for shapes: N networks, D inputs of a network.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from zooplatform.errors import ArtifactError
from zooplatform.fitting import kendall_tau
from zooplatform_statnn.scaling import InputScale

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from zooplatform.layout import VectorLayout
    from zooplatform_statnn.settings import RidgeSettings

__all__ = [
    "Budget",
    "Learner",
    "Ridge",
    "State",
    "Table",
    "restored_scale",
    "scale_state",
    "tau_of",
]


@dataclass(frozen=True)
class Table:
    """Inputs (N, D) of networks and what is to be learnt of them (N,), standardised.

    `vector` is their architecture where the inputs are the weights of one.
    """

    inputs: torch.Tensor
    targets: torch.Tensor
    vector: VectorLayout | None = None


@dataclass
class State:
    """What is written of a learner: tensors, plain values and texts by name."""

    tensors: dict[str, torch.Tensor]
    values: dict[str, Any]
    texts: dict[str, str]

    def tensor(self, name: str) -> torch.Tensor:
        """Raises ArtifactError where it is missing."""
        if name not in self.tensors:
            raise ArtifactError(f"tensor {name!r} is missing")
        return self.tensors[name]


@dataclass(frozen=True)
class Budget:
    """Where and how long a fit may compute: seconds on the monotonic clock at which it ends."""

    deadline: float
    device: str = "cpu"

    @property
    def over(self) -> bool:
        return time.monotonic() > self.deadline

    def share(self, parts: int) -> Budget:
        """An equal part of what is left."""
        now = time.monotonic()
        return Budget(now + (self.deadline - now) / max(1, parts), self.device)


class Learner(Protocol):
    """Learns standardised targets from inputs of one architecture, or of several where it says so."""

    def fit(
        self,
        train: Sequence[Table],
        validation: Sequence[Table],
        *,
        seed: int,
        budget: Budget,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None: ...
    def predict(self, inputs: torch.Tensor, vector: VectorLayout | None) -> torch.Tensor:
        """(N,) of inputs (N, D)."""

    def embed(self, inputs: torch.Tensor, vector: VectorLayout | None) -> torch.Tensor:
        """(N, E) float32 of inputs (N, D)."""

    def state(self) -> State: ...
    def restore(self, state: State) -> None: ...
    def notes(self) -> Mapping[str, float]:
        """Figures of the fit."""


def tau_of(learner: Learner, tables: Sequence[Table]) -> float:
    """Kendall's tau over all networks of `tables`; -1 where it is not defined."""
    found = [learner.predict(t.inputs, t.vector).double().numpy() for t in tables]
    targets = np.concatenate([t.targets.numpy() for t in tables])
    tau = kendall_tau(np.concatenate(found), targets)
    return tau if np.isfinite(tau) else -1.0


class Ridge:
    """Least squares with a penalty on standardised inputs, solved in the smaller of D and N."""

    _PENALTIES = tuple(10.0**power for power in range(-4, 5))

    def __init__(self, settings: RidgeSettings) -> None:
        self._settings = settings
        self._mean = self._scale = self._weights = torch.zeros(0)
        self._penalty = 0.0

    def fit(
        self,
        train: Sequence[Table],
        validation: Sequence[Table],
        *,
        seed: int,
        budget: Budget,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        (table,) = train
        inputs = table.inputs.double()
        self._mean, scale = inputs.mean(dim=0), inputs.std(dim=0, correction=0)
        self._scale = torch.where(scale > 1e-12, scale, torch.ones_like(scale))
        x = (inputs - self._mean) / self._scale
        y = table.targets.double()
        # One decomposition serves every penalty: of X Xᵀ where there are fewer networks than inputs.
        small = len(x) < x.shape[1]
        values, vectors = torch.linalg.eigh(x @ x.T if small else x.T @ x)
        projected = vectors.T @ (y if small else x.T @ y)
        given = self._settings.penalty
        best = -np.inf
        for penalty in (given,) if given else self._PENALTIES:
            solved = vectors @ (projected / (values.clamp_min(0) + penalty * len(x)))
            weights = x.T @ solved if small else solved
            kept = self._weights, self._penalty
            self._weights, self._penalty = weights, penalty
            tau = tau_of(self, validation)
            if tau <= best:
                self._weights, self._penalty = kept
            best = max(best, tau)

    def _standardised(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs.double() - self._mean) / self._scale

    def predict(self, inputs: torch.Tensor, vector: VectorLayout | None) -> torch.Tensor:
        return self._standardised(inputs) @ self._weights

    def embed(self, inputs: torch.Tensor, vector: VectorLayout | None) -> torch.Tensor:
        return self._standardised(inputs).float()

    def notes(self) -> Mapping[str, float]:
        return {"penalty": self._penalty}

    def state(self) -> State:
        tensors = {"mean": self._mean, "scale": self._scale, "weights": self._weights}
        return State(tensors, {"penalty": self._penalty}, {})

    def restore(self, state: State) -> None:
        self._mean, self._scale = state.tensor("mean"), state.tensor("scale")
        self._weights = state.tensor("weights")
        self._penalty = float(state.values["penalty"])


def scale_state(scale: InputScale) -> dict[str, torch.Tensor]:
    return {f"scale.{scale.kind}": scale.grid}


def restored_scale(state: State) -> InputScale:
    """Raises ArtifactError where there is none."""
    for kind in ("quantile", "robust", "none"):
        if f"scale.{kind}" in state.tensors:
            return InputScale(kind, state.tensors[f"scale.{kind}"])
    raise ArtifactError("the scale of the inputs is missing")
