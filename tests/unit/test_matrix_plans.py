"""Protocols of comparisons, and the cells and fits that they ask for."""

from __future__ import annotations

import tomllib
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest
from comparing import PROTOCOL, protocol

from zooplatform.errors import ConfigError
from zooplatform.evaluation.plan import Task, make_plan
from zooplatform.evaluation.protocols import builtin_protocols, load_protocol, parse_protocol
from zooplatform.growing.recipe import builtin_recipes

if TYPE_CHECKING:
    from pathlib import Path


def test_a_protocol_says_what_is_wrong_with_it() -> None:
    table = tomllib.loads(PROTOCOL)
    for change, text in [
        ({"sed": [1]}, "unknown key 'sed'.*Did you mean 'seeds'"),
        ({"zoos": {}}, "zoos is missing"),
        ({"zoos": {"x": {"dataset": "a"}}}, "zoos.x: architecture is missing"),
        ({"zoos": {"x y": {"dataset": "a", "architecture": "b"}}}, "'x y' cannot be a name"),
        ({"targets": {"a b": "epoch"}}, "targets.a b"),
        ({"seeds": [0.5]}, "seeds is 0.5"),
        ({"draws": "many"}, "draws is 'many'"),
        ({"split": {"name": "s", "final": 1.5}}, "final is 1.5"),
        ({"methods": {"m": {"backend": "x", "trials": 4}}}, "trials = 4 needs search"),
        (
            {"methods": {"m": {"backend": "x", "search": {"a": {"choice": [1]}}}}},
            "search needs trials",
        ),
        ({"methods": {"m": {"backend": "x", "architectures": "two"}}}, "write any or one"),
        ({"methods": {"m": {"backend": "x", "baseline": 1}}}, "baseline is 1"),
        ({"cells": [{"kind": "in-distributoin"}]}, "Did you mean 'in-distribution'"),
        ({"cells": [{"kind": "pooled", "methods": ["lin"]}]}, "methods names 'lin'"),
        ({"cells": [{"kind": "data-fraction"}]}, "it needs them"),
        ({"cells": [{"kind": "data-fraction", "fractions": [0.0]}]}, "above 0"),
        ({"cells": [{"kind": "pooled", "across": "x"}]}, "dataset or all"),
        ({"cells": [{"kind": "pooled", "pooled": True}]}, "cross-architecture"),
    ]:
        with pytest.raises(ConfigError, match=text):
            parse_protocol({**table, **change})


def test_files_that_are_no_protocols(tmp_path: Path) -> None:
    for given, text in [
        ("matrix-of-nothing", "no protocol 'matrix-of-nothing'"),
        (tmp_path / "none.toml", "cannot be read"),
    ]:
        with pytest.raises(ConfigError, match=text):
            load_protocol(given)
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(ConfigError, match="not TOML"):
        load_protocol(tmp_path / "bad.toml")


@pytest.mark.parametrize("name", builtin_protocols())
def test_protocols_that_come_along_have_cells(name: str) -> None:
    found = load_protocol(name)
    assert make_plan(found).cells
    assert name not in builtin_recipes()


def test_a_plan_has_every_cell_once_and_one_fit_for_all_test_zoos() -> None:
    plan = make_plan(protocol())
    of = defaultdict(set)
    for cell in plan.cells:
        of[cell.kind, cell.task.target].add((cell.task.train, cell.test))
    assert of["in-distribution", "rate"] == {
        ((z,), z) for z in ("mlp-a", "mlp-b", "cnn-a", "cnn-b")
    }
    assert of["cross-dataset", "test_accuracy"] == {
        (("mlp-a",), "mlp-b"), (("mlp-b",), "mlp-a"), (("cnn-a",), "cnn-b"), (("cnn-b",), "cnn-a")
    }  # fmt: skip
    assert (("mlp-a",), "cnn-a") in of["cross-architecture", "test_accuracy"]
    assert (("mlp-a",), "cnn-b") not in of["cross-architecture", "test_accuracy"]
    assert len(of["cross-architecture", "test_accuracy"]) == 4
    task = Task("test_accuracy", ("mlp-a",))
    assert plan.tests["line", task, 1] == ("mlp-a", "mlp-b", "cnn-a")
    assert plan.tests["flat", task, 0] == ("mlp-a", "mlp-b")  # knows one architecture
    assert len([key for key in plan.tests if key[0] == "line"]) == 2 * 2 * 4


def test_pools_leave_out_what_they_are_asked_about() -> None:
    cells = [{"kind": "pooled"}, {"kind": "leave-one-out"}, {"kind": "leave-one-out", "across": "all"},
             {"kind": "cross-architecture", "pooled": True}]  # fmt: skip
    plan = make_plan(protocol(cells=cells, targets={"test_accuracy": "test_accuracy"}), ["line"])
    of = {(cell.kind, cell.test): cell.task.train for cell in plan.cells}
    assert of["pooled", "mlp-a"] == ("mlp-a", "mlp-b")
    assert of["leave-one-out", "cnn-a"] == ("cnn-b",)
    assert of["leave-one-out, all architectures", "cnn-a"] == ("cnn-b", "mlp-b")
    assert of["cross-architecture, pooled", "mlp-b"] == ("cnn-a", "cnn-b")


def test_plans_refuse_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match="--only names 'lines'"):
        make_plan(protocol(), ["lines"])
    one = {"mlp-a": {"dataset": "a", "architecture": "mlp"}}
    with pytest.raises(ConfigError, match=r"cross-dataset has no cell.*two zoos"):
        make_plan(protocol(zoos=one))
