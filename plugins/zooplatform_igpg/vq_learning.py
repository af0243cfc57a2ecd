"""Fitting a learned quantiser: masked error of the weights, the quantiser's own terms, and the outputs if asked.

The state after every some steps lies in a folder, so that the same call goes on from there. All that is random follows
from the seed and the number of the step.

Legend for shapes: B networks of a batch, n chunks of one, C values of a chunk, V values of a network.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from zooplatform.fit_state import digest, drop_prefix, read_state, with_prefix, write_state
from zooplatform_igpg.functional import FunctionalLoss
from zooplatform_igpg.vqvae import build_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zooplatform.fitting import FitData
    from zooplatform_igpg.corpus import Corpus, Group
    from zooplatform_igpg.normalise import Normaliser
    from zooplatform_igpg.vq_config import VqConfig
    from zooplatform_igpg.vqvae import VqVae

__all__ = ["Learnt", "fit_model"]

# Latents of a step, where outputs are not compared and chunks are coded alone.
_MOST_LATENTS = 1 << 12
_EVERY = 50  # steps between two states
_CLIP = 1.0


class Learnt(NamedTuple):
    """The model and the means of the last steps."""

    model: VqVae
    metrics: dict[str, float]
    notes: list[str]


def fit_model(
    config: VqConfig, corpus: Corpus, normaliser: Normaliser, data: FitData | None, seed: int
) -> Learnt:
    """Fit a quantiser to the chunks of a corpus.

    Raises:
        ConfigError: `functional_weight` has nothing to compare outputs on.
        NotInstalledError: the quantiser needs a library that is missing.
    """
    device = torch.device("cpu" if data is None else data.device)
    model = build_model(config, seed).to(device)
    outputs = FunctionalLoss(data, config.functional_images) if config.functional_weight else None
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
    )
    folder = None if data is None else data.folder
    path = None if folder is None else folder / f"vq-{_key(config, corpus, seed)}.safetensors"
    first = _go_on(path, model, optimizer) if path is not None and path.exists() else 0
    notes = [f"went on from step {first:,}"] if first else []
    sums: dict[str, float] = {}
    counted = 0
    for step, group in _batches(corpus, config, seed, first):
        if data is not None and data.seconds_left() <= 0:
            notes.append(f"time was over after {step:,} of {config.steps:,} steps")
            break
        for part in optimizer.param_groups:
            part["lr"] = config.learning_rate * _schedule(step, config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * 1_000_003 + step)
            terms = _step(model, group, normaliser, config, outputs, step, device, optimizer)
        if step >= config.steps - _EVERY:
            counted += 1
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + value
        if (step + 1) % _EVERY == 0:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                _keep(path, model, optimizer, step + 1)
            if data is not None and data.progress is not None:
                data.progress("vq", step + 1, config.steps)
    metrics = {f"train_{name}": value / counted for name, value in sums.items()}
    return Learnt(model.cpu().eval(), metrics, notes)


def _batches(
    corpus: Corpus, config: VqConfig, seed: int, first: int
) -> Iterator[tuple[int, Group]]:
    """The batch of every step from `first` on."""
    step = epoch = 0
    while step < config.steps:
        for group in corpus.groups(config.batch_size, seed=seed, epoch=epoch):
            if step >= first and group.plan.num_values:
                yield step, group
            step += 1
            if step >= config.steps:
                return
        epoch += 1


def _step(
    model: VqVae,
    group: Group,
    normaliser: Normaliser,
    config: VqConfig,
    outputs: FunctionalLoss | None,
    step: int,
    device: torch.device,
    optimizer: torch.optim.Optimizer,
) -> dict[str, float]:
    """One step; the terms of its loss."""
    plan, values, rows = group
    pair = normaliser.pair(plan)
    chunks = plan.chunks(pair.normalise(values)).to(device)
    mask, positions = plan.mask.to(device), plan.positions.to(device)
    most = max(1, _MOST_LATENTS // (config.slots * len(chunks)))
    if outputs is None and config.network == "mlp" and chunks.shape[1] > most:
        chosen = torch.randperm(chunks.shape[1])[:most].to(device)
        chunks, mask, positions = chunks[:, chosen], mask[chosen], positions[chosen]
    model.train()
    found, made, latents = model(chunks, positions, step / config.steps)
    real = mask.to(chunks.dtype)
    error = ((found - chunks).square() * real).sum() / (real.sum() * len(chunks))
    terms = {"mse": error, "quantizer": made.loss}
    loss = error + made.loss
    if outputs is not None:
        networks = pair.undo(plan.from_chunks(found))
        terms["kl"] = outputs(plan, networks, values.to(device), rows, step)
        loss = loss + config.functional_weight * terms["kl"]
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
    optimizer.step()
    model.quantizer.after_step(step, latents.detach())
    return {name: float(value.detach()) for name, value in terms.items()}


def _schedule(step: int, config: VqConfig) -> float:
    """Up for `warmup` of the steps, then half a cosine down."""
    warm = max(1, round(config.warmup * config.steps))
    if step < warm:
        return (step + 1) / warm
    return (1 + math.cos(math.pi * (step - warm) / max(1, config.steps - warm))) / 2


# --- states -----------------------------------------------------------------------------------------------------------


def _key(config: VqConfig, corpus: Corpus, seed: int) -> str:
    return digest(config.describe(), corpus.counts(), seed)


def _keep(path: Path, model: VqVae, optimizer: torch.optim.Optimizer, step: int) -> None:
    kept = optimizer.state_dict()["state"]
    moments = {
        f"{number}.{name}": value if isinstance(value, torch.Tensor) else torch.tensor(value)
        for number, state in kept.items()
        for name, value in state.items()
    }
    tensors = with_prefix("model", model.state_dict()) | with_prefix("optimizer", moments)
    write_state(path, tensors, {"step": step})


def _go_on(path: Path, model: VqVae, optimizer: torch.optim.Optimizer) -> int:
    """Load what `_keep` wrote; the number of steps that were done."""
    tensors, values = read_state(path)
    model.load_state_dict(drop_prefix("model", tensors))
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in drop_prefix("optimizer", tensors).items():
        number, _, what = name.partition(".")
        state.setdefault(int(number), {})[what] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return int(values["step"])
