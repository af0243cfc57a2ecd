"""`zoo predictor matrix`: a whole comparison, from the protocol to one JSON file.

    report = run_matrix(catalog, load_protocol("matrix-sne.toml"), Path("results.json"), jobs=2)

Every finished fit is kept beside the output at once, so a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zooplatform import __version__
from zooplatform.errors import ConfigError
from zooplatform.evaluation.comparison import compare
from zooplatform.evaluation.execution import run_fits
from zooplatform.evaluation.fits import FitRequest, code_hash
from zooplatform.evaluation.plan import make_plan
from zooplatform.evaluation.sides import freeze_sides, scored_rows, torn_groups
from zooplatform.evaluation.state import State, fit_key, unpack
from zooplatform.evaluation.tuning import Trial, best_trial, trial_configs, written_out

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from zooplatform.catalog import Catalog
    from zooplatform.evaluation.comparison import TestRows
    from zooplatform.evaluation.plan import Plan, Task
    from zooplatform.evaluation.protocols import Method, Protocol
    from zooplatform.evaluation.sides import Sides
    from zooplatform.interfaces import Progress

__all__ = ["FORMAT", "MatrixReport", "run_matrix", "state_path"]

FORMAT = 1
_LIBRARIES = ("lightgbm", "numpy", "pyarrow", "scikit-learn", "torch")


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
    run = _Run(catalog, protocol, plan, sides, State(state_path(output)), device, refit, progress)
    run.tune(jobs, deadline)
    run.fit(jobs, deadline)
    rows: dict[tuple[str, bool], Any] = {
        (zoo, leaky): scored_rows(catalog, protocol, sides, zoo, leaky=leaky)
        for zoo, leaky in dict.fromkeys((cell.test, cell.task.leaky) for cell in plan.cells)
    }
    results = {
        "format": FORMAT,
        "name": protocol.name,
        "title": protocol.title,
        "side": "final" if final else "test",
        "complete": run.missing == 0,
        "protocol": protocol.source,
        "protocol_digest": protocol.digest,
        "only": list(only),
        "versions": _versions(),
        "machine": _machine(jobs, device),
        "splits": sides.ids(),
        "counts": _counts(sides, rows, final=final),
        "audit": _audit(catalog, sides),
        **compare(protocol, plan, run.fits, rows, final=final),
        "fits": run.listed(),
        "tuning": run.tuning,
        "failed": [{"fit": what, "reason": reason} for what, reason in run.failed],
    }
    results = _write_json(output, results)
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


class _Run:
    """The fits of one call: which are there, which are to be made.

    Attributes:
        fits: record of every finished fit by (method, task, seed).
        tuning: every trial of every tuned method, as the results list them.
        failed: what failed, and why.
    """

    def __init__(
        self,
        catalog: Catalog,
        protocol: Protocol,
        plan: Plan,
        sides: Sides,
        state: State,
        device: str,
        refit: bool,
        progress: Progress | None,
    ) -> None:
        self._catalog, self._protocol, self._plan, self._sides = catalog, protocol, plan, sides
        self._state, self._device, self._refit, self._progress = state, device, refit, progress
        self.fits: dict[tuple[str, Task, int], Mapping[str, Any]] = {}
        self.tuning: list[dict[str, Any]] = []
        self.failed: list[tuple[str, str]] = []
        self.changed: set[str] = set()
        self.fitted = self.reused = self.missing = 0
        self._base: dict[str, dict[str, Any]] = {}
        self._code: dict[str, str] = {}
        for label in dict.fromkeys(label for label, _, _ in plan.tests):
            method = protocol.methods[label]
            backend = type(catalog.registry.predictors.create(method.backend))
            self._base[label] = written_out(method, getattr(backend, "CONFIGS", {}))
            self._code[label] = code_hash(backend)
        self._chosen: dict[tuple[str, Task], dict[str, Any] | None] = {}

    def tune(self, jobs: int, deadline: float) -> None:
        """Try the configurations of methods with a budget, on validation data alone."""
        requests: dict[tuple[str, Task], list[FitRequest]] = {}
        for label, task, _ in self._plan.tests:
            method = self._protocol.methods[label]
            if method.trials < 2 or (label, task) in requests:
                continue
            seed = self._protocol.seeds[0]
            configs = trial_configs(method, self._base[label], seed=self._protocol.split.seed)
            requests[label, task] = [
                self._request(method, task, seed, config, ()) for config in configs
            ]
        every = [request for group in requests.values() for request in group]
        records = self._all(every, jobs, deadline, "trials")
        failed = dict(self.failed)
        for (label, task), group in requests.items():
            trials, done = [], True
            for request in group:
                record = records.get(request.key)
                if record is None and _says(request) not in failed:
                    done = False
                tau = float("nan") if record is None else record["val_kendall_tau"]
                trials.append(Trial(request.config, tau))
            if not done or all(np.isnan(trial.val_kendall_tau) for trial in trials):
                self._chosen[label, task] = None
                continue
            best = best_trial(trials)
            self._chosen[label, task] = dict(best.config)
            self.tuning.append(
                {
                    "method": label,
                    **task._asdict(),
                    "chosen": trials.index(best),
                    "trials": [
                        {
                            "config": dict(trial.config),
                            "val_kendall_tau": None
                            if np.isnan(trial.val_kendall_tau)
                            else round(trial.val_kendall_tau, 5),
                        }
                        for trial in trials
                    ],
                }
            )

    def fit(self, jobs: int, deadline: float) -> None:
        """Fit what the cells need."""
        wanted: dict[tuple[str, Task, int], FitRequest] = {}
        for (label, task, seed), tests in self._plan.tests.items():
            config = self._chosen.get((label, task), self._base[label])
            if config is None:
                self.missing += 1  # its trials are not finished
                continue
            method = self._protocol.methods[label]
            wanted[label, task, seed] = self._request(method, task, seed, config, tests)
        records = self._all(list(wanted.values()), jobs, deadline, "fits")
        for place, request in wanted.items():
            record = records.get(request.key)
            if record is None:
                self.missing += 1
            else:
                self.fits[place] = record

    def listed(self) -> list[dict[str, Any]]:
        """The fits as the results list them: all but the predictions."""
        return [
            {
                "method": label,
                **{name: value for name, value in record.items() if name not in ("tests", "task")},
                **task._asdict(),
                "refused": {
                    zoo: answer["refused"]
                    for zoo, answer in record["tests"].items()
                    if "refused" in answer
                },
            }
            for (label, task, _), record in self.fits.items()
        ]

    def _request(
        self,
        method: Method,
        task: Task,
        seed: int,
        config: Mapping[str, Any],
        tests: tuple[str, ...],
    ) -> FitRequest:
        key = fit_key(
            format=FORMAT,
            backend=method.backend,
            config=config,
            target=self._protocol.targets[task.target],
            fraction=task.fraction,
            train=[self._sides.of(zoo, leaky=task.leaky).split_id for zoo in task.train],
            seed=seed,
            max_minutes=method.max_minutes,
            purpose="fit" if tests else "trial",
        )
        return FitRequest(
            key=key,
            label=method.label,
            backend=method.backend,
            config=config,
            task=task,
            seed=seed,
            tests=tests,
            max_minutes=method.max_minutes,
            device=self._device,
        )

    def _all(
        self, requests: Sequence[FitRequest], jobs: int, deadline: float, what: str
    ) -> dict[str, Mapping[str, Any]]:
        """Records by key: those that are there, and those that are made now."""
        found: dict[str, Mapping[str, Any]] = {}
        to_do: dict[str, FitRequest] = {}
        for request in requests:
            record = self._state.find(request.key, request.tests)
            stale = record is not None and record["code"] != self._code[request.label]
            if record is None or (stale and self._refit):
                to_do.setdefault(request.key, request)
                continue
            found[request.key] = record
            if stale:
                self.changed.add(request.label)
        self.reused += len(found)
        # Fits on the same networks follow each other, so that a process opens them once.
        ordered = sorted(
            to_do.values(), key=lambda r: (r.task.train, r.task.target, r.label, r.seed)
        )
        done = len(found)
        for outcome in run_fits(
            self._catalog, self._protocol, self._sides, ordered, jobs=jobs, deadline=deadline
        ):
            done += 1
            if outcome.record is None:
                self.failed.append((_says(outcome.request), outcome.error))
            else:
                self._state.add(outcome.record)
                found[outcome.request.key] = outcome.record
                self.fitted += 1
            if self._progress is not None:
                self._progress(what, done, len(found) + len(to_do))
        return found


def _says(request: FitRequest) -> str:
    """A fit in words."""
    task = request.task
    share = "" if task.fraction == 1 else f" ({task.fraction:g} of the runs)"
    return f"{request.label} on {', '.join(task.train)}{share}, {task.target}, seed {request.seed}, {request.config}"


def _versions() -> dict[str, str]:
    found = {"zooplatform": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _machine(jobs: int, device: str) -> dict[str, Any]:
    """What the times depend on."""
    found: dict[str, Any] = {
        "system": platform.system(),
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "jobs": jobs,
        "device": device,
    }
    if device != "cpu":
        import torch

        found["gpu"] = torch.cuda.get_device_name(device)
    return found


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


def _write_json(path: Path, value: Mapping[str, Any]) -> dict[str, Any]:
    """Write a file that is whole or not there, and give what will be read from it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)
    found: dict[str, Any] = json.loads(text)
    return found


def _write_predictions(path: Path, run: _Run, rows: TestRows, *, final: bool) -> None:
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
