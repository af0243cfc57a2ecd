"""Merges small shards: their live rows move into one new shard, in one commit that retires the old ones.

Rows keep their order, and the new shard takes the place of the first in the order of shards, so that a population reads
the same as before. What moves is compared with its hash on the way: damage is reported, never sealed anew.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from zooplatform.catalog.commits import ConflictError
from zooplatform.catalog.files import reached, touch
from zooplatform.catalog.reader import Reader
from zooplatform.catalog.shards import MAX_POPULATION_BYTES, TensorShardWriter, seal_population
from zooplatform.catalog.snapshot import RETIRED
from zooplatform.catalog.writer import shard_row
from zooplatform.errors import IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from zooplatform.catalog.commits import Tables
    from zooplatform.catalog.snapshot import Snapshot

__all__ = ["merge_shards"]

# A shard above half of the limit would be copied again and again for little.
_SMALL_POPULATION = MAX_POPULATION_BYTES // 2
# Single checkpoints: small ones are gathered up to the size of one large enough to be read well on its own.
_SMALL_TENSORS = 32 * 2**20
_MAX_TENSORS = 128 * 2**20

_ATTEMPTS = 5

Shard = dict[str, Any]


def merge_shards(tables: Tables, folder: Path) -> int:
    """Merge small shards that stand side by side, and retire those without live rows; returns how many went.

    A group that another process changes again and again meanwhile is left for the next time.

    Args:
        tables: the catalog.
        folder: the caller's lease.

    Raises:
        IntegrityError: stored bytes are not what was committed; nothing of that group was merged.
    """
    merged = 0
    left: set[str] = set()
    while True:
        snapshot = tables.snapshot()
        group = next((g for g in _groups(snapshot) if g[0]["shard_id"] not in left), None)
        if group is None:
            return merged
        for _ in range(_ATTEMPTS):
            try:
                _merge(tables, snapshot, group, folder)
            except ConflictError:
                snapshot = tables.snapshot()
                live = set(snapshot.shard_rows.column("shard_id").to_pylist())
                if not live.issuperset(s["shard_id"] for s in group):
                    break  # another process merged them
            else:
                merged += len(group)
                break
        # Once is enough: what was merged is not small any more, or has no neighbour.
        left.add(group[0]["shard_id"])


# --- what to merge ---------------------------------------------------------------------------------------------------


def _groups(snapshot: Snapshot) -> Iterator[list[Shard]]:
    used = _used_shards(snapshot)
    families: dict[tuple[Any, ...], list[Shard]] = {}
    for shard in sorted(snapshot.shard_rows.to_pylist(), key=lambda s: str(s["shard_id"])):
        key = (shard["kind"], shard["architecture_id"], shard["dtype"])
        families.setdefault(key, []).append(shard)
    for (kind, *_), shards in families.items():
        population = kind == "population"
        small, most = (
            (_SMALL_POPULATION, MAX_POPULATION_BYTES)
            if population
            else (_SMALL_TENSORS, _MAX_TENSORS)
        )
        group: list[Shard] = []
        size = 0
        for shard in shards:
            if shard["shard_id"] not in used:
                yield [shard]
                continue
            fits = shard["size_bytes"] < small and size + shard["size_bytes"] <= most
            if not fits:
                if len(group) > 1:
                    yield group
                group, size = [], 0
            if shard["size_bytes"] < small:
                group.append(shard)
                size += shard["size_bytes"]
        if len(group) > 1:
            yield group


def _used_shards(snapshot: Snapshot) -> set[str]:
    used: set[str] = set()
    for table in ("checkpoints", "tensors"):
        used.update(snapshot.table(table, ["shard_id"]).column("shard_id").unique().to_pylist())
    return used


# --- merging ---------------------------------------------------------------------------------------------------------


class _Moved(NamedTuple):
    """Rows of a merge, by table, and where the new shard is, None when nothing was live."""

    rows: dict[str, pa.Table]
    shard: Shard | None


def _merge(tables: Tables, snapshot: Snapshot, group: Sequence[Shard], folder: Path) -> None:
    ids = [s["shard_id"] for s in group]
    # In the order of shards the new one stands where the first stood.
    shard_id = f"{ids[0][:12]}{secrets.token_hex(10)}"
    move = _move_population if group[0]["kind"] == "population" else _move_tensors
    moved = move(snapshot, group, shard_id, folder)
    retired = [s | {"kind": RETIRED, "commit_id": None} for s in group]
    rows: dict[str, Any] = dict(moved.rows)
    rows["shards"] = [
        {k: v for k, v in s.items() if k != "commit_id"}
        for s in ([moved.shard] if moved.shard else []) + retired
    ]
    reached("shards-merged")
    # The files go out of use now: readers of older snapshots have the whole grace period of `zoo gc`.
    touch(snapshot.path / s["path"] for s in group)
    try:
        tables.commit(
            f"merge {len(group)} {group[0]['kind']} shards",
            rows,
            base=snapshot,
            replaces=tuple(rows),
            retires=ids,
        )
    except ConflictError:
        if moved.shard:
            (snapshot.path / moved.shard["path"]).unlink(missing_ok=True)
        raise
    reached("merge-committed")


def _with_shard(
    rows: pa.Table, shard_ids: list[str | None], numbers: dict[str, list[int | None]]
) -> pa.Table:
    """The rows with other places."""
    columns = {
        "shard_id": pa.array(shard_ids, pa.string()),
        **{name: pa.array(values, pa.int64()) for name, values in numbers.items()},
    }
    for name, values in columns.items():
        rows = rows.set_column(rows.column_names.index(name), name, values)
    return rows


def _of(table: pa.Table, column: str, values: Sequence[str]) -> pa.Table:
    return table.filter(
        pc.is_in(table.column(column), value_set=pa.array(values, type=pa.string()))
    )


def _move_population(
    snapshot: Snapshot, group: Sequence[Shard], shard_id: str, folder: Path
) -> _Moved:
    rows = _of(snapshot.table("checkpoints"), "shard_id", [s["shard_id"] for s in group])
    rows = rows.sort_by([("shard_id", "ascending"), ("shard_row", "ascending")])
    if not rows.num_rows:
        return _Moved({}, None)
    arch = group[0]["architecture_id"]
    ids = rows.column("checkpoint_id").to_pylist()
    population = Reader(snapshot).population(ids, verify=True)
    order: npt.NDArray[np.int64] = np.arange(len(ids))
    sealed = seal_population(
        folder / f"{shard_id}.arrow",
        snapshot.path / "weights" / "population" / arch / f"{shard_id}.arrow",
        ids,
        population.read(order),
        population.read_aside(order) if population.vector.aside_bytes else None,
    )
    placed = _with_shard(rows, [shard_id] * len(ids), {"shard_row": list(range(len(ids)))})
    shard = shard_row(snapshot.path, shard_id, "population", sealed, arch, population.vector.dtype)
    return _Moved({"checkpoints": placed}, shard)


class _Tensor(NamedTuple):
    """Where a tensor was."""

    shard_id: str
    row: int


def _move_tensors(
    snapshot: Snapshot, group: Sequence[Shard], shard_id: str, folder: Path
) -> _Moved:
    tensors = snapshot.table("tensors")
    moving = _of(tensors, "shard_id", [s["shard_id"] for s in group])
    if not moving.num_rows:
        return _Moved({}, None)
    reader = Reader(snapshot)
    maps: dict[str, npt.NDArray[np.uint8]] = {}
    writer = TensorShardWriter(folder / f"{shard_id}.arrow")
    places = []
    number: dict[_Tensor, int] = {}
    stored: dict[str, tuple[int, Any]] = {}
    columns = ["shard_id", "shard_row", "shard_offset", "size_bytes"]
    columns += ["tensor_hash", "dtype", "shape", "name", "checkpoint_id"]
    ordered = moving.select(columns).sort_by(
        [("shard_id", "ascending"), ("shard_row", "ascending")]
    )
    try:
        for row in ordered.to_pylist():
            source = _Tensor(row["shard_id"], row["shard_row"])
            if source in number:
                continue
            data = reader.tensor_bytes(row, maps)
            digest = xxhash.xxh3_128(data.data)
            if len(data) != row["size_bytes"] or digest.hexdigest() != row["tensor_hash"]:
                raise IntegrityError(
                    f"Tensor {row['name']!r} of checkpoint {row['checkpoint_id']} is not what was committed; "
                    f"shard {row['shard_id']} was not merged. Restore it from a copy; `zoo check --deep` names "
                    "every shard that is damaged."
                )
            same = stored.get(row["tensor_hash"])
            if same is not None and np.array_equal(same[1], data):
                number[source] = same[0]  # two writers stored it at the same time
                continue
            number[source] = writer.num_rows
            stored[row["tensor_hash"]] = (writer.num_rows, data)
            places += writer.add(digest.digest(), row["dtype"], tuple(row["shape"]), data.data)
        final = snapshot.path / "weights" / "tensors" / f"{shard_id}.arrow"
        sealed, last = writer.seal(final)
    except BaseException:
        writer.discard()
        raise
    assert sealed is not None  # there is a moving row, so at least one tensor
    places += last
    return _Moved(
        _tensor_rows(snapshot, tensors, moving, shard_id, number, places),
        shard_row(snapshot.path, shard_id, "tensors", sealed, None, None),
    )


def _tensor_rows(
    snapshot: Snapshot,
    tensors: pa.Table,
    moving: pa.Table,
    shard_id: str,
    number: dict[_Tensor, int],
    places: Sequence[Any],
) -> dict[str, pa.Table]:
    """All rows of the checkpoints that own what moved: a checkpoint is read by the commit of its row."""
    owners = moving.column("checkpoint_id").unique().to_pylist()
    rows = _of(tensors, "checkpoint_id", owners)
    ids, numbers, offsets = [], [], []
    for shard, row, offset in zip(
        *(rows.column(c).to_pylist() for c in ("shard_id", "shard_row", "shard_offset")),
        strict=True,
    ):
        new = number.get(_Tensor(shard, row))
        ids.append(shard if new is None else shard_id)
        numbers.append(row if new is None else places[new].row)
        offsets.append(offset if new is None else places[new].offset)
    moved = {
        "tensors": _with_shard(rows, ids, {"shard_row": numbers, "shard_offset": offsets}),
        "checkpoints": _of(snapshot.table("checkpoints"), "checkpoint_id", owners),
        "files": _of(snapshot.table("files"), "checkpoint_id", owners),
    }
    return {name: table for name, table in moved.items() if table.num_rows}
