"""`zoo predictor matrix`: a whole comparison, from the protocol to one JSON file.

    report = run_matrix(catalog, load_protocol("matrix-sne.toml"), Path("results.json"), jobs=2)

Every finished fit is kept beside the output at once, so a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zooplatform.errors import ConfigError
from zooplatform.evaluation.comparison import compare
from zooplatform.evaluation.plan import make_plan
from zooplatform.evaluation.records import machine, versions, write_json
from zooplatform.evaluation.running import Run
from zooplatform.evaluation.sides import freeze_sides, scored_rows, torn_groups
from zooplatform.evaluation.state import FORMAT, State, unpack

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from zooplatform.catalog import Catalog
    from zooplatform.evaluation.comparison import TestRows
    from zooplatform.evaluation.protocols import Protocol
    from zooplatform.evaluation.sides import Sides
    from zooplatform.interfaces import Progress

__all__ = ["MatrixReport", "run_matrix", "state_path"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixReport:
    """What a run did.

    Attributes:
        path: the JSON file.
        fitted, reused: fits of this run, and those of earlier ones.
        failed: (fit, reason) of those that failed.
        missing: fits that are still to be done.
        changed: methods with fits made by other code than is installed now.
        results: what was written.
    """

    path: Path
    fitted: int
    reused: int
    failed: tuple[tuple[str, str], ...]
    missing: int
    changed: tuple[str, ...]
    results: Mapping[str, Any]


def state_path(output: Path) -> Path:
    """Where the finished fits of a comparison are kept."""
    return output.with_suffix(".state.jsonl")


def run_matrix(
    catalog: Catalog,
    protocol: Protocol,
    output: Path,
    *,
    jobs: int = 1,
    only: Sequence[str] = (),
    final: bool = False,
    refit: bool = False,
    device: str = "cpu",
    max_minutes: float | None = None,
    predictions: Path | None = None,
    progress: Progress | None = None,
) -> MatrixReport:
    """Fit and score what a protocol asks for.

    Args:
        catalog: holds the zoos; the splits are frozen in it.
        protocol: what to compare.
        output: JSON file to write; the state lies beside it.
        jobs: processes that fit.
        only: labels of the methods to fit and show; all of them by default.
        final: score the networks that were kept for the last look instead of the others.
        refit: fit again what was fitted by other code than is installed now.
        device: torch device of the fits.
        max_minutes: begin no fit after this time; the next run goes on.
        predictions: `.npz` file for the predictions that the figures are made of.
        progress: told how many fits are done.

    Raises:
        ConfigError: the protocol does not fit the catalog, or `final` is asked for where nothing was kept.
        ZooError: a fitting process died.
    """
    if final and not protocol.split.final:
        raise ConfigError(
            f"{protocol.name} keeps no networks for a last look. Set split.final in the protocol, and "
            "another split.name."
        )
    if jobs < 1:
        raise ConfigError(f"--jobs {jobs} is none. Give 1 or more.")
    deadline = float("inf") if max_minutes is None else time.monotonic() + 60 * max_minutes
    plan = make_plan(protocol, only)
    sides = freeze_sides(catalog, protocol, {task for _, task, _ in plan.tests})
    run = Run(catalog, protocol, plan, sides, State(state_path(output)), device, refit, progress)
    run.tune(jobs, deadline)
    run.fit(jobs, deadline)
    rows: dict[tuple[str, bool], Any] = {
        (zoo, leaky): scored_rows(catalog, protocol, sides, zoo, leaky=leaky)
        for zoo, leaky in dict.fromkeys((cell.test, cell.task.leaky) for cell in plan.cells)
    }
    results = {
        "format": FORMAT,
        # Names the pages too, which must not take the place of those of the other side.
        "name": f"{protocol.name}-final" if final else protocol.name,
        "title": protocol.title,
        "side": "final" if final else "test",
        "complete": run.missing == 0,
        "protocol": protocol.source,
        "protocol_digest": protocol.digest,
        "only": list(only),
        "versions": versions(),
        "machine": machine(jobs, device),
        "splits": sides.ids(),
        "counts": _counts(sides, rows, final=final),
        "audit": _audit(catalog, sides),
        **compare(protocol, plan, run.fits, rows, final=final),
        "fits": run.listed(),
        "tuning": run.tuning,
        "failed": [{"fit": what, "reason": reason} for what, reason in run.failed],
    }
    results = write_json(output, results)
    if predictions is not None:
        _write_predictions(predictions, run, rows, final=final)
    return MatrixReport(
        path=output,
        fitted=run.fitted,
        reused=run.reused,
        failed=tuple(run.failed),
        missing=run.missing,
        changed=tuple(sorted(run.changed)),
        results=results,
    )


def _counts(sides: Sides, rows: TestRows, *, final: bool) -> dict[str, dict[str, int]]:
    """Checkpoints and runs of every zoo by role; `test` are those that are scored."""
    found = {}
    for zoo, split in sides.main.items():
        of_zoo = {
            role: split.checkpoints[role] for role in ("train", "val") if role in split.checkpoints
        }
        of_zoo |= {f"{role}_models": split.models[role] for role in of_zoo}
        side = sides.final.get(zoo, split)
        role = "test" if final or side is split else "train"
        of_zoo |= {"test": side.checkpoints[role], "test_models": side.models[role]}
        found[zoo] = of_zoo
    return found


def _audit(catalog: Catalog, sides: Sides) -> dict[str, dict[str, int]]:
    """Groups and runs that are fitted on and asked about, by zoo: 0 where nothing leaks."""
    return {
        zoo: {
            "leaking": len(torn_groups(catalog, split)),
            **(
                {"leaking_by_checkpoint": len(torn_groups(catalog, sides.leaky[zoo]))}
                if zoo in sides.leaky
                else {}
            ),
        }
        for zoo, split in sides.main.items()
    }


def _write_predictions(path: Path, run: Run, rows: TestRows, *, final: bool) -> None:
    """`ids/ZOO/TARGET`, `target/ZOO/TARGET` and `FIT/ZOO` of the networks that are scored."""
    arrays: dict[str, Any] = {}
    for (_, task, _), record in run.fits.items():
        for zoo, answer in record["tests"].items():
            if "refused" in answer or (zoo, task.leaky) not in rows or (final and task.leaky):
                continue
            of_zoo = rows[zoo, task.leaky][task.target]
            chosen = of_zoo.final == final
            where = f"{zoo}{'.leaky' if task.leaky else ''}/{task.target}"
            arrays[f"ids/{where}"] = np.array(of_zoo.ids)[chosen]
            arrays[f"target/{where}"] = of_zoo.targets[chosen]
            arrays[f"{record['key']}/{zoo}"] = unpack(answer["predictions"])[chosen]
    np.savez_compressed(path, **arrays)
