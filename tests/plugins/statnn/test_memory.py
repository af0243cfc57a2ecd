"""What is kept of networks that were looked at."""

from __future__ import annotations

import numpy as np
import torch

from zooplatform.interfaces import NetworkBatch, TensorSpec
from zooplatform.layout import VectorLayout
from zooplatform_statnn.memory import _Memory, remembered


def test_what_is_asked_for_stays_in_a_full_memory() -> None:
    memory = _Memory(3 * 8)
    for name in (b"a", b"b", b"c"):
        memory.put(name, np.zeros(2, np.float32))
    assert memory.get(b"a") is not None
    memory.put(b"d", np.zeros(2, np.float32))
    assert [memory.get(name) is not None for name in (b"a", b"b", b"c", b"d")] == [
        True,
        False,
        True,
        True,
    ]


def test_only_new_networks_are_computed() -> None:
    asked: list[int] = []

    def twice(rows: torch.Tensor) -> torch.Tensor:
        asked.append(len(rows))
        return 2 * rows

    vector = VectorLayout((TensorSpec("weight", "float32", (3,), 12),))
    weights = torch.arange(12.0).view(4, 3)
    first = remembered(NetworkBatch(weights[:3], vector), "twice", (3,), twice)
    again = remembered(NetworkBatch(weights.flip(0), vector), "twice", (3,), twice)
    assert asked == [3, 1]
    assert torch.equal(first, 2 * weights[:3])
    assert torch.equal(again, 2 * weights.flip(0))
    # The same networks under another name are other numbers.
    other = remembered(NetworkBatch(weights, vector), "thrice", (3,), lambda rows: 3 * rows)
    assert torch.equal(other, 3 * weights)
