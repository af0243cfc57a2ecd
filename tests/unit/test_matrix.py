"""Comparisons of predictors on real catalogs: fits, figures, interruptions, trials."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from comparing import cell_of, entry_of, protocol

from zooplatform.errors import ConfigError, IntegrityError
from zooplatform.evaluation.matrix import run_matrix, state_path
from zooplatform.evaluation.render import load_results, page
from zooplatform.evaluation.scores import kendall_tau, mae, paired_difference, r2
from zooplatform.evaluation.state import pack, unpack
from zooplatform.evaluation.tuning import Trial, best_trial, trial_configs
from zooplatform.growing.ranges import derive_seed
from zooplatform.splits import find_split, split_members

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.catalog import Catalog


def test_figures_are_those_of_the_predictions(compared: Catalog, tmp_path: Path) -> None:
    report = run_matrix(
        compared, protocol(), tmp_path / "out.json", predictions=tmp_path / "predictions.npz"
    )
    assert (report.failed, report.missing, report.reused) == ((), 0, 0)
    assert report.results == load_results(tmp_path / "out.json")
    assert report.results["complete"]
    arrays = np.load(tmp_path / "predictions.npz")
    cell = cell_of(report, "cross-dataset", "mlp-a", "mlp-b")
    target = arrays["target/mlp-b/test_accuracy"]
    ids = arrays["ids/mlp-b/test_accuracy"].tolist()
    members = split_members(compared, find_split(compared, "s.mlp-b.final"), "train")
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
        assert said["mse"] == pytest.approx(float(((target - prediction) ** 2).mean()), abs=1e-8)
    for name in ("spearman", "r2", "mae", "mse"):
        assert bent[name] == pytest.approx(
            np.mean([said[name] for said in bent["seeds"]]), abs=1e-5
        )
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


def test_what_is_there_to_be_learnt_is_learnt(compared: Catalog, tmp_path: Path) -> None:
    report = run_matrix(compared, protocol(), tmp_path / "out.json", only=["line", "flat"])
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


def test_methods_are_set_against_every_other(compared: Catalog, tmp_path: Path) -> None:
    report = run_matrix(compared, protocol(), tmp_path / "out.json")
    for summary in report.results["summaries"]:
        entries = {entry["method"]: entry for entry in summary["methods"]}
        pairs = {(pair["method"], pair["to"]): pair for pair in summary["pairs"]}
        # `bent` alone is no baseline.
        assert set(pairs) == {("bent", other) for other in entries if "bent" in entries} - {
            ("bent", "bent")
        }
        for (label, other), pair in pairs.items():
            gap = entries[label]["kendall_tau"] - entries[other]["kendall_tau"]
            assert pair["value"] == pytest.approx(gap, abs=2e-5)
            assert pair["ci"][0] <= pair["value"] <= pair["ci"][1]
            if other == summary["baseline"]:
                assert {"to": other, **pair} == {"method": label, **entries[label]["difference"]}
    mean = next(s for s in report.results["summaries"] if s["kind"] == "in-distribution")
    (first, *_) = mean["pairs"]
    assert f"| bent | {first['to']} | {first['value']:+.3f} [" in page(report.results)


def test_the_baseline_is_chosen_on_validation_networks(compared: Catalog, tmp_path: Path) -> None:
    report = run_matrix(compared, protocol(), tmp_path / "out.json")
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


def test_a_run_goes_on_where_it_was(compared: Catalog, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    first = run_matrix(compared, protocol(), output, only=["line"])
    assert (first.fitted, first.reused) == (16, 0)
    state = state_path(output)
    lines = state.read_bytes().splitlines(keepends=True)
    assert len(lines) == 16
    # All of one seed before the next: an interruption leaves whole tables of fewer seeds.
    assert [json.loads(line)["seed"] for line in lines] == [0] * 8 + [1] * 8
    state.write_bytes(b"".join(lines[:10]) + lines[10][:50])  # cut off in the middle of a line
    second = run_matrix(compared, protocol(), output, only=["line"])
    assert (second.fitted, second.reused) == (6, 10)
    assert second.results["cells"] == first.results["cells"]
    assert len(state.read_bytes().splitlines()) == 16
    stopped = run_matrix(compared, protocol(), output, max_minutes=0)
    assert (stopped.fitted, stopped.reused, stopped.missing) == (0, 16, 32)
    assert not stopped.results["complete"]
    assert {e["method"] for c in stopped.results["cells"] for e in c["methods"]} == {"line"}


def test_a_new_test_zoo_asks_the_fit_again(compared: Catalog, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    inside = protocol(cells=[{"kind": "in-distribution", "targets": ["test_accuracy"]}])
    assert run_matrix(compared, inside, output, only=["line"]).fitted == 8
    assert run_matrix(compared, protocol(), output, only=["line"]).reused == 0
    assert run_matrix(compared, inside, output, only=["line"]).fitted == 0


def test_processes_give_the_same_figures(compared: Catalog, tmp_path: Path) -> None:
    asked = protocol(cells=[{"kind": "cross-dataset", "targets": ["test_accuracy"]}])
    one = run_matrix(compared, asked, tmp_path / "one.json", only=["line"])
    two = run_matrix(compared, asked, tmp_path / "two.json", only=["line"], jobs=2)
    assert (two.fitted, two.failed) == (8, ())
    assert two.results["cells"] == one.results["cells"]


def test_kept_networks_are_scored_by_final_alone(compared: Catalog, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    asked = protocol(cells=[{"kind": "in-distribution"}, {"kind": "leakage"}])
    seen = run_matrix(compared, asked, output, only=["line"], predictions=tmp_path / "seen.npz")
    last = run_matrix(
        compared,
        asked,
        tmp_path / "out.json",
        only=["line"],
        final=True,
        predictions=tmp_path / "last.npz",
    )
    assert last.fitted == 0
    assert (seen.results["side"], last.results["side"]) == ("test", "final")
    assert last.results["name"] == f"{seen.results['name']}-final"  # of their pages too
    names = "ids/cnn-a/test_accuracy"
    looked, kept = (set(np.load(tmp_path / f"{n}.npz")[names].tolist()) for n in ("seen", "last"))
    assert kept == {
        m.checkpoint_id
        for m in split_members(compared, find_split(compared, "s.cnn-a.final"), "test")
    }
    assert looked
    assert not looked & kept
    for report, scored in ((seen, looked), (last, kept)):
        cell = cell_of(report, "in-distribution", "cnn-a", "cnn-a")
        assert entry_of(cell, "line")["n"] == len(scored)
    assert {cell["kind"] for cell in last.results["cells"]} == {"in-distribution"}
    with pytest.raises(ConfigError, match="keeps no networks for a last look"):
        run_matrix(compared, protocol(split={"name": "t"}), output, final=True)


def test_the_audit_counts_what_leaks(compared: Catalog, tmp_path: Path) -> None:
    asked = protocol(cells=[{"kind": "leakage", "zoos": ["mlp-a"], "targets": ["test_accuracy"]}])
    report = run_matrix(compared, asked, tmp_path / "out.json", only=["line"])
    audit = report.results["audit"]
    assert audit["mlp-b"] == {"leaking": 0}
    assert audit["mlp-a"]["leaking"] == 0
    assert audit["mlp-a"]["leaking_by_checkpoint"] > 5
    (every, _) = report.results["cells"]
    assert every["kind"] == "leakage"


def test_failures_and_refusals_are_told_and_the_rest_goes_on(
    compared: Catalog, tmp_path: Path
) -> None:
    methods = {
        "good": {"backend": "spread"},
        "bad": {"backend": "spread", "config": {"nois": 1}},
        "one": {"backend": "flat"},
    }
    cells = [{"kind": "cross-architecture", "targets": ["test_accuracy"], "seeds": [0]}]
    report = run_matrix(compared, protocol(methods=methods, cells=cells), tmp_path / "out.json")
    assert (len(report.failed), report.missing) == (4, 4)
    assert "bad on" in report.failed[0][0]
    assert "unknown keys" in report.failed[0][1]
    for cell in report.results["cells"]:
        assert [entry["method"] for entry in cell["methods"]] == ["good"]
        assert "another architecture" in cell["refused"]["one"]
    assert "## Refused" in page(report.results)
    assert "## Failed" in page(report.results)


def test_predictions_about_other_networks_are_not_scored(compared: Catalog, tmp_path: Path) -> None:
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
    run_matrix(compared, asked, output, only=["line"])
    (line,) = state_path(output).read_text().splitlines()
    record = json.loads(line)
    record["tests"]["mlp-a"]["ids"] = "0" * 16
    state_path(output).write_text(json.dumps(record) + "\n")
    with pytest.raises(IntegrityError, match="not about the test networks of mlp-a"):
        run_matrix(compared, asked, output, only=["line"])


def test_a_fit_that_says_the_same_of_all_has_no_tau(compared: Catalog, tmp_path: Path) -> None:
    """Trees on a few networks predict a constant: its rank correlation is undefined, and no reason to lose the rest."""
    output = tmp_path / "out.json"
    cells = [{"kind": "in-distribution", "targets": ["test_accuracy"], "seeds": [0]}]
    asked = protocol(cells=cells)
    first = run_matrix(compared, asked, output, only=["line", "flat"]).results
    lines = [json.loads(line) for line in state_path(output).read_text().splitlines()]
    for record in lines:
        if record["backend"] == "flat":
            values = np.full(
                len(unpack(record["tests"][record["task"]["train"][0]]["predictions"])), 0.5
            )
            record["tests"][record["task"]["train"][0]]["predictions"] = pack(values)
            record["val_kendall_tau"] = record["metrics"]["val_kendall_tau"] = float("nan")
    state_path(output).write_text("".join(json.dumps(record) + "\n" for record in lines))
    again = run_matrix(compared, asked, output, only=["line", "flat"]).results
    for fit in again["fits"]:
        assert (fit["val_kendall_tau"] is None) == (fit["method"] == "flat")
    for before, after in zip(first["cells"], again["cells"], strict=True):
        assert entry_of(after, "flat")["kendall_tau"] == 0  # it orders nothing
        assert entry_of(after, "line")["kendall_tau"] == entry_of(before, "line")["kendall_tau"]
        assert after["baseline"] == after["hardest_baseline"] == "line"
    assert "| flat" in page(again)


def test_other_code_is_noticed_and_fitted_again_when_asked(
    compared: Catalog, tmp_path: Path
) -> None:
    output = tmp_path / "out.json"
    asked = protocol(
        cells=[{"kind": "in-distribution", "targets": ["test_accuracy"], "seeds": [0]}]
    )
    assert run_matrix(compared, asked, output, only=["line"]).changed == ()
    state = state_path(output)
    records = [json.loads(line) for line in state.read_text().splitlines()]
    state.write_text("".join(json.dumps({**r, "code": "older"}) + "\n" for r in records))
    kept = run_matrix(compared, asked, output, only=["line"])
    assert (kept.changed, kept.fitted) == (("line",), 0)
    again = run_matrix(compared, asked, output, only=["line"], refit=True)
    assert (again.changed, again.fitted) == ((), 4)


# --- tuning -----------------------------------------------------------------------------------------------------------


def test_named_configurations_are_written_out(compared: Catalog, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    one = [{"kind": "in-distribution", "zoos": ["mlp-a"], "targets": ["test_accuracy"]}]
    report = run_matrix(compared, protocol(cells=one, seeds=[0]), output, only=["bent"])
    (fit,) = report.results["fits"]
    assert fit["config"] == {"noise": 0.5, "ridge": 0.1}  # of `noisy`, but for what is set
    wrong = protocol(methods={"bent": {"backend": "spread", "config": "nosy"}})
    with pytest.raises(ConfigError, match=r"methods\.bent: .*no configuration 'nosy'.*'noisy'\?"):
        run_matrix(compared, wrong, output)


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
    compared: Catalog, tmp_path: Path
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
    early = run_matrix(compared, asked, output, max_minutes=0)
    assert (early.missing, early.results["tuning"]) == (4, [])
    report = run_matrix(compared, asked, output)
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
