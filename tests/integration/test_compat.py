"""Catalogs that older versions wrote open in this one and hold what they held."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from zooplatform.catalog import open_catalog

if TYPE_CHECKING:
    from types import ModuleType

    from zooplatform.catalog import Catalog

COMPAT = Path(__file__).resolve().parents[1] / "data" / "compat"
VERSIONS = sorted(p.name for p in COMPAT.iterdir() if p.is_dir())

pytestmark = pytest.mark.integration


def script(version: str) -> ModuleType:
    """The script that wrote the catalog: its arrays are what must come back."""
    spec = importlib.util.spec_from_file_location(
        f"compat_{version}", COMPAT / version / "datagen.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=VERSIONS)
def written(
    request: pytest.FixtureRequest, tmp_path: Path
) -> tuple[Catalog, ModuleType, dict[str, Any]]:
    """A copy of a catalog of that format, its script, and the facts that were read from it then."""
    version = str(request.param)
    shutil.copytree(COMPAT / version / "catalog", tmp_path / "catalog")
    facts = json.loads((COMPAT / version / "facts.json").read_text(encoding="utf-8"))
    return open_catalog(tmp_path / "catalog"), script(version), facts


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def ids(facts: dict[str, Any], name: str) -> list[str]:
    return [row["checkpoint_id"] for row in facts["checkpoints"] if row["name"].startswith(name)]


def test_the_facts_are_the_same(written: tuple[Catalog, ModuleType, dict[str, Any]]) -> None:
    catalog, module, facts = written
    assert catalog.check(deep=True) == []
    found = json.loads(json.dumps(module.facts(catalog)))
    assert found == facts
    assert len(facts["checkpoints"]) == 12
    assert sum(row["value"] == 0.875 for row in facts["metrics"]) == 1


def test_every_weight_is_the_same(written: tuple[Catalog, ModuleType, dict[str, Any]]) -> None:
    catalog, module, facts = written
    for first in range(4):
        population = catalog.population(ids(facts, f"mlp {first}"), verify=True)
        np.testing.assert_array_equal(population.weights.numpy(), module.mlp(first).weights)
    (counted,) = ids(facts, "counted")
    state = catalog.state_dict(counted, verify=True)
    assert state["weight"].numpy().tobytes() == module.counted().weights.tobytes()
    assert state["num_batches_tracked"].item() == 263
    for number, checkpoint in enumerate(ids(facts, "single")[:2]):
        state = catalog.state_dict(checkpoint, verify=True)
        for name, tensor in module.single(number).items():
            assert state[name].dtype == tensor.dtype
            assert bits(state[name]) == bits(tensor), name
    assert isinstance(catalog.build(ids(facts, "mlp")[0]), torch.nn.Module)


def test_export_gives_the_ingested_files(
    written: tuple[Catalog, ModuleType, dict[str, Any]], tmp_path: Path
) -> None:
    catalog, _, facts = written
    for row in facts["files"]:
        out = catalog.export(row["checkpoint_id"], tmp_path / f"{row['checkpoint_id']}.safetensors")
        assert hashlib.sha256(out.read_bytes()).hexdigest() == row["sha256"]
    assert len(facts["files"]) == 2


def test_it_can_be_written_on(written: tuple[Catalog, ModuleType, dict[str, Any]]) -> None:
    catalog, module, facts = written
    assert catalog.append(module.mlp(0), zoo="compat") == tuple(ids(facts, "mlp 0"))
    new = catalog.append(module.mlp(50), zoo="compat")
    assert catalog.compact()
    catalog.gc(grace_seconds=0)
    assert catalog.check(deep=True) == []
    for first, known in ((0, ids(facts, "mlp 0")), (50, new)):
        weights = catalog.population(known, verify=True).weights.numpy()
        np.testing.assert_array_equal(weights, module.mlp(first).weights)


def test_the_fixtures_are_small() -> None:
    for version in VERSIONS:
        size = sum(p.stat().st_size for p in (COMPAT / version).rglob("*") if p.is_file())
        assert size < 300 * 1024, version
