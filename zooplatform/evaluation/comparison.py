"""From predictions to figures: every cell, the means over cells, and differences from the best baseline.

All figures of a test zoo are resampled with the same draws of training runs, so differences between methods, and means
over cells that share test networks, have the intervals that they should.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from zooplatform.errors import ConfigError, IntegrityError
from zooplatform.evaluation.bootstrap import resampled_taus
from zooplatform.evaluation.fits import ids_digest
from zooplatform.evaluation.scores import interval, mae, mse, r2, spearman
from zooplatform.evaluation.state import unpack
from zooplatform.growing.ranges import derive_seed

if TYPE_CHECKING:
    import numpy.typing as npt

    from zooplatform.evaluation.plan import Cell, Plan, Task
    from zooplatform.evaluation.protocols import Protocol
    from zooplatform.evaluation.sides import Rows

__all__ = ["SUBSETS", "Fits", "TestRows", "compare"]

# Beside tau, of every fit: means over seeds, and over cells.
_FIGURES = ("spearman", "r2", "mae", "mse")

SUBSETS = ("all", "last")

Fits = Mapping[tuple[str, "Task", int], Mapping[str, Any]]
TestRows = Mapping[tuple[str, bool], Mapping[str, "Rows"]]


@dataclass
class _Figures:
    """One method in one cell: `draws` (D,) of its tau, averaged over seeds as `tau` is."""

    tau: float
    draws: npt.NDArray[np.float64]
    validation: float
    entry: dict[str, Any] = field(default_factory=dict)


def compare(
    protocol: Protocol, plan: Plan, fits: Fits, rows: TestRows, *, final: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """Score the fits that are there.

    Args:
        protocol, plan: what was asked for.
        fits: record of every finished fit by (method, task, seed).
        rows: test networks by (zoo, whether split by checkpoint) and target.
        final: score the networks that were kept for the last look, and no others.

    Returns:
        `cells`, and `summaries` over the cells of a kind.

    Raises:
        IntegrityError: predictions are not about the test networks that the catalog has.
    """
    cells: list[dict[str, Any]] = []
    groups: dict[tuple[str, str, float, str], list[dict[str, _Figures]]] = defaultdict(list)
    for cell, methods in plan.cells.items():
        if final and cell.task.leaky:
            continue  # it was made of the networks that are looked at, to flatter
        of_zoo = rows[cell.test, cell.task.leaky][cell.task.target]
        for subset in SUBSETS:
            chosen = of_zoo.final == final
            if subset == "last":
                chosen &= of_zoo.last
            figures, refused = _score(protocol, cell, methods, fits, of_zoo, chosen, subset)
            if not figures and not refused:
                continue
            baseline, hardest = _baselines(protocol, [figures])
            for found in figures.values():
                found.entry |= _against(found, figures, baseline, hardest)
            cells.append(
                {
                    "kind": cell.kind,
                    "target": cell.task.target,
                    "train": list(cell.task.train),
                    "test": cell.test,
                    "fraction": cell.task.fraction,
                    "subset": subset,
                    "num_lacking": of_zoo.num_lacking,
                    "baseline": baseline,
                    "hardest_baseline": hardest,
                    "methods": [found.entry for found in figures.values()],
                    "refused": refused,
                }
            )
            key = (cell.kind, cell.task.target, cell.task.fraction, subset)
            groups[key].append(figures)
    summaries = [_summary(protocol, key, group) for key, group in groups.items()]
    return {"cells": cells, "summaries": [item for item in summaries if item["methods"]]}


def _score(
    protocol: Protocol,
    cell: Cell,
    methods: Mapping[str, Sequence[int]],
    fits: Fits,
    rows: Rows,
    chosen: npt.NDArray[np.bool_],
    subset: str,
) -> tuple[dict[str, _Figures], dict[str, str]]:
    """Figures of every method that has a finished fit, and why others cannot answer."""
    found: list[tuple[str, int, Mapping[str, Any]]] = []
    predictions, refused = [], {}
    for label, seeds in methods.items():
        for seed in seeds:
            record = fits.get((label, cell.task, seed))
            if record is None:
                continue
            answer = record["tests"][cell.test]
            if "refused" in answer:
                refused[label] = answer["refused"]
                continue
            if answer["ids"] != ids_digest(rows.ids):
                raise IntegrityError(
                    f"Predictions of {label} (seed {seed}) are not about the test networks of {cell.test} that the "
                    f"catalog has now. Remove the line of fit {record['key']} from the state to fit it again."
                )
            found.append((label, seed, record))
            predictions.append(unpack(answer["predictions"])[chosen])
    if not found:
        return {}, refused
    if not chosen.any():
        raise ConfigError(f"No test network of {cell.test} has a {cell.task.target}.")
    target, runs = rows.targets[chosen], rows.runs[chosen]
    taus = resampled_taus(
        target,
        np.stack(predictions),
        runs,
        draws=protocol.draws,
        # What decides the draws is the test zoo, so that all cells that ask about it share them.
        seed=derive_seed(protocol.split.name, cell.test, cell.task.target),
    )
    by_label: dict[str, list[int]] = defaultdict(list)
    for at, (label, _, _) in enumerate(found):
        by_label[label].append(at)
    num_models = len(np.unique(runs))
    figures = {}
    for label, places in by_label.items():
        seeds_of = []
        for at in places:
            prediction = predictions[at]
            seeds_of.append(
                {
                    "seed": found[at][1],
                    "fit": found[at][2]["key"],
                    "n": len(target),
                    "num_models": num_models,
                    "kendall_tau": _round(taus.value[at]),
                    "kendall_tau_ci": _ci(taus.draws[at]),
                    "spearman": _round(spearman(target, prediction)),
                    "r2": _round(r2(target, prediction)),
                    "mae": _round(mae(target, prediction)),
                    "mse": _round(mse(target, prediction), 8),
                }
            )
        validation = float(np.mean([found[at][2]["val_kendall_tau"] for at in places]))
        figures[label] = _Figures(
            tau=float(taus.value[places].mean()),
            draws=taus.draws[places].mean(axis=0),
            validation=validation,
        )
        figures[label].entry = {
            "method": label,
            "n": len(target),
            "num_models": num_models,
            "kendall_tau": _round(figures[label].tau),
            "kendall_tau_std": _spread(taus.value[places]),
            "kendall_tau_ci": _ci(figures[label].draws),
            **_mean_figures(seeds_of),
            "val_kendall_tau": _round(validation),
            "seeds": seeds_of,
        }
    return figures, refused


def _baselines(
    protocol: Protocol, cells: Sequence[Mapping[str, _Figures]]
) -> tuple[str | None, str | None]:
    """The baseline that is best on validation data, and the one that turns out best on the test networks."""
    labels = [
        label
        for label, method in protocol.methods.items()
        if method.baseline and all(label in figures for figures in cells)
    ]
    if not labels:
        return None, None
    by_validation = {label: _average([f[label].validation for f in cells]) for label in labels}
    by_test = {label: _average([f[label].tau for f in cells]) for label in labels}
    return _highest(by_validation), _highest(by_test)


def _highest(values: Mapping[str, float]) -> str:
    return max(values, key=lambda label: -math.inf if math.isnan(values[label]) else values[label])


def _against(
    found: _Figures, figures: Mapping[str, _Figures], baseline: str | None, hardest: str | None
) -> dict[str, Any]:
    """Paired differences of tau from both baselines, for what is not that baseline itself."""
    said = {}
    for name, label in (("difference", baseline), ("difference_hardest", hardest)):
        if label is not None and figures[label] is not found:
            said[name] = _difference(found, figures[label], label)
    return said


def _difference(found: _Figures, other: _Figures, label: str) -> dict[str, Any]:
    """Of tau, paired by run."""
    return {
        "to": label,
        "value": _round(found.tau - other.tau),
        "ci": _ci(found.draws - other.draws),
    }


def _summary(
    protocol: Protocol,
    key: tuple[str, str, float, str],
    cells: Sequence[Mapping[str, _Figures]],
) -> dict[str, Any]:
    """Means over the cells of a kind; methods that lack a cell are left out, for they had an easier task."""
    labels = [label for label in protocol.methods if all(label in figures for figures in cells)]
    means = {
        label: _Figures(
            tau=_average([figures[label].tau for figures in cells]),
            draws=np.mean([figures[label].draws for figures in cells], axis=0),
            validation=_average([figures[label].validation for figures in cells]),
        )
        for label in labels
    }
    baseline, hardest = _baselines(protocol, cells)
    methods = []
    for label, mean in means.items():
        entry = {
            "method": label,
            "kendall_tau": _round(mean.tau),
            "kendall_tau_ci": _ci(mean.draws),
            **_mean_figures(figures[label].entry for figures in cells),
            "lowest": _round(min(figures[label].tau for figures in cells)),
            **_against(mean, means, baseline, hardest),
        }
        if baseline is not None and label != baseline:
            entry["worst_difference"] = _round(
                min(figures[label].tau - figures[baseline].tau for figures in cells)
            )
        methods.append(entry)
    kind, target, fraction, subset = key
    pairs = [
        {"method": label, **_difference(means[label], means[other], other)}
        for label in labels
        for other in labels
        if label != other and not protocol.methods[label].baseline
    ]
    return {
        "kind": kind,
        "target": target,
        "fraction": fraction,
        "subset": subset,
        "num_cells": len(cells),
        "baseline": baseline,
        "hardest_baseline": hardest,
        "methods": methods,
        "pairs": pairs,
    }


def _average(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _round(value: float, digits: int = 5) -> float | None:
    """Rounded, and null for what is undefined, since JSON has no NaN."""
    return round(float(value), digits) if math.isfinite(value) else None


def _ci(draws: npt.NDArray[np.float64]) -> list[float | None]:
    return [_round(end) for end in interval(draws)]


def _spread(values: npt.NDArray[np.float64]) -> float | None:
    return _round(float(values.std(ddof=1))) if len(values) > 1 else None


def _mean_figures(entries: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """Means of all figures but tau. Squared errors are small, so more of their digits are kept."""
    held = list(entries)
    return {
        name: None
        if any(entry[name] is None for entry in held)
        else _round(_average([entry[name] for entry in held]), 8 if name == "mse" else 5)
        for name in _FIGURES
    }
