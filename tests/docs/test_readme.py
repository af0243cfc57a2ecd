"""The README is true: its SQL, its Python and its commands run."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
import torch
from safetensors.torch import save_file

from zooplatform.catalog import open_catalog
from zooplatform.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    from zooplatform.testing.installs import PluginInstaller

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built catalog, and two networks that share tensors: every question has an answer."""
    folder = tmp_path_factory.mktemp("readme")
    checkout = Path(__file__).resolve().parents[2]
    shutil.copytree(checkout / "catalogs" / "digits", folder / "catalog")
    shared = torch.randn(4, 4)
    for name in ("one", "two"):
        save_file(
            {"fc1.weight": shared.bfloat16(), "fc2.weight": torch.randn(2, 4).bfloat16()},
            folder / f"{name}.safetensors",
        )
    with open_catalog(folder / "catalog") as catalog:
        for name in ("one", "two"):
            catalog.ingest(folder / f"{name}.safetensors")
        models = catalog.sql("select * exclude (commit_id) from models where name like '%one%'")
        (licensed,) = models.to_pylist()
        catalog.commit(
            "state the licence",
            {"models": [licensed | {"license": "apache-2.0"}]},
            replaces=("models",),
        )
    return folder / "catalog"


def test_there_are_questions() -> None:
    assert len(blocks("sql")) >= 5


@pytest.mark.parametrize("question", blocks("sql"))
def test_every_question_has_an_answer(question: str, path: Path) -> None:
    with open_catalog(path) as catalog:
        assert catalog.sql(question).num_rows > 0


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_a_wrong_label_is_the_first_suspect(path: Path, tmp_path: Path) -> None:
    """The question about suspicious metadata, asked of the built catalog with one entry changed."""
    (question,) = re.findall(r"^```sql\n(.*?)^```$", section("Predict"), re.MULTILINE | re.DOTALL)
    shutil.copytree(path, tmp_path / "catalog")
    with open_catalog(tmp_path / "catalog") as catalog:
        rows = catalog.sql(
            "select m.* exclude (commit_id), w.model from metrics m join wide w using (checkpoint_id) "
            "where w.epoch = 20 and m.name = 'test_accuracy' and origin <> 'predicted' "
            "order by m.value desc"
        ).to_pylist()
        names = [row.pop("model") for row in rows]
        # Not the best one, which a predictor knows best, but one from the middle.
        at = len(rows) // 2
        before = catalog.sql(question).to_pylist()[0]["model"]
        wrong = rows[at] | {"value": rows[-1]["value"]}
        catalog.commit("a copied label", {"metrics": [wrong]}, replaces=["metrics"])
        first = catalog.sql(question).to_pylist()[0]
    assert (first["model"], first["epoch"]) == (names[at], 20)
    assert first["declared"] == rows[-1]["value"]
    assert before != names[at]


def test_the_commands_that_predict_run(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Result]
) -> None:
    (tmp_path / "zoo-demo").mkdir()
    shutil.copytree(path, tmp_path / "zoo-demo" / "digits")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"^```console\n(.*?)^```$", section("Predict"), re.MULTILINE | re.DOTALL)
    done = {}
    for line in block.splitlines():
        _, *words = shlex.split(line)
        result = cli(*words, "--json")
        assert result.exit_code == 0, result.stderr
        done[words[1]] = json.loads(result.stdout)
    assert done["fit"]["name"] == "mine"
    assert done["evaluate"]["num_seen_in_fit"] == 0
    assert len(done["predict"]) == 48
    assert {made["name"] for made in done["ls"]} == {"mine", "digits-sne"}


def test_the_python_example_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = [block for block in blocks("python") if "open_catalog" in block]
    (tmp_path / "zoo-demo").mkdir()
    (tmp_path / "zoo-demo" / "digits").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(example, names)
    assert isinstance(names["model"], torch.nn.Module)
    assert (tmp_path / "one.safetensors").is_file()
    catalog = names["catalog"]
    catalog.close()  # type: ignore[attr-defined]


def test_the_plugin_example_is_a_plugin(
    zoo_site: PluginInstaller, cli: Callable[..., Result], tmp_path: Path
) -> None:
    (example,) = [block for block in blocks("python") if "hookimpl" in block]
    zoo_site.install("my-plugin", example, module="my_plugin")
    assert "property:num_tensors" in cli("plugins").stdout
    save_file({"fc.weight": torch.ones(2, 2)}, tmp_path / "a.safetensors")
    result = cli("ingest", tmp_path / "a.safetensors", "-c", tmp_path / "catalog")
    assert result.exit_code == 0, result.stderr
    value = cli(
        "query", "select value from metrics where name = 'num_tensors'", "-c", tmp_path / "catalog"
    )
    assert value.stdout.split()[-1] == "1"


def commands() -> list[str]:
    lines = [line for block in blocks("console") for line in block.splitlines()]
    return [part.strip() for line in lines for part in line.split("&&") if "zoo " in part]


@pytest.mark.parametrize("command", commands())
def test_every_command_is_written_rightly(command: str) -> None:
    """Parses the line as `zoo` would, down to the last option; runs nothing."""
    _, name, *words = shlex.split(command)
    found = main.get_command(click.Context(main), name)
    assert found is not None, command
    found.make_context(name, words, parent=click.Context(main))


def test_links_lead_somewhere(checkout: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (checkout / target).exists(), target


def test_the_benchmark_table_is_what_the_benchmark_printed(checkout: Path) -> None:
    results = json.loads(
        (checkout / "docs" / "results" / "benchmarks.json").read_text(encoding="utf-8")
    )
    rows = [row for row in results["rows"] if row["bound"] is not None]
    assert len(rows) >= 18
    for row in rows:
        met = "yes" if row["met"] else "**no**"
        assert f"| {row['pair']} | {row['ratio']:.3g} | {row['bound']} | {met} |" in README
