"""The lint, of weights and of what training did to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from lint_zoo import STEPS, Zoo, model_ids, network, only

from zooplatform.linting import lint

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.catalog import Catalog


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
