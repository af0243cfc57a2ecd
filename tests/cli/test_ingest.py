"""`zoo ingest`: several references, what became of each, and the exit code."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from zooplatform.catalog import open_catalog

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Cli = Callable[..., Result]


def weights(path: Path, seed: int = 0) -> Path:
    draw = torch.Generator().manual_seed(seed)
    save_file(
        {
            "fc1.weight": torch.randn(8, 4, generator=draw),
            "fc1.bias": torch.randn(8, generator=draw),
        },
        path,
    )
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog"


def test_a_plain_path_is_stored_and_said_so(cli: Cli, tmp_path: Path, path: Path) -> None:
    file = weights(tmp_path / "a.safetensors")
    result = cli("ingest", file, "-c", path, "--zoo", "mine")
    assert result.exit_code == 0, result.stderr
    assert f"{file}: 1 checkpoint stored" in result.stdout
    assert "160 B read" in result.stdout  # 8 x 4 + 8 float32 values
    with open_catalog(path) as catalog:
        (checkpoint,) = catalog.sql("select checkpoint_id from checkpoints").to_pylist()
        stored = catalog.state_dict(checkpoint["checkpoint_id"])
        assert catalog.sql("select zoo_id from zoos").to_pylist() == [{"zoo_id": "mine"}]
    for name, tensor in load_file(file).items():
        assert torch.equal(stored[name], tensor)


def test_the_same_again_stores_nothing_and_says_so(cli: Cli, tmp_path: Path, path: Path) -> None:
    file = weights(tmp_path / "a.safetensors")
    cli("ingest", file, "-c", path)
    again = cli("ingest", file, "-c", path)
    assert again.exit_code == 0
    assert again.stdout == f"{file}: already in the catalog, nothing stored\n"


def test_a_bad_reference_does_not_stop_the_others(cli: Cli, tmp_path: Path, path: Path) -> None:
    first, last = weights(tmp_path / "a.safetensors"), weights(tmp_path / "z.safetensors", 1)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\xff" * 100)
    missing = tmp_path / "missing.safetensors"
    result = cli("ingest", first, broken, missing, last, "-c", path)
    assert result.exit_code == 1
    assert result.stdout.count("1 checkpoint stored") == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert len(errors) == 2
    assert str(broken) in errors[0]
    assert str(missing) in errors[1]
    assert "4 references: 2 checkpoints stored in " in result.stderr
    assert result.stderr.splitlines()[-2:] == [f"  failed: {broken}", f"  failed: {missing}"]
    with open_catalog(path) as catalog:
        assert catalog.sql("select count(*) as n from checkpoints").to_pylist() == [{"n": 2}]


def test_json(cli: Cli, tmp_path: Path, path: Path) -> None:
    file = weights(tmp_path / "a.safetensors")
    result = cli("ingest", file, tmp_path / "missing", "-c", path, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["num_failed"] == 1
    stored, failed = report["references"]
    assert (stored["status"], stored["num_stored"]) == ("stored", 1)
    assert stored["bytes_stored"] > 0
    assert failed["status"] == "failed"
    assert "missing" in failed["error"]
    again = json.loads(cli("ingest", file, "-c", path, "--json").stdout)
    assert again["references"][0]["status"] == "present"


def test_header_only_stores_shapes_and_no_weights(cli: Cli, tmp_path: Path, path: Path) -> None:
    file = weights(tmp_path / "a.safetensors")
    result = cli("ingest", file, "-c", path, "--header-only")
    assert result.exit_code == 0
    assert result.stdout == f"{file}: 1 header stored; the weights were not fetched\n"
    listed = json.loads(cli("ls", "checkpoints", "-c", path, "--json").stdout)
    assert [row["state"] for row in listed] == ["header-only"]
    full = cli("ingest", file, "-c", path)
    assert "1 checkpoint stored" in full.stdout
    listed = json.loads(cli("ls", "checkpoints", "-c", path, "--json").stdout)
    assert [row["state"] for row in listed] == ["stored"]


def test_an_unknown_scheme_names_the_known_ones(cli: Cli, path: Path) -> None:
    result = cli("ingest", "gopher:a", "-c", path)
    assert result.exit_code == 1
    assert "gopher" in result.stderr
    assert "local" in result.stderr


def test_a_scheme_alone_is_no_path(cli: Cli, path: Path) -> None:
    result = cli("ingest", "hf-hub:", "-c", path)
    assert result.exit_code == 1
    assert "Error: hf-hub:: The reference ends after the scheme. Give hf-hub:rest." in result.stderr


def test_without_plugins_nothing_can_be_read(cli: Cli, tmp_path: Path, path: Path) -> None:
    result = cli("--no-plugins", "ingest", weights(tmp_path / "a.safetensors"), "-c", path)
    assert result.exit_code == 1
    assert "local" in result.stderr


def test_no_reference_is_a_usage_error(cli: Cli) -> None:
    assert cli("ingest").exit_code == 2


def test_a_folder_that_is_no_catalog_is_left_alone(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "thesis.tex").write_text("text")
    result = cli("ingest", weights(tmp_path / "a.safetensors"), "-c", folder)
    assert result.exit_code == 1
    assert "is not empty and not a catalog" in result.stderr
    assert [item.name for item in folder.iterdir()] == ["thesis.tex"]


def test_npy_arrays_are_weights_too(cli: Cli, tmp_path: Path, path: Path) -> None:
    np.savez(tmp_path / "w.npz", **{"fc.weight": np.ones((2, 3), np.float32)})
    assert cli("ingest", tmp_path / "w.npz", "-c", path).exit_code == 0


def test_a_folder_of_which_nothing_new_can_be_stored(cli: Cli, tmp_path: Path, path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    weights(folder / "good.safetensors")
    for name in ("a", "b"):
        (folder / f"{name}.safetensors").write_text("<html>not found</html>")
    assert "1 checkpoint stored" in cli("ingest", folder, "-c", path).stdout
    again = cli("ingest", folder, "-c", path)
    assert again.exit_code == 1
    assert again.stdout == f"{folder}: nothing stored, 1 checkpoint already in the catalog\n"
    assert f"{folder}: 2 of its checkpoints failed." in again.stderr


def test_a_catalog_cannot_be_where_a_file_is(cli: Cli, tmp_path: Path) -> None:
    file = weights(tmp_path / "a.safetensors")
    result = cli("ingest", file, "-c", file)
    assert result.exit_code == 1
    assert (
        "a catalog cannot be created there (File exists). Choose another folder." in result.stderr
    )
