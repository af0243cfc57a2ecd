"""Stores one checkpoint tensor by tensor; a tensor that the catalog holds already is not stored again."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from zooplatform.catalog.files import new_id
from zooplatform.catalog.shards import Placed, TensorShardWriter
from zooplatform.catalog.stats import tensor_stats
from zooplatform.catalog.writer import (
    Draft,
    ZooRecord,
    add_edge,
    add_metrics,
    describe_architecture,
    describe_zoo,
    existing,
    model_row,
    shard_row,
)
from zooplatform.dtypes import from_buffer
from zooplatform.errors import SourceError
from zooplatform.layout import VectorLayout, checkpoint_id, model_id
from zooplatform.properties import LIMIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from zooplatform.catalog.commits import Snapshot
    from zooplatform.interfaces import Checkpoint, LayerSpec, Progress, StateDict, TensorSpec
    from zooplatform.properties import Properties

__all__ = ["Location", "TensorIndex", "checkpoint_draft", "follow_moved"]


class Location(NamedTuple):
    """Where the bytes of a tensor are."""

    shard_id: str
    row: int
    offset: int


class TensorIndex:
    """Content hash to location of every stored tensor; about 200 bytes of memory each.

    Follows the snapshots: new table files are added, and all is read again when compaction took files away.
    """

    def __init__(self) -> None:
        self._places: dict[str, Location] = {}
        self._files: set[str] = set()

    def refresh(self, snapshot: Snapshot) -> dict[str, Location]:
        files = set(snapshot.files("tensors").pure)
        if files == self._files:
            return self._places
        columns = ["tensor_hash", "shard_id", "shard_row", "shard_offset"]
        table = snapshot.table("tensors", columns, keep=True)
        self._places = {
            digest: Location(shard, row, offset)
            for digest, shard, row, offset in zip(
                *(table.column(c).to_pylist() for c in columns), strict=True
            )
            if digest is not None
        }
        self._files = files
        return self._places


class _Store:
    """Writes tensors that are new; finds those that are not, by hash and then byte by byte."""

    def __init__(self, folder: Path, catalog: Path, snapshot: Snapshot, index: TensorIndex) -> None:
        self.shard_id = new_id()
        self._catalog = catalog
        self._final = catalog / "weights" / "tensors" / f"{self.shard_id}.arrow"
        self._writer = TensorShardWriter(folder / f"{self.shard_id}.arrow")
        self._known = index.refresh(snapshot)
        self._snapshot = snapshot
        self._maps: dict[str, np.memmap[Any, Any]] = {}
        self._own: dict[tuple[str, str], int] = {}
        self._seed = secrets.randbits(64)
        self._places: list[Placed] = []

    def put(self, spec: TensorSpec, data: memoryview) -> tuple[str, Location | int]:
        """Returns the hash, and the location where it is stored already or its number among the new ones."""
        hasher = xxhash.xxh3_128(data)
        digest = hasher.hexdigest()
        # What this ingest has written may still be in memory, so it is told apart by a second hash that nobody can
        # prepare for: xxh3 alone is fast, not proof against tensors made to collide.
        mine = (digest, xxhash.xxh3_128_hexdigest(data, seed=self._seed))
        if mine in self._own:
            return digest, self._own[mine]
        place = self._known.get(digest)
        if place is not None and self._same(place, data):
            return digest, place
        number = self._writer.num_rows
        self._own[mine] = number
        self._places += self._writer.add(hasher.digest(), spec.dtype, spec.shape, data)
        return digest, number

    def _same(self, place: Location, data: memoryview) -> bool:
        mapped = self._maps.get(place.shard_id)
        if mapped is None:
            rows = self._snapshot.shards("tensors")
            index = rows.column("shard_id").to_pylist().index(place.shard_id)
            path = self._catalog / rows.column("path")[index].as_py()
            try:
                mapped = np.memmap(path, mode="r", dtype=np.uint8)
            except (OSError, ValueError):
                return False  # the stored copy is damaged: `zoo check` finds it, and this one is stored afresh
            self._maps[place.shard_id] = mapped
        stored = mapped[place.offset : place.offset + len(data)]
        return len(stored) == len(data) and bool(
            np.array_equal(stored, np.frombuffer(data, np.uint8))
        )

    def seal(self, draft: Draft) -> list[Location]:
        """Seal the shard, add its row, and give the locations of the new tensors by number."""
        sealed, places = self._writer.seal(self._final)
        self._places += places
        if sealed is not None:
            draft.bytes_stored += sealed.size_bytes
            draft.add(
                "shards", shard_row(self._catalog, self.shard_id, "tensors", sealed, None, None)
            )
        return [Location(self.shard_id, p.row, p.offset) for p in self._places]

    def state(self, checkpoint: Checkpoint, draft: Draft) -> StateDict:
        """The tensors that were just stored, mapped from where they are now."""
        paths = {self.shard_id: self._final}
        rows = self._snapshot.shards("tensors")
        for shard, path in zip(
            rows.column("shard_id").to_pylist(), rows.column("path").to_pylist(), strict=True
        ):
            paths[shard] = self._catalog / path
        maps: dict[str, npt.NDArray[np.uint8]] = {}
        state: StateDict = {}
        for row in draft.rows["tensors"]:
            shard, start = row["shard_id"], row["shard_offset"]
            if shard not in maps:
                maps[shard] = np.asarray(np.memmap(paths[shard], mode="c", dtype=np.uint8))
            raw = maps[shard][start : start + row["size_bytes"]]
            state[row["name"]] = from_buffer(raw, row["dtype"], tuple(row["shape"]))
        return state

    def discard(self) -> None:
        """Give up before anything refers to the shard."""
        self._writer.discard()
        self._final.unlink(missing_ok=True)


def checkpoint_draft(
    folder: Path,
    catalog: Path,
    snapshot: Snapshot,
    index: TensorIndex,
    checkpoint: Checkpoint,
    described: Mapping[str, Any],
    layers: Sequence[LayerSpec],
    zoo: ZooRecord | None,
    *,
    header_only: bool,
    progress: Progress | None,
    properties: Properties | None = None,
) -> tuple[Draft, list[str]]:
    """Store a checkpoint and make the rows of its commit; also the tables in which rows supersede earlier ones.

    Args:
        described: `adapter`, `family`, `name` and `config` of the architecture.
        header_only: names, shapes and dtypes alone.
        properties: measured on checkpoints of at most `LIMIT_BYTES`.

    Raises:
        SourceError: the source's bytes are refused; nothing is left behind.
    """
    header, info = checkpoint.header, checkpoint.info
    vector = VectorLayout(header.tensors, layers)
    model = model_id(info.key, info.revision)
    ckpt = checkpoint_id(model, checkpoint.step, checkpoint.epoch)
    draft = Draft(checkpoint_ids=[ckpt], model_ids=[model])
    state = _state(snapshot, ckpt)
    if state == "stored" or (state == "header-only" and header_only):
        draft.known = 1
        return draft, []
    replaces = ["checkpoints", "tensors"] if state == "header-only" else []
    describe_zoo(draft, snapshot, zoo)
    arch, build_config = describe_architecture(
        draft,
        snapshot,
        vector,
        adapter=described.get("adapter"),
        family=described.get("family"),
        name=described.get("name"),
        config=described.get("config") or {},
    )
    if not existing(snapshot, "models", "model_id", [model]):
        draft.add("models", model_row(info, model, arch, zoo, build_config))
    row = {
        "checkpoint_id": ckpt,
        "model_id": model,
        "architecture_id": arch,
        "step": checkpoint.step,
        "epoch": checkpoint.epoch,
        "dtype": vector.dtype,
        "num_parameters": vector.num_parameters,
        "size_bytes": vector.size_bytes,
        "content_hash": None,
        "shard_id": None,
        "shard_row": None,
        "state": "header-only",
    }
    if header_only:
        draft.add("tensors", *_tensor_rows(ckpt, checkpoint, {}))
    else:
        store = _Store(folder, catalog, snapshot, index)
        try:
            row["content_hash"] = _store_tensors(draft, store, ckpt, arch, checkpoint, progress)
            if properties and vector.size_bytes <= LIMIT_BYTES:
                add_metrics(draft, ckpt, properties.measure(store.state(checkpoint, draft), layers))
        except BaseException:
            store.discard()
            raise
        row["state"] = "stored"
    draft.add("checkpoints", row)
    if state is None:
        add_metrics(draft, ckpt, checkpoint.metrics)
        for edge in info.lineage:
            add_edge(draft, model, edge.parent, edge.relation, edge.detail)
    return draft, replaces


def follow_moved(draft: Draft, snapshot: Snapshot, index: TensorIndex) -> None:
    """Point a draft at where tensors are now that it found stored and that were moved since."""
    live = set(snapshot.shards("tensors").column("shard_id").to_pylist())
    live.update(row["shard_id"] for row in draft.rows.get("shards", []))
    places = index.refresh(snapshot)
    for row in draft.rows["tensors"]:
        if row["shard_id"] is not None and row["shard_id"] not in live:
            place = places[row["tensor_hash"]]
            row |= {
                "shard_id": place.shard_id,
                "shard_row": place.row,
                "shard_offset": place.offset,
            }


def _state(snapshot: Snapshot, ckpt: str) -> str | None:
    import pyarrow.compute as pc

    table = snapshot.table("checkpoints", ["checkpoint_id", "state"], keep=True)
    found = table.filter(pc.equal(table.column("checkpoint_id"), ckpt)).column("state").to_pylist()
    return found[0] if found else None


def _store_tensors(
    draft: Draft,
    store: _Store,
    ckpt: str,
    arch: str,
    checkpoint: Checkpoint,
    progress: Progress | None,
) -> str:
    header = checkpoint.header
    hashes: dict[str, str] = {}
    puts: dict[str, Location | int] = {}
    stats: dict[str, dict[str, Any] | None] = {}
    total = sum(t.size_bytes for t in header.tensors)
    done = 0
    for spec in _reading_order(checkpoint):
        if spec.name in header.tied:
            continue
        data = checkpoint.buffer(spec.name)
        if len(data) != spec.size_bytes:
            raise SourceError(
                checkpoint.info.source,
                f"tensor {spec.name!r} has {len(data)} bytes where its header promises {spec.size_bytes}.",
                "The file is damaged or was changed while it was read; fetch it again.",
            )
        hashes[spec.name], puts[spec.name] = store.put(spec, data)
        stats[spec.name] = tensor_stats(data, spec.dtype)
        done += spec.size_bytes
        if progress is not None:
            progress(checkpoint.info.name, done, total)
    checkpoint.verify()
    new = store.seal(draft)
    for name, first in header.tied.items():
        hashes[name], puts[name], stats[name] = hashes[first], puts[first], stats[first]
    places = {name: put if isinstance(put, Location) else new[put] for name, put in puts.items()}
    rows = _tensor_rows(ckpt, checkpoint, {n: (hashes[n], places[n]) for n in hashes})
    draft.add("tensors", *rows)
    draft.add(
        "tensor_stats",
        *(
            {"checkpoint_id": ckpt, "tensor_index": i, "name": t.name} | found
            for i, t in enumerate(header.tensors)
            if (found := stats[t.name]) is not None
        ),
    )
    draft.add(
        "files",
        *(
            {
                "checkpoint_id": ckpt,
                "file_index": i,
                "path": f.path,
                "format": f.format,
                "size_bytes": f.size_bytes,
                "sha256": f.sha256,
                "header": f.header,
            }
            for i, f in enumerate(checkpoint.files)
        ),
    )
    return content_hash(arch, (hashes[t.name] for t in header.tensors))


def content_hash(arch: str, tensor_hashes: Iterator[str]) -> str:
    """Hash of a checkpoint from the hashes of its tensors in layout order.

    From hashes rather than bytes, so that the order in which a file holds its tensors does not matter.
    """
    hasher = xxhash.xxh3_128(arch.encode())
    for digest in tensor_hashes:
        hasher.update(bytes.fromhex(digest))
    return hasher.hexdigest()


def _reading_order(checkpoint: Checkpoint) -> list[TensorSpec]:
    """Tensors in the order of their bytes in the files, so that files are read from front to back."""
    specs = {t.name: t for t in checkpoint.header.tensors}
    listed = [name for f in checkpoint.files for name in f.tensors if name in specs]
    inside = set(listed)
    rest = [name for name in specs if name not in inside]
    return [specs[name] for name in (*listed, *rest)]


def _tensor_rows(
    ckpt: str, checkpoint: Checkpoint, stored: Mapping[str, tuple[str, Location]]
) -> list[dict[str, Any]]:
    sizes = {t.name: t.size_bytes for t in checkpoint.header.tensors}
    source: dict[str, tuple[int, int]] = {}
    for number, f in enumerate(checkpoint.files):
        offset = 0
        for name in f.tensors:
            source[name] = (number, offset)
            offset += sizes.get(name, 0)
    rows = []
    for position, spec in enumerate(checkpoint.header.tensors):
        digest, place = stored.get(spec.name, (None, None))
        origin = source.get(spec.name)
        rows.append(
            {
                "checkpoint_id": ckpt,
                "tensor_index": position,
                "name": spec.name,
                "dtype": spec.dtype,
                "shape": list(spec.shape),
                "num_elements": spec.num_elements,
                "size_bytes": spec.size_bytes,
                "tensor_hash": digest,
                "shard_id": place.shard_id if place else None,
                "shard_row": place.row if place else None,
                "shard_offset": place.offset if place else None,
                "tied_to": checkpoint.header.tied.get(spec.name),
                "source_file": origin[0] if origin else None,
                "source_offset": origin[1] if origin else None,
            }
        )
    return rows
