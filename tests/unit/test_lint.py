"""The lint: every rule finds exactly its fault, and nothing in a zoo without it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from zooplatform.errors import ConfigError
from zooplatform.interfaces import CheckpointRecord, MetricRecord, ModelInfo
from zooplatform.linting import RULES, Finding, lint
from zooplatform.splits import create_split

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from zooplatform.catalog import Catalog

State = dict[str, torch.Tensor]

MODELS, STEPS = 4, (0, 1, 2)


@dataclass
class Zoo:
    """A small zoo without any fault, to be given one: `states` and `metrics` by (model, step), `configs` by model."""

    bias: bool = True
    states: dict[tuple[int, int], State] = field(default_factory=dict)
    configs: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[tuple[int, int], list[MetricRecord]] = field(default_factory=dict)
    epochs: dict[tuple[int, int], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.configs = [{"learning_rate": 0.1 / (n + 1)} for n in range(MODELS)]
        for n in range(MODELS):
            for step in STEPS:
                self.states[n, step] = network(n, step, bias=self.bias)
                self.metrics[n, step] = [
                    MetricRecord(name="test_accuracy", value=0.1 + 0.1 * n + 0.2 * step),
                    MetricRecord(name="test_loss", value=3.0 - step),
                ]
                self.epochs[n, step] = float(step)

    def record(self, model: int, step: int) -> CheckpointRecord:
        return CheckpointRecord(
            model=ModelInfo(
                key=f"run-{model}", name=f"run {model}", source="test:", config=self.configs[model]
            ),
            step=step,
            epoch=self.epochs[model, step],
            metrics=tuple(self.metrics[model, step]),
        )

    def store(self, catalog: Catalog, name: str = "zoo") -> dict[tuple[int, int], str]:
        """Checkpoint ids by (model, step)."""
        ids = catalog.add_state_dicts(
            self.states.values(), [self.record(*key) for key in self.states], zoo=name
        )
        return dict(zip(self.states, ids, strict=True))


def network(model: int, step: int, *, bias: bool = True) -> State:
    """A convolution of 3 filters and a linear layer to 10 outputs."""
    torch.manual_seed(100 * model + step)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3, bias=bias), torch.nn.Flatten(), torch.nn.Linear(12, 10, bias=bias)
    )
    return dict(module.state_dict())


def only(findings: list[Finding]) -> Finding:
    (found,) = findings
    return found


def model_ids(catalog: Catalog) -> list[str]:
    """By number of the run."""
    ids: list[str] = catalog.sql("select model_id from models order by name").column(0).to_pylist()
    return ids


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


def with_accuracy(value: float, *, name: str = "test_accuracy", origin: Any = "reported") -> Zoo:
    zoo = Zoo()
    for key, metrics in zoo.metrics.items():
        zoo.metrics[key] = [metrics[1], MetricRecord(name=name, value=value, origin=origin)]
    return zoo


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


# --- weights ---------------------------------------------------------------------------------------------------------


def test_weights_that_are_no_numbers_are_found(catalog: Catalog) -> None:
    zoo = Zoo()
    zoo.states[1, 2]["0.weight"][0, 0, 0, 0] = float("nan")
    zoo.states[2, 2]["2.bias"][1:3] = float("inf")
    ids = zoo.store(catalog)
    found = only(lint(catalog))
    assert (found.kind, found.severity) == ("not-finite", "warning")
    assert found.ids == tuple(sorted([ids[1, 2], ids[2, 2]]))
    assert "1 are NaN and 2 infinite, in 2 models (0.weight, 2.bias)" in found.found


def test_a_constant_matrix_is_found_and_constant_biases_are_not(catalog: Catalog) -> None:
    zoo = Zoo()
    zoo.states[0, 2]["2.weight"][:] = 0.25
    zoo.states[1, 2]["2.bias"][:] = 0
    ids = zoo.store(catalog)
    found = only(lint(catalog))
    assert (found.kind, found.ids) == ("constant", (ids[0, 2],))
    assert found.found == "all its values are equal (0.25)"


def test_dead_units_are_found(catalog: Catalog) -> None:
    zoo = Zoo()
    zoo.states[0, 2]["0.weight"][1] = 0
    zoo.states[3, 1]["0.weight"][:2] = -0.0
    zoo.states[1, 1]["2.weight"][:, 4:6] = 0  # as many zeros, but every unit keeps other inputs
    ids = zoo.store(catalog)
    found = only(lint(catalog))
    assert (found.kind, found.severity) == ("dead-units", "note")
    assert found.ids == tuple(sorted([ids[0, 2], ids[3, 1]]))
    assert "3 units in 2 checkpoints" in found.found


def test_dead_units_of_single_checkpoints_are_found(catalog: Catalog, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = network(0, 1)
    state["2.weight"][3] = 0
    save_file(state, tmp_path / "net.safetensors")
    catalog.ingest(tmp_path / "net.safetensors")
    found = only(lint(catalog))
    assert found.kind == "dead-units"
    assert "1 unit in 1 checkpoint " in found.found


# --- training --------------------------------------------------------------------------------------------------------


def test_a_run_that_changes_nothing_is_found(catalog: Catalog) -> None:
    zoo = Zoo()
    for step in STEPS[1:]:
        zoo.states[2, step] = zoo.states[2, 0]
    zoo.store(catalog)
    found = only(lint(catalog))
    assert (found.kind, found.severity) == ("untrained", "warning")
    assert found.ids == (model_ids(catalog)[2],)
    assert found.found == "no tensor differs between them"


def test_a_tensor_that_never_changes_is_noted(catalog: Catalog) -> None:
    zoo = Zoo()
    for step in STEPS[1:]:
        zoo.states[2, step]["0.weight"] = zoo.states[2, 0]["0.weight"]
    zoo.states[1, 1]["0.weight"] = zoo.states[1, 0]["0.weight"]  # changes later
    zoo.store(catalog)
    found = only(lint(catalog))
    assert (found.kind, found.severity) == ("untrained", "note")
    assert found.ids == (model_ids(catalog)[2],)
    assert found.found == "1 of 4 tensors never change (0.weight)"


@pytest.mark.parametrize(
    ("epoch", "severity", "text"),
    [
        (0.5, "warning", "the epoch falls in 1 model: 1 at step 1, 0.5 at step 2"),
        (1.0, "note", "the epoch stays in 1 model: 1 at step 1, 1 at step 2"),
        (-2.0, "warning", "the first has step 2 and epoch -2.0"),
    ],
)
def test_epochs_that_do_not_rise_are_found(
    catalog: Catalog, epoch: float, severity: str, text: str
) -> None:
    zoo = Zoo()
    zoo.epochs[1, 2] = epoch
    ids = zoo.store(catalog)
    found = only(lint(catalog))
    assert (found.kind, found.severity, found.ids) == ("order", severity, (ids[1, 2],))
    assert found.found == text


# --- identity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "severity"), [(0, "note"), (2, "warning")])
def test_equal_networks_of_two_models_are_found(catalog: Catalog, step: int, severity: str) -> None:
    zoo = Zoo()
    zoo.states[3, step] = zoo.states[1, step]
    ids = zoo.store(catalog)
    found = only(lint(catalog))
    assert (found.kind, found.severity) == ("duplicates", severity)
    assert found.ids == tuple(sorted([ids[1, step], ids[3, step]]))


def test_an_equal_network_outside_of_any_zoo_is_found(catalog: Catalog, tmp_path: Path) -> None:
    ids = Zoo().store(catalog)
    exported = catalog.export(ids[1, 2], tmp_path / "again.safetensors")
    (again,) = catalog.ingest(exported).checkpoint_ids
    (found,) = lint(catalog, ["duplicates"])
    assert set(found.ids) == {ids[1, 2], again}
    assert "zoo zoo" in found.subject


def test_equal_networks_of_two_zoos_are_duplicates_and_no_permutation(catalog: Catalog) -> None:
    ids = Zoo().store(catalog, "first")
    record = Zoo().record(0, 2)
    copy = replace(record, model=replace(record.model, key="copy"))
    (other,) = catalog.add_state_dicts([network(0, 2)], [copy], zoo="second")
    found = only(lint(catalog))
    assert (found.kind, set(found.ids)) == ("duplicates", {ids[0, 2], other})
    assert found.subject.endswith(" of zoo first, second")


def test_a_network_with_its_neurons_permuted_is_found(catalog: Catalog) -> None:
    zoo = Zoo()
    state, order = zoo.states[0, 2], torch.tensor([2, 0, 1])
    matrix = state["2.weight"].reshape(10, 3, 4)[:, order].reshape(10, 12)
    zoo.states[2, 2] = {
        **state,
        "0.weight": state["0.weight"][order],
        "0.bias": state["0.bias"][order],
        "2.weight": matrix,
    }
    ids = zoo.store(catalog)
    found = only(lint(catalog))
    assert (found.kind, found.severity) == ("permuted", "warning")
    assert set(found.ids) == {ids[0, 2], ids[2, 2]}


def test_equal_statistics_of_other_values_are_not_a_permutation(catalog: Catalog) -> None:
    """Two networks whose fingerprints agree: a value that no quantile rests on differs."""
    zoo = Zoo()
    state = {name: tensor.clone() for name, tensor in zoo.states[0, 2].items()}
    values = state["2.weight"].flatten()
    by_rank = values.sort().indices
    values[by_rank[50]] = (values[by_rank[49]] + values[by_rank[50]]) / 2
    state["2.weight"] = values.reshape(10, 12)
    zoo.states[2, 2] = state
    zoo.store(catalog)
    assert lint(catalog) == []


def freeze(catalog: Catalog, roles: Mapping[str, str]) -> None:
    """A split that was drawn elsewhere: roles by checkpoint."""
    known = {
        row["checkpoint_id"]: row
        for row in catalog.sql(
            "select checkpoint_id, model_id, content_hash from checkpoints"
        ).to_pylist()
    }
    rows = [
        {**known[member], "split_id": "s1", "name": "half", "role": role, "by": "checkpoint"}
        for member, role in roles.items()
    ]
    catalog.commit("split", {"splits": rows})


def test_a_run_in_two_roles_is_found(catalog: Catalog) -> None:
    ids = Zoo().store(catalog)
    roles = {ids[n, s]: "train" if n < 2 else "test" for n, s in ids}
    roles[ids[1, 2]] = "test"
    freeze(catalog, roles)
    found = only(lint(catalog))
    assert (found.kind, found.severity) == ("split-leak", "warning")
    assert found.ids == (model_ids(catalog)[1],)
    assert found.declared == "split 'half' (s1) keeps its roles apart"
    assert "test and train for the first" in found.found


def test_a_split_that_is_drawn_by_checkpoint_leaks_and_one_by_model_does_not(
    catalog: Catalog,
) -> None:
    Zoo().store(catalog)
    create_split(catalog, "safe", by="model", ratio="50/50")
    assert lint(catalog) == []
    create_split(catalog, "leaky", by="checkpoint", ratio="50/50")
    found = only(lint(catalog))
    assert found.kind == "split-leak"
    assert "'leaky'" in found.declared


@pytest.mark.parametrize(("step", "severity"), [(0, "note"), (1, "warning")])
def test_one_network_in_two_roles_is_found(catalog: Catalog, step: int, severity: str) -> None:
    zoo = Zoo()
    zoo.states[3, step] = zoo.states[0, step]
    zoo.states[2, step] = zoo.states[1, step]  # a pair on one side is no leak
    ids = zoo.store(catalog)
    roles = ["train", "val", "val", "test"]
    freeze(catalog, {checkpoint: roles[n] for (n, _), checkpoint in ids.items()})
    models = model_ids(catalog)
    leak = only(lint(catalog, ["split-leak"]))
    assert (leak.severity, set(leak.ids)) == (severity, {models[0], models[3]})
    assert "1 network occur under different models in test and train" in leak.found


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
