"""Any order of operations: the catalog always holds what a dictionary in memory holds."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from catalog_invariants import assert_no_half_commit, assert_tidy
from catalog_processes import digest, population, tensor_file, tensors
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from zooplatform.catalog import open_catalog
from zooplatform.plugins import load_plugins

if TYPE_CHECKING:
    from zooplatform.catalog import Catalog

pytestmark = pytest.mark.integration

REGISTRY = load_plugins()
WHO = st.integers(0, 1)
NUMBERS = st.integers(0, 4)


class Operations(RuleBasedStateMachine):
    """Two catalog objects over one folder, as two processes have them."""

    @initialize()
    def create(self) -> None:
        self.temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self.temporary.name)
        self.path = self.folder / "catalog"
        self.catalogs: list[Catalog] = [
            open_catalog(self.path, create=True, registry=REGISTRY) for _ in range(2)
        ]
        self.populations: dict[int, tuple[str, ...]] = {}
        self.singles: dict[int, str] = {}
        self.headers: dict[int, str] = {}
        self.metrics: dict[str, float] = {}

    @rule(who=WHO, number=NUMBERS)
    def append(self, who: int, number: int) -> None:
        ids = self.catalogs[who].append(population(0, number), zoo="z")
        if number not in self.populations:
            self.metrics |= {c: number + row / 10 for row, c in enumerate(ids)}
        assert self.populations.setdefault(number, ids) == ids

    @rule(who=WHO, number=NUMBERS)
    def ingest(self, who: int, number: int) -> None:
        (checkpoint,) = (
            self.catalogs[who].ingest(tensor_file(self.folder, 1, number)).checkpoint_ids
        )
        assert self.headers.pop(number, checkpoint) == checkpoint
        assert self.singles.setdefault(number, checkpoint) == checkpoint

    @rule(who=WHO, number=NUMBERS)
    def ingest_header(self, who: int, number: int) -> None:
        file = tensor_file(self.folder, 1, number)
        (checkpoint,) = self.catalogs[who].ingest(file, header_only=True).checkpoint_ids
        if number not in self.singles:
            assert self.headers.setdefault(number, checkpoint) == checkpoint

    @rule(who=WHO, value=st.floats(0, 1))
    def correct(self, who: int, value: float) -> None:
        if self.metrics:
            checkpoint = min(self.metrics)
            self.metrics[checkpoint] = value
            row = {
                "checkpoint_id": checkpoint, "dataset": "", "split": "test",
                "name": "test_accuracy", "value": value, "origin": "reported",
            }  # fmt: skip
            self.catalogs[who].commit("correct", {"metrics": [row]}, replaces=["metrics"])

    @rule(who=WHO)
    def compact(self, who: int) -> None:
        self.catalogs[who].compact()

    @rule(who=WHO)
    def collect(self, who: int) -> None:
        self.catalogs[who].gc(grace_seconds=0)

    @rule(who=WHO)
    def reopen(self, who: int) -> None:
        self.catalogs[who] = open_catalog(self.path, registry=REGISTRY)

    @invariant()
    def both_hold_everything(self) -> None:
        for catalog in self.catalogs:
            metrics = catalog.snapshot().table("metrics", ["checkpoint_id", "name", "value"])
            stored = {
                r["checkpoint_id"]: r["value"]
                for r in metrics.to_pylist()
                if r["name"] == "test_accuracy"
            }
            assert stored == self.metrics
            states = catalog.snapshot().table("checkpoints", ["checkpoint_id", "state"]).to_pylist()
            expected = [(c, "stored") for ids in self.populations.values() for c in ids]
            expected += [(c, "stored") for c in self.singles.values()]
            expected += [(c, "header-only") for c in self.headers.values()]
            assert sorted((r["checkpoint_id"], r["state"]) for r in states) == sorted(expected)
            for number, checkpoint in self.singles.items():
                state = catalog.state_dict(checkpoint, verify=True)
                assert digest({k: v.numpy() for k, v in state.items()}) == digest(
                    tensors(1, number)
                )
            if self.populations:
                ids = [c for number in self.populations for c in self.populations[number]]
                given = np.concatenate([population(0, n).weights for n in self.populations])
                np.testing.assert_array_equal(
                    catalog.population(ids, verify=True).weights.numpy(), given
                )

    def teardown(self) -> None:
        if hasattr(self, "catalogs"):
            for catalog in self.catalogs:
                assert_tidy(catalog)
                if not self.headers:
                    assert_no_half_commit(catalog)
                catalog.close()
            self.temporary.cleanup()


TestOperations = pytest.mark.timeout(300)(Operations.TestCase)
TestOperations.settings = settings(
    max_examples=10,
    stateful_step_count=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
