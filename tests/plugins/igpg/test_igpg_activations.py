"""Codes of what networks do: networks that are written from them work, whatever seeds the training networks had."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from zooplatform.errors import ArtifactError, ConfigError
from zooplatform.generation.networks import Builder
from zooplatform.interfaces import Condition
from zooplatform_igpg.config import IgpgConfig
from zooplatform_igpg.generator import IgpgGenerator

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.catalog import Catalog
    from zooplatform.fitting import GeneratorData

CONFIG: dict[str, Any] = {
    "base": "activations", "basins": 0, "klt_rank": 8, "epochs": 4, "dim": 32, "depth": 1, "heads": 2, "captions": 8,
    "understanding_steps": 100, "understanding_captions": 400,
}  # fmt: skip


@pytest.fixture(scope="module")
def fitted(stripes: GeneratorData) -> IgpgGenerator:
    generator = IgpgGenerator()
    report = generator.fit(stripes, config=CONFIG, seed=0)
    assert 0.3 < report.metrics["tokenizer/activations_explained"] <= 1
    assert report.metrics["tokens"] == 8
    return generator


def _accuracy(
    catalog: Catalog, data: GeneratorData, generator: IgpgGenerator, dataset: str, **asked: Any
) -> float:
    right = []
    for batch in generator.sample(6, condition=Condition(dataset=dataset), seed=0, **asked):
        for row in batch.weights:
            network = Builder(catalog.recogniser).load(batch.blueprint, row)
            with torch.no_grad():
                answers = network(data.images[dataset].x).argmax(1)
            right.append((answers == data.images[dataset].y).float().mean().item())
    return sum(right) / len(right)


def test_what_is_written_works(
    stripes_catalog: Catalog, stripes: GeneratorData, fitted: IgpgGenerator
) -> None:
    for dataset in ("rows", "columns"):
        assert _accuracy(stripes_catalog, stripes, fitted, dataset, temperature=0.7) > 0.6


def test_networks_come_back_from_their_codes(
    stripes_catalog: Catalog, stripes: GeneratorData, fitted: IgpgGenerator
) -> None:
    facts = stripes.facts[stripes.validation.ids[0]]
    blueprint, images = stripes.blueprints[facts.blueprint], stripes.images[facts.dataset]
    weights = stripes.validation.read([0]).weights.float()
    found = []
    for row in (weights, fitted.reconstruct(weights, blueprint)):
        network = Builder(stripes_catalog.recogniser).load(blueprint, row[0])
        with torch.no_grad():
            found.append(network(images.x).argmax(1))
    assert (found[0] == found[1]).float().mean() > 0.6


def test_every_basin_has_components_of_its_own(
    stripes_catalog: Catalog, stripes: GeneratorData, tmp_path: Path
) -> None:
    generator = IgpgGenerator()
    report = generator.fit(stripes, config={**CONFIG, "basins": 2, "klt_rank": 3}, seed=0)
    assert report.metrics["basins"] == 8  # of two data sets and two activations
    for dataset in ("rows", "columns"):
        assert _accuracy(stripes_catalog, stripes, generator, dataset, temperature=0) > 0.6
    # At temperature 0 there is one network for each basin.
    drawn: dict[int, set[bytes]] = {}
    for batch in generator.sample(24, condition=Condition(dataset="rows"), seed=0, temperature=0):
        for row, detail in zip(batch.weights, batch.details, strict=True):
            drawn.setdefault(detail["basin"], set()).add(row.numpy().tobytes())
    assert [len(alike) for alike in drawn.values()] == [1, 1]
    assert len(set.union(*drawn.values())) == 2
    generator.save(tmp_path)
    again = IgpgGenerator()
    again.load(tmp_path)
    for one, other in zip(generator.sample(3, seed=0), again.sample(3, seed=0), strict=True):
        assert torch.equal(one.weights, other.weights)


def test_it_writes_the_same_after_it_was_stored(fitted: IgpgGenerator, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    again = IgpgGenerator()
    again.load(tmp_path)
    for one, other in zip(fitted.sample(3, seed=0), again.sample(3, seed=0), strict=True):
        assert torch.equal(one.weights, other.weights)
    path = tmp_path / "activations.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError):
        IgpgGenerator().load(tmp_path)


def test_what_it_needs_is_said(stripes: GeneratorData) -> None:
    some = {"rows": stripes.images["rows"]}
    with pytest.raises(ConfigError, match="those of the data set 'columns' are not there"):
        IgpgGenerator().fit(replace(stripes, images=some), config=CONFIG, seed=0)
    for key, value in (("align", True), ("center", "mean"), ("augment", 1)):
        with pytest.raises(ConfigError, match=f"set {key} to"):
            IgpgConfig.parse({"base": "activations", key: value})
    with pytest.raises(ConfigError, match="ridge is 0"):
        IgpgConfig.parse({"base": "activations", "ridge": 0.0})
