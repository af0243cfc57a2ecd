"""`zoo demo` on the zoo that comes with the package."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from zooplatform.catalog import open_catalog
from zooplatform.demo import IMAGES, ZOO, run_demo
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
    for number in range(1, 7):
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
    ]
    assert all(step["result"] for step in steps)
    measured = steps[-1]["result"]
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
    import numpy as np

    for step in run_demo(tmp_path / "d"):
        if step.name == "open":
            break
    path = tmp_path / "d" / ZOO / IMAGES
    with np.load(path) as data:
        changed = {**data, "y": np.roll(data["y"], 1)}
    np.savez(path, **changed)
    with pytest.raises(IntegrityError, match=r"classifies 0\.\d+ of the test images, but"):
        list(run_demo(tmp_path / "d"))


def test_a_folder_with_other_things_is_left_alone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("text")
    result = cli("demo", "--output", tmp_path)
    assert result.exit_code == 1
    assert "is already there and not from this demo. Give --output" in result.stderr
    assert [item.name for item in tmp_path.iterdir() if item.name != "home"] == ["thesis.tex"]


def test_an_interrupted_copy_is_begun_again(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    (folder / f".{ZOO}.copying").mkdir(parents=True)
    (folder / f".{ZOO}.copying" / "FORMAT").write_text("half")
    assert cli("demo", "--output", folder, "--json").exit_code == 0
