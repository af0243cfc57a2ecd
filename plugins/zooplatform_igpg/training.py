"""Fitting the transformer to codes.

Every random choice of an epoch follows from the seed and the number of the epoch, and the state is written after every
epoch: a fit that is interrupted and called again ends, on one thread, with the same values as one that was not.

Legend for shapes: N networks, B networks of a step, T tokens of a network, S tokens of a block, Q kinds of networks.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from zooplatform.errors import ConfigError
from zooplatform.fit_state import digest, drop_prefix, read_state, with_prefix, write_state
from zooplatform_igpg.conditions import Told, leave_out, told_on

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.interfaces import Progress
    from zooplatform_igpg.conditions import ConditionEncoder
    from zooplatform_igpg.config import TrainingConfig
    from zooplatform_igpg.sides import CodeSide, Step
    from zooplatform_igpg.transformer import CodeTransformer

__all__ = ["Fitted", "Job", "Writer", "fit_writer", "likelihood"]


class Writer(nn.Module):
    """The transformer with what puts conditions before its sequences."""

    def __init__(self, conditions: ConditionEncoder, transformer: CodeTransformer) -> None:
        super().__init__()
        self.conditions, self.transformer = conditions, transformer


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a fit needs beside the model.

    Attributes:
        train, validation: codes; the latter may hold no network, and is then not chosen by.
        settings: how to fit.
        drop, drop_all: how often conditions are left out.
        seed: of every random choice.
        device: torch device.
        state: the file that keeps the state; None keeps none.
        seconds: time there is.
        progress: where to say how far it is.
    """

    train: CodeSide
    validation: CodeSide
    settings: TrainingConfig
    drop: float
    drop_all: float
    seed: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    state: Path | None = None
    seconds: float = math.inf
    progress: Progress | None = None


@dataclass
class Fitted:
    """What a fit came to.

    Attributes:
        nll: of the best epoch on the validation networks, nats a token.
        best_epoch: counted from 1.
        epochs: made.
        seconds: all sessions together.
        history: per epoch `train_nll` and `validation_nll`.
        notes: what the caller should know.
    """

    nll: float = math.inf
    best_epoch: int = 0
    epochs: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def fit_writer(model: Writer, job: Job) -> Fitted:
    """Train `model` in place; it is left with the parameters of its best epoch.

    Raises:
        ConfigError: the state is of another fit, or the loss is not finite.
        ArtifactError: the state is damaged.
    """
    fit = _Fit(model, job)
    while fit.goes_on():
        fit.epoch()
    return fit.finish()


def step_losses(
    model: Writer, side: CodeSide, step: Step, told: Told, copy: int, device: torch.device,
    smoothing: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """(B, S) losses of the tokens that the block writes, (S,) which of them count, and (S,) their levels."""
    group, block = side.groups[step.group], step.block
    codes = group.codes[copy, step.chosen, block.window : block.stop].long().to(device)
    places = group.places.cut(block.window, block.stop)
    places = places._replace(positions=places.positions.to(device), levels=places.levels.to(device))
    prefix = model.conditions(told_on(told, device))
    losses = model.transformer.nll(prefix, codes, places, smoothing)
    own = slice(block.start - block.window, None)
    counted = group.mask[block.start : block.stop].to(device)
    return losses[:, own], counted, places.levels[own]


@torch.no_grad()
def likelihood(
    model: Writer, side: CodeSide, batch_size: int, device: torch.device, *, told: bool = True
) -> tuple[float, dict[int, float]]:
    """Mean negative log-likelihood of a token in nats, of all and by level; `told` gives the conditions."""
    model.eval()
    sums: dict[int, list[float]] = {}
    for step in side.steps(batch_size):
        rows = side.groups[step.group].rows[step.chosen]
        said = side.tables.told(rows, None)
        if not told:
            said = leave_out(said, 1.0, 1.0, torch.Generator().manual_seed(0))
        losses, counted, levels = step_losses(model, side, step, said, 0, device)
        for level in sorted(set(levels.tolist())):
            own = losses[:, counted & (levels == level)].double()
            both = sums.setdefault(int(level), [0.0, 0.0])
            both[0] += float(own.sum())
            both[1] += own.numel()
    total = sum(count for _, count in sums.values())
    whole = sum(loss for loss, _ in sums.values()) / max(1.0, total)
    return whole, {level: loss / max(1.0, count) for level, (loss, count) in sums.items()}


class _Fit:
    """A running fit: everything that the state file holds."""

    def __init__(self, model: Writer, job: Job) -> None:
        self.model, self.job, self.settings = model, job, job.settings
        self.done = Fitted()
        self.total = self.settings.epochs
        self.finished = False
        self.optimizer = torch.optim.AdamW(
            _groups(model, self.settings.weight_decay),
            lr=self.settings.learning_rate,
            betas=(0.9, self.settings.beta2),
        )
        self.best: dict[str, torch.Tensor] = {}
        self.per_epoch = max(1, job.train.num_steps(self.settings.batch_size))
        self.fingerprint = self._fingerprint() if job.state else ""
        self.began = time.monotonic()
        self.earlier = 0.0  # seconds of former sessions
        self.here = 0  # epochs of this session
        if job.state is not None and job.state.exists():
            self._restore(job.state)

    def _fingerprint(self) -> str:
        shapes = {name: list(value.shape) for name, value in self.model.state_dict().items()}
        said = [repr(self.settings), self.job.drop, self.job.drop_all, self.job.seed, shapes]
        return digest(said, self.job.train.digest(), self.job.validation.digest())

    # --- the loop -----------------------------------------------------------------------------------------------------

    def goes_on(self) -> bool:
        if self.finished or self.done.epochs >= self.total:
            return False
        patience = self.settings.patience
        if patience and self.done.epochs - self.done.best_epoch >= patience:
            self.done.notes.append(f"stopped early after epoch {self.done.epochs}")
            return False
        # At least one epoch is made, whatever the time: there is no generator without one.
        if self.done.epochs and self._spent() + self._epoch_seconds() > self.job.seconds:
            self.done.notes.append(f"out of time after epoch {self.done.epochs} of {self.total}")
            return False
        return True

    def epoch(self) -> None:
        number = self.done.epochs
        devices = [self.job.device] if self.job.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            seed = int(np.random.SeedSequence([self.job.seed, number]).generate_state(1)[0])
            torch.manual_seed(seed)
            loss = self._train(number, seed)
        if not math.isfinite(loss):
            raise ConfigError(
                f"The loss of the transformer is {loss} in epoch {number + 1}. "
                f"Give a learning_rate below {self.settings.learning_rate:g}."
            )
        nll = loss
        if len(self.job.validation):
            size = self.settings.batch_size * 2
            nll, _ = likelihood(self.model, self.job.validation, size, self.job.device)
        self.done.epochs += 1
        self.here += 1
        self.done.history.append({"train_nll": loss, "validation_nll": nll})
        if nll <= self.done.nll or not self.best:
            self.done.nll, self.done.best_epoch = nll, self.done.epochs
            self.best = {n: v.detach().clone() for n, v in self.model.state_dict().items()}
        if self.here == 1 and self.done.epochs == 1:
            self._fit_into_time()
        if self.job.progress is not None:
            what = f"igpg: loss {loss:.4f}, validation {nll:.4f}"
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

    def _train(self, number: int, seed: int) -> float:
        job, settings = self.job, self.settings
        generator = torch.Generator().manual_seed(seed)
        draw = np.random.Generator(np.random.PCG64(np.random.SeedSequence([job.seed, number, 1])))
        self.model.train()
        total = tokens = 0.0
        for at, step in enumerate(job.train.steps(settings.batch_size, draw)):
            rate = _rate(settings, (number * self.per_epoch + at) / (self.total * self.per_epoch))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            own = job.train.groups[step.group]
            told = job.train.tables.told(own.rows[step.chosen], generator)
            told = leave_out(told, job.drop, job.drop_all, generator)
            copy = number % len(own.codes)
            losses, counted, _ = step_losses(
                self.model, job.train, step, told, copy, job.device, settings.smoothing
            )
            if not bool(counted.any()):
                continue
            kept = losses[:, counted]
            loss = kept.mean()
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
            if settings.clip_norm:
                nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
            self.optimizer.step()
            total += float(loss.detach()) * kept.numel()
            tokens += kept.numel()
        return total / max(1.0, tokens)

    # --- time ---------------------------------------------------------------------------------------------------------

    def _spent(self) -> float:
        return time.monotonic() - self.began

    def _epoch_seconds(self) -> float:
        return self._spent() / self.here if self.here else 0.0

    def _fit_into_time(self) -> None:
        """Plan fewer epochs when all do not fit: a schedule that ends is worth more than one cut off."""
        if self.job.seconds < 1e9:
            possible = max(1, int(0.95 * self.job.seconds / max(self._spent(), 1e-9)))
            if possible < self.total:
                self.done.notes.append(f"{possible} epochs of {self.total} fit into the time")
                self.total = possible

    # --- the state file -----------------------------------------------------------------------------------------------

    def _keep(self, path: Path) -> None:
        tensors = with_prefix("best", self.best)
        if not self.finished:
            tensors |= with_prefix("model", self.model.state_dict())
            for index, slots in self.optimizer.state_dict()["state"].items():
                tensors |= with_prefix(f"optimizer.{index}", slots)
        values = {
            "fingerprint": self.fingerprint,
            "finished": self.finished,
            "total": self.total,
            "nll": self.done.nll,
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
            nll=values["nll"], best_epoch=values["best_epoch"], epochs=values["epochs"],
            history=values["history"], notes=values["notes"],
        )  # fmt: skip
        device = self.job.device
        self.best = {n: v.to(device) for n, v in drop_prefix("best", tensors).items()}
        if self.finished:
            return
        self.model.load_state_dict(drop_prefix("model", tensors))
        state: dict[str, Any] = self.optimizer.state_dict()
        for index in range(len(list(self.model.parameters()))):
            slots = drop_prefix(f"optimizer.{index}", tensors)
            if slots:
                state["state"][index] = slots
        self.optimizer.load_state_dict(state)


def _groups(model: Writer, decay: float) -> list[dict[str, Any]]:
    """Matrices are decayed; vectors (biases, norms) and the frequencies of codes are not."""
    free = model.transformer.code_bias
    parameters = list(model.parameters())
    return [
        {
            "params": [p for p in parameters if p.ndim > 1 and p is not free],
            "weight_decay": decay,
        },
        {"params": [p for p in parameters if p.ndim <= 1 or p is free], "weight_decay": 0.0},
    ]


def _rate(settings: TrainingConfig, done: float) -> float:
    """Learning rate after a share `done` of all steps."""
    peak = settings.learning_rate
    if done < settings.warmup:
        return peak * (0.02 + 0.98 * done / settings.warmup)
    if settings.schedule == "constant":
        return peak
    left = (1 - done) / (1 - settings.warmup)
    if settings.schedule == "linear":
        return peak * left + 1e-8
    return peak * (1 - math.cos(math.pi * left)) / 2 + 1e-8
