"""`zoo check`, `zoo gc` and `zoo compact` on real catalogs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from zooplatform.catalog import open_catalog
from zooplatform.testing import sample_population

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Cli = Callable[..., Result]

ROWS = "select * exclude (commit_id) from metrics order by all"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A catalog of two commits."""
    with open_catalog(tmp_path / "catalog", create=True) as catalog:
        catalog.append(sample_population("mlp"), zoo="mlps")
        catalog.append(sample_population("cnn"), zoo="cnns")
    return tmp_path / "catalog"


def shard(path: Path) -> Path:
    return sorted((path / "weights" / "population").rglob("*.arrow"))[0]


def test_a_whole_catalog_has_no_problem(cli: Cli, path: Path) -> None:
    result = cli("check", "-c", path)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no problem found; --deep also reads every weight" in result.stderr
    assert json.loads(cli("check", "--deep", "-c", path, "--json").stdout) == []


def test_a_missing_shard_is_named(cli: Cli, path: Path) -> None:
    lost = shard(path)
    lost.unlink()
    result = cli("check", "-c", path)
    assert result.exit_code == 1
    assert lost.stem in result.stdout
    assert "1 problem found" in result.stderr


def test_a_flipped_byte_is_found_by_deep(cli: Cli, path: Path) -> None:
    damaged = shard(path)
    data = bytearray(damaged.read_bytes())
    with open_catalog(path) as catalog:
        offset = catalog.sql(
            "select value_offset from shards where shard_id = ?", [damaged.stem]
        ).to_pylist()
    data[offset[0]["value_offset"] if offset else len(data) // 2] ^= 1
    damaged.chmod(0o644)
    damaged.write_bytes(data)
    result = cli("check", "--deep", "-c", path, "--json")
    assert result.exit_code == 1
    problems = json.loads(result.stdout)
    assert problems
    assert set(problems[0]) == {"kind", "subject", "message", "severity"}
    assert {problem["severity"] for problem in problems} == {"error"}
    assert any(damaged.stem in problem["subject"] for problem in problems)


def count_in_percent(path: Path) -> None:
    with open_catalog(path) as catalog:
        rows = catalog.sql(
            "select * exclude (commit_id) replace (100 * value as value) from metrics "
            "where name = 'test_accuracy'"
        )
        catalog.commit("percent", {"metrics": rows.to_pylist()}, replaces=["metrics"])


def test_the_lint_warns_and_fails_only_when_strict(cli: Cli, path: Path) -> None:
    count_in_percent(path)
    result = cli("check", "-c", path)
    assert result.exit_code == 0
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["warning [percent]"] * 2
    assert "2 warnings found" in result.stderr
    assert cli("check", "--strict", "-c", path).exit_code == 1
    off = cli("check", "--strict", "--no-lint", "-c", path)
    assert (off.exit_code, off.stdout) == (0, "")


def test_findings_as_json_hold_every_object(cli: Cli, path: Path) -> None:
    count_in_percent(path)
    result = cli("check", "--json", "-c", path)
    findings = json.loads(result.stdout)
    assert [(f["kind"], f["severity"], len(f["ids"])) for f in findings] == [
        ("percent", "warning", 8)
    ] * 2
    assert all(f["declared"] in f["message"] and f["repair"] in f["message"] for f in findings)


def orphan(path: Path) -> Path:
    """A shard that was published and never committed."""
    file = shard(path).with_name("0" * 32 + ".arrow")
    file.write_bytes(b"x" * 1000)
    return file


def test_gc_removes_what_no_commit_names(cli: Cli, path: Path) -> None:
    file = orphan(path)
    dry = cli("gc", "--grace", 0, "--dry-run", "-c", path)
    assert dry.exit_code == 0
    assert file.name in dry.stdout
    assert "1 file, 1.0 kB would be removed" in dry.stderr
    assert file.exists()
    result = cli("gc", "--grace", 0, "-c", path, "--json")
    (removed,) = json.loads(result.stdout)
    assert (removed["size_bytes"], removed["path"].endswith(file.name)) == (1000, True)
    assert "1 file, 1.0 kB removed" in result.stderr
    assert not file.exists()
    assert cli("check", "--deep", "-c", path).exit_code == 0


def test_gc_spares_the_young(cli: Cli, path: Path) -> None:
    file = orphan(path)
    assert json.loads(cli("gc", "-c", path, "--json").stdout) == []
    assert file.exists()


def test_compact_changes_no_answer(cli: Cli, path: Path) -> None:
    before = cli("query", ROWS, "--json", "-c", path).stdout
    result = cli("compact", "-c", path, "--json")
    assert json.loads(result.stdout)["metrics"] == 2
    assert cli("query", ROWS, "--json", "-c", path).stdout == before
    again = cli("compact", "-c", path)
    assert again.stdout == ""
    assert "Nothing to merge." in again.stderr


def test_a_negative_grace_is_a_usage_error(cli: Cli, path: Path) -> None:
    assert cli("gc", "--grace", -1, "-c", path).exit_code == 2
