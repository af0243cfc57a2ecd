"""Held-out networks through a generator's codes and back, where it offers that.

A decoder that ignores the codes and always emits one good network reconstructs every accuracy. So an accuracy after
reconstruction stands beside the agreement with the own network against that with another, and beside the diversity of
what came out; and beside the row of exactly such a decoder.

Legend for shapes: n networks, N images, P values of a network.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

import numpy as np
import torch

from zooplatform.errors import ConfigError
from zooplatform.scorecard.novelty import disagreements, diversity

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt
    from torch import Tensor

    from zooplatform.fitting import Blueprint
    from zooplatform.scorecard.networks import Bench, Networks

__all__ = ["Reconstruction", "Reconstructs", "compared", "constant_decoder", "reconstructed"]


@runtime_checkable
class Reconstructs(Protocol):
    """What a generator may offer beside `sample`."""

    def reconstruct(self, weights: Tensor, blueprint: Blueprint) -> Tensor:
        """Networks (B, P) through the generator's codes and back, (B, P).

        Raises:
            ConfigError: it is not fitted, or not for networks of this blueprint.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """Held-out networks before and after; means over networks, all on test images.

    Attributes:
        method: whose codes.
        n: networks.
        original_accuracy: before.
        accuracy: after.
        agreement_own: share of images that a reconstruction answers as its own original does.
        agreement_other: the same with the originals of others. As high as `agreement_own` means that the codes say
            nothing of the network.
        originals_agreement: of originals with each other.
        relative_error: squared distance to the original over the squared norm of the original.
        relative_distance: mean distance of pairs of reconstructions over that of pairs of originals.
        relative_disagreement: the same of their answers.
    """

    method: str
    n: int
    original_accuracy: float
    accuracy: float
    agreement_own: float
    agreement_other: float
    originals_agreement: float
    relative_error: float
    relative_distance: float
    relative_disagreement: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """The reverse of `to_json`.

        Raises:
            ConfigError: a figure is missing; an accuracy without agreement and diversity is never shown.
        """
        try:
            return cls(**value)
        except TypeError as exc:
            raise ConfigError(
                f"Reconstruction by {value.get('method', '?')!r} cannot be shown: {exc}. An accuracy after "
                "reconstruction needs its agreements and its diversity."
            ) from exc


def reconstructed(generator: Reconstructs, networks: Networks) -> Networks:
    """n networks through the codes of a generator.

    Raises:
        ConfigError: as `Reconstructs.reconstruct`, or what it gives is of another shape.
    """
    found = []
    for part in networks.parts:
        weights = generator.reconstruct(part.weights.clone(), part.blueprint)
        if tuple(weights.shape) != tuple(part.weights.shape):
            raise ConfigError(
                f"{type(generator).__name__}.reconstruct gave {tuple(weights.shape)} for networks of shape "
                f"{tuple(part.weights.shape)}. Its plugin has to be repaired."
            )
        found.append(weights.detach().to("cpu", torch.float32))
    return networks.with_weights(found)


def constant_decoder(
    networks: Networks, candidates: Networks, scores: npt.NDArray[np.float64]
) -> Networks:
    """Of each architecture the candidate with the best score, in place of every network.

    Args:
        networks: n of them.
        candidates: training networks.
        scores: (M,) of each candidate, on validation images.

    Raises:
        ConfigError: no candidate has the architecture of a network.
    """
    best: dict[str, tuple[float, Tensor]] = {}
    for name, _, places, weights in candidates.by_architecture():
        row = int(np.argmax(scores[places.numpy()]))
        best[name] = float(scores[places[row]]), weights[row]
    found = []
    for part in networks.parts:
        if part.blueprint.architecture_id not in best:
            raise ConfigError(
                f"No training network has the architecture {part.blueprint.architecture_id} of a held-out one."
            )
        found.append(best[part.blueprint.architecture_id][1].expand_as(part.weights).clone())
    return networks.with_weights(found)


def compared(
    method: str, originals: Networks, made: Networks, *, bench: Bench, x: Tensor, y: Tensor
) -> Reconstruction:
    """The figures of n reconstructions, at least two.

    Args:
        method: whose codes.
        originals, made: n networks before and after, in one order.
        bench: asks networks about images.
        x, y: test images (N, *shape) and their classes (N,).
    """
    if len(originals) < 2:
        raise ConfigError(
            f"{len(originals)} held-out network is too few to tell a reconstruction from another network; two at least."
        )
    before, after = bench.answers(originals, x), bench.answers(made, x)
    agree = 1 - disagreements(after.classes, before.classes).numpy()
    among = 1 - disagreements(before.classes, before.classes).numpy()
    other = ~np.eye(len(agree), dtype=bool)
    zoo = diversity(originals, before.classes)
    now = diversity(made, after.classes, zoo)
    errors = [
        ((new.weights - old.weights).double().square().sum(1)
        / old.weights.double().square().sum(1).clamp(min=1e-30))
        for old, new in zip(originals.parts, made.parts, strict=True)
    ]  # fmt: skip
    return Reconstruction(
        method=method,
        n=len(originals),
        original_accuracy=float(before.accuracy(y).mean()),
        accuracy=float(after.accuracy(y).mean()),
        agreement_own=float(agree.diagonal().mean()),
        agreement_other=float(agree[other].mean()),
        originals_agreement=float(among[other].mean()),
        relative_error=float(torch.cat(errors).mean()),
        relative_distance=now.relative_distance or 0.0,
        relative_disagreement=now.relative_disagreement or 0.0,
    )
