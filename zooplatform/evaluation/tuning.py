"""Random search for configurations, with one budget for every method.

Every method that is tuned gets the same number of trials, each is fitted on the same training networks and judged by
Kendall's tau on the same validation networks, and every trial is kept in the results.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from zooplatform.errors import ConfigError
from zooplatform.growing.ranges import Space

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zooplatform.evaluation.protocols import Method

__all__ = ["Trial", "best_trial", "trial_configs"]


class Trial(NamedTuple):
    """A configuration and its tau on the validation networks; NaN where it could not be fitted."""

    config: Mapping[str, Any]
    val_kendall_tau: float


def trial_configs(
    method: Method, base: Mapping[str, Any], *, seed: int
) -> tuple[dict[str, Any], ...]:
    """The configurations to try, the one as given first.

    Args:
        method: with `trials` and `search`.
        base: its configuration written out.
        seed: of the draws; what trial `i` is depends on the seed, the search and `i` alone.

    Raises:
        ConfigError: a range is not one.
    """
    if method.trials < 2:
        return (dict(base),)
    try:
        space = Space(method.search, seed)
    except ConfigError as exc:
        text = str(exc).replace("hyperparameters.", f"methods.{method.label}.search.")
        raise ConfigError(text) from exc
    return (dict(base), *({**base, **space.run(at)} for at in range(1, method.trials)))


def best_trial(trials: Sequence[Trial]) -> Trial:
    """The trial with the highest tau on the validation networks, of equal ones the first.

    Raises:
        ConfigError: none could be fitted.
    """
    fitted = [trial for trial in trials if not math.isnan(trial.val_kendall_tau)]
    if not fitted:
        raise ConfigError(f"None of {len(trials)} trials could be fitted.")
    return max(fitted, key=lambda trial: trial.val_kendall_tau)
