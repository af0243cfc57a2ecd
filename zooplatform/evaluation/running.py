"""The fits of a comparison: which are there, which are to be made, in which order.

Every finished fit is kept at once, so what was interrupted goes on where it was.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from zooplatform.errors import ConfigError
from zooplatform.evaluation.configurations import written_out
from zooplatform.evaluation.execution import run_fits
from zooplatform.evaluation.fits import FitRequest, code_hash
from zooplatform.evaluation.state import FORMAT, fit_key
from zooplatform.evaluation.tuning import Trial, best_trial, trial_configs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zooplatform.catalog import Catalog
    from zooplatform.evaluation.plan import Plan, Task
    from zooplatform.evaluation.protocols import Method, Protocol
    from zooplatform.evaluation.sides import Sides
    from zooplatform.evaluation.state import State
    from zooplatform.interfaces import Progress

__all__ = ["Run"]


class Run:
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
            try:
                named = getattr(backend, "CONFIGS", {})
                self._base[label] = written_out(method.backend, named, method.config)
            except ConfigError as exc:
                raise ConfigError(f"methods.{label}: {exc}") from exc
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
                **_defined({n: v for n, v in record.items() if n not in ("tests", "task")}),
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
        # Seed by seed: what is there when time ends is every cell with fewer seeds. Within one, fits on the same
        # networks follow each other, so that a process opens them once.
        ordered = sorted(
            to_do.values(), key=lambda r: (r.seed, r.task.train, r.task.target, r.label)
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


def _defined(value: Any) -> Any:
    """The same with null for NaN: a fit whose predictions are all equal has no tau."""
    if isinstance(value, dict):
        return {name: _defined(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
