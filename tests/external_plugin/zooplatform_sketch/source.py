"""`sketch:N`: N networks of one linear layer with random weights, the same in every run."""

from __future__ import annotations

import numpy as np

from zooplatform.errors import SourceError
from zooplatform.interfaces import (
    CheckpointRecord,
    MetricRecord,
    ModelInfo,
    PopulationBatch,
    TensorSpec,
)

LAYOUT = (
    TensorSpec("sketch.weight", "float32", (3, 4), 48),
    TensorSpec("sketch.bias", "float32", (3,), 12),
)


class SketchSource:
    def batches(self, ref, *, done=frozenset(), progress=None):
        count = self._count(ref)
        wanted = [index for index in range(count) if (f"sketch-{index}", 0) not in done]
        if not wanted:
            return
        weights = [np.random.default_rng(index).standard_normal(15) for index in wanted]
        if progress:
            progress("sketch", count, count)
        yield PopulationBatch(
            layout=LAYOUT,
            weights=np.ascontiguousarray(weights, dtype=np.float32),
            rows=[self._record(index) for index in wanted],
            family="sketch",
            name="sketch",
            config={"inputs": 4, "outputs": 3},
        )

    def describe(self, ref):
        return {"name": f"sketch-{self._count(ref)}", "license": "CC0-1.0", "revision": "1"}

    def _count(self, ref):
        if not ref.isdigit() or int(ref) == 0:
            raise SourceError(
                f"sketch:{ref}", "it must be a positive number of networks.", "Try sketch:8."
            )
        return int(ref)

    def _record(self, index):
        return CheckpointRecord(
            model=ModelInfo(
                key=f"sketch-{index}",
                name=f"sketch {index}",
                source=f"sketch:{index}",
                revision="1",
                seed=index,
            ),
            step=0,
            metrics=(MetricRecord(name="order", value=float(index)),),
        )
