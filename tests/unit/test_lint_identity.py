"""The lint, of networks that occur twice and of splits that such networks cross."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from lint_zoo import Zoo, model_ids, network, only

from zooplatform.linting import lint
from zooplatform.splits import create_split

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from zooplatform.catalog import Catalog


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
