"""Training of networks that read inputs of networks: one loop for perceptrons, DeepSets and equivariant networks.

Legend for shapes: B networks of a batch, D inputs, H hidden units.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from zooplatform.errors import ArtifactError
from zooplatform.fitting import kendall_tau
from zooplatform_statnn.learners import State, restored_scale, scale_state
from zooplatform_statnn.scaling import InputScale

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from zooplatform.layout import VectorLayout
    from zooplatform_statnn.learners import Budget, Table
    from zooplatform_statnn.settings import NetSettings

__all__ = ["Encoder", "Net", "Perceptron"]

_WARM_UP = 0.1


class Encoder(Protocol):
    """A module: `forward(inputs, vector)` gives (B, H) of (B, D); `width` is H."""

    width: int

    def __call__(self, inputs: torch.Tensor, vector: VectorLayout | None) -> torch.Tensor: ...


class Perceptron(nn.Module):
    """Hidden layers with normalisation, GELU and dropout."""

    def __init__(self, inputs: int, settings: NetSettings) -> None:
        super().__init__()
        self.width = settings.width
        layers: list[nn.Module] = []
        for at in range(settings.depth):
            layers += [
                nn.Linear(inputs if at == 0 else settings.width, settings.width),
                nn.LayerNorm(settings.width),
                nn.GELU(),
                nn.Dropout(settings.dropout),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: torch.Tensor, vector: VectorLayout | None) -> torch.Tensor:
        found: torch.Tensor = self.layers(inputs)
        return found


class _Model(nn.Module):
    """An encoder and a linear head."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, 1)

    def forward(self, inputs: torch.Tensor, vector: VectorLayout | None) -> torch.Tensor:
        found: torch.Tensor = self.head(self.encoder(inputs, vector))[:, 0]
        return found


class Net:
    """The average of networks trained from different seeds.

    Args:
        settings: of the training.
        make: an encoder for inputs of this many values and this architecture, drawn with torch's generator.
    """

    def __init__(
        self, settings: NetSettings, make: Callable[[int, VectorLayout | None], nn.Module]
    ) -> None:
        self._settings, self._make = settings, make
        self._members: list[_Model] = []
        self._scale = InputScale("none", torch.zeros(1, 0))
        self._inputs = 0
        self._vector: VectorLayout | None = None
        self._epochs: list[int] = []

    def fit(
        self,
        train: Sequence[Table],
        validation: Sequence[Table],
        *,
        seed: int,
        budget: Budget,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self._inputs, self._vector = train[0].inputs.shape[1], train[0].vector
        self._scale = InputScale.of(train[0].inputs, self._settings.scaling)
        learnt, judged = self._scaled(train), self._scaled(validation)
        for member in range(self._settings.members):
            part = budget.share(self._settings.members - member)
            if member and part.over:
                break
            self._members.append(self._train(learnt, judged, seed * 1009 + member, part, progress))

    def _scaled(self, tables: Sequence[Table]) -> list[Table]:
        return [type(t)(self._scale(t.inputs), t.targets, t.vector) for t in tables]

    def _build(self, vector: VectorLayout | None) -> _Model:
        encoder = self._make(self._inputs, vector)
        return _Model(encoder, int(encoder.width))  # type: ignore[arg-type]  # see Encoder

    def _train(
        self,
        train: Sequence[Table],
        validation: Sequence[Table],
        seed: int,
        budget: Budget,
        progress: Callable[[str, int, int], None] | None,
    ) -> _Model:
        s = self._settings
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self._build(train[0].vector).to(budget.device)
            order = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
            optimiser = torch.optim.AdamW(
                model.parameters(), lr=s.learning_rate, weight_decay=s.weight_decay
            )
            steps = s.epochs * sum(-(-len(t.targets) // s.batch_size) for t in train)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda at: _rate(at / steps))
            best, kept, best_epoch = -math.inf, _copy(model), 0
            for epoch in range(1, s.epochs + 1):
                model.train()
                for table, rows in _batches(train, s.batch_size, order):
                    inputs = table.inputs[rows].to(budget.device)
                    loss = F.huber_loss(
                        model(inputs, table.vector), table.targets[rows].to(budget.device)
                    )
                    optimiser.zero_grad(set_to_none=True)
                    loss.backward()  # type: ignore[no-untyped-call]
                    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimiser.step()
                    schedule.step()
                    if budget.over:
                        break
                tau = _tau(model, validation)
                if tau > best:
                    best, kept, best_epoch = tau, _copy(model), epoch
                if progress is not None:
                    progress("epochs", epoch, s.epochs)
                if budget.over or epoch - best_epoch >= s.patience:
                    break
            model.load_state_dict(kept)
        self._epochs.append(best_epoch)
        return model.to("cpu").eval()

    def predict(self, inputs: torch.Tensor, vector: VectorLayout | None) -> torch.Tensor:
        scaled = self._scale(inputs)
        found = [_predicted(model, scaled, vector) for model in self._members]
        return torch.stack(found).double().mean(dim=0)

    def embed(self, inputs: torch.Tensor, vector: VectorLayout | None) -> torch.Tensor:
        """(N, members * H) what the encoders give."""
        scaled = self._scale(inputs)
        with torch.inference_mode():
            found = [
                torch.cat([model.encoder(part, vector) for part in torch.split(scaled, _PART)])
                for model in self._members
            ]
        return torch.cat(found, dim=1).float()

    def notes(self) -> Mapping[str, float]:
        return {"best_epoch": float(np.mean(self._epochs)), "members": float(len(self._members))}

    def state(self) -> State:
        tensors = scale_state(self._scale)
        for at, model in enumerate(self._members):
            tensors |= {f"{at}.{name}": value for name, value in model.state_dict().items()}
        values = {"inputs": self._inputs, "members": len(self._members), "epochs": self._epochs}
        return State(tensors, values, {})

    def restore(self, state: State) -> None:
        self._scale = restored_scale(state)
        self._inputs = int(state.values["inputs"])
        self._epochs = [int(epoch) for epoch in state.values["epochs"]]
        self._members = []
        for at in range(int(state.values["members"])):
            own = {
                name.partition(".")[2]: value
                for name, value in state.tensors.items()
                if name.startswith(f"{at}.")
            }
            with torch.random.fork_rng(devices=[]):
                model = self._build(self._vector)
            try:
                model.load_state_dict(own)
            except RuntimeError as exc:
                raise ArtifactError(f"its tensors do not fit its settings ({exc})") from exc
            self._members.append(model.eval())

    def of_architecture(self, vector: VectorLayout | None) -> None:
        """Say which architecture `restore` builds for."""
        self._vector = vector


_PART = 512


def _rate(share: float) -> float:
    """Share of the learning rate at a share of all steps: linear up, then half a cosine down."""
    if share < _WARM_UP:
        return share / _WARM_UP
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (share - _WARM_UP) / (1 - _WARM_UP))))


def _copy(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _batches(
    tables: Sequence[Table], size: int, order: np.random.RandomState
) -> list[tuple[Table, torch.Tensor]]:
    """Every network once, shuffled, each batch of one table."""
    parts = [
        (table, rows)
        for table in tables
        for rows in torch.split(torch.from_numpy(order.permutation(len(table.targets))), size)
    ]
    return [parts[at] for at in order.permutation(len(parts))]


def _predicted(model: _Model, inputs: torch.Tensor, vector: VectorLayout | None) -> torch.Tensor:
    device = next(model.parameters()).device
    with torch.inference_mode():
        return torch.cat(
            [model(part.to(device), vector).cpu() for part in torch.split(inputs, _PART)]
        )


def _tau(model: _Model, tables: Sequence[Table]) -> float:
    model.eval()
    found = torch.cat([_predicted(model, table.inputs, table.vector) for table in tables])
    tau = kendall_tau(found.numpy(), torch.cat([table.targets for table in tables]).numpy())
    return tau if math.isfinite(tau) else -1.0
