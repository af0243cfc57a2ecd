"""`zoo split` on real catalogs."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from zooplatform.catalog import open_catalog
from zooplatform.testing import sample_population

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Cli = Callable[..., Result]

IDS = "select checkpoint_id from wide where epoch = 2"


@pytest.fixture(scope="module")
def zoo_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("splits") / "zoo"
    with open_catalog(path, create=True) as catalog:
        catalog.append(sample_population(num_models=20), zoo="mlps")
    return path


@pytest.fixture
def path(zoo_path: Path, tmp_path: Path) -> Path:
    return shutil.copytree(zoo_path, tmp_path / "zoo")


def test_create_list_and_show(cli: Cli, path: Path) -> None:
    result = cli("split", "ls", "-c", path)
    assert (result.exit_code, "zoo split create" in result.stderr) == (0, True)
    result = cli("split", "create", "main", "--query", IDS, "--seed", 3, "-c", path)
    assert result.exit_code == 0
    assert "14 train, 3 val, 3 test; created" in result.stdout
    made = json.loads(
        cli("split", "create", "main", "--query", IDS, "--seed", 3, "-c", path, "--json").stdout
    )
    assert made["created"] is False
    assert made["checkpoints"] == {"train": 14, "val": 3, "test": 3}
    assert made["split_id"] in result.stdout
    (listed,) = json.loads(cli("split", "ls", "-c", path, "--json").stdout)
    assert (listed["name"], listed["split_id"], listed["seed"]) == ("main", made["split_id"], 3)
    assert "14 train, 3 val, 3 test" in cli("split", "ls", "-c", path).stdout
    shown = json.loads(cli("split", "show", made["split_id"][:8], "-c", path, "--json").stdout)
    assert [m["role"] for m in shown["members"]] == ["train"] * 14 + ["val"] * 3 + ["test"] * 3
    assert shown["detail"]["query"] == IDS
    text = cli("split", "show", "main", "--limit", 2, "-c", path).stdout
    assert text.count(shown["members"][0]["content_hash"]) == 1
    assert shown["members"][2]["content_hash"] not in text


def test_all_options_reach_the_draw(cli: Cli, path: Path) -> None:
    result = cli(
        *("split", "create", "x", "--by", "checkpoint", "--ratio", "80/20", "--epochs", "1-1"),
        *("--stratify", "seed < 10", "--steps", "10", "-c", path, "--json"),
    )
    made = json.loads(result.stdout)
    assert (made["by"], made["checkpoints"]) == ("checkpoint", {"train": 16, "test": 4})
    detail = made["detail"]
    assert (detail["epochs"], detail["steps"], detail["stratify"]) == ("1", "10", "seed < 10")


def test_failures_end_with_one_line(cli: Cli, path: Path, tmp_path: Path) -> None:
    for arguments, text in [
        (("create", "x", "--by", "stack"), "no hyper-parameter"),
        (("create", "x", "--protocol", "nfn-2023"), "needs --order FILE"),
        (("create", "x", "--ratio", "half"), "Write train/val/test as 70/15/15"),
        (("show", "x"), "No split 'x'"),
        (("export", "x", tmp_path / "out"), "No split 'x'"),
        (("import", tmp_path), "zoo split export"),
    ]:
        result = cli("split", *arguments, "-c", path)
        assert (result.exit_code, result.stdout) == (1, "")
        assert text in result.stderr
        assert result.stderr.count("\n") == 1


def test_export_and_import(cli: Cli, path: Path, tmp_path: Path) -> None:
    made = json.loads(cli("split", "create", "main", "-c", path, "--json").stdout)
    out, second = tmp_path / "out", tmp_path / "second"
    exported = json.loads(cli("split", "export", "main", out, "-c", path, "--json").stdout)
    assert (exported["files"], exported["split_id"]) == (40, made["split_id"])
    assert exported["size_bytes"] == sum(p.stat().st_size for p in (out / "weights").iterdir())
    imported = json.loads(cli("split", "import", out, "-c", second, "--json").stdout)
    assert imported == made
    again = cli("split", "import", out, "-c", second)
    assert again.stdout.rstrip().endswith("was there already")
    assert cli("split", "export", "main", out, "-c", path).exit_code == 1
