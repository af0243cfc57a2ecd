"""Neurons: one token per output unit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from zooplatform.errors import ConfigError
from zooplatform.layout import layout_of
from zooplatform_chunk.plan import Cut, make_plan
from zooplatform_chunk.tokenizer import BlockTokenizer, ScaledRule

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from zooplatform.interfaces import Config, StateDict, TensorSpec

__all__ = ["NeuronRule", "NeuronTokenizer"]


@dataclass(frozen=True, kw_only=True)
class NeuronRule(ScaledRule):
    """Settings of `neuron`.

    Attributes:
        width: values of a token; a unit that has more takes several. None is what the units of the layout at hand
            need, so that tokens of two architectures may differ in width.
    """

    width: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width is not None and (not isinstance(self.width, int) or self.width < 1):
            raise ConfigError(f"width is {self.width!r}; use a whole number from 1 on, or none.")

    def cut(self, layer_type: str, tensors: Sequence[TensorSpec]) -> list[Cut]:
        """The units of the first tensor, with all that other tensors hold for each of them; the rest alone."""
        units = _units(tensors[0])
        together = [spec for spec in tensors if spec.shape and _units(spec) == units]
        cuts = [Cut(tuple(together), units, 1)] if together else []
        for spec in tensors:
            if spec not in together:
                own = _units(spec) if len(spec.shape) > 1 else 1
                cuts.append(Cut((spec,), own, int(own > 1)))
        return cuts

    def token_width(self, cuts: Sequence[tuple[str, Cut]]) -> int:
        """The given width, or the longest unit.

        Tables and lone vectors (`other`: position embeddings, class tokens) are not made of units. They do not decide,
        or one long table would pad every neuron to its size.
        """
        if self.width is not None:
            return self.width
        units = [cut.length for kind, cut in cuts if kind != "other"]
        return max(units or [cut.length for _, cut in cuts], default=1)


class NeuronTokenizer(BlockTokenizer[NeuronRule]):
    """One token per output unit: its incoming weights, then its bias; of norm layers all values of a channel."""

    name = "neuron"

    def __init__(self, rule: NeuronRule | None = None) -> None:
        super().__init__(rule or NeuronRule())

    def fit(self, states: Iterable[StateDict], *, seed: int, config: Config | None = None) -> None:
        """Find the width that the units of all networks need, unless `config` gives it; nothing is random.

        Raises:
            ConfigError: a setting is unknown or not usable.
        """
        super().fit(states, seed=seed, config=config)
        if self.rule.width is not None:
            return
        widths = [make_plan(layout_of(state), (), self.rule).width for state in states]
        self.rule = replace(self.rule, width=max(widths, default=None))


def _units(spec: TensorSpec) -> int:
    """Output units: the first axis, which convolutions and matrices have in common."""
    return spec.shape[0] if spec.shape else 1
