"""A result in every output format, to stdout and to a file."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zooplatform.cli._results import BINARY_FORMATS, FORMATS, write_result
from zooplatform.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RESULT = pa.table(
    {
        "name": ["a", "b", None],
        "n": pa.array([1, 2, 2**40], pa.int64()),
        "total": pa.array([Decimal(1), Decimal(2), Decimal(10**30)], pa.decimal128(38, 0)),
        "value": [0.5, float("nan"), None],
        "weights": pa.array([[0.25] * 20, [1.0], []], pa.list_(pa.float32())),
    }
)
ROWS = [
    {"name": "a", "n": 1, "total": 1, "value": 0.5, "weights": [0.25] * 20},
    {"name": "b", "n": 2, "total": 2, "value": "NaN", "weights": [1.0]},
    {"name": None, "n": 2**40, "total": 10**30, "value": None, "weights": []},
]


def reader(batch_rows: int = 1) -> pa.RecordBatchReader:
    return pa.RecordBatchReader.from_batches(RESULT.schema, RESULT.to_batches(batch_rows))


def from_table(data: bytes) -> None:
    lines = data.decode().splitlines()
    assert lines[0].split() == ["name", "n", "total", "value", "weights"]
    assert len(lines) == 5
    assert "[0.25, 0.25, 0.25, … 0.25, 0.25, 0.25; 20 values]" in lines[2]
    assert lines[4].startswith("NULL")


def from_json(data: bytes) -> None:
    assert json.loads(data) == ROWS


def from_jsonl(data: bytes) -> None:
    assert [json.loads(line) for line in data.splitlines()] == ROWS


def from_csv(data: bytes) -> None:
    rows = list(csv.reader(io.StringIO(data.decode())))
    assert rows[0] == RESULT.schema.names
    assert rows[2] == ["b", "2", "2", "NaN", "[1.0]"]
    assert rows[3] == ["", str(2**40), str(10**30), "", "[]"]


def same(table: pa.Table) -> None:
    assert table.schema.equals(RESULT.schema)
    assert repr(table.to_pylist()) == repr(RESULT.to_pylist())  # repr: NaN equals itself there


def from_parquet(data: bytes) -> None:
    same(pq.read_table(io.BytesIO(data)))


def from_arrow_file(data: bytes) -> None:
    same(pa.ipc.open_file(data).read_all())


def from_arrow_stream(data: bytes) -> None:
    same(pa.ipc.open_stream(data).read_all())


READ: dict[str, Callable[[bytes], None]] = {
    "table": from_table,
    "json": from_json,
    "jsonl": from_jsonl,
    "csv": from_csv,
    "parquet": from_parquet,
    "arrow": from_arrow_file,
}


def test_every_format_is_tried() -> None:
    assert set(READ) == set(FORMATS)


@pytest.mark.parametrize("output_format", FORMATS)
def test_in_a_file(output_format: str, tmp_path: Path) -> None:
    path = tmp_path / "result"
    assert write_result(reader(), output_format, output=path) == (3, False)
    READ[output_format](path.read_bytes())
    assert list(tmp_path.iterdir()) == [path]


# A real pipe: it cannot seek, and its bytes are not a text stream's.
TO_STDOUT = """
import sys
import pyarrow as pa
from zooplatform.cli._results import write_result
write_result(pa.ipc.open_file(sys.argv[1]).read_all().to_reader(), sys.argv[2])
"""


@pytest.mark.parametrize("output_format", FORMATS)
def test_through_a_pipe(output_format: str, tmp_path: Path) -> None:
    write_result(reader(), "arrow", output=tmp_path / "in.arrow")
    done = subprocess.run(
        [sys.executable, "-c", TO_STDOUT, str(tmp_path / "in.arrow"), output_format],
        capture_output=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == b""
    check = from_arrow_stream if output_format == "arrow" else READ[output_format]
    check(done.stdout)


@pytest.mark.parametrize("output_format", FORMATS)
def test_an_empty_result(output_format: str, tmp_path: Path) -> None:
    path = tmp_path / "result"
    empty = pa.RecordBatchReader.from_batches(RESULT.schema, [])
    assert write_result(empty, output_format, output=path) == (0, False)
    data = path.read_bytes()
    if output_format == "json":
        assert json.loads(data) == []
    elif output_format == "jsonl":
        assert data == b""
    elif output_format not in BINARY_FORMATS:
        assert b"weights" in data
    elif output_format == "parquet":
        assert pq.read_table(io.BytesIO(data)).equals(RESULT.slice(0, 0))


@pytest.mark.parametrize(
    ("limit", "expected"), [(0, (0, True)), (2, (2, True)), (3, (3, False)), (9, (3, False))]
)
@pytest.mark.parametrize("batch_rows", [1, 3])
def test_limit(limit: int, expected: tuple[int, bool], batch_rows: int, tmp_path: Path) -> None:
    path = tmp_path / "result"
    assert write_result(reader(batch_rows), "jsonl", output=path, limit=limit) == expected
    assert [json.loads(line) for line in path.read_bytes().splitlines()] == ROWS[:limit]


def test_limit_stops_reading() -> None:
    """A query of many rows is not run to its end for the first few."""
    taken = 0

    def batches() -> Any:
        nonlocal taken
        for _ in range(1000):
            taken += 1
            yield from pa.table({"n": [1] * 10}).to_batches()

    stream = pa.RecordBatchReader.from_batches(pa.schema({"n": pa.int64()}), batches())
    assert write_result(stream, "csv", limit=15) == (15, True)
    assert taken == 2


@pytest.mark.parametrize("output_format", ["json", "jsonl"])
def test_json_refuses_two_columns_of_one_name(output_format: str) -> None:
    twice = pa.table([[1], [2]], names=["n", "n"])
    with pytest.raises(ConfigError, match=r"Two columns are called 'n'.*--format csv"):
        write_result(twice.to_reader(), output_format)


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_failure_half_way_leaves_no_file(output_format: str, tmp_path: Path) -> None:
    def batches() -> Any:
        yield RESULT.to_batches()[0]
        raise ZeroDivisionError

    path = tmp_path / "result"
    path.write_text("before")
    stream = pa.RecordBatchReader.from_batches(RESULT.schema, batches())
    with pytest.raises(ZeroDivisionError):
        write_result(stream, output_format, output=path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "result.csv"
    with pytest.raises(ConfigError, match=r"result\.csv cannot be written: No such file"):
        write_result(reader(), "csv", output=path)


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"result\.csv cannot be written: Not a directory"):
        write_result(reader(), "csv", output=tmp_path / "file" / "result.csv")


def test_a_type_that_parquet_lacks_is_named(tmp_path: Path) -> None:
    value = pa.scalar((0, 1, 0), pa.month_day_nano_interval())
    table = pa.table({"a": [1], "i": pa.array([value.as_py()], value.type)})
    with pytest.raises(ConfigError, match=r"i \(month_day_nano_interval\).*::VARCHAR"):
        write_result(table.to_reader(), "parquet", output=tmp_path / "result.parquet")
    assert list(tmp_path.iterdir()) == []
