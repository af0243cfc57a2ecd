"""The network of a recipe: how it is built, and where its tensors lie in a row of weights.

Legend for shapes: M networks, P trained values of one network, Q values of it that are stored as
floats (P and the running statistics), E bytes kept aside (counters).
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from zooplatform.errors import ConfigError, UnknownBackendError
from zooplatform.growing.initialise import initialise
from zooplatform.growing.stacked import (
    GroupedNetwork,
    ParameterSlot,
    nested_layers,
    parameter_slots,
)
from zooplatform.layout import layout_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from zooplatform.growing.data import GrowingData
    from zooplatform.growing.recipe import Recipe
    from zooplatform.growing.runs import Run
    from zooplatform.interfaces import Layout
    from zooplatform.registry import Registry

__all__ = ["NetworkFactory", "NetworkPlan", "fastest_engine", "plan_of"]


@dataclass(frozen=True)
class NetworkPlan:
    """One network shape: what the runs of a stack have in common.

    Attributes:
        adapter: name of the architecture adapter.
        config: what the adapter builds it from.
        build: makes a new network.
        prototype: one network, for its structure.
        layers: layers of a plain network and its activation, or None where they are not known.
    """

    adapter: str
    config: Mapping[str, Any]
    build: Callable[[], nn.Module]
    prototype: nn.Module
    layers: tuple[Sequence[Mapping[str, Any]], str | None] | None

    @cached_property
    def layout(self) -> Layout:
        """Every tensor in state-dict order."""
        return layout_of(self.prototype.state_dict())

    @cached_property
    def parameters(self) -> tuple[ParameterSlot, ...]:
        """Where the trained tensors lie: columns 0 to P of a row."""
        return parameter_slots([(n, p.shape) for n, p in self.prototype.named_parameters()])

    @cached_property
    def statistics(self) -> tuple[ParameterSlot, ...]:
        """Where the float buffers lie: columns P to Q."""
        state = self.prototype.state_dict()
        return tuple(
            ParameterSlot(
                slot.name, slot.start + self.num_trained, slot.end + self.num_trained, slot.shape
            )
            for slot in parameter_slots(
                [
                    (name, state[name].shape)
                    for name in self._buffers
                    if state[name].is_floating_point()
                ]
            )
        )

    @cached_property
    def counters(self) -> tuple[str, ...]:
        """Names of the buffers that are not floats."""
        state = self.prototype.state_dict()
        return tuple(name for name in self._buffers if not state[name].is_floating_point())

    @cached_property
    def _buffers(self) -> list[str]:
        trained = {slot.name for slot in self.parameters}
        return [name for name in self.prototype.state_dict() if name not in trained]

    @property
    def num_trained(self) -> int:
        """P."""
        return self.parameters[-1].end

    @property
    def num_values(self) -> int:
        """Q."""
        return (self.parameters + self.statistics)[-1].end

    def row(self, module: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
        """The values (Q,) of a network and its counters."""
        state = module.state_dict()
        slots = self.parameters + self.statistics
        row = torch.cat([state[slot.name].detach().flatten() for slot in slots])
        return row, {name: state[name].clone() for name in self.counters}

    def stored(self, weights: Tensor) -> npt.NDArray[np.float32]:
        """Rows (M, Q) with the tensors in state-dict order, as the catalog keeps them; a copy."""
        by_name = {slot.name: slot for slot in self.parameters + self.statistics}
        ordered = [by_name[tensor.name] for tensor in self.layout if tensor.name in by_name]
        values = torch.cat([weights[:, slot.start : slot.end] for slot in ordered], dim=1)
        return values.cpu().contiguous().numpy()

    def rows(self, stored: Tensor) -> Tensor:
        """The reverse of `stored`: (M, Q) in state-dict order to rows as engines take them; a copy."""
        starts, start = {}, 0
        by_name = {slot.name: slot for slot in self.parameters + self.statistics}
        for tensor in self.layout:
            if tensor.name in by_name:
                starts[tensor.name] = start
                start += tensor.num_elements
        parts = [
            stored[:, starts[slot.name] : starts[slot.name] + slot.end - slot.start]
            for slot in self.parameters + self.statistics
        ]
        return torch.cat(parts, dim=1)

    def fresh_counters(self, count: int) -> list[dict[str, Tensor]]:
        """Counters of `count` networks, as those of the prototype are."""
        state = self.prototype.state_dict()
        return [{name: state[name].clone() for name in self.counters} for _ in range(count)]

    def aside(self, counters: Sequence[Mapping[str, Tensor]]) -> npt.NDArray[np.uint8] | None:
        """Counters of M networks as bytes (M, E), or None when there are none."""
        if not self.counters:
            return None
        rows = [
            b"".join(one[name].cpu().numpy().tobytes() for name in self.counters)
            for one in counters
        ]
        return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)


class NetworkFactory:
    """Makes the plan of a stack from the architecture of the recipe.

    Args:
        recipe: its `architecture` and `engine` are used.
        data: decides the inputs and the number of outputs.
        registry: provides the architecture adapters.

    Raises:
        UnknownBackendError: no plugin knows the architecture family.
    """

    def __init__(self, recipe: Recipe, data: GrowingData, registry: Registry) -> None:
        config = dict(recipe.architecture)
        family = str(config.pop("family"))
        specs = registry.architectures.specs()
        known = [s for s in specs if s.name == family or _matches(family, s.families)]
        if not known:
            names = {name for s in specs for name in (s.name, *s.families)} - {"*"}
            raise UnknownBackendError("architecture family", family, sorted(names))
        self.adapter = max(known, key=lambda s: (s.name == family, s.specificity)).name
        self._adapter = registry.architectures.create(self.adapter)
        self._config = _mlp(config, data) if family == "mlp" else config
        self._data = data
        self._wanted = recipe.engine
        self._says_dropout = "dropout" in recipe.hyperparameters

    def plan(self, run: Run) -> NetworkPlan:
        """The plan of stacks that `run` fits in.

        Raises:
            ArchitectureError: the adapter refuses the configuration.
            ConfigError: the network does not take these images or hyper-parameters.
        """
        config = dict(self._config)
        if run.activation is not None:
            config["activation"] = run.activation
        if run.dropout and self.adapter == "timm":
            config["model_args"] = {**config.get("model_args", {}), "drop_rate": run.dropout}
        plan = plan_of(partial(self._adapter.build, config), self.adapter, config)
        if plan.layers is None and run.activation is not None:
            raise ConfigError(
                f"hyperparameters.activation: networks of adapter {self.adapter!r} have an activation of "
                "their own. Remove it."
            )
        self._check(plan, run)
        return plan

    def engine(self, plan: NetworkPlan, run: Run) -> str:
        """`grouped`, `vmap` or `loop`: what the recipe asks for, or the fastest that applies."""
        name = self._engine(plan)
        if run.dropout and plan.layers is not None and name != "grouped":
            raise ConfigError(
                f"hyperparameters.dropout: plain networks have dropout with engine 'grouped' only, not "
                f"{name!r}. Put dropout layers into the architecture."
            )
        return name

    def _engine(self, plan: NetworkPlan) -> str:
        if self._wanted == "auto":
            return fastest_engine(plan)
        if self._wanted == "grouped" and not _stackable(plan):
            raise ConfigError(
                "engine 'grouped' trains networks of the adapter 'cnn'; the layers of this one are not "
                "known. Use engine 'auto'."
            )
        if self._wanted == "vmap" and (plan.statistics or plan.counters):
            raise ConfigError(
                "engine 'vmap' cannot keep running statistics (batch normalisation). Use engine 'auto'."
            )
        return self._wanted

    def _check(self, plan: NetworkPlan, run: Run) -> None:
        """Refuse a network that the data do not fit, before hours of training."""
        shape = self._data.shape
        try:
            with torch.no_grad():
                outputs = plan.prototype.eval()(torch.zeros(2, *shape))
        except (RuntimeError, ValueError, AssertionError) as exc:
            raise ConfigError(
                f"The network does not take inputs of shape {shape} ({str(exc).splitlines()[0]}). "
                "Make data.size and the architecture agree."
            ) from exc
        if outputs.dim() != 2:
            raise ConfigError(
                f"The network gives outputs of shape {tuple(outputs.shape[1:])}; it must give a "
                "vector. Change the last layer of the architecture."
            )
        self._data.check(run, outputs.shape[1])
        own = any(layer.get("p", 0) for layer in nested_layers((plan.layers or ([], None))[0]))
        if own and not self._says_dropout:
            raise ConfigError(
                "The architecture sets the probability of dropout. Set hyperparameters.dropout, which "
                "holds for every dropout layer of the architecture."
            )
        if run.dropout and plan.layers is None and self.adapter != "timm":
            raise ConfigError(
                f"hyperparameters.dropout: it is not known how networks of adapter {self.adapter!r} take "
                "dropout. Remove it."
            )


def fastest_engine(plan: NetworkPlan) -> str:
    """`grouped`, `vmap` or `loop`: the fastest that can train and measure networks of a plan."""
    if _stackable(plan):
        return "grouped"
    return "loop" if plan.statistics or plan.counters else "vmap"


def _stackable(plan: NetworkPlan) -> bool:
    return plan.layers is not None and GroupedNetwork.supports(plan.layers[0])


def plan_of(build: Callable[[], nn.Module], adapter: str, config: Mapping[str, Any]) -> NetworkPlan:
    """The plan of networks that an adapter builds from a configuration, as the catalog keeps both.

    Raises:
        ConfigError: they cannot be trained in stacks: tensors that layers share, or values that are not float32.
        ArchitectureError: the adapter refuses the configuration.
    """
    # What the constructor draws here is of no use: weights come from seeds, or from a catalog.
    module = initialise(build, "default", seed=0, std=1.0)
    written = getattr(module, "config", None)
    layers = None
    if isinstance(written, dict) and "layers" in written:
        layers, config = (written["layers"], written.get("activation")), written
    plan = NetworkPlan(adapter, config, build, module, layers)
    _check_tensors(plan)
    return plan


def _check_tensors(plan: NetworkPlan) -> None:
    state = plan.prototype.state_dict()
    trained = {slot.name for slot in plan.parameters}
    buffers = {name for name, _ in plan.prototype.named_buffers()}
    if others := sorted(state.keys() - trained - buffers):
        raise ConfigError(f"Tensors shared between layers cannot be trained in stacks: {others}.")
    if kinds := {str(state[name].dtype) for name in trained} - {"torch.float32"}:
        raise ConfigError(f"Only float32 networks can be grown; this one has {sorted(kinds)}.")


def _matches(family: str, patterns: Sequence[str]) -> bool:
    # `*` is the family of adapters that describe any weights and build none.
    return any(fnmatchcase(family, pattern) for pattern in patterns if pattern != "*")


def _mlp(config: dict[str, Any], data: GrowingData) -> dict[str, Any]:
    """`hidden = [32, 16]` between the inputs and the outputs of the data, unless written in full."""
    if "hidden" not in config:
        return config
    hidden = config.pop("hidden")
    shape = data.shape
    widths = [prod(shape), *hidden, data.num_outputs]
    written: dict[str, Any] = {"preset": "mlp", "widths": widths, **config}
    if len(shape) > 1:
        written["input"] = list(shape)
    return written
