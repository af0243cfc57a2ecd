"""One fit of a comparison: what a worker process does, from the catalog to predictions."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zooplatform.errors import ZooError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    import numpy.typing as npt

    from zooplatform.catalog import Catalog
    from zooplatform.datasets import WeightDataset
    from zooplatform.evaluation.plan import Task
    from zooplatform.evaluation.protocols import Protocol
    from zooplatform.evaluation.sides import Sides
    from zooplatform.interfaces import Predictor

__all__ = ["FitRequest", "Worker", "code_hash"]

_BATCH = 4096
# Networks that the predict rate is measured on.
_TIMED = 1024
# Data sets kept open; each holds ids and targets, the weights stay in mapped files.
_OPEN = 64


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """What to fit, and whom to ask about.

    Attributes:
        key: name of the fit in the state.
        label: of the method.
        backend: name of the predictor.
        config: written out.
        task: training networks and target.
        seed: of the fit.
        tests: zoos to predict; none for a trial, which must not see test networks.
        max_minutes: limit of the fit.
        device: torch device.
    """

    key: str
    label: str
    backend: str
    task: Task
    seed: int
    config: Mapping[str, Any] = field(default_factory=dict)
    tests: tuple[str, ...] = ()
    max_minutes: float | None = None
    device: str = "cpu"


class Worker:
    """Fits one request after the other; what they share is opened once.

    Args:
        catalog: where the networks are.
        protocol: what the zoos and targets are.
        sides: the frozen splits.
    """

    def __init__(self, catalog: Catalog, protocol: Protocol, sides: Sides) -> None:
        self._catalog, self._protocol, self._sides = catalog, protocol, sides
        self._open: OrderedDict[tuple[Any, ...], WeightDataset] = OrderedDict()

    def run(self, request: FitRequest) -> dict[str, Any]:
        """Fit and predict.

        Returns:
            The record for the state: seconds, validation tau, and per test zoo the predictions in the order of sorted
            checkpoint ids, or why the method cannot answer.

        Raises:
            ZooError: it cannot be fitted.
        """
        import torch

        from zooplatform.evaluation.scores import kendall_tau
        from zooplatform.evaluation.state import pack
        from zooplatform.fitting import FitData

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # on one thread a fit can be repeated bit for bit
        try:
            train = self._networks(request.task, "train", request.seed)
            validation = self._networks(request.task, "val", 0)
            predictor = self._catalog.registry.predictors.create(request.backend)
            data = FitData(
                train=train,
                validation=validation,
                device=request.device,
                max_minutes=request.max_minutes,
            )
            start = time.perf_counter()
            report = predictor.fit(
                data, target=request.task.target, config=request.config, seed=request.seed
            )
            seconds = time.perf_counter() - start
            record: dict[str, Any] = {
                "key": request.key,
                "backend": request.backend,
                "code": code_hash(type(predictor)),
                "config": dict(request.config),
                "task": request.task._asdict(),
                "seed": request.seed,
                "device": request.device,
                "seconds": round(seconds, 3),
                "num_train": len(train),
                "num_val": len(validation),
                "val_kendall_tau": kendall_tau(validation.targets, _predict(predictor, validation)),
                "metrics": {name: float(value) for name, value in report.metrics.items()},
                "notes": [*train.notes, *report.notes],
                "tests": {},
            }
            for zoo in request.tests:
                test = self._test(request.task, zoo)
                try:
                    values = _predict(predictor, test)
                except ZooError as exc:  # for example a method that knows one architecture only
                    record["tests"][zoo] = {"refused": str(exc)}
                    continue
                order = sorted(range(len(test)), key=test.ids.__getitem__)
                record["tests"][zoo] = {
                    "ids": ids_digest(test.ids[at] for at in order),
                    "predictions": pack(values[order]),
                }
                if "predict_rate" not in record:
                    record["predict_rate"] = round(_rate(predictor, test, request.key), 1)
            return record
        finally:
            torch.set_num_threads(threads)

    def _networks(self, task: Task, role: str, seed: int) -> WeightDataset:
        from zooplatform.evaluation.sides import networks

        # The seed decides only which share of the runs is taken, and that of the training networks alone.
        share = seed if role == "train" and task.fraction < 1 else 0
        plain = task if role == "train" else task._replace(fraction=1.0)
        return self._kept(
            (plain, role, share),
            lambda: networks(self._catalog, self._protocol, self._sides, plain, role, seed=share),
        )

    def _test(self, task: Task, zoo: str) -> WeightDataset:
        from zooplatform.evaluation.sides import scored_networks

        return self._kept(
            (task.target, task.leaky, zoo),
            lambda: scored_networks(self._catalog, self._protocol, self._sides, task, zoo),
        )

    def _kept(self, key: tuple[Any, ...], make: Callable[[], WeightDataset]) -> WeightDataset:
        if key not in self._open:
            self._open[key] = make()
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(key)
        return self._open[key]


def ids_digest(ids: Any) -> str:
    """Names the networks that predictions are about, in their order."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def _predict(predictor: Predictor, data: WeightDataset) -> npt.NDArray[np.float64]:
    """(N,) predictions, refused where one is not finite."""
    import numpy as np

    from zooplatform.fitting import network_batches

    values = np.empty(len(data))
    for indices, batch in network_batches(data, _BATCH):
        values[indices] = predictor.predict(batch).numpy()
    if not np.isfinite(values).all():
        example = data.ids[int((~np.isfinite(values)).argmax())]
        raise ZooError(
            f"{type(predictor).__name__} gave {int((~np.isfinite(values)).sum())} of {len(values)} predictions that "
            f"are not finite, for example that of {example}."
        )
    return values


def _rate(predictor: Predictor, data: WeightDataset, key: str) -> float:
    """Networks predicted per second.

    They have no ids, and their weights are scaled as in no other fit, so that nothing kept from an earlier call helps.
    """
    import torch

    from zooplatform.fitting import network_batches

    _, batch = next(iter(network_batches(data, _TIMED)))
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest())
    factors = 0.5 + torch.rand(
        len(batch.weights), 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    weights = (batch.weights * factors).to(batch.weights.dtype)
    batch = batch._replace(ids=(), weights=weights)
    start = time.perf_counter()
    predictor.predict(batch)
    return len(batch.weights) / (time.perf_counter() - start)


@lru_cache(maxsize=64)
def code_hash(kind: type) -> str:
    """The first 16 hex digits of a hash over the Python files of the package that a backend is in."""
    name = kind.__module__.partition(".")[0]
    found = find_spec(name)
    if found is None or found.origin is None:
        return ""
    origin = Path(found.origin)
    files = sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]
    digest = hashlib.sha256()
    for file in files:
        digest.update(
            file.relative_to(origin.parent).as_posix().encode() + b"\0" + file.read_bytes()
        )
    return digest.hexdigest()[:16]
