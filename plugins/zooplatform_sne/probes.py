"""Learned inputs sent through the network that the weights describe: an encoder that asks a network what it does.

K inputs are learned together with the head. They go through the chain of convolutions and linear layers that holds
most of the weights (`reading`), and what comes out, K times the O classes, is all that is read. So the encoder sees the
function and not its parametrisation, and no permutation of hidden units changes anything beyond rounding. Learned
probes for weight space: Herrmann et al., Learning Useful Representations of Recurrent Neural Network Weight Matrices
(ICML 2024); Kofinas et al., Graph Neural Networks for Learning Equivariant Representations of Neural Networks (ICLR
2024, probe features); Kahana et al., Deep Linear Probe Generators for Weight Space Learning (2024).

Probes begin as smooth random fields (`fields`): as white noise they end no better on the data set that they are
learned for and much worse on others. Classes are told apart by their position, so probes know the classes of the data
they are fitted on: what they predict does not carry over to other data sets (see `fusion`).

Legend for shapes: B networks, P values of one, K probes, S side of a probe, O outputs, A activations that networks
are read with, d size of the embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from zooplatform.errors import ConfigError
from zooplatform_sne.chains import plan_of
from zooplatform_sne.encoder import NetworkEncoder
from zooplatform_sne.fields import smooth_fields
from zooplatform_sne.reading import (
    ACTIVATIONS,
    CHANNELS,
    INPUTS_AT_ONCE,
    logits,
    readable_chain,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zooplatform.interfaces import NetworkBatch
    from zooplatform.layout import VectorLayout

__all__ = ["ProbeEncoder"]

_FLOOR = -12.0  # of logarithms of class probabilities
_DARK = 0.02  # of a field that a probe begins as: its logit must be finite


class ProbeEncoder(NetworkEncoder):
    """Outputs on learned inputs, then a perceptron.

    Args:
        dim: d.
        probes: K.
        side: S, pixels.
        classes: outputs that are told apart, two at least; more are left out, fewer are filled with zeros.
        hidden: of the perceptron.
        dropout: in it.
        probe_noise: standard deviation of what is added to the probes in training, in units of an input's range.
        probe_rate: how much faster probes are learned than the rest.
    """

    def __init__(
        self,
        *,
        dim: int = 64,
        probes: int = 16,
        side: int = 16,
        classes: int = 10,
        hidden: int = 128,
        dropout: float = 0.2,
        probe_noise: float = 0.0,
        probe_rate: float = 5.0,
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ConfigError(f"classes is {classes}; use a whole number from 2 on.")
        self.dim, self.classes = dim, classes
        self.noise, self.rate = probe_noise, probe_rate
        # AdamW moves every number by the learning rate, whatever its gradient: numbers of this size are learned
        # `probe_rate` times as fast relative to what they do.
        begun = smooth_fields(probes, side, int(torch.randint(1 << 30, ())))
        begun = begun.clamp(_DARK, 1 - _DARK).logit() / (2 * probe_rate)
        self.inputs = nn.Parameter(begun[:, None].repeat(1, CHANNELS, 1, 1))
        self.width = width = probes * classes * len(ACTIVATIONS)
        self.read = nn.Sequential(
            nn.LayerNorm(width + 1),
            nn.Linear(width + 1, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, dim),
        )

    def prepare(self, batch: NetworkBatch) -> dict[str, torch.Tensor]:
        plan_of(batch.vector)  # refuses what cannot be read before any time is spent
        if readable_chain(batch.vector) is None:
            return {"weights": batch.weights[:, :1].to(torch.float32)}
        return {"weights": batch.weights.to(torch.float32)}

    def forward(self, prepared: Mapping[str, torch.Tensor], vector: VectorLayout) -> torch.Tensor:
        weights = prepared["weights"]
        at_once = max(1, INPUTS_AT_ONCE // len(self.inputs))
        if len(weights) > at_once:
            parts = [self({"weights": part}, vector) for part in torch.split(weights, at_once)]
            return torch.cat(parts)
        chain = readable_chain(vector)
        if chain is None:  # nothing was asked, and the last value says so
            answers = weights.new_zeros(len(weights), self.width + 1)
        else:
            asked = [self._answers(found) for found in logits(self._shown(), weights, chain)]
            answers = torch.cat([*asked, weights.new_ones(len(weights), 1)], dim=1)
        embedded: torch.Tensor = self.read(answers)
        return embedded

    def _answers(self, found: torch.Tensor) -> torch.Tensor:
        """(B, K classes): logarithms of class probabilities, from logits (B, K, O)."""
        if found.shape[2] == 1:  # a single output is the logit of one class against another
            found = functional.pad(found, (0, 1))
        found = found[:, :, : self.classes]
        answers = torch.log_softmax(found, dim=-1).clamp(_FLOOR, 0)
        return functional.pad(answers, (0, self.classes - answers.shape[2])).flatten(1)

    def _shown(self) -> torch.Tensor:
        """(K, channels, S, S) in the range of grey levels."""
        shown = torch.sigmoid(2 * self.rate * self.inputs)
        if self.training and self.noise:
            shown = (shown + self.noise * torch.randn_like(shown)).clamp(0, 1)
        return shown
