"""Fitting one encoder with its head.

Every random choice of an epoch follows from the seed and the number of the epoch, and the state is written after every
epoch: a fit that is interrupted and called again ends, on one thread, with the same values as one that was not.

Legend for shapes: N networks, B networks of a batch, d size of the embedding.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from zooplatform.errors import ConfigError
from zooplatform.fit_state import digest, drop_prefix, read_state, with_prefix, write_state
from zooplatform_sne.losses import kendall_tau, loss_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy.typing as npt

    from zooplatform.interfaces import Progress
    from zooplatform_sne.config import TrainingConfig
    from zooplatform_sne.data import PreparedData
    from zooplatform_sne.encoder import NetworkEncoder
    from zooplatform_sne.losses import TargetScale

__all__ = ["Fitted", "Head", "Job", "SneModel", "fit_model", "scores_of"]


class Head(nn.Module):
    """(B, d) embeddings to (B,) scores."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, 1),
        )

    def forward(self, embedded: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.layers(embedded).squeeze(-1)
        return scores


class SneModel(nn.Module):
    """An encoder and what reads its embeddings."""

    def __init__(self, encoder: NetworkEncoder, head: Head) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one fit needs beside the model.

    Attributes:
        train, validation: networks with what the encoder prepared of them.
        scale: of the targets.
        settings: how to fit.
        seed: of every random choice.
        name: for progress.
        state: the file that keeps the state; None keeps none.
        seconds: time there is; infinite without a limit.
        progress: where to say how far it is.
    """

    train: PreparedData
    validation: PreparedData
    scale: TargetScale
    settings: TrainingConfig
    seed: int
    name: str = "sne"
    state: Path | None = None
    seconds: float = math.inf
    progress: Progress | None = None

    def fingerprint(self, model: SneModel) -> str:
        """Changes when the same call would not lead to the same model."""
        shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
        described = [self.settings.describe(), self.scale.describe(), self.seed, shapes]
        return digest(described, self.train.digest(), self.validation.digest())


@dataclass
class Fitted:
    """What a fit came to: the best epoch by Kendall's tau on the validation networks.

    Attributes:
        tau: of the best epoch.
        best_epoch: counted from 1.
        epochs: made; fewer than asked for when it stopped early or time ran out.
        seconds: all sessions together.
        history: per epoch `loss` and `validation_tau`.
        notes: what the caller should know.
    """

    tau: float = -math.inf
    best_epoch: int = 0
    epochs: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def fit_model(model: SneModel, job: Job) -> Fitted:
    """Train `model` in place; it is left with the parameters of its best epoch.

    Raises:
        ConfigError: the state file is of another fit, or the loss is not finite.
        ArtifactError: the state file is damaged.
    """
    fit = _Fit(model, job)
    while fit.goes_on():
        fit.epoch()
    return fit.finish()


@torch.no_grad()
def scores_of(model: SneModel, data: PreparedData, batch_size: int) -> npt.NDArray[np.float64]:
    """(N,) the score of every network."""
    model.eval()
    scores = np.empty(len(data))
    for indices in data.order(batch_size):
        batch = data.take(indices)
        embedded = model.encoder(batch.prepared, batch.vector)
        scores[indices] = model.head(embedded).double().cpu().numpy()
    return scores


class _Fit:
    """A running fit: everything that the state file holds."""

    def __init__(self, model: SneModel, job: Job) -> None:
        self.model, self.job, self.settings = model, job, job.settings
        self.done = Fitted()
        self.total = self.settings.epochs
        self.finished = False
        self.optimizer = torch.optim.AdamW(
            _groups(model, self.settings.weight_decay),
            lr=self.settings.learning_rate,
            betas=(0.9, self.settings.beta2),
        )
        self.average = copy.deepcopy(model) if self.settings.ema else None
        self.best: dict[str, torch.Tensor] = {}
        self.per_epoch = max(1, len(job.train.order(self.settings.batch_size)))
        self.fingerprint = job.fingerprint(model) if job.state else ""
        self.began = time.monotonic()
        self.earlier = 0.0  # seconds of former sessions
        self.here = 0  # epochs of this session
        if job.state is not None and job.state.exists():
            self._restore(job.state)

    # --- the loop -----------------------------------------------------------------------------------------------------

    def goes_on(self) -> bool:
        if self.finished or self.done.epochs >= self.total:
            return False
        patience = self.settings.patience
        if patience and self.done.epochs - self.done.best_epoch >= patience:
            self.done.notes.append(f"stopped early after epoch {self.done.epochs}")
            return False
        # At least one epoch is made, whatever the time: there is no predictor without one.
        if self.done.epochs and self._spent() + self._epoch_seconds() > self.job.seconds:
            self.done.notes.append(f"out of time after epoch {self.done.epochs} of {self.total}")
            return False
        return True

    def epoch(self) -> None:
        number = self.done.epochs
        devices = [self.job.train.device] if self.job.train.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            seed = int(np.random.SeedSequence([self.job.seed, number]).generate_state(1)[0])
            torch.manual_seed(seed)
            generator = torch.Generator(self.job.train.device).manual_seed(seed)
            loss = self._train(number, generator)
        if not math.isfinite(loss):
            raise ConfigError(
                f"The loss of {self.job.name} is {loss} in epoch {number + 1}. "
                f"Give a learning_rate below {self.settings.learning_rate:g}."
            )
        tested = self.average or self.model
        tau = self._tau(tested)
        self.done.epochs += 1
        self.here += 1
        self.done.history.append({"loss": loss, "validation_tau": tau})
        if tau >= self.done.tau or not self.best:
            self.done.tau, self.done.best_epoch = tau, self.done.epochs
            self.best = {n: v.detach().clone() for n, v in tested.state_dict().items()}
        if self.here == 1 and self.done.epochs == 1:
            self._fit_into_time()
        if self.job.progress is not None:
            what = f"{self.job.name}: loss {loss:.4f}, validation tau {tau:.4f}"
            self.job.progress(what, self.done.epochs, self.total)
        if self.job.state is not None:
            self._keep(self.job.state)

    def finish(self) -> Fitted:
        self.model.load_state_dict(self.best)
        self.model.eval()
        self.done.seconds = self._spent() + self.earlier
        if not self.finished and self.job.state is not None:
            self.finished = True
            self._keep(self.job.state)
        return self.done

    def _train(self, number: int, generator: torch.Generator) -> float:
        job, settings = self.job, self.settings
        self.model.train()
        total = 0.0
        order = job.train.order(settings.batch_size, seed=job.seed, epoch=number)
        for step, indices in enumerate(order):
            rate = _rate(settings, (number * self.per_epoch + step) / (self.total * self.per_epoch))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            batch = job.train.take(indices, generator)
            scores = self.model.head(self.model.encoder(batch.prepared, batch.vector))
            loss = loss_of(
                settings.loss, scores, batch.targets, job.scale,
                rank=settings.rank_weight, delta=settings.huber_delta,
            )  # fmt: skip
            if batch.weights is not None:
                term = self.model.encoder.regularise(
                    self.model.head, batch.prepared, batch.weights, batch.vector, generator
                )
                if term is not None:
                    loss = loss + term
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
            if settings.clip_norm:
                nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
            self.optimizer.step()
            if self.average is not None:
                _move(self.average, self.model, settings.ema, number * self.per_epoch + step)
            total += float(loss.detach()) * len(indices)
        return total / len(job.train)

    def _tau(self, model: SneModel) -> float:
        scores = scores_of(model, self.job.validation, self.settings.batch_size * 4)
        return kendall_tau(scores, self.job.validation.targets)

    # --- time ---------------------------------------------------------------------------------------------------------

    def _spent(self) -> float:
        return time.monotonic() - self.began

    def _epoch_seconds(self) -> float:
        return self._spent() / self.here if self.here else 0.0

    def _fit_into_time(self) -> None:
        """Plan fewer epochs when all do not fit: a schedule that ends is worth more than one cut off."""
        possible = (
            int(0.95 * self.job.seconds / self._spent()) if self.job.seconds < 1e9 else self.total
        )
        if possible < self.total:
            self.done.notes.append(f"{max(1, possible)} epochs of {self.total} fit into the time")
            self.total = max(1, possible)

    # --- the state file -----------------------------------------------------------------------------------------------

    def _keep(self, path: Path) -> None:
        tensors = with_prefix("best", self.best)
        if not self.finished:
            tensors |= with_prefix("model", self.model.state_dict())
            for index, slots in self.optimizer.state_dict()["state"].items():
                tensors |= with_prefix(f"optimizer.{index}", slots)
            if self.average is not None:
                tensors |= with_prefix("average", self.average.state_dict())
        values = {
            "fingerprint": self.fingerprint,
            "finished": self.finished,
            "total": self.total,
            "tau": self.done.tau,
            "best_epoch": self.done.best_epoch,
            "epochs": self.done.epochs,
            "seconds": self._spent() + self.earlier,
            "history": self.done.history,
            "notes": self.done.notes,
        }
        write_state(path, tensors, values)

    def _restore(self, path: Path) -> None:
        tensors, values = read_state(path)
        if values["fingerprint"] != self.fingerprint:
            raise ConfigError(
                f"{path} is the state of another fit (other networks, configuration or seed). "
                "Give another folder, or remove the file to start over."
            )
        self.finished, self.total = bool(values["finished"]), int(values["total"])
        self.earlier = float(values["seconds"])
        self.done = Fitted(
            tau=values["tau"], best_epoch=values["best_epoch"], epochs=values["epochs"],
            history=values["history"], notes=values["notes"],
        )  # fmt: skip
        device = self.job.train.device
        self.best = {n: v.to(device) for n, v in drop_prefix("best", tensors).items()}
        if self.finished:
            return
        self.model.load_state_dict(drop_prefix("model", tensors))
        state = self.optimizer.state_dict()
        for index in range(len(list(self.model.parameters()))):
            slots = drop_prefix(f"optimizer.{index}", tensors)
            if slots:
                state["state"][index] = slots
        self.optimizer.load_state_dict(state)
        if self.average is not None:
            self.average.load_state_dict(drop_prefix("average", tensors))


def _groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Matrices are decayed, vectors (biases, norms) are not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _rate(settings: TrainingConfig, done: float) -> float:
    """Learning rate after a share `done` of all steps."""
    peak = settings.learning_rate
    if settings.schedule == "constant":
        return peak
    if settings.schedule == "onecycle" and done < settings.warmup:
        # From 1/25 of the peak up, by half a cosine (Smith and Topin 2017, arXiv 1708.07120).
        return peak * (1 - 24 / 25 * (1 + math.cos(math.pi * done / settings.warmup)) / 2)
    start = settings.warmup if settings.schedule == "onecycle" else 0.0
    return peak * (1 + math.cos(math.pi * (done - start) / (1 - start))) / 2 + 1e-8


@torch.no_grad()
def _move(average: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Exponential moving average of the parameters, faster in the first steps."""
    decay = min(decay, (1 + step) / (10 + step))
    values: Mapping[str, torch.Tensor] = model.state_dict()
    for name, held in average.state_dict().items():
        if held.is_floating_point():
            held.lerp_(values[name], 1 - decay)
        else:
            held.copy_(values[name])
