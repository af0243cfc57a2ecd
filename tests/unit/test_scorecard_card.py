"""The whole report card: generators whose figures are known beforehand, on a real zoo."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from zooplatform.catalog import open_catalog
from zooplatform.errors import ConfigError
from zooplatform.generation.images import task_images
from zooplatform.generation.stored_fits import fit_generator
from zooplatform.plugins import load_plugins
from zooplatform.scorecard.card import CardReport, evaluate_generators, state_path
from zooplatform.scorecard.examining import _some
from zooplatform.scorecard.render import render
from zooplatform.scorecard.sides import read_side
from zooplatform.scorecard.wishes import Wishes
from zooplatform.splits import create_split
from zooplatform.testing.scorecards import ALL, SPLIT, TRICKS, card_folder, installed_tricks
from zooplatform.testing.stripes import grow_stripes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zooplatform.catalog import Catalog

GENERATORS = [f"my-{trick}" for trick in TRICKS]
QUICK: dict[str, Any] = {"dataset": "rows", "n": 6, "finetuned": 3, "tried": 2}


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:  # type: ignore[override]
    folder = tmp_path_factory.mktemp("card")
    shutil.copytree(card_folder() / "zoo", folder / "zoo")
    with (
        installed_tricks(folder),
        open_catalog(folder / "zoo", registry=load_plugins(strict=True)) as opened,
    ):
        yield opened


def evaluate(catalog: Catalog, names: list[str], wishes: Wishes, **asked: Any) -> CardReport:
    return evaluate_generators(catalog, names, wishes, data_folder=card_folder(), **asked)


@pytest.fixture(scope="module")
def whole(catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    wishes = Wishes(
        **QUICK,
        epochs=(0, 1, 3),
        wrong_dataset="columns",
        wrong_instructions=("columns", "nothing"),
    )
    output = tmp_path_factory.mktemp("out") / "card.json"
    report = evaluate(catalog, GENERATORS, wishes, output=output)
    assert report.missing == 0
    found: dict[str, Any] = json.loads(output.read_text())
    assert found == report.results
    return found


def rows(card: dict[str, Any], epochs: int = 0) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in card["rows"] if row["epochs"] == epochs}


def test_the_rows_are_all_there(whole: dict[str, Any]) -> None:
    expected = ["scratch", "zoo", "copy", *GENERATORS]
    assert [(row["method"], row["epochs"]) for row in whole["rows"]] == [
        (method, epochs) for method in expected for epochs in (0, 1, 3)
    ]
    assert all(rows(whole)[name]["n"] == 6 for name in ("scratch", "copy", *GENERATORS))
    assert all(row["n"] == 3 for row in rows(whole, 1).values())
    assert whole["complete"]
    assert whole["zoo"]["held_out_runs"] == rows(whole)["zoo"]["n"]


def test_copying_is_seen(whole: dict[str, Any]) -> None:
    found = rows(whole)
    for name in ("copy", "my-copy", "my-permuted", "my-constant"):
        row = found[name]
        assert row["relative_novelty"] == pytest.approx(0, abs=1e-6), name
        assert row["novelty"]["disagreement"] == 0, name
        assert row["novelty"]["error_overlap"] == 1, name
        assert row["accuracy_mean"] > found["scratch"]["accuracy_mean"] + 0.2, name
    assert found["my-copy"]["diversity"]["relative_distance"] > 0.3
    same = found["my-constant"]
    assert same["accuracy_std"] == 0
    assert same["diversity"]["distinct"] == 1
    assert same["diversity"]["distance"] == same["diversity"]["disagreement"] == 0
    assert same["ensemble_accuracy"] == pytest.approx(same["accuracy_mean"])


def test_others_are_newer(whole: dict[str, Any]) -> None:
    found = rows(whole)
    assert found["my-noise"]["relative_novelty"] > 1
    assert 0 < found["my-mean"]["relative_novelty"] < found["my-noise"]["relative_novelty"]
    assert found["my-noise"]["accuracy_mean"] < found["copy"]["accuracy_mean"]
    assert found["scratch"]["relative_novelty"] > 0.3
    # After fine-tuning the novelty is that of the networks as they are then.
    assert 0 < rows(whole, 3)["copy"]["relative_novelty"] < 0.3


def test_fine_tuning_helps_whoever_needs_it(whole: dict[str, Any]) -> None:
    assert whole["settings"]["schooling"] == {
        "optimizer": "adam",
        "batch_size": 8,
        "weight_decay": 0.0,
        "momentum": 0.0,
    }
    before, after = rows(whole), rows(whole, 3)
    assert after["scratch"]["accuracy_mean"] > before["scratch"]["accuracy_mean"] + 0.2
    assert before["scratch"]["learning_rate"] is None
    for row in after.values():
        tried = {float(rate): value for rate, value in row["validation_accuracy"].items()}
        assert sorted(tried) == whole["settings"]["learning_rates"]
        assert tried[row["learning_rate"]] == max(tried.values())


def test_what_is_asked_for_decides(whole: dict[str, Any]) -> None:
    found = {
        (line["asked_for"], line["measured_on"]): line
        for line in whole["wrong"]
        if line["method"] == "my-copy"
    }
    right = rows(whole)["my-copy"]["accuracy_mean"]
    # Networks are hardly trained, and how far each came depends on the processor.
    assert found["columns", "rows"]["accuracy_mean"] < right - 0.05
    assert found["rows", "columns"]["accuracy_mean"] < found["columns", "columns"]["accuracy_mean"]
    assert found["columns", "columns"]["accuracy_mean"] > 0.5
    assert found["columns", "rows"]["chance"] == pytest.approx(13 / 30, abs=0.1)
    assert "knows columns, rows" in found["nothing", "rows"]["refused"]
    assert "accuracy_mean" not in found["nothing", "rows"]
    assert not [line for line in whole["wrong"] if line["method"] in ("scratch", "zoo", "copy")]


def test_reconstruction_stands_beside_a_constant(whole: dict[str, Any]) -> None:
    found = {row["method"]: row for row in whole["reconstruction"]}
    assert list(found) == ["my-copy", "my-permuted", "my-mean", "my-constant", "constant"]
    own = found["my-copy"]
    assert own["agreement_own"] == 1
    assert own["agreement_other"] == pytest.approx(own["originals_agreement"])
    assert own["agreement_other"] < 1
    assert own["relative_error"] == 0
    assert own["relative_distance"] == pytest.approx(1)
    assert own["accuracy"] == own["original_accuracy"]
    for name in ("my-constant", "constant"):
        row = found[name]
        assert row["relative_distance"] == 0
        assert row["relative_disagreement"] < 0.8  # one vector of weights, two activations
        assert row["relative_error"] > 0
    # The best training network agrees with the originals without looking at them.
    assert found["constant"]["accuracy"] >= found["constant"]["original_accuracy"] - 0.05
    assert [item["method"] for item in whole["refused"]] == ["my-noise, reconstruction"]


def test_costs_are_told(whole: dict[str, Any]) -> None:
    costs = {item["method"]: item for item in whole["cost"]}
    assert set(costs) == set(rows(whole))
    assert all(item["seconds"] > 0 and item["peak_bytes"] >= 0 for item in costs.values())
    assert {item["peak_of"] for item in costs.values()} <= {"VmHWM", "ru_maxrss"}


def test_the_same_card_is_made_again(catalog: Catalog, whole: dict[str, Any]) -> None:
    wishes = Wishes(**QUICK, epochs=(0, 1, 3))
    again = evaluate(catalog, ["my-noise"], wishes).results
    for row in again["rows"]:
        assert row == rows(whole, row["epochs"])[row["method"]]


def test_an_interrupted_card_goes_on(catalog: Catalog, tmp_path: Path) -> None:
    wishes = Wishes(**QUICK, epochs=(0, 1))
    output = tmp_path / "card.json"
    begun = evaluate(catalog, ["my-copy"], wishes, output=output, max_minutes=0)
    assert begun.missing == 9  # two parts of four rows, and reconstruction
    assert begun.results["rows"] == []
    assert not begun.results["complete"]
    done = evaluate(catalog, ["my-copy"], wishes, output=output)
    assert (done.missing, done.reused) == (0, 0)
    lines = state_path(output).read_text().splitlines()
    assert len(lines) == 10  # with the constant decoder
    # As if it had been killed while it wrote the last but one.
    state_path(output).write_text("\n".join([*lines[:7], lines[7][:40]]))
    again = evaluate(catalog, ["my-copy"], wishes, output=output)
    assert (again.missing, again.reused) == (0, 7)
    assert again.results["rows"] == done.results["rows"]
    # Another wish makes anew what it changes: rows of a temperature, what comes of longer training, all of a seed.
    warmer = Wishes(**QUICK, epochs=(0, 1), temperatures=(1.0, 0.5))
    more = evaluate(catalog, ["my-noise"], warmer, output=output, max_minutes=0)
    assert more.reused == 6
    assert {row["method"] for row in more.results["rows"]} == {"scratch", "zoo", "copy"}
    longer = Wishes(**QUICK, epochs=(0, 1, 2))
    more = evaluate(catalog, ["my-copy"], longer, output=output, max_minutes=0)
    assert (more.reused, more.missing) == (6, 4)
    other = evaluate(
        catalog, ["my-copy"], Wishes(**QUICK, epochs=(0, 1), seed=1), output=output, max_minutes=0
    )
    assert other.reused == 0


def test_temperatures_and_instructions_are_rows(catalog: Catalog) -> None:
    wishes = Wishes(
        **QUICK, epochs=(0,), temperatures=(0.0, 1.0), instructions=("rows", "something")
    )
    card = evaluate(catalog, ["my-noise"], wishes).results
    made = rows(dict(card))
    assert list(made) == [
        *("scratch", "zoo", "copy"),
        'my-noise T=0 "rows"',
        'my-noise T=1 "rows"',
    ]
    cold, warm = made['my-noise T=0 "rows"'], made['my-noise T=1 "rows"']
    assert cold["relative_novelty"] == 0 < warm["relative_novelty"]
    assert (cold["generator"], cold["temperature"], cold["instruction"]) == ("my-noise", 0, "rows")
    assert [item["method"] for item in card["refused"]] == [
        'my-noise T=0 "something"',
        'my-noise T=1 "something"',
        "my-noise, reconstruction",
    ]


def test_what_cannot_be_measured_is_refused(catalog: Catalog) -> None:
    quick = Wishes(**QUICK, epochs=(0,))
    with pytest.raises(ConfigError, match="are of 2 data sets"):
        evaluate(catalog, ["my-copy"], Wishes(n=6, epochs=(0,)))
    with pytest.raises(ConfigError, match="No training network is of a data set 'mnist'"):
        evaluate(catalog, ["my-copy"], Wishes(dataset="mnist"))
    with pytest.raises(ConfigError, match="wrong data set too"):
        evaluate(catalog, ["my-copy"], Wishes(dataset="rows", wrong_dataset="rows"))
    with pytest.raises(ConfigError, match="each once"):
        evaluate(catalog, ["my-copy", "my-copy"], quick)
    for wrong in ({"n": 0}, {"epochs": ()}, {"epochs": (-1,)}, {"temperatures": ()}):
        with pytest.raises(ConfigError):
            Wishes(**wrong)  # type: ignore[arg-type]


def test_generators_of_other_networks_are_not_compared(catalog: Catalog) -> None:
    from zooplatform.generation.stored_fits import fit_generator

    some = "select checkpoint_id from wide where zoo = 'stripes-rows'"
    fit_generator(catalog, "tricks", name="few", query=some, split=SPLIT, data_folder=card_folder())
    quick = Wishes(**QUICK, epochs=(0,))
    with pytest.raises(ConfigError, match="were fitted on different networks"):
        evaluate(catalog, ["my-copy", "few"], quick)
    said = Wishes(**QUICK, epochs=(0,), query=ALL, split=SPLIT)
    card = evaluate(catalog, ["my-copy", "few"], said).results
    assert rows(dict(card))["few"]["relative_novelty"] == 0


def test_a_generator_may_not_be_called_as_a_reference(catalog: Catalog) -> None:
    from zooplatform.generation.stored_fits import fit_generator

    fit_generator(catalog, "tricks", name="copy", query=ALL, split=SPLIT, data_folder=card_folder())
    with pytest.raises(ConfigError, match="Two rows would be called 'copy'"):
        evaluate(catalog, ["copy"], Wishes(**QUICK, epochs=(0,)))


def test_copies_in_the_catalog_are_no_training_networks(catalog: Catalog) -> None:
    """Sampled copies have the content of training networks; they would bring the zoo's own distance to zero."""
    from zooplatform.generation.sampling import sample_networks

    quick = Wishes(**QUICK, epochs=(0,))
    before = evaluate(catalog, ["my-copy"], quick).results
    sample_networks(catalog, "my-copy", 6, dataset="rows", seed=0)
    after = evaluate(catalog, ["my-copy"], quick).results
    assert after["zoo"] == before["zoo"]
    assert after["rows"] == before["rows"]


def test_read_outs_stand_beside_networks_as_made(catalog: Catalog) -> None:
    wishes = Wishes(**QUICK, epochs=(0,), readouts=(2, 8))
    whole = evaluate(catalog, ["my-copy"], wishes).results
    found = {row["method"]: row for row in whole["rows"] if "readout" in row}
    for method in ("scratch", "zoo", "copy", "my-copy"):
        few, more = found[f"{method} + read-out 2"], found[f"{method} + read-out 8"]
        assert (few["readout"], more["readout"]) == (2, 8)
        assert few["relative_novelty"] > 0
    assert (
        found["scratch + read-out 8"]["accuracy_mean"]
        > rows(whole)["scratch"]["accuracy_mean"] + 0.2
    )


def test_networks_with_a_read_out_are_fine_tuned_as_all_others_are(catalog: Catalog) -> None:
    wishes = Wishes(**{**QUICK, "finetuned": 2, "tried": 1}, epochs=(1,), readouts=(8,))
    whole = evaluate(catalog, ["my-copy"], wishes).results
    after = {row["method"]: row for row in whole["rows"] if row["epochs"] == 1}
    for method in ("scratch", "zoo", "copy", "my-copy"):
        plain, fitted = after[method], after[f"{method} + read-out 8"]
        assert fitted["readout"] == 8
        assert "readout" not in plain
        assert plain["n"] == fitted["n"] == 2
        assert set(plain["validation_accuracy"]) == set(fitted["validation_accuracy"])
    # It began with the read-out: not the same networks trained a second time.
    assert after["scratch + read-out 8"]["accuracy_mean"] != after["scratch"]["accuracy_mean"]


def test_fine_tuning_may_get_few_images(catalog: Catalog, tmp_path: Path) -> None:
    wishes = Wishes(**QUICK, epochs=(0, 2))
    output = tmp_path / "card.json"
    every = evaluate(catalog, ["my-copy"], wishes, output=output).results
    few = evaluate(catalog, ["my-copy"], replace(wishes, train_images=8), output=output)
    assert few.reused == len(every["rows"]) // 2 + len(
        every["reconstruction"]
    )  # all but fine-tuning
    assert rows(dict(few.results)) == rows(dict(every))
    trained, hardly = rows(dict(every), 2)["scratch"], rows(dict(few.results), 2)["scratch"]
    assert hardly["accuracy_mean"] < trained["accuracy_mean"]
    page = Path(render(dict(few.results), tmp_path, figures=False)[0]).read_text()
    assert "on 8 of " in page
    with pytest.raises(ConfigError, match="training images, not 100,000"):
        evaluate(catalog, ["my-copy"], replace(wishes, train_images=100_000))
    with pytest.raises(ConfigError, match="train_images is 0"):
        replace(wishes, train_images=0)


def test_few_images_are_of_all_classes_alike(catalog: Catalog) -> None:
    side = read_side(catalog, ALL, SPLIT, "train", "rows", None)
    task = task_images(catalog, side.ids, folder=card_folder(), names=["rows"])["rows"]
    for number in (1, 7, 12, len(task.train.y)):
        found = _some(task, number, 0)
        counts = torch.bincount(found.y, minlength=task.num_classes)
        assert len(found.x) == len(found.y) == number
        if number < len(task.train.y):
            assert counts.max() - counts.min() <= 1
    assert torch.equal(_some(task, None, 0).x, task.train.x)
    assert not torch.equal(_some(task, 7, 0).x, _some(task, 7, 1).x)


def test_a_last_look_is_at_other_images(tmp_path: Path) -> None:
    folder = shutil.copytree(
        card_folder(), tmp_path / "card", ignore=shutil.ignore_patterns("site")
    )
    with (
        installed_tricks(tmp_path),
        open_catalog(folder / "zoo", registry=load_plugins(strict=True)) as opened,
    ):
        with pytest.raises(ConfigError, match="none is left for a last look"):
            evaluate_generators(
                opened, ["my-copy"], Wishes(**QUICK, final=True), data_folder=folder
            )
        grow_stripes(
            opened, folder, "name='few'", "runs=8", "data.train=40", "epochs=8", "keep=[8]"
        )
        query = "select checkpoint_id from wide where zoo_id = 'few-rows'"
        create_split(opened, "few", query, by="model", seed=0, ratio="50/25/25")
        fit_generator(
            opened,
            "tricks",
            name="few-copy",
            query=query,
            split="few",
            config="copy",
            data_folder=folder,
        )
        wishes = Wishes(n=4, finetuned=2, tried=1, epochs=(0, 1))
        output = tmp_path / "card.json"
        cards = [
            evaluate_generators(
                opened, ["few-copy"], one, output=output, data_folder=folder
            ).results
            for one in (wishes, replace(wishes, final=True))
        ]
    usual, last = cards
    assert (usual["images"]["rows"]["num_test"], last["images"]["rows"]["num_test"]) == (30, 20)
    # Nothing that was measured on the other images is taken over; how new they are does not depend on images.
    ours, theirs = rows(last)["few-copy"], rows(usual)["few-copy"]
    assert all(
        round(20 * row["accuracy_best"]) == pytest.approx(20 * row["accuracy_best"])
        for row in last["rows"]
    )
    assert ours["relative_novelty"] == theirs["relative_novelty"] == pytest.approx(0, abs=1e-6)
    assert (
        rows(last, 1)["scratch"]["validation_accuracy"]
        == rows(usual, 1)["scratch"]["validation_accuracy"]
    )
    (file,) = render(last, tmp_path, figures=False)
    assert "**The last look**" in file.read_text()
