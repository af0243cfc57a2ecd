"""One fit of a comparison: what its record holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from comparing import protocol

from zooplatform.evaluation.fits import FitRequest, Worker
from zooplatform.evaluation.plan import Task
from zooplatform.evaluation.sides import freeze_sides

if TYPE_CHECKING:
    import pytest
    import torch

    from zooplatform.catalog import Catalog
    from zooplatform.interfaces import NetworkBatch


def test_rates_are_measured_on_networks_that_no_call_saw_before(
    compared: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = type(compared.registry.predictors.create("spread"))
    original = kind.predict
    asked: list[NetworkBatch] = []

    def predict(self: object, batch: NetworkBatch) -> torch.Tensor:
        asked.append(batch)
        found: torch.Tensor = original(self, batch)
        return found

    monkeypatch.setattr(kind, "predict", predict)
    task = Task("test_accuracy", ("mlp-a",))
    worker = Worker(compared, protocol(), freeze_sides(compared, protocol(), [task]))
    for seed in (0, 1):
        request = FitRequest(
            key=f"fit-{seed}",
            label="line",
            backend="spread",
            task=task,
            seed=seed,
            tests=("mlp-a", "cnn-a"),
        )
        assert worker.run(request)["predict_rate"] > 0
    timed = [batch for batch in asked if not batch.ids]
    assert len(timed) == 2  # once for each fit
    seen = {row.tobytes() for batch in asked if batch.ids for row in batch.weights.numpy()}
    new = [row.tobytes() for batch in timed for row in batch.weights.numpy()]
    assert len(set(new)) == len(new)
    assert not seen & set(new)
    assert all(np.isfinite(batch.weights.numpy()).all() for batch in timed)
