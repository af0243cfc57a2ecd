"""Writes a stream of Arrow batches in the format that was asked for, in bounded memory."""

from __future__ import annotations

import csv
import io
import secrets
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from zooplatform.cli._output import Output, out
from zooplatform.cli._text import csv_value, to_json
from zooplatform.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import BinaryIO

    import pyarrow as pa

__all__ = ["BINARY_FORMATS", "FORMATS", "write_result"]


def write_result(
    reader: pa.RecordBatchReader,
    output_format: str,
    *,
    output: Path | None = None,
    limit: int | None = None,
) -> tuple[int, bool]:
    """Write what `reader` gives.

    Args:
        reader: the result.
        output_format: one of `FORMATS`.
        output: file to write, stdout where None. It appears complete or not at all.
        limit: rows to write at most.

    Returns:
        The rows written, and whether `limit` left rows out.

    Raises:
        ConfigError: `output` cannot be written, or the format cannot hold a column.
    """
    batches = _Limited(reader, limit)
    if output_format in BINARY_FORMATS:
        with _opened(output) as sink:
            BINARY_FORMATS[output_format](batches, sink, output is None)
    elif output is None:
        _TEXT_FORMATS[output_format](batches, out)
    else:
        with (
            _opened(output) as sink,
            io.TextIOWrapper(sink, encoding="utf-8", newline="") as text,
        ):
            _TEXT_FORMATS[output_format](batches, Output(text))
    return batches.num_rows, batches.more


class _Limited:
    """The batches of a reader up to a number of rows; counts them."""

    def __init__(self, reader: pa.RecordBatchReader, limit: int | None) -> None:
        self.schema: pa.Schema = reader.schema
        self._reader, self._limit = reader, limit
        self.num_rows, self.more = 0, False

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self._reader:
            if self._limit is not None and self.num_rows + batch.num_rows > self._limit:
                batch = batch.slice(0, self._limit - self.num_rows)
                self.more = True
            self.num_rows += batch.num_rows
            if batch.num_rows:
                yield batch
            if self.more:
                return

    def rows(self) -> Iterator[list[Any]]:
        """Row by row, as Python values in the order of the columns (whose names may repeat)."""
        for batch in self:
            yield from map(
                list, zip(*(column.to_pylist() for column in batch.columns), strict=True)
            )


def _write_table(batches: _Limited, target: Output) -> None:
    target.table(batches.rows(), batches.schema.names, null="NULL")


def _write_json(batches: _Limited, target: Output) -> None:
    """One array, a row a line."""
    names = _unique_names(batches)
    lead = "[\n"
    for row in batches.rows():
        target.text(lead + to_json(dict(zip(names, row, strict=True))))
        lead = ",\n"
    target.text("[]\n" if lead == "[\n" else "\n]\n")


def _write_jsonl(batches: _Limited, target: Output) -> None:
    names = _unique_names(batches)
    for row in batches.rows():
        target.text(to_json(dict(zip(names, row, strict=True))) + "\n")


def _write_csv(batches: _Limited, target: Output) -> None:
    writer = csv.writer(target.stream, lineterminator="\n")
    writer.writerow(batches.schema.names)
    for row in batches.rows():
        writer.writerow([csv_value(value) for value in row])


def _write_parquet(batches: _Limited, sink: BinaryIO, _: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetWriter(sink, batches.schema, compression="zstd") as writer:
            for batch in batches:
                writer.write_batch(batch)
    except pa.ArrowNotImplementedError as error:
        columns = ", ".join(f"{field.name} ({field.type})" for field in batches.schema)
        raise ConfigError(
            f"Parquet cannot hold these columns: {columns}. {error}. Cast the one that is meant, "
            "an INTERVAL with ::VARCHAR, or use --format arrow."
        ) from error


def _write_arrow(batches: _Limited, sink: BinaryIO, streaming: bool) -> None:
    import pyarrow as pa

    make = pa.ipc.new_stream if streaming else pa.ipc.new_file
    with make(sink, batches.schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


_TEXT_FORMATS: dict[str, Callable[[_Limited, Output], None]] = {
    "table": _write_table,
    "json": _write_json,
    "jsonl": _write_jsonl,
    "csv": _write_csv,
}
BINARY_FORMATS: dict[str, Callable[[_Limited, BinaryIO, bool], None]] = {
    "parquet": _write_parquet,
    "arrow": _write_arrow,
}
FORMATS = (*_TEXT_FORMATS, *BINARY_FORMATS)


def _unique_names(batches: _Limited) -> list[str]:
    """Column names that a JSON object can hold side by side.

    Raises:
        ConfigError: two columns share a name, so that one would hide the other.
    """
    names: list[str] = batches.schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(
            f"Two columns are called {twice[0]!r}, which JSON cannot keep apart. "
            f"Name them with `as`, or use --format csv."
        )
    return names


@contextmanager
def _opened(path: Path | None) -> Iterator[BinaryIO]:
    """The bytes of stdout, or of a file that gets its name when all of it has been written."""
    if path is None:
        yield sys.stdout.buffer
        return
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as sink:
            yield sink
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
