"""The lint: every rule finds exactly its fault, and nothing in a zoo without it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from lint_zoo import MODELS, STEPS, Zoo, model_ids, network, only, with_accuracy

from zooplatform.errors import ConfigError
from zooplatform.interfaces import CheckpointRecord, MetricRecord, ModelInfo
from zooplatform.linting import RULES, lint

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from zooplatform.catalog import Catalog


def test_a_zoo_without_faults_has_no_finding(catalog: Catalog) -> None:
    Zoo().store(catalog)
    assert lint(catalog) == []
    assert catalog.check(lint=True) == []


def test_an_empty_catalog_has_no_finding(catalog: Catalog) -> None:
    assert lint(catalog) == []


def test_an_unknown_rule_is_named(catalog: Catalog) -> None:
    with pytest.raises(ConfigError, match=r"No lint rule 'spelling'\. Rules: outputs, biases"):
        lint(catalog, ["spelling"])


def test_every_rule_is_documented(checkout: Path) -> None:
    page = (checkout / "docs" / "lint.md").read_text(encoding="utf-8")
    assert [rule for rule in RULES if f"\n### `{rule}`\n" not in page] == []


# --- declared --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [{"model::o_dim": 4}, {"num_classes": "4"}, {"model": {"head": {"o_dim": 4.0}}}],
    ids=["flat", "text", "nested"],
)
def test_a_wrong_number_of_outputs_is_found(catalog: Catalog, config: Mapping[str, Any]) -> None:
    zoo = Zoo()
    for n in (1, 3):
        zoo.configs[n].update(config)
    zoo.store(catalog)
    found = only(lint(catalog))
    models = model_ids(catalog)
    assert (found.kind, found.severity) == ("outputs", "warning")
    assert set(found.ids) == {models[1], models[3]}
    assert found.subject == f"model {min(models[1], models[3])} and 1 other of zoo zoo"
    assert "10 outputs" in found.found
    assert "the last layer (2.weight)" in found.message
    assert found.declared.endswith("is declared")


@pytest.mark.parametrize(
    "config",
    [{"o_dim": 10}, {"num_classes": 0}, {"num_classes": "many"}, {"to_dim": 4}, {"o_dim": None}],
)
def test_what_declares_no_other_number_of_outputs_passes(
    catalog: Catalog, config: Mapping[str, Any]
) -> None:
    zoo = Zoo()
    zoo.configs[0].update(config)
    zoo.store(catalog)
    assert lint(catalog) == []


def test_two_classes_may_have_one_output(catalog: Catalog) -> None:
    torch.manual_seed(0)
    states = [dict(torch.nn.Linear(5, 1).state_dict()) for _ in range(2)]
    infos = [
        ModelInfo(key=str(c), name=str(c), source="test:", config={"num_classes": c})
        for c in (2, 3)
    ]
    metrics = (MetricRecord(name="test_accuracy", value=0.5),)
    catalog.add_state_dicts(
        states, [CheckpointRecord(model=i, metrics=metrics) for i in infos], zoo="binary"
    )
    found = only(lint(catalog))
    assert "num_classes = 3" in found.declared


@pytest.mark.parametrize("bias", [True, False])
def test_biases_that_are_declared_otherwise_are_found(catalog: Catalog, bias: bool) -> None:
    zoo = Zoo(bias=bias)
    zoo.configs[0]["model::use_bias"] = not bias
    zoo.configs[1]["model::use_bias"] = bias
    zoo.configs[2]["bias"] = "none"
    zoo.store(catalog)
    found = only(lint(catalog))
    assert (found.kind, found.ids) == ("biases", (model_ids(catalog)[0],))
    expected = (
        "there are biases (0.bias, 2.bias)"
        if bias
        else "no linear or convolutional layer has a bias"
    )
    assert found.found == expected


def test_a_wrong_number_of_parameters_is_found(catalog: Catalog) -> None:
    zoo = Zoo()
    zoo.configs[0]["num_params"] = 160
    zoo.configs[1]["num_params"] = 161
    zoo.store(catalog)
    found = only(lint(catalog))
    assert (found.kind, found.ids) == ("parameters", (model_ids(catalog)[1],))
    assert "the tensors hold 160 parameters" in found.found


# --- metrics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "name", "reading"),
    [
        (71.5, "test_accuracy", "so they are percentages"),
        (1.2, "val acc", "a little more than a fraction can be"),
        (-0.1, "top1", "which is neither"),
        (7150.0, "test_acc", "which is neither"),
    ],
)
def test_accuracies_that_are_no_fractions_are_found(
    catalog: Catalog, value: float, name: str, reading: str
) -> None:
    ids = with_accuracy(value, name=name).store(catalog)
    found = only(lint(catalog))
    assert (found.kind, found.ids) == ("percent", tuple(sorted(ids.values())))
    assert reading in found.found


def test_percentages_among_fractions_are_told_apart(catalog: Catalog) -> None:
    zoo = Zoo()
    zoo.metrics[2, 1][0] = MetricRecord(name="test_accuracy", value=93.0)
    ids = zoo.store(catalog)
    found = only(lint(catalog))
    assert found.ids == (ids[2, 1],)
    assert "while 11 others are at most 1: percentages among fractions" in found.found


@pytest.mark.parametrize(
    "zoo",
    [
        with_accuracy(1.0),
        with_accuracy(50.0, name="accumulated_steps"),
        with_accuracy(1.3, name="predicted_accuracy", origin="predicted"),
    ],
    ids=["one", "another name", "prediction"],
)
def test_what_may_lie_above_one_passes(catalog: Catalog, zoo: Zoo) -> None:
    zoo.store(catalog)
    assert lint(catalog) == []


def test_a_missing_metric_is_found(catalog: Catalog) -> None:
    zoo = Zoo()
    del zoo.metrics[1, 2][0]
    del zoo.metrics[3, 0][1]
    ids = zoo.store(catalog)
    accuracy, loss = lint(catalog)
    assert (accuracy.kind, accuracy.severity) == ("missing-metrics", "warning")
    assert (accuracy.ids, loss.ids) == ((ids[1, 2],), (ids[3, 0],))
    assert "test_accuracy" in accuracy.declared
    assert "test_loss" in loss.declared


def test_metrics_measured_now_and_then_are_not_missing(catalog: Catalog) -> None:
    zoo = Zoo()
    for n in range(MODELS):
        zoo.metrics[n, 2].append(MetricRecord(name="hessian_trace", value=5.0))
    zoo.metrics[0, 1].append(MetricRecord(name="has_nan", value=1.0, origin="measured"))
    zoo.store(catalog)
    assert lint(catalog) == []


def test_nan_of_a_finite_network_is_noted(catalog: Catalog) -> None:
    zoo = Zoo()
    zoo.metrics[0, 0][1] = MetricRecord(name="test_loss", value=float("nan"))
    ids = zoo.store(catalog)
    found = only(lint(catalog))
    assert (found.kind, found.severity, found.ids) == ("missing-metrics", "note", (ids[0, 0],))


def test_a_population_without_metrics_is_noted(catalog: Catalog) -> None:
    zoo = Zoo()
    zoo.metrics = {key: [] for key in zoo.metrics}
    ids = zoo.store(catalog)
    found = only(lint(catalog))
    assert (found.severity, set(found.ids)) == ("note", set(ids.values()))
    assert "no checkpoint has any metric" in found.found


# --- as part of the check --------------------------------------------------------------------------------------------


def test_a_damaged_catalog_is_not_linted(catalog: Catalog) -> None:
    with_accuracy(50.0).store(catalog)
    next((catalog.path / "weights").rglob("*.arrow")).unlink()
    (problem,) = catalog.check(lint=True)
    assert (problem.kind, problem.severity) == ("shard", "error")


def test_a_corrected_metric_ends_the_finding(catalog: Catalog) -> None:
    """The repair that the rule gives does repair."""
    with_accuracy(50.0).store(catalog)
    rows = catalog.sql(
        "select * exclude (commit_id) replace (value / 100 as value) from metrics "
        "where name = 'test_accuracy'"
    )
    catalog.commit("fractions", {"metrics": rows.to_pylist()}, replaces=["metrics"])
    assert lint(catalog) == []


def test_faults_of_two_zoos_are_kept_apart(catalog: Catalog) -> None:
    with_accuracy(50.0).store(catalog, "first")
    other = with_accuracy(60.0)
    other.states = {key: network(50 + key[0], key[1]) for key in other.states}
    records = [
        replace(r, model=replace(r.model, key=f"other-{r.model.key}"))
        for r in (other.record(*key) for key in other.states)
    ]
    catalog.add_state_dicts(other.states.values(), records, zoo="second")
    found = lint(catalog)
    assert [f.subject.rpartition(" ")[2] for f in found] == ["first", "second"]
    assert np.all([len(f.ids) == MODELS * len(STEPS) for f in found])
