"""`zoo generator evaluate` and `render`: the report card from the command line."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from zooplatform.testing.scorecards import card_folder, installed_tricks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result

    Cli = Callable[..., Result]

QUICK = ("--dataset", "rows", "--n", "5", "--finetune-samples", "2", "--tried", "1")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("card")
    shutil.copytree(card_folder() / "zoo", folder / "zoo")
    with installed_tricks(folder):
        yield str(folder / "zoo")


@pytest.fixture
def evaluate(zoo: str, cli: Cli) -> Callable[..., Result]:
    def run(*arguments: object) -> Result:
        folder = ("--data-folder", card_folder())
        return cli("generator", "evaluate", *arguments, *QUICK, *folder, "-c", zoo)

    return run


def test_json_holds_what_other_tools_read(zoo: str, cli: Cli) -> None:
    where = ("--data-folder", card_folder(), "-c", zoo)
    asked = ("my-copy", "--against", "my-noise", "--epochs", "0,1", *QUICK)
    done = cli("generator", "evaluate", *asked, *where, "--json")
    assert done.exit_code == 0, done.stderr
    card: dict[str, Any] = json.loads(done.stdout)
    fixed = ("method", "epochs", "accuracy_mean", "accuracy_std", "accuracy_best")
    for row in card["rows"]:
        assert {*fixed, "relative_novelty", "n"} <= row.keys()
        assert 0 <= row["accuracy_mean"] <= row["accuracy_best"] <= 1
    assert [(row["method"], row["epochs"]) for row in card["rows"]] == [
        (method, epochs)
        for method in ("scratch", "zoo", "copy", "my-copy", "my-noise")
        for epochs in (0, 1)
    ]
    novelty = {row["method"]: row["relative_novelty"] for row in card["rows"] if not row["epochs"]}
    assert novelty["copy"] == novelty["my-copy"] == 0 < novelty["my-noise"]
    assert "noise has no codes" in done.stderr


def test_the_table_shows_novelty_beside_accuracy(evaluate: Callable[..., Result]) -> None:
    done = evaluate("my-copy", "--epochs", "0", "--wrong-dataset", "columns")
    assert done.exit_code == 0, done.stderr
    head, _, *lines = done.stdout.splitlines()
    assert head.split()[:6] == ["method", "epochs", "accuracy", "std", "best", "relative_novelty"]
    (line,) = [line.split() for line in lines if line.startswith("my-copy") and " 0 " in line][:1]
    assert line[0] == "my-copy"
    assert float(line[5]) == 0
    for title in ("Asked for something else", "Held-out networks reconstructed", "Cost"):
        assert title in done.stdout


def test_a_card_is_kept_and_shown_again(
    evaluate: Callable[..., Result], cli: Cli, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    output = tmp_path / "out" / "card.json"
    asked = ("my-mean", "--epochs", "0", "-o", output)
    begun = evaluate(*asked, "--max-minutes", "0", "--json")
    assert begun.exit_code == 0
    assert not json.loads(begun.stdout)["complete"]
    assert "repeat the command to go on" in begun.stderr
    done = evaluate(*asked, "--pages", tmp_path / "pages")
    assert done.exit_code == 0, done.stderr
    assert str(output) in done.stderr
    again = evaluate(*asked)
    assert "6 parts of it from before" in again.stderr
    assert again.stdout == done.stdout
    made = cli("generator", "render", output, "-o", tmp_path / "again", "--json")
    assert made.exit_code == 0, made.stderr
    names = [path.rpartition("/")[2] for path in json.loads(made.stdout)["files"]]
    assert names == ["card.md", "card-novelty.svg"]
    for name in names:
        first, second = ((tmp_path / f / name).read_bytes() for f in ("pages", "again"))
        assert first == second
    plain = cli("generator", "render", output, "--no-figures")
    assert plain.stdout.split() == [str(output.with_suffix(".md"))]


def test_a_card_without_novelty_is_not_shown(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    row = {"method": "mine", "epochs": 0, "accuracy_mean": 0.9, "n": 5}
    path.write_text(json.dumps({"format": 1, "rows": [row]}))
    refused = cli("generator", "render", path)
    assert refused.exit_code == 1
    assert "an accuracy without its novelty never is" in refused.stderr
    assert "0.9" not in refused.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["card.json"]


def test_generators_that_know_nothing_of_it_are_a_failure(evaluate: Callable[..., Result]) -> None:
    done = evaluate("my-copy", "--epochs", "0", "--instruction", "a poem", "--json")
    assert done.exit_code == 1
    card = json.loads(done.stdout)
    assert {row["method"] for row in card["rows"]} == {"scratch", "zoo", "copy"}
    assert "knows columns, rows, not 'a poem'" in done.stderr
    unknown = evaluate("my-copy", "--option", "depth=3", "--epochs", "0")
    assert unknown.exit_code == 1
    assert "no option ['depth']" in unknown.stderr


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (("--epochs", "0,x"), "no list of numbers"),
        (("--epochs", "0,-1"), "give numbers of at least 0"),
        (("--temperature", ""), "give numbers of at least 0"),
        (("--compared-images", "0"), "0 is not in the range"),
        (("--data", "mnist"), "not of the form NAME=VALUE"),
        (("--option", "=3"), "not of the form NAME=VALUE"),
    ],
)
def test_wrong_usage(evaluate: Callable[..., Result], wrong: tuple[str, str], text: str) -> None:
    done = evaluate("my-copy", *wrong)
    assert done.exit_code == 2
    assert text in " ".join(done.stderr.split())


def test_an_unknown_generator_or_data_set_is_named(evaluate: Callable[..., Result]) -> None:
    done = evaluate("nobody")
    assert done.exit_code == 1
    assert "'nobody'" in done.stderr
    done = evaluate("my-copy", "--data", "mnist=npz:mnist.npz")
    assert done.exit_code == 1
    assert "mnist" in done.stderr
