"""A small zoo without any fault, to be given one and looked at by the lint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from zooplatform.interfaces import CheckpointRecord, MetricRecord, ModelInfo

if TYPE_CHECKING:
    from zooplatform.catalog import Catalog
    from zooplatform.linting import Finding

__all__ = ["MODELS", "STEPS", "Zoo", "model_ids", "network", "only", "with_accuracy"]

State = dict[str, torch.Tensor]

MODELS, STEPS = 4, (0, 1, 2)


@dataclass
class Zoo:
    """A small zoo without any fault, to be given one: `states` and `metrics` by (model, step), `configs` by model."""

    bias: bool = True
    states: dict[tuple[int, int], State] = field(default_factory=dict)
    configs: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[tuple[int, int], list[MetricRecord]] = field(default_factory=dict)
    epochs: dict[tuple[int, int], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.configs = [{"learning_rate": 0.1 / (n + 1)} for n in range(MODELS)]
        for n in range(MODELS):
            for step in STEPS:
                self.states[n, step] = network(n, step, bias=self.bias)
                self.metrics[n, step] = [
                    MetricRecord(name="test_accuracy", value=0.1 + 0.1 * n + 0.2 * step),
                    MetricRecord(name="test_loss", value=3.0 - step),
                ]
                self.epochs[n, step] = float(step)

    def record(self, model: int, step: int) -> CheckpointRecord:
        return CheckpointRecord(
            model=ModelInfo(
                key=f"run-{model}", name=f"run {model}", source="test:", config=self.configs[model]
            ),
            step=step,
            epoch=self.epochs[model, step],
            metrics=tuple(self.metrics[model, step]),
        )

    def store(self, catalog: Catalog, name: str = "zoo") -> dict[tuple[int, int], str]:
        """Checkpoint ids by (model, step)."""
        ids = catalog.add_state_dicts(
            self.states.values(), [self.record(*key) for key in self.states], zoo=name
        )
        return dict(zip(self.states, ids, strict=True))


def network(model: int, step: int, *, bias: bool = True) -> State:
    """A convolution of 3 filters and a linear layer to 10 outputs."""
    torch.manual_seed(100 * model + step)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3, bias=bias), torch.nn.Flatten(), torch.nn.Linear(12, 10, bias=bias)
    )
    return dict(module.state_dict())


def only(findings: list[Finding]) -> Finding:
    (found,) = findings
    return found


def model_ids(catalog: Catalog) -> list[str]:
    """By number of the run."""
    ids: list[str] = catalog.sql("select model_id from models order by name").column(0).to_pylist()
    return ids


def with_accuracy(value: float, *, name: str = "test_accuracy", origin: Any = "reported") -> Zoo:
    zoo = Zoo()
    for key, metrics in zoo.metrics.items():
        zoo.metrics[key] = [metrics[1], MetricRecord(name=name, value=value, origin=origin)]
    return zoo
