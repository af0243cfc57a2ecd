"""`zoo generator`: fitted, stored and sampled, from the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from zooplatform.catalog import open_catalog
from zooplatform.testing.stripes import SAMPLE_GENERATOR, stripes_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from zooplatform.testing import PluginInstaller

    Cli = Callable[..., Result]

ALL = "select checkpoint_id from wide where zoo like 'stripes-%'"


@pytest.fixture
def folder(tmp_path: Path, zoo_site: PluginInstaller) -> Path:
    """Images beside a catalog `zoo`, and a generator of a plugin of its own."""
    zoo_site.install("normal", SAMPLE_GENERATOR)
    return shutil.copytree(stripes_folder(), tmp_path / "stripes")


@pytest.fixture
def zoo(folder: Path) -> str:
    return str(folder / "zoo")


@pytest.fixture
def fitted(zoo: str, folder: Path, cli: Cli) -> dict[str, Any]:
    asked = ("--query", ALL, "--data-folder", str(folder), "--config", "debug", "-c", zoo)
    done = cli("generator", "fit", "normal", "--name", "n", *asked, "--json")
    assert done.exit_code == 0, done.stderr
    made: dict[str, Any] = json.loads(done.stdout)
    return made


def test_a_fit_says_on_what(zoo: str, folder: Path, cli: Cli, fitted: dict[str, Any]) -> None:
    assert (fitted["name"], fitted["backend"], fitted["kind"]) == ("n", "normal", "generator")
    assert fitted["config"] == {"spread": 0.5}
    assert fitted["data"]["train"]["checkpoints"] == 24
    assert set(fitted["data"]["datasets"]) == {"rows", "columns"}
    (folder / "rows.npz").unlink()
    told = cli(
        *("generator", "fit", "normal", "--name", "again", "--query", ALL, "-c", zoo),
        *("--data", f"columns=npz:{folder / 'columns.npz'}", "--set", "spread=2"),
    )
    assert told.exit_code == 0, told.stderr
    assert "Images of rows left out" in told.stderr
    assert "columns, rows (without images)" in told.stdout
    listed = json.loads(cli("generator", "ls", "-c", zoo, "--json").stdout)
    assert [item["name"] for item in listed] == ["again", "n"]
    assert listed[0]["config"] == {"spread": 2}
    table = cli("generator", "ls", "-c", zoo).stdout
    assert "columns, rows" in table
    assert "validation_tau" not in table


def test_samples_are_stored_and_come_again(zoo: str, cli: Cli, fitted: dict[str, Any]) -> None:
    sample = ("sample", "n", "--n", "3", "--instruction", "rows", "--seed", "5", "-c", zoo)
    done = cli("generator", *sample, "--json")
    assert done.exit_code == 0, done.stderr
    made = json.loads(done.stdout)
    ids = made["checkpoint_ids"]
    assert len(set(ids)) == 3
    assert (made["new"], made["zoo"], made["license"]) == (3, "generated-n", "CC0-1.0")
    assert "3 new networks in zoo generated-n" in done.stderr
    assert made["kinds"] == {"rows, stripes, relu": 2, "rows, stripes, tanh": 1}
    assert "2 networks: rows, stripes, relu" in done.stderr
    assert made["confidence"] is None
    assert "not sure" not in done.stderr
    again = cli("generator", *sample)
    assert [line.split()[0] for line in again.stdout.splitlines()[2:]] == ids
    assert "3 networks of these were there already" in again.stderr
    with open_catalog(zoo) as catalog:
        module = catalog.build(ids[0])
        assert sum(value.numel() for value in module.parameters()) == 123
        rows = catalog.sql("select seed, license, zoo from wide where zoo = 'generated-n'")
        assert rows.to_pylist() == [{"seed": 5, "license": "CC0-1.0", "zoo": "generated-n"}] * 3


def test_every_condition_reaches_the_generator(
    zoo: str, folder: Path, cli: Cli, fitted: dict[str, Any]
) -> None:
    done = cli(
        *("generator", "sample", "n", "-c", zoo, "--zoo", "mine", "--json"),
        *("--dataset", "columns", "--architecture", "stripes", "--build", "activation=relu"),
        *("--images", "npz:rows.npz", "--data-folder", str(folder), "--temperature", "0.25"),
        *("--top-k", "7", "--option", "broken=none"),
    )
    assert done.exit_code == 0, done.stderr
    with open_catalog(zoo) as catalog:
        (row,) = catalog.sql(
            "select detail from lineage join models on model_id = child_id where zoo_id = 'mine'"
        ).to_pylist()
    detail = json.loads(row["detail"])
    assert detail["dataset"] == "columns"
    assert detail["architecture_id"] == fitted["data"]["architectures"][0]["architecture_id"]
    assert detail["build_config"] == {"activation": "relu"}
    assert (detail["images"]["source"], detail["images"]["per_class"]) == ("npz:rows.npz", 5)
    assert (detail["temperature"], detail["top_k"]) == (0.25, 7)
    assert detail["options"] == {"broken": "none"}
    # What the generator does not know is refused by it.
    for name, *more in (
        ("top_p", "--top-p", "0.9"),
        ("guidance", "--guidance", "2"),
        ("heat", "--option", "heat=9"),
    ):
        refused = cli("generator", "sample", "n", "-c", zoo, *more)
        assert refused.exit_code == 1
        assert f"no option ['{name}']" in refused.stderr


def test_what_was_hardly_understood_is_said(zoo: str, cli: Cli, fitted: dict[str, Any]) -> None:
    done = cli("generator", "sample", "n", "--option", "broken=unsure", "-c", zoo, "--json")
    assert json.loads(done.stdout)["confidence"] == 0.25
    assert "Warning: n is not sure what was meant (confidence 0.25)" in done.stderr


def test_a_judge_chooses(zoo: str, cli: Cli, fitted: dict[str, Any]) -> None:
    fit = ("fit", "flat-linear", "--name", "judge", "--query", ALL, "--target", "test_accuracy")
    assert cli("predictor", *fit, "-c", zoo).exit_code == 0
    done = cli(
        *("generator", "sample", "n", "--n", "2", "--best-of", "3", "--judge", "judge"),
        *("-c", zoo, "--json"),
    )
    made = json.loads(done.stdout)
    assert len(made["predictions"]) == 2
    shown = cli(
        *("generator", "sample", "n", "--n", "2", "--best-of", "3", "--judge", "judge", "-c", zoo)
    )
    assert "prediction" in shown.stdout


def test_what_cannot_be_done_is_said(zoo: str, cli: Cli, fitted: dict[str, Any]) -> None:
    def failed(*arguments: str) -> str:
        done = cli("generator", *arguments, "-c", zoo)
        assert done.exit_code == 1
        return done.stderr

    assert "Unknown generator 'nromal'" in failed("fit", "nromal", "--name", "x", "--query", ALL)
    assert "No generator 'm'" in failed("sample", "m")
    assert "not fitted on a data set 'mnist'" in failed("sample", "n", "--dataset", "mnist")
    assert "It knows columns with" in failed("sample", "n", "--instruction", "onion soup")
    assert "needs a judge" in failed("sample", "n", "--best-of", "2")
    wrong = cli("generator", "sample", "n", "--build", "activation", "-c", zoo)
    assert wrong.exit_code == 2
    assert "--build 'activation': write it as KEY=VALUE" in wrong.stderr
    assert cli("generator", "sample", "n", "--n", "0", "-c", zoo).exit_code == 2


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from zooplatform.cli import main; "
        "r = CliRunner().invoke(main, ['generator', '--help']); assert 'sample' in r.output, r.output; "
        "print([m for m in ('torch', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
