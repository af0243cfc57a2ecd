"""Pairs of the ingest suite: what comes in durably, and how fast."""

from __future__ import annotations

import itertools
import os
import shutil
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import torch
from measuring import Pair, Row, compare, single
from safetensors.torch import save_file
from workloads import file_state, records, save_vit, zoo_weights

from zooplatform.catalog import open_catalog
from zooplatform.schema import table_names, table_schema

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zooplatform.catalog import Catalog
    from zooplatform.registry import Registry

__all__ = ["run"]

_NETWORKS = 1000
_FILES = 300


def run(work: Path, registry: Registry, show: Callable[[Row], None]) -> None:
    """Measure every pair; rows are shown as they are ready."""
    _states(work, registry, show)
    _large(work, registry, show)
    _commit(work, registry, show)
    _files(work, registry, show)


def _states(work: Path, registry: Registry, show: Callable[[Row], None]) -> None:
    states = [file_state(row) for row in zoo_weights(_NETWORKS)]
    folder = work / "saved"
    numbers = itertools.count()
    catalog = open_catalog(work / "states", create=True, registry=registry)

    def fresh() -> Any:
        return records(_NETWORKS, f"round {next(numbers)}")

    def clear() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()

    def save(_: object) -> None:
        for number, state in enumerate(states):
            torch.save(state, folder / f"{number}.pt")

    row = compare(
        Pair(
            suite="ingest",
            name="ingest 1,000 state dicts durably, commit and statistics included / "
            "torch.save x 1,000 without fsync",
            ours=lambda given: catalog.add_state_dicts(states, given, zoo="states"),
            baseline=save,
            bound=0.5,
            prepare_ours=fresh,
            prepare_baseline=clear,
            note="one catalog that grows from round to round",
        )
    )
    show(row)
    rate = _NETWORKS / row.ours * 1e3
    show(single("ingest", "small networks ingested per second", rate, unit="1/s"))
    shutil.rmtree(folder)


def _large(work: Path, registry: Registry, show: Callable[[Row], None]) -> None:
    file = work / "vit.safetensors"
    size = save_vit(file)
    numbers = itertools.count()
    copy = work / "copy"

    def empty() -> Catalog:
        for old in work.glob("vit catalog *"):
            shutil.rmtree(old)
        return open_catalog(work / f"vit catalog {next(numbers)}", create=True, registry=registry)

    def read_write(_: object) -> None:
        data = file.read_bytes()
        with copy.open("wb", buffering=0) as handle:
            handle.write(data)
            os.fsync(handle.fileno())

    row = compare(
        Pair(
            suite="ingest",
            name="ingest the 346 MB checkpoint, hash + statistics + fsync included / read + write + fsync",
            ours=lambda catalog: catalog.ingest(file),
            baseline=read_write,
            bound=3,
            prepare_ours=empty,
            prepare_baseline=lambda: copy.unlink(missing_ok=True),
            note="into an empty catalog; SHA-256 of the file and xxh3 of every tensor",
        )
    )
    show(row)
    rate = size / row.ours * 1e3 / 1e9
    show(single("ingest", "ingest rate of a large checkpoint", rate, unit="GB/s"))
    empty()
    copy.unlink()


def _commit(work: Path, registry: Registry, show: Callable[[Row], None]) -> None:
    catalog = open_catalog(work / "commits", create=True, registry=registry)
    page = os.urandom(4096)
    target = work / "page"
    numbers = itertools.count()

    def rows() -> dict[str, list[dict[str, Any]]]:
        """One row for every table but `commits`, which gets its own."""
        number = next(numbers)
        return {name: [_plain_row(name, number)] for name in table_names() if name != "commits"}

    def write(_: object) -> None:
        temporary = target.with_suffix(".tmp")
        with temporary.open("wb", buffering=0) as handle:
            handle.write(page)
            os.fsync(handle.fileno())
        temporary.rename(target)

    show(
        compare(
            Pair(
                suite="ingest",
                name="commit (all tables) / 4 KB write + fsync + rename",
                ours=lambda given: catalog.commit("benchmark", given),
                baseline=write,
                bound=100,
                prepare_ours=rows,
                note="one row for each of the 12 tables beside `commits`",
            )
        )
    )


def _plain_row(table: str, number: int) -> dict[str, Any]:
    """A row that fits the table's schema."""
    values: dict[str, Any] = {
        "string": f"{number:016x}",
        "int64": number,
        "double": 0.5,
        "timestamp[us, tz=UTC]": datetime.now(UTC),
        "binary": b"header",
    }
    return {
        column.name: values.get(str(column.type), [])
        for column in table_schema(table).columns
        if column.name != "commit_id"
    }


def _files(work: Path, registry: Registry, show: Callable[[Row], None]) -> None:
    source, copies = work / "files", work / "copies"
    source.mkdir()
    for number, row in enumerate(zoo_weights(_FILES, seed=3)):
        save_file(file_state(row), source / f"{number}.safetensors")
    numbers = itertools.count()

    def empty() -> Catalog:
        for old in work.glob("file catalog *"):
            shutil.rmtree(old)
        return open_catalog(work / f"file catalog {next(numbers)}", create=True, registry=registry)

    def clear() -> None:
        shutil.rmtree(copies, ignore_errors=True)
        copies.mkdir()

    def copy(_: object) -> None:
        for path in source.iterdir():
            with (copies / path.name).open("wb", buffering=0) as handle:
                handle.write(path.read_bytes())
                os.fsync(handle.fileno())

    row = compare(
        Pair(
            suite="ingest",
            name="ingest 300 small files, one commit each / plain copy + fsync of the same files",
            ours=lambda catalog: catalog.ingest(source),
            baseline=copy,
            prepare_ours=empty,
            prepare_baseline=clear,
            rounds=3,
            note="information; 2,464 parameters a file",
        )
    )
    show(row)
    rate = _FILES / row.ours * 1e3
    show(single("ingest", "small files ingested per second", rate, unit="1/s"))
    empty()
