"""A third-party plugin: built and installed by pip into a folder, used from a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from zooplatform import hookspecs

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

USE = """
import json, pathlib, sys, tempfile
import torch
import zooplatform as zoo
from zooplatform.generation.sampling import sample_networks
from zooplatform.generation.stored_fits import fit_generator
from zooplatform.interfaces import TokenBatch

folder = pathlib.Path(sys.argv[1])
registry = zoo.load_plugins(strict=True)
with zoo.open_catalog(folder, create=True, registry=registry) as catalog:
    report = catalog.ingest("sketch:6")
    catalog.ingest("sketch:6")
    state = catalog.state_dict(report.checkpoint_ids[0])
    rebuilt = catalog.build(report.checkpoint_ids[0])
    rows = catalog.sql(
        "SELECT name, sketch_percent(seed / 8) AS share FROM sketch_networks ORDER BY seed"
    ).to_pylist()
    layout = catalog.population("SELECT checkpoint_id FROM checkpoints").layout
    states = [catalog.state_dict(item) for item in report.checkpoint_ids]
    fit_generator(catalog, "sketch", name="near", query="SELECT checkpoint_id FROM checkpoints")
    sampled = sample_networks(catalog, "near", 2, seed=3).checkpoint_ids
    made = torch.cat([catalog.build(item).sketch.weight.detach().flatten()[None] for item in sampled])

tokenizer = registry.tokenizers.create("sketch")
tokens = torch.cat([tokenizer.encode(item, layout=layout).tokens for item in states])
batch = TokenBatch(tokens, torch.ones_like(tokens, dtype=bool), torch.zeros(6, 1, 3), {})
back = tokenizer.decode(tokenizer.encode(state, layout=layout), layout=layout)
predictor = registry.predictors.create("sketch")
predictor.fit([(batch, torch.arange(6.0))], target="order", config={}, seed=0)
with tempfile.TemporaryDirectory() as kept:
    predictor.save(pathlib.Path(kept))
    loaded = registry.predictors.create("sketch")
    loaded.load(pathlib.Path(kept))
known = torch.cat([item["sketch.weight"].flatten()[None] for item in states])
print(json.dumps({
    "plugin": registry.plugin("sketch").name,
    "hooks": registry.plugin("sketch").hooks,
    "num_ingested": len(report.checkpoint_ids),
    "models": list(report.model_ids),
    "same": all(torch.equal(back[name], state[name]) for name in state),
    "rebuilt": all(torch.equal(rebuilt.state_dict()[name], state[name]) for name in state),
    "rows": rows,
    "predicted": loaded.predict(batch).tolist(),
    "distances": torch.cdist(made, known).min(1).values.tolist(),
    "share": registry.property_function("positive_share")(state, ()),
}))
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Path:
    """The plugin, built from a copy (a build leaves files behind) and installed by pip."""
    project = tmp_path_factory.mktemp("project") / "external_plugin"
    shutil.copytree(checkout / "tests" / "external_plugin", project)
    target = tmp_path_factory.mktemp("site")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(project)],
        check=True,
        timeout=110,
    )
    return target


def run(site: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=110,
    )


@pytest.fixture(scope="module")
def used(site: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("used")
    result = run(site, "-c", USE, str(folder / "catalog"), SKETCH_LOG=str(folder / "log"))
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    found["log"] = (folder / "log").read_text().splitlines()
    found["catalog"] = str(folder / "catalog")
    return found


def test_it_implements_every_hook(used: dict[str, Any]) -> None:
    hooks = {name for name in vars(hookspecs) if name.startswith("zoo_")}
    assert set(used["hooks"]) == hooks


def test_it_is_listed_with_its_distribution(site: Path) -> None:
    result = run(site, "-m", "zooplatform", "plugins", "--json")
    plugins = {item["name"]: item for item in json.loads(result.stdout)}
    sketch = plugins["sketch"]
    assert (sketch["distribution"], sketch["version"]) == ("zooplatform-sketch", "0.4.0")
    assert sketch["status"] == "loaded"
    assert set(sketch["provides"]) == {
        "source:sketch",
        "architecture:sketch",
        "tokenizer:sketch",
        "predictor:sketch",
        "generator:sketch",
        "property:positive_share",
        "sql:sketch_percent",
        "sql:sketch_networks",
        "command:sketch-count",
    }


def test_its_source_is_ingested_once(used: dict[str, Any]) -> None:
    assert used["num_ingested"] == 6


def test_its_networks_are_rebuilt_and_tokenized_exactly(used: dict[str, Any]) -> None:
    assert used["same"]
    assert used["rebuilt"]


def test_its_sql_is_part_of_the_catalog(used: dict[str, Any]) -> None:
    assert used["rows"][:2] == [
        {"name": "sketch 0", "share": 0.0},
        {"name": "sketch 1", "share": 12.5},
    ]
    assert len(used["rows"]) == 6


def test_its_methods_work(used: dict[str, Any]) -> None:
    assert used["predicted"] == [0, 1, 2, 3, 4, 5]
    assert all(0 < distance < 0.5 for distance in used["distances"])
    assert 0 < used["share"] < 1


def test_it_hears_of_every_model_once(used: dict[str, Any]) -> None:
    assert sorted(used["log"]) == sorted(f"catalog {model}" for model in used["models"])


def test_its_command_runs_and_is_in_the_help(site: Path, used: dict[str, Any]) -> None:
    result = run(site, "-m", "zooplatform", "sketch-count", "-c", used["catalog"])
    assert result.stdout == "6\n", result.stderr
    assert "sketch-count" in run(site, "-m", "zooplatform", "--help").stdout


def test_its_catalog_opens_without_it(used: dict[str, Any], tmp_path: Path) -> None:
    query = "select count(*) as n from checkpoints"
    arguments = ["-m", "zooplatform", "query", query, "-c", used["catalog"], "--format", "json"]
    result = run(tmp_path, *arguments)
    assert json.loads(result.stdout) == [{"n": 6 + 2}], result.stderr  # two of them sampled


def test_disabled_it_gives_nothing_and_says_so(site: Path, used: dict[str, Any]) -> None:
    arguments = ["-m", "zooplatform", "ingest", "sketch:2", "-c", used["catalog"]]
    result = run(site, *arguments, ZOO_DISABLE_PLUGINS="sketch")
    assert result.returncode == 1
    assert "'sketch' (zooplatform-sketch) is disabled" in result.stderr
