"""Declared values that stored predictions doubt, by query and by lint."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from fitted_linear import PLUGIN, fit_linear, learnable_population

from zooplatform.catalog import open_catalog
from zooplatform.interfaces import MetricRecord
from zooplatform.linting import lint
from zooplatform.plugins import load_plugins
from zooplatform.testing import sample_population

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result

    from zooplatform.catalog import Catalog
    from zooplatform.testing import PluginInstaller

PREDICTED = "SELECT checkpoint_id, zoo_predict('line', checkpoint_id) AS p FROM checkpoints"

DOUBTFUL = """
    SELECT checkpoint_id, test_accuracy, zoo_predict('linear:test_accuracy', checkpoint_id) AS predicted,
        abs(predicted - test_accuracy) AS difference
    FROM wide WHERE test_accuracy IS NOT NULL ORDER BY difference DESC LIMIT 3
"""


@pytest.fixture
def zoo(tmp_path: Path, zoo_site: PluginInstaller) -> Iterator[Catalog]:
    """200 networks whose accuracies follow from their weights, and a predictor `line` fitted on 150."""
    zoo_site.install("linear", PLUGIN)
    path = tmp_path / "catalog"
    with open_catalog(path, create=True, registry=load_plugins()) as catalog:
        ids = catalog.append(learnable_population(), zoo="linear")
        fit_linear(catalog, list(ids[:150]))
        yield catalog


@pytest.fixture
def mislabelled(tmp_path: Path, zoo_site: PluginInstaller) -> Iterator[tuple[Catalog, str]]:
    """The zoo with one wrong accuracy, in the middle of the usual ones, and its checkpoint."""
    zoo_site.install("linear", PLUGIN)
    batch = learnable_population()
    rows = list(batch.rows)
    true = rows[180].metrics[0].value
    wrong = true - 0.2 if true > 0.5 else true + 0.2
    rows[180] = replace(
        rows[180], metrics=(MetricRecord(name="test_accuracy", value=wrong, dataset="sample"),)
    )
    with open_catalog(tmp_path / "catalog", create=True, registry=load_plugins()) as catalog:
        ids = catalog.append(replace(batch, rows=rows), zoo="linear")
        fit_linear(catalog, list(ids[:150]))
        yield catalog, ids[180]


def test_the_query_finds_a_wrong_accuracy_first(mislabelled: tuple[Catalog, str]) -> None:
    catalog, wrong = mislabelled
    found = catalog.sql(DOUBTFUL).to_pylist()
    assert found[0]["checkpoint_id"] == wrong
    assert found[0]["difference"] > 2 * found[1]["difference"]


def test_the_lint_finds_it_once_predictions_are_stored(
    mislabelled: tuple[Catalog, str], cli: Callable[..., Result]
) -> None:
    catalog, wrong = mislabelled
    assert lint(catalog, ["predicted"]) == []
    catalog.sql(PREDICTED)
    (found,) = lint(catalog, ["predicted"])
    assert (found.severity, found.ids) == ("warning", (wrong,))
    assert "line says" in found.found
    result = cli("check", "-c", catalog.path, "--json")
    warnings = [p for p in json.loads(result.stdout) if p["kind"] == "predicted"]
    assert [wrong in p["subject"] for p in warnings] == [True]


def test_the_lint_trusts_a_zoo_without_mistakes_and_one_that_the_predictor_does_not_know(
    zoo: Catalog,
) -> None:
    zoo.sql(PREDICTED)
    assert lint(zoo, ["predicted"]) == []
    unknown = sample_population(num_models=60, num_checkpoints=1, seed=5)
    zoo.append(unknown, zoo="unknown")
    zoo.sql(PREDICTED)
    assert lint(zoo, ["predicted"]) == []
