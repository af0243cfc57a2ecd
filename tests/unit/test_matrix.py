"""Comparisons of predictors on real catalogs: plans, splits, fits, figures, pages."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from zooplatform.catalog import open_catalog
from zooplatform.errors import ConfigError, IntegrityError
from zooplatform.evaluation.bootstrap import resampled_taus
from zooplatform.evaluation.matrix import MatrixReport, run_matrix, state_path
from zooplatform.evaluation.plan import Task, make_plan
from zooplatform.evaluation.protocols import (
    Protocol,
    builtin_protocols,
    load_protocol,
    parse_protocol,
)
from zooplatform.evaluation.render import load_results, page, render
from zooplatform.evaluation.scores import kendall_tau, mae, paired_difference, r2, tau_draws
from zooplatform.evaluation.sides import freeze_sides, networks, scored_rows, torn_groups
from zooplatform.evaluation.state import State, fit_key, pack, unpack
from zooplatform.evaluation.tuning import Trial, best_trial, trial_configs
from zooplatform.growing.ranges import derive_seed
from zooplatform.plugins import load_plugins
from zooplatform.splits import find_split, split_members
from zooplatform.testing.comparisons import SAMPLE_PREDICTORS, sample_zoos

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zooplatform.catalog import Catalog
    from zooplatform.testing import PluginInstaller

PROTOCOL = """
name = "small"
title = "Small zoos"
seeds = [0, 1]
draws = 200

[split]
name = "s"
by = "stack"
ratio = "50/20/30"
final = 0.25

[targets]
test_accuracy = "test_accuracy"
rate = "log10(hyper['learning_rate']::double)"

[zoos]
mlp-a = { dataset = "a", architecture = "mlp" }
mlp-b = { dataset = "b", architecture = "mlp" }
cnn-a = { dataset = "a", architecture = "cnn" }
cnn-b = { dataset = "b", architecture = "cnn" }

[methods.line]
backend = "spread"
config = "default"
baseline = true

[methods.bent]
backend = "spread"
config = { base = "noisy", ridge = 0.1 }

[methods.flat]
backend = "flat"
architectures = "one"
baseline = true

[[cells]]
kind = "in-distribution"

[[cells]]
kind = "cross-dataset"
targets = ["test_accuracy"]

[[cells]]
kind = "cross-architecture"
targets = ["test_accuracy"]
"""


def protocol(text: str = PROTOCOL, **changes: Any) -> Protocol:
    return parse_protocol({**tomllib.loads(text), **changes})


@pytest.fixture(scope="module")
def zoos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compared") / "zoo"
    with open_catalog(path, create=True) as catalog:
        sample_zoos(catalog)
    return path


@pytest.fixture
def opened(zoos: Path, tmp_path: Path, zoo_site: PluginInstaller) -> Iterator[Catalog]:
    """A copy of the zoos, with the predictors of the tests."""
    zoo_site.install("compared", SAMPLE_PREDICTORS)
    with open_catalog(
        shutil.copytree(zoos, tmp_path / "zoo"), registry=load_plugins(strict=True)
    ) as catalog:
        yield catalog


def cell_of(report: MatrixReport, kind: str, train: str, test: str, **also: Any) -> dict[str, Any]:
    wanted = {
        "kind": kind,
        "train": [train],
        "test": test,
        "subset": "all",
        "target": "test_accuracy",
        **also,
    }
    (found,) = (
        cell for cell in report.results["cells"] if all(cell[k] == v for k, v in wanted.items())
    )
    return dict(found)


def entry_of(cell: dict[str, Any], method: str) -> dict[str, Any]:
    (found,) = (entry for entry in cell["methods"] if entry["method"] == method)
    return dict(found)


# --- protocols and plans ---------------------------------------------------------------------------------------------


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
    from zooplatform.growing.recipe import builtin_recipes

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


# --- splits and sides ------------------------------------------------------------------------------------------------


def test_no_stack_and_no_run_is_on_both_sides(opened: Catalog) -> None:
    asked = protocol(cells=[{"kind": "leakage"}])
    task = Task("test_accuracy", ("mlp-a",), leaky=True)
    sides = freeze_sides(opened, asked, [task])
    stack_of = {
        row["checkpoint_id"]: (row["zoo"], row["value"])
        for row in opened.sql(
            "select checkpoint_id, zoo, value from wide join hyperparameters using (model_id) where key = 'stack'"
        ).to_pylist()
    }
    for zoo in asked.zoos:
        sides_of = defaultdict(set)
        for member in split_members(opened, find_split(opened, f"s.{zoo}")):
            sides_of[stack_of[member.checkpoint_id]].add(member.role)
        assert all(len(roles) == 1 for roles in sides_of.values())
        assert {role for roles in sides_of.values() for role in roles} == {"train", "val", "test"}
        assert torn_groups(opened, sides.main[zoo]) == []
    # The leaky split tears runs, and none of the networks that are kept is in it.
    leaky = sides.leaky["mlp-a"]
    assert len(torn_groups(opened, leaky)) > 5
    kept = {m.checkpoint_id for m in split_members(opened, sides.final["mlp-a"], "test")}
    assert kept
    assert kept < {m.checkpoint_id for m in split_members(opened, sides.main["mlp-a"], "test")}
    assert not kept & {m.checkpoint_id for m in split_members(opened, leaky)}


def test_splits_stay_frozen_and_another_draw_is_refused(opened: Catalog) -> None:
    first = freeze_sides(opened, protocol(), []).ids()
    sample_zoos(opened, num_models=26)  # the zoos grow
    assert freeze_sides(opened, protocol(), []).ids() == first
    changed = protocol(split={"name": "s", "by": "model", "ratio": "50/20/30", "final": 0.25})
    with pytest.raises(ConfigError, match=r"'s\.mlp-a' is frozen by stack"):
        freeze_sides(opened, changed, [])


def test_shares_of_runs_are_nested_and_whole(opened: Catalog) -> None:
    asked = protocol()
    sides = freeze_sides(opened, asked, [])
    table = opened.sql("select checkpoint_id, model_id from checkpoints")
    model_of = dict(zip(*(column.to_pylist() for column in table.columns), strict=True))

    def runs(fraction: float, seed: int = 0) -> set[str]:
        task = Task("test_accuracy", ("mlp-a",), fraction)
        data = networks(opened, asked, sides, task, "train", seed=seed)
        found = {model_of[one] for one in data.ids}
        assert len(data) == 3 * len(found)
        return found

    quarter, half, whole = runs(0.25), runs(0.5), runs(1.0)
    assert quarter < half < whole
    assert (len(quarter), len(half), len(whole)) == (3, 6, 12)
    assert runs(0.5, seed=1) != half


def test_targets_are_sql_and_what_lacks_them_is_left_out(opened: Catalog) -> None:
    asked = protocol(
        cells=[{"kind": "in-distribution"}],
        targets={"rate": "log10(hyper['learning_rate']::double)", "ggap": "train_accuracy - test_accuracy",
                 "odd": "case when epoch = 3 then 'nan'::double else epoch end"}
    )  # fmt: skip
    sides = freeze_sides(opened, asked, [])
    rows = scored_rows(opened, asked, sides, "cnn-b", leaky=False)
    members = split_members(opened, sides.main["cnn-b"], "test")
    assert rows["ggap"].ids == tuple(sorted(m.checkpoint_id for m in members))
    truth = opened.sql(
        "select checkpoint_id, train_accuracy - test_accuracy as g from wide"
    ).to_pylist()
    gap = {row["checkpoint_id"]: row["g"] for row in truth}
    np.testing.assert_allclose(rows["ggap"].targets, [gap[one] for one in rows["ggap"].ids])
    assert rows["ggap"].last.sum() * 3 == len(members)
    assert rows["odd"].num_lacking == len(members) / 3
    assert not rows["odd"].last.any()
    every = [
        networks(opened, asked, sides, Task("rate", ("mlp-a",)), role)
        for role in ("train", "val", "test")
    ]
    assert sum(map(len, every)) == 3 * 22  # every tenth of 24 models has no learning rate
    assert np.isfinite(np.concatenate([data.targets for data in every])).all()


# --- figures ---------------------------------------------------------------------------------------------------------


def test_many_taus_at_once_are_those_of_one_by_one() -> None:
    draw = np.random.default_rng(0)
    runs = draw.permutation(np.repeat(np.arange(40), 3))
    target = draw.integers(0, 30, 120).astype(float)
    predictions = np.stack([target + draw.normal(size=120) * s for s in (1, 9)]).round()
    found = resampled_taus(target, predictions, runs, draws=50, seed=3)
    for at, prediction in enumerate(predictions):
        assert found.value[at] == pytest.approx(kendall_tau(target, prediction), abs=1e-12)
        np.testing.assert_allclose(
            found.draws[at], tau_draws(target, prediction, runs, 3, 50), atol=1e-12
        )
    constant = resampled_taus(target, np.ones((1, 120)), runs, draws=5, seed=0)
    assert (constant.value == 0).all()
    assert (constant.draws == 0).all()
    assert np.isnan(resampled_taus(np.ones(120), predictions, runs, draws=5, seed=0).value).all()


def test_blocks_of_pairs_do_not_change_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(1)
    runs, target = np.repeat(np.arange(30), [1, 5] * 15), draw.random(90)
    given = (target, target[None] + draw.normal(size=(2, 90)), runs)
    whole = resampled_taus(*given, draws=20, seed=0)
    monkeypatch.setattr("zooplatform.evaluation.bootstrap._PAIRS", 700)
    np.testing.assert_array_equal(resampled_taus(*given, draws=20, seed=0).draws, whole.draws)


# --- the whole -------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_predictions(opened: Catalog, tmp_path: Path) -> None:
    report = run_matrix(
        opened, protocol(), tmp_path / "out.json", predictions=tmp_path / "predictions.npz"
    )
    assert (report.failed, report.missing, report.reused) == ((), 0, 0)
    assert report.results == load_results(tmp_path / "out.json")
    assert report.results["complete"]
    arrays = np.load(tmp_path / "predictions.npz")
    cell = cell_of(report, "cross-dataset", "mlp-a", "mlp-b")
    target = arrays["target/mlp-b/test_accuracy"]
    ids = arrays["ids/mlp-b/test_accuracy"].tolist()
    members = split_members(opened, find_split(opened, "s.mlp-b.final"), "train")
    assert set(ids) == {member.checkpoint_id for member in members}  # none that is kept
    line, bent = entry_of(cell, "line"), entry_of(cell, "bent")
    assert line["n"] == len(target) == 18
    assert line["num_models"] == 6
    values = {s["seed"]: arrays[f"{s['fit']}/mlp-b"] for s in bent["seeds"]}
    assert set(values) == {0, 1}
    for said in bent["seeds"]:
        prediction = values[said["seed"]]
        assert said["kendall_tau"] == pytest.approx(kendall_tau(target, prediction), abs=1e-5)
        assert said["r2"] == pytest.approx(r2(target, prediction), abs=1e-5)
        assert said["mae"] == pytest.approx(mae(target, prediction), abs=1e-5)
    taus = [said["kendall_tau"] for said in bent["seeds"]]
    assert bent["kendall_tau"] == pytest.approx(np.mean(taus), abs=1e-5)
    assert bent["kendall_tau_std"] == pytest.approx(np.std(taus, ddof=1), abs=2e-5)
    # Differences are paired by run.
    model_of = {m.checkpoint_id: m.model_id for m in members}
    line_values = arrays[f"{line['seeds'][0]['fit']}/mlp-b"]
    flat = entry_of(cell, "flat")
    flat_values = arrays[f"{flat['seeds'][0]['fit']}/mlp-b"]
    assert cell["baseline"] == "line"
    seed = derive_seed("s", "mlp-b", "test_accuracy")
    paired = paired_difference(
        target, flat_values, line_values, [model_of[i] for i in ids], seed, 200
    )
    assert flat["difference"]["value"] == pytest.approx(paired.difference, abs=1e-5)
    assert flat["difference"]["ci"] == pytest.approx(paired.ci, abs=1e-5)
    assert "difference" not in line


def test_what_is_there_to_be_learnt_is_learnt(opened: Catalog, tmp_path: Path) -> None:
    report = run_matrix(opened, protocol(), tmp_path / "out.json", only=["line", "flat"])
    inside = cell_of(report, "in-distribution", "mlp-a", "mlp-a")
    assert entry_of(inside, "line")["kendall_tau"] > 0.7
    assert entry_of(inside, "line")["kendall_tau"] > entry_of(inside, "flat")["kendall_tau"]
    across = cell_of(report, "cross-architecture", "mlp-a", "cnn-a")
    assert [entry["method"] for entry in across["methods"]] == ["line"]
    last = cell_of(report, "in-distribution", "mlp-a", "mlp-a", subset="last")
    assert entry_of(last, "line")["n"] * 3 == entry_of(inside, "line")["n"]
    (mean,) = (
        item for item in report.results["summaries"]
        if (item["kind"], item["target"], item["subset"]) == ("cross-dataset", "test_accuracy", "all")
    )  # fmt: skip
    cells = [
        c for c in report.results["cells"] if c["kind"] == "cross-dataset" and c["subset"] == "all"
    ]
    assert mean["num_cells"] == len(cells) == 4
    for entry in mean["methods"]:
        own = [entry_of(cell, entry["method"])["kendall_tau"] for cell in cells]
        assert entry["kendall_tau"] == pytest.approx(np.mean(own), abs=1e-4)
        assert entry["lowest"] == min(own)


def test_the_baseline_is_chosen_on_validation_networks(opened: Catalog, tmp_path: Path) -> None:
    report = run_matrix(opened, protocol(), tmp_path / "out.json")
    fits = {
        (f["method"], *f["train"], f["seed"], f["target"]): f["val_kendall_tau"]
        for f in report.results["fits"]
    }
    for cell in report.results["cells"]:
        labels = [e["method"] for e in cell["methods"] if e["method"] in ("line", "flat")]
        mean = {
            label: np.mean([fits[label, *cell["train"], seed, cell["target"]] for seed in (0, 1)])
            for label in labels
        }
        assert cell["baseline"] == max(labels, key=mean.__getitem__)
        tau = {label: entry_of(cell, label)["kendall_tau"] for label in labels}
        assert tau[cell["hardest_baseline"]] == max(tau.values())


def test_a_run_goes_on_where_it_was(opened: Catalog, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    first = run_matrix(opened, protocol(), output, only=["line"])
    assert (first.fitted, first.reused) == (16, 0)
    state = state_path(output)
    lines = state.read_bytes().splitlines(keepends=True)
    assert len(lines) == 16
    state.write_bytes(b"".join(lines[:10]) + lines[10][:50])  # cut off in the middle of a line
    second = run_matrix(opened, protocol(), output, only=["line"])
    assert (second.fitted, second.reused) == (6, 10)
    assert second.results["cells"] == first.results["cells"]
    assert len(state.read_bytes().splitlines()) == 16
    stopped = run_matrix(opened, protocol(), output, max_minutes=0)
    assert (stopped.fitted, stopped.reused, stopped.missing) == (0, 16, 32)
    assert not stopped.results["complete"]
    assert {e["method"] for c in stopped.results["cells"] for e in c["methods"]} == {"line"}


def test_a_new_test_zoo_asks_the_fit_again(opened: Catalog, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    inside = protocol(cells=[{"kind": "in-distribution", "targets": ["test_accuracy"]}])
    assert run_matrix(opened, inside, output, only=["line"]).fitted == 8
    assert run_matrix(opened, protocol(), output, only=["line"]).reused == 0
    assert run_matrix(opened, inside, output, only=["line"]).fitted == 0


def test_processes_give_the_same_figures(opened: Catalog, tmp_path: Path) -> None:
    asked = protocol(cells=[{"kind": "cross-dataset", "targets": ["test_accuracy"]}])
    one = run_matrix(opened, asked, tmp_path / "one.json", only=["line"])
    two = run_matrix(opened, asked, tmp_path / "two.json", only=["line"], jobs=2)
    assert (two.fitted, two.failed) == (8, ())
    assert two.results["cells"] == one.results["cells"]


def test_kept_networks_are_scored_by_final_alone(opened: Catalog, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    asked = protocol(cells=[{"kind": "in-distribution"}, {"kind": "leakage"}])
    seen = run_matrix(opened, asked, output, only=["line"], predictions=tmp_path / "seen.npz")
    last = run_matrix(
        opened,
        asked,
        tmp_path / "out.json",
        only=["line"],
        final=True,
        predictions=tmp_path / "last.npz",
    )
    assert last.fitted == 0
    assert (seen.results["side"], last.results["side"]) == ("test", "final")
    names = "ids/cnn-a/test_accuracy"
    looked, kept = (set(np.load(tmp_path / f"{n}.npz")[names].tolist()) for n in ("seen", "last"))
    assert kept == {
        m.checkpoint_id for m in split_members(opened, find_split(opened, "s.cnn-a.final"), "test")
    }
    assert looked
    assert not looked & kept
    for report, scored in ((seen, looked), (last, kept)):
        cell = cell_of(report, "in-distribution", "cnn-a", "cnn-a")
        assert entry_of(cell, "line")["n"] == len(scored)
    assert {cell["kind"] for cell in last.results["cells"]} == {"in-distribution"}
    with pytest.raises(ConfigError, match="keeps no networks for a last look"):
        run_matrix(opened, protocol(split={"name": "t"}), output, final=True)


def test_the_audit_counts_what_leaks(opened: Catalog, tmp_path: Path) -> None:
    asked = protocol(cells=[{"kind": "leakage", "zoos": ["mlp-a"], "targets": ["test_accuracy"]}])
    report = run_matrix(opened, asked, tmp_path / "out.json", only=["line"])
    audit = report.results["audit"]
    assert audit["mlp-b"] == {"leaking": 0}
    assert audit["mlp-a"]["leaking"] == 0
    assert audit["mlp-a"]["leaking_by_checkpoint"] > 5
    (every, _) = report.results["cells"]
    assert every["kind"] == "leakage"


def test_failures_and_refusals_are_told_and_the_rest_goes_on(
    opened: Catalog, tmp_path: Path
) -> None:
    methods = {
        "good": {"backend": "spread"},
        "bad": {"backend": "spread", "config": {"nois": 1}},
        "one": {"backend": "flat"},
    }
    cells = [{"kind": "cross-architecture", "targets": ["test_accuracy"], "seeds": [0]}]
    report = run_matrix(opened, protocol(methods=methods, cells=cells), tmp_path / "out.json")
    assert (len(report.failed), report.missing) == (4, 4)
    assert "bad on" in report.failed[0][0]
    assert "unknown keys" in report.failed[0][1]
    for cell in report.results["cells"]:
        assert [entry["method"] for entry in cell["methods"]] == ["good"]
        assert "another architecture" in cell["refused"]["one"]
    assert "## Refused" in page(report.results)
    assert "## Failed" in page(report.results)


def test_predictions_about_other_networks_are_not_scored(opened: Catalog, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    asked = protocol(
        cells=[
            {
                "kind": "in-distribution",
                "targets": ["test_accuracy"],
                "zoos": ["mlp-a"],
                "seeds": [0],
            }
        ]
    )
    run_matrix(opened, asked, output, only=["line"])
    (line,) = state_path(output).read_text().splitlines()
    record = json.loads(line)
    record["tests"]["mlp-a"]["ids"] = "0" * 16
    state_path(output).write_text(json.dumps(record) + "\n")
    with pytest.raises(IntegrityError, match="not about the test networks of mlp-a"):
        run_matrix(opened, asked, output, only=["line"])


def test_other_code_is_noticed_and_fitted_again_when_asked(opened: Catalog, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    asked = protocol(
        cells=[{"kind": "in-distribution", "targets": ["test_accuracy"], "seeds": [0]}]
    )
    assert run_matrix(opened, asked, output, only=["line"]).changed == ()
    state = state_path(output)
    records = [json.loads(line) for line in state.read_text().splitlines()]
    state.write_text("".join(json.dumps({**r, "code": "older"}) + "\n" for r in records))
    kept = run_matrix(opened, asked, output, only=["line"])
    assert (kept.changed, kept.fitted) == (("line",), 0)
    again = run_matrix(opened, asked, output, only=["line"], refit=True)
    assert (again.changed, again.fitted) == ((), 4)


# --- tuning ----------------------------------------------------------------------------------------------------------


def test_named_configurations_are_written_out(opened: Catalog, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    one = [{"kind": "in-distribution", "zoos": ["mlp-a"], "targets": ["test_accuracy"]}]
    report = run_matrix(opened, protocol(cells=one, seeds=[0]), output, only=["bent"])
    (fit,) = report.results["fits"]
    assert fit["config"] == {"noise": 0.5, "ridge": 0.1}  # of `noisy`, but for what is set
    wrong = protocol(methods={"bent": {"backend": "spread", "config": "nosy"}})
    with pytest.raises(ConfigError, match=r"methods\.bent: .*no configuration 'nosy'.*'noisy'\?"):
        run_matrix(opened, wrong, output)


def test_trials_depend_on_the_seed_and_the_range_alone() -> None:
    search = {"ridge": {"log_uniform": [1e-3, 10.0]}, "noise": {"choice": [0.0, 0.1]}}
    method = replace(protocol().methods["line"], trials=6, search=search)
    found = trial_configs(method, {"base": 1}, seed=4)
    assert found[0] == {"base": 1}
    assert len(found) == 6
    assert all(1e-3 <= config["ridge"] <= 10 for config in found[1:])
    assert trial_configs(replace(method, trials=3), {"base": 1}, seed=4) == found[:3]
    assert trial_configs(method, {"base": 1}, seed=5)[1:] != found[1:]
    with pytest.raises(ConfigError, match=r"methods\.line\.search\.ridge"):
        trial_configs(replace(method, search={"ridge": {"log_uniform": [0, 1]}}), {}, seed=0)
    trials = [
        Trial({}, float("nan")),
        *(Trial({"a": at}, tau) for at, tau in enumerate((0.2, 0.5, 0.5))),
    ]
    assert best_trial(trials).config == {"a": 1}


def test_tuning_takes_what_is_best_on_validation_and_keeps_every_trial(
    opened: Catalog, tmp_path: Path
) -> None:
    methods = {
        "tuned": {
            "backend": "spread", "config": {"noise": 9.0}, "trials": 4,
            "search": {"noise": {"choice": [0.0]}, "ridge": {"log_uniform": [1e-3, 1e3]}},
        }
    }  # fmt: skip
    cells = [{"kind": "in-distribution", "targets": ["test_accuracy"], "zoos": ["mlp-a", "cnn-b"]}]
    asked = protocol(methods=methods, cells=cells)
    output = tmp_path / "out.json"
    early = run_matrix(opened, asked, output, max_minutes=0)
    assert (early.missing, early.results["tuning"]) == (4, [])
    report = run_matrix(opened, asked, output)
    assert report.fitted == 2 * 4 + 2 * 2
    assert len(report.results["tuning"]) == 2
    for item in report.results["tuning"]:
        taus = [trial["val_kendall_tau"] for trial in item["trials"]]
        assert len(taus) == 4
        assert taus[item["chosen"]] == max(taus)
        chosen = item["trials"][item["chosen"]]["config"]
        assert all(
            f["config"] == chosen for f in report.results["fits"] if f["train"] == item["train"]
        )
    # Trials were not shown test networks.
    records = [json.loads(line) for line in state_path(output).read_text().splitlines()]
    assert sum(not record["tests"] for record in records) == 8
    assert "## Tried configurations" in page(report.results)


# --- state and pages -------------------------------------------------------------------------------------------------


def test_states_give_back_the_bits_and_refuse_other_files(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=50)
    np.testing.assert_array_equal(unpack(pack(values)), values)
    state = State(tmp_path / "a.state.jsonl")
    state.add({"key": "k", "tests": {"x": {}}, "code": "c"})
    again = State(tmp_path / "a.state.jsonl")
    assert again.find("k", ["x"]) is not None
    assert again.find("k", ["x", "y"]) is None
    (tmp_path / "b.jsonl").write_text("[]\n{}\n")
    with pytest.raises(ConfigError, match="line 1 is no finished fit"):
        State(tmp_path / "b.jsonl")
    assert fit_key(a=1, b=2) == fit_key(b=2, a=1) != fit_key(a=1, b=3)


def test_pages_come_from_the_json_alone_and_are_the_same_each_time(
    opened: Catalog, tmp_path: Path
) -> None:
    cells = [*tomllib.loads(PROTOCOL)["cells"],
             {"kind": "data-fraction", "fractions": [0.5, 1.0], "targets": ["test_accuracy"]},
             {"kind": "leakage", "targets": ["test_accuracy"]}]  # fmt: skip
    report = run_matrix(opened, protocol(cells=cells), tmp_path / "out.json")
    written = render(load_results(report.path), tmp_path / "pages")
    assert {path.name for path in written} == {
        "small.md", "small-test_accuracy.svg", "small-rate.svg", "small-test_accuracy-fractions.svg"
    }  # fmt: skip
    before = {path: path.read_bytes() for path in written}
    assert {
        path: path.read_bytes() for path in render(load_results(report.path), tmp_path / "pages")
    } == before
    text = (tmp_path / "pages" / "small.md").read_text()
    assert str(tmp_path) not in text
    for path in written[1:]:
        assert f"]({path.name})" in text
    cell = cell_of(report, "cross-dataset", "cnn-b", "cnn-a")
    line = entry_of(cell, "line")
    assert (
        f"| cross-dataset | cnn-b | 1 | cnn-a | {line['n']} ({line['num_models']}) | {line['kendall_tau']:.3f} ±"
        in text
    )
    assert "cnn-b (by checkpoint)" in text


def test_results_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_results(tmp_path / "none.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ConfigError, match="no JSON"):
        load_results(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"format": 99}')
    with pytest.raises(ConfigError, match="not the results"):
        load_results(tmp_path / "x.json")


def test_committed_pages_are_those_of_their_json(checkout: Path) -> None:
    """Every `docs/results/NAME.json` of a comparison has the page that is made from it."""
    for file in sorted((checkout / "docs" / "results").glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict) and "protocol_digest" in content:
            made = page(load_results(file))
            assert (file.parent / f"{content['name']}.md").read_text(encoding="utf-8") == made
