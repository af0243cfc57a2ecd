"""The lint: what is declared of networks, compared with what their tensors say.

`lint(catalog)` runs every rule of `RULES`. A rule is a function that takes the catalog and yields findings; it asks in
SQL and reads weights only where the stored statistics leave a doubt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zooplatform.errors import ConfigError
from zooplatform.linting import declared, identity, metrics, predicted, training, weights
from zooplatform.linting.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from zooplatform.catalog import Catalog

    Rule = Callable[[Catalog], Iterator[Finding]]

__all__ = ["RULES", "Finding", "lint"]

RULES: Mapping[str, Rule] = {
    "outputs": declared.outputs,
    "biases": declared.biases,
    "parameters": declared.parameters,
    "percent": metrics.percent,
    "missing-metrics": metrics.missing,
    "predicted": predicted.predicted,
    "not-finite": weights.not_finite,
    "constant": weights.constant,
    "dead-units": weights.dead_units,
    "untrained": training.untrained,
    "order": training.order,
    "duplicates": identity.duplicates,
    "permuted": identity.permuted,
    "split-leak": identity.split_leak,
}


def lint(catalog: Catalog, rules: Iterable[str] | None = None) -> list[Finding]:
    """Everything that the rules find, in the order of the rules.

    Args:
        catalog: a catalog without storage problems.
        rules: names of the rules to run; all of them by default.

    Raises:
        ConfigError: there is no such rule.
    """
    chosen = list(RULES) if rules is None else list(rules)
    for name in chosen:
        if name not in RULES:
            raise ConfigError(f"No lint rule {name!r}. Rules: {', '.join(RULES)}.")
    return [found for name in chosen for found in RULES[name](catalog)]
