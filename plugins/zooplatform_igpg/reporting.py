"""What a fit came to, in numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from zooplatform_igpg.training import likelihood

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zooplatform.fitting import Blueprint
    from zooplatform_igpg.preparing import Preparation
    from zooplatform_igpg.spaces import Codec
    from zooplatform_igpg.training import Fitted, Job, Writer

__all__ = ["fit_metrics"]


def fit_metrics(
    model: Writer,
    job: Job,
    fitted: Fitted,
    codec: Codec,
    blueprints: Sequence[Blueprint],
    preparation: Preparation,
) -> dict[str, float]:
    """The metrics of a report: likelihoods in nats a token, sizes, and how long it took."""
    best = fitted.history[fitted.best_epoch - 1]
    metrics = {
        "train_nll": best["train_nll"],
        "validation_nll": fitted.nll,
        "best_epoch": float(fitted.best_epoch),
        "epochs": float(fitted.epochs),
        "seconds/transformer": fitted.seconds,
        "num_train": float(len(job.train)),
        "num_validation": float(len(job.validation)),
        "num_parameters": float(sum(p.numel() for p in model.parameters())),
        "basins": float(preparation.num_basins),
    }
    if len(job.validation):
        size = 2 * job.settings.batch_size
        _, levels = likelihood(model, job.validation, size, job.device)
        for level, nll in levels.items():
            metrics[f"perplexity/level-{level}"] = math.exp(min(nll, 50.0))
        untold, _ = likelihood(model, job.validation, size, job.device, told=False)
        metrics["validation_nll_untold"] = untold
    longest = max(preparation.tables, key=lambda b: len(codec.places(b).levels))
    metrics["tokens"] = float(len(codec.places(longest).levels))
    metrics["bits_per_weight"] = codec.num_bits(longest) / max(1, blueprints[longest].vector.width)
    return metrics
