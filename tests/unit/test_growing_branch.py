"""Runs that branch: one training up to an epoch, each its own from there on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from zooplatform.catalog import open_catalog
from zooplatform.errors import ConfigError
from zooplatform.growing import grow, load_recipe

if TYPE_CHECKING:
    from pathlib import Path

RECIPE = """
name = "branches"
runs = 6
epochs = 3
keep = "all"
seed = 4
stack = 4
train_metrics = 50

[data]
source = "sklearn:digits"
train = 200

[architecture]
family = "mlp"
hidden = [8]

[hyperparameters]
activation = "relu"
fraction = 0.5
learning_rate = 0.01
"""


def grown(folder: Path, *settings: str) -> dict[int, dict[int, np.ndarray]]:
    """Weights by epoch and run."""
    file = folder / "branches.toml"
    file.write_text(RECIPE)
    with open_catalog(folder / "zoo", create=True) as catalog:
        grow(load_recipe(file, settings), catalog)
        rows = catalog.sql("select seed, epoch, checkpoint_id from wide").to_pylist()
        said = catalog.sql("select distinct value from hyperparameters where key = 'branch'")
        assert said.to_pylist() == ([{"value": "2"}] if "branch=2" in settings else [])
        found: dict[int, dict[int, np.ndarray]] = {}
        for seed, epoch, checkpoint in map(dict.values, rows):
            state = catalog.state_dict(checkpoint)
            found.setdefault(int(epoch), {})[seed - 4] = np.concatenate(
                [value.numpy().ravel() for value in state.values()]
            )
    return found


def groups(rows: dict[int, np.ndarray]) -> set[frozenset[int]]:
    """Runs whose weights are the same up to rounding."""
    return {
        frozenset(b for b in rows if np.allclose(rows[a], rows[b], rtol=0, atol=1e-5)) for a in rows
    }


def test_runs_of_an_initialisation_are_one_up_to_the_branch(tmp_path: Path) -> None:
    found = grown(tmp_path, "initialisation=2", "branch=2")
    began_alike = groups(found[0])
    assert sorted(map(len, began_alike)) not in ([6], [1] * 6)
    # Runs of one initialisation are in different stacks, too.
    assert any(min(group) < 4 <= max(group) for group in began_alike)
    assert groups(found[1]) == groups(found[2]) == began_alike
    assert groups(found[3]) == {frozenset({run}) for run in range(6)}
    assert not np.allclose(found[0][0], found[2][0], atol=1e-3)


def test_without_it_only_the_first_weights_are_shared(tmp_path: Path) -> None:
    found = grown(tmp_path, "initialisation=2")
    assert len(groups(found[0])) == 2
    assert groups(found[1]) == {frozenset({run}) for run in range(6)}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("branch=1",), "independent initialisations have nothing in common"),
        (("branch=4", "initialisation=2"), "at most epochs, 3"),
        (("branch=-1", "initialisation=2"), "whole number of at least 0"),
    ],
)
def test_what_cannot_branch_is_refused(
    tmp_path: Path, settings: tuple[str, ...], says: str
) -> None:
    file = tmp_path / "branches.toml"
    file.write_text(RECIPE)
    with pytest.raises(ConfigError, match=says):
        load_recipe(file, settings)
