"""`zoo demo` on the zoo that comes with the package."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from zooplatform.catalog import open_catalog
from zooplatform.demo import GENERATOR, IMAGES, PREDICTOR, SPLIT, SUSPECTS, ZOO, run_demo
from zooplatform.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The demo as a user runs it, in a process of its own."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    process = subprocess.run(
        [sys.executable, "-m", "zooplatform", "demo", "--output", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return folder, process


def test_it_shows_every_step(done: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, process = done
    assert process.returncode == 0, process.stderr
    for number in range(1, 13):
        assert f"\n{number}. " in process.stdout
    assert f"Everything is in {folder}. Try next:" in process.stderr


def test_what_it_says_to_try_next_works(
    done: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    _, process = done
    _, _, after = process.stderr.partition("Try next:\n")
    tries = [line.strip() for line in after.splitlines() if "PATH-OF" not in line]
    assert len(tries) >= 2
    for line in tries:
        assert line.startswith("zoo ")
        command = f"{sys.executable} -m zooplatform {line.removeprefix('zoo ')}"
        subprocess.run(command, shell=True, check=True, capture_output=True, timeout=60)


def test_it_leaves_a_catalog_and_a_file_behind(
    done: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = done
    assert (folder / "best.safetensors").is_file()
    with open_catalog(folder / ZOO) as catalog:
        assert catalog.sql("select count(*) as n from checkpoints").to_pylist()[0]["n"] >= 100
        assert catalog.check(deep=True) == []


def test_json_twice_in_one_folder(cli: Cli, tmp_path: Path) -> None:
    first = cli("demo", "--output", tmp_path / "d", "--json")
    assert first.exit_code == 0, first.stderr
    again = cli("demo", "--output", tmp_path / "d", "--json")
    steps: list[dict[str, Any]] = json.loads(again.stdout)
    assert steps == json.loads(first.stdout)
    assert [step["step"] for step in steps] == [
        "open",
        "question-1",
        "question-2",
        "question-3",
        "export",
        "evaluate",
        "predict",
        "compare",
        "mislabel",
        "suspects",
        "correct",
        "generate",
    ]
    assert all(step["result"] for step in steps)
    (measured,) = [step["result"] for step in steps if step["step"] == "evaluate"]
    assert measured["measured_accuracy"] == measured["stored_accuracy"]
    assert measured["num_images"] >= 100
    assert 0.5 < measured["measured_accuracy"] <= 1


def test_no_answer_depends_on_the_order_of_equal_rows(tmp_path: Path) -> None:
    """Two layers of the zoo have one size: each question must say which comes first."""
    (question,) = [step for step in run_demo(tmp_path / "d") if step.name == "question-1"]
    rows = question.result.to_pylist()
    assert rows == sorted(rows, key=lambda row: (-row["num_parameters"], row["layer"]))
    assert len({row["num_parameters"] for row in rows}) < len(rows)


def test_the_accuracy_is_measured_and_not_repeated(tmp_path: Path) -> None:
    """With other images the demo must fail, or it would not show anything."""
    for step in run_demo(tmp_path / "d"):
        if step.name == "open":
            break
    path = tmp_path / "d" / ZOO / IMAGES
    with np.load(path) as data:
        changed = {**data, "y": np.roll(data["y"], 1)}
    np.savez(path, **changed)
    with pytest.raises(IntegrityError, match=r"classifies 0\.\d+ of the test images, but"):
        list(run_demo(tmp_path / "d"))


# --- predictions ------------------------------------------------------------------------------------------------------


def declared(folder: Path) -> list[dict[str, Any]]:
    """What the demo's catalog says was measured."""
    with open_catalog(folder) as catalog:
        return catalog.sql(
            "select m.* exclude (commit_id) from metrics m join wide w using (checkpoint_id) "
            "where origin <> 'predicted' and not starts_with(zoo_id, 'generated') order by all"
        ).to_pylist()


def results(folder: Path) -> dict[str, Any]:
    return {
        step.name: step.result if isinstance(step.result, dict) else step.result.to_pylist()
        for step in run_demo(folder)
    }


def test_the_figures_are_those_of_the_networks_kept_from_the_predictor(tmp_path: Path) -> None:
    found = results(tmp_path / "d")["predict"]
    with open_catalog(tmp_path / "d" / ZOO) as catalog:
        rows = catalog.sql(
            "select distinct w.model_id, checkpoint_id, test_accuracy as y, "
            "zoo_predict(?, checkpoint_id) as said from wide w join splits using (checkpoint_id) "
            "where splits.name = ? and role = 'test'",
            [PREDICTOR, SPLIT],
        ).to_pydict()
        fitted = catalog.sql(
            "select json_extract_string(data, '$.train.models')::int as n from artifacts "
            "where kind = 'predictor'"
        )
        roles = catalog.sql(
            "select role, count(distinct model_id) as n from splits where name = ? group by role",
            [SPLIT],
        ).to_pylist()
        torn = catalog.sql(
            "select h.value from splits join hyperparameters h using (model_id) "
            "where h.key = 'stack' and splits.name = ? group by h.value having count(distinct role) > 1",
            [SPLIT],
        )
    y, said = np.array(rows["y"]), np.array(rows["said"])
    pairs = np.triu_indices(len(y), 1)
    signs = [np.sign(v[:, None] - v[None, :])[pairs] for v in (y, said)]
    tau = (signs[0] * signs[1]).sum() / np.sqrt(np.prod([np.abs(s).sum() for s in signs]))
    assert found["kendall_tau"] == pytest.approx(tau)
    assert found["mean_absolute_error"] == pytest.approx(np.abs(y - said).mean())
    assert found["num_checkpoints"] == len(y)
    assert found["num_networks"] == len(set(rows["model_id"]))
    assert found["num_seen_in_fit"] == 0
    assert fitted.to_pylist()[0]["n"] == {r["role"]: r["n"] for r in roles}["train"]
    assert torn.num_rows == 0
    # Better than chance and than the mean, by a margin that no change of platform eats up.
    assert found["kendall_tau"] > 0.6
    assert found["mean_absolute_error"] < 0.5 * np.abs(y - np.median(y)).mean()


def test_the_wrong_label_is_found_and_put_right(tmp_path: Path) -> None:
    found = results(tmp_path / "d")
    first, second, *_ = found["suspects"]
    wrong = found["mislabel"]["declared_accuracy"]
    assert (first["model"], first["epoch"]) == (
        found["mislabel"]["model"],
        found["mislabel"]["epoch"],
    )
    assert first["declared"] == round(wrong, 4)
    assert first["difference"] > second["difference"]
    # What was measured is what the network was said to do before it was mislabelled.
    built = declared(tmp_path / "d" / ZOO)
    (before,) = [row for row in found["compare"] if row["model"] == first["model"]]
    assert round(found["correct"]["measured_accuracy"], 4) == before["measured"]
    assert before["measured"] - wrong > 0.3
    (row,) = [
        r
        for r in built
        if r["checkpoint_id"] == first["checkpoint_id"] and r["name"] == "test_accuracy"
    ]
    assert row["value"] == found["correct"]["measured_accuracy"]


def test_nothing_stays_wrong(tmp_path: Path, checkout: Path) -> None:
    """Not even after a demo that was interrupted while the label was wrong."""
    folder = tmp_path / "d"
    for step in run_demo(folder):
        if step.name == "mislabel":
            break
    right = declared(checkout / "catalogs" / ZOO)
    assert declared(folder / ZOO) != right
    results(folder)
    assert declared(folder / ZOO) == right


def test_it_fails_when_another_entry_is_more_suspicious(tmp_path: Path) -> None:
    """The order of the suspects is asked of the catalog and not taken for granted."""
    folder = tmp_path / "d"
    other = results(folder)["compare"][1]
    with open_catalog(folder / ZOO) as catalog:
        (row,) = catalog.sql(
            "select m.* exclude (commit_id) from metrics m join wide w using (checkpoint_id) "
            "where w.model = ? and w.epoch = 20 and m.name = 'test_accuracy' "
            "and origin <> 'predicted'",
            [other["model"]],
        ).to_pylist()
        catalog.commit("none right", {"metrics": [row | {"value": 0.0}]}, replaces=["metrics"])
    with pytest.raises(IntegrityError, match=f"but {row['checkpoint_id']} comes first among"):
        results(folder)


def test_a_useless_network_that_claims_to_be_good_is_found(tmp_path: Path) -> None:
    """The other direction: accuracy copied from the best network to the worst."""
    for step in run_demo(tmp_path / "d"):
        if step.name == "open":
            break
    with open_catalog(tmp_path / "d" / ZOO) as catalog:
        rows = catalog.sql(
            "select m.* exclude (commit_id) from metrics m join wide using (checkpoint_id) "
            "where epoch = 20 and m.name = 'test_accuracy' and origin <> 'predicted' "
            "order by m.value"
        ).to_pylist()
        wrong = rows[0] | {"value": rows[-1]["value"]}
        catalog.commit("a copied label", {"metrics": [wrong]}, replaces=["metrics"])
        first, second, *_ = catalog.sql(SUSPECTS).to_pylist()
    assert first["checkpoint_id"] == rows[0]["checkpoint_id"]
    assert first["difference"] > 0.5 > second["difference"]


_WITHOUT_EXTRAS = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"lightgbm", "sklearn", "scipy", "matplotlib", "pandas"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from zooplatform.cli import main
main()
"""


def test_it_needs_no_extra(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_EXTRAS, "demo", "--output", str(tmp_path / "d"), "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[-1]["step"] == "generate"


# --- a new network ----------------------------------------------------------------------------------------------------


def test_a_network_is_written_as_the_instruction_says(tmp_path: Path) -> None:
    """It is in the catalog, of the activation that was asked for, nearly as accurate as trained ones, and no copy."""
    found = results(tmp_path / "d")["generate"]
    assert found["activations"] == "tanh"
    assert found["best_accuracy"] >= found["mean_accuracy"] > 0.9 * found["accuracy_of_trained"]
    assert found["relative_novelty"] > 0.1
    with open_catalog(tmp_path / "d" / ZOO) as catalog:
        made = catalog.build(found["checkpoint_id"])
        (edge,) = catalog.sql(
            "select l.parent_id, a.name, json_extract_string(l.detail, '$.instruction') as told, m.license "
            "from lineage l join checkpoints c on l.child_id = c.model_id join models m using (model_id) "
            "join artifacts a on a.artifact_id = l.parent_id "
            "where l.relation = 'generated_by' and c.checkpoint_id = ?",
            [found["checkpoint_id"]],
        ).to_pylist()
        with np.load(catalog.path / IMAGES) as images:
            x, y = torch.from_numpy(images["x"]), torch.from_numpy(images["y"])
    assert (edge["name"], edge["license"]) == (GENERATOR, "CC0-1.0")
    assert edge["told"] == found["instruction"]
    with torch.no_grad():
        accuracy = (made(x).argmax(1) == y).float().mean().item()
    assert accuracy > 0.8


# --- the folder -------------------------------------------------------------------------------------------------------


def test_a_folder_with_other_things_is_left_alone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("text")
    result = cli("demo", "--output", tmp_path)
    assert result.exit_code == 1
    assert "is already there and not from this demo. Give --output" in result.stderr
    assert [item.name for item in tmp_path.iterdir() if item.name != "home"] == ["thesis.tex"]


def test_a_folder_that_cannot_be_made(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = cli("demo", "--output", tmp_path / "file" / "demo")
    assert result.exit_code == 1
    assert "the demo cannot write there (Not a directory). Give --output" in result.stderr


def test_an_interrupted_copy_is_begun_again(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    (folder / f".{ZOO}.copying").mkdir(parents=True)
    (folder / f".{ZOO}.copying" / "FORMAT").write_text("half")
    assert cli("demo", "--output", folder, "--json").exit_code == 0
