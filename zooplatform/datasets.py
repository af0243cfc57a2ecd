"""Networks as training data: batches of weights and a target, read straight from the mapped files.

    data = catalog.dataset("select checkpoint_id from wide where zoo = 'mnist'", split="main", role="train")
    for weights, target, ids, architecture_id in data.batches(256, seed=0, epoch=3):
        ...

Legend for shapes: N networks, B networks of a batch, P values of one network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from zooplatform.catalog.gather import Gatherer, gatherers
from zooplatform.errors import CatalogError, ConfigError, QueryError, UnknownIdError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from zooplatform.catalog import Catalog
    from zooplatform.layout import VectorLayout

__all__ = ["Batch", "BatchOrder", "Missing", "Sample", "WeightDataset", "build_dataset"]

Missing = Literal["error", "drop", "keep"]

_INDEX = ["checkpoint_id", "architecture_id", "shard_id", "shard_row", "state", "content_hash"]


class Sample(NamedTuple):
    """One network: `weights` (P,) as stored, `target` () float32, NaN where there is none."""

    weights: torch.Tensor
    target: torch.Tensor
    checkpoint_id: str
    architecture_id: str


class Batch(NamedTuple):
    """B networks of one architecture: `weights` (B, P) as stored, `target` (B,) float32."""

    weights: torch.Tensor
    target: torch.Tensor
    ids: list[str]
    architecture_id: str


class _Gathered:
    """The samples of a batch that was read at once; any collate function can take them one by one."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch.ids)

    def __getitem__(self, at: int) -> Sample:
        batch = self.batch
        return Sample(batch.weights[at], batch.target[at], batch.ids[at], batch.architecture_id)

    def __iter__(self) -> Iterator[Sample]:
        return (self[at] for at in range(len(self)))


class WeightDataset(Dataset[Sample]):
    """Networks with a target, in an order that depends on their content alone.

    It can be pickled and used in any number of `DataLoader` workers, forked or spawned: each maps the files itself.

    Attributes:
        ids: N checkpoint ids.
        targets: (N,) float64; NaN throughout when there is no target.
        target: name of the target, or None.
        architectures: layout of each architecture by its id: which tensor is where in the P values.
        notes: what was left out and why.
    """

    def __init__(
        self,
        gather: dict[str, Gatherer],
        ids: Sequence[str],
        architecture_ids: Sequence[str],
        targets: npt.NDArray[np.float64],
        target: str | None,
        notes: Sequence[str],
    ) -> None:
        self.ids = tuple(ids)
        self.targets, self.target = targets, target
        self.notes = tuple(notes)
        self._names = tuple(sorted(gather))
        self._gather = [gather[name] for name in self._names]
        number = {name: at for at, name in enumerate(self._names)}
        self._group_of = np.array([number[name] for name in architecture_ids], np.int64)
        # Place of every network among those of its architecture.
        self._place_of = np.empty(len(self.ids), np.int64)
        for at in range(len(self._names)):
            own = np.flatnonzero(self._group_of == at)
            self._place_of[own] = np.arange(len(own))
        self._id_array = np.array(self.ids, dtype=object)
        self._target_array = targets.astype(np.float32)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"WeightDataset({len(self)} networks of {len(self._names)} architectures, target {self.target})"

    @property
    def architectures(self) -> dict[str, VectorLayout]:
        return {name: g.vector for name, g in zip(self._names, self._gather, strict=True)}

    @property
    def architecture_ids(self) -> tuple[str, ...]:
        """N architecture ids."""
        return tuple(self._names[at] for at in self._group_of.tolist())

    # --- reading ------------------------------------------------------------------------------------------------------

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"network {index} of {len(self)}")
        return _Gathered(self.read([index % len(self)]))[0]

    def __getitems__(self, indices: Sequence[int]) -> Sequence[Sample]:
        """What a `DataLoader` asks for: networks of one architecture are read at once."""
        if len(np.unique(self._group_of[np.asarray(indices, np.int64)])) == 1:
            return _Gathered(self.read(indices))  # type: ignore[return-value]  # a sequence in all but name
        return [self[index] for index in indices]

    def read(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Batch:
        """Networks of one architecture as a batch, in fresh memory.

        Raises:
            ConfigError: they are of several architectures.
            IntegrityError: a weight file is missing or truncated.
        """
        rows, group = self._of_one_architecture(indices)
        return Batch(
            self._gather[group].take(self._place_of[rows]),
            torch.from_numpy(self._target_array[rows]),
            self._id_array[rows].tolist(),
            self._names[group],
        )

    def read_aside(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """(B, E): the bytes of those tensors of networks of one architecture that are of another dtype than the
        weights (counters of BatchNorm), in layout order.

        Raises:
            As `read`.
        """
        rows, group = self._of_one_architecture(indices)
        return self._gather[group].take_aside(self._place_of[rows])

    def _of_one_architecture(
        self, indices: Sequence[int] | npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], int]:
        """The indices as an array, and the number of their architecture."""
        rows = np.asarray(indices, np.int64)
        groups = self._group_of[rows]
        if not len(rows) or (groups != groups[0]).any():
            raise ConfigError(
                f"A batch is at least one network, and all are of one architecture; these {len(rows)} have "
                f"{len(np.unique(groups))}. `batches` and `loader` group them."
            )
        return rows, int(groups[0])

    def batches(
        self, batch_size: int, *, seed: int | None = None, epoch: int = 0, drop_last: bool = False
    ) -> Iterator[Batch]:
        """Every network once, in batches of one architecture each.

        Args:
            batch_size: B; the last batch of an architecture may be smaller.
            seed: shuffles, another way in every epoch; None keeps the order.
            epoch: number of the epoch.
            drop_last: leave smaller batches out.
        """
        return map(self.read, self.order(batch_size, seed=seed, epoch=epoch, drop_last=drop_last))

    def order(
        self, batch_size: int, *, seed: int | None = None, epoch: int = 0, drop_last: bool = False
    ) -> list[npt.NDArray[np.int64]]:
        """The indices of the batches that `batches` and `loader` read; arguments as there."""
        if batch_size < 1:
            raise ConfigError(f"A batch of {batch_size} networks is none. Give 1 or more.")
        # RandomState, because its streams are frozen for good; those of newer generators may change between versions.
        draw = None
        if seed is not None:
            draw = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, epoch])))
        parts = []
        for group in range(len(self._names)):
            own = np.flatnonzero(self._group_of == group)
            if draw is not None:
                own = own[draw.permutation(len(own))]
            stop = len(own) - len(own) % batch_size if drop_last else len(own)
            parts += [own[at : at + batch_size] for at in range(0, stop, batch_size)]
        return parts if draw is None else [parts[at] for at in draw.permutation(len(parts))]

    def loader(
        self,
        batch_size: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        drop_last: bool = False,
        num_workers: int = 0,
        pin_memory: bool = False,
        start_method: Literal["fork", "spawn", "forkserver"] | None = None,
    ) -> DataLoader[Sample]:
        """The same batches from a torch `DataLoader`; their order does not depend on the number of workers.

        For the next epoch set `loader.batch_sampler.epoch`; the workers stay.

        Args:
            batch_size, seed, epoch, drop_last: as in `batches`.
            num_workers: processes that read; 0 reads in this one.
            pin_memory: put batches into page-locked memory, from which a GPU copies faster.
            start_method: how workers begin; the platform's default by default.
        """
        order = BatchOrder(self, batch_size, seed=seed, epoch=epoch, drop_last=drop_last)
        return DataLoader(
            self,
            batch_sampler=order,
            collate_fn=_collate,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            multiprocessing_context=start_method if num_workers else None,
        )


class BatchOrder(Sampler[Any]):
    """A batch sampler over `WeightDataset.order`; `epoch` can be set between epochs."""

    def __init__(
        self,
        data: WeightDataset,
        batch_size: int,
        *,
        seed: int | None,
        epoch: int = 0,
        drop_last: bool = False,
    ) -> None:
        self.epoch = epoch
        self._data, self._batch_size, self._seed, self._drop_last = (
            data,
            batch_size,
            seed,
            drop_last,
        )

    def _order(self) -> list[npt.NDArray[np.int64]]:
        return self._data.order(
            self._batch_size, seed=self._seed, epoch=self.epoch, drop_last=self._drop_last
        )

    def __iter__(self) -> Iterator[npt.NDArray[np.int64]]:
        return iter(self._order())

    def __len__(self) -> int:
        return len(self._order())


def _collate(gathered: Any) -> Batch:
    batch: Batch = gathered.batch
    return batch


# --- from a catalog --------------------------------------------------------------------------------------------------


def build_dataset(
    catalog: Catalog,
    query: str | Sequence[str] | None = None,
    *,
    target: str | None = "test_accuracy",
    split: str | None = None,
    role: str | None = None,
    missing: Missing = "error",
) -> WeightDataset:
    """See `Catalog.dataset`."""
    if role is not None and split is None:
        raise ConfigError(f"Role {role!r} is a role of a split; give split=NAME too.")
    if missing not in ("error", "drop", "keep"):
        raise ConfigError(f"missing={missing!r} is not 'error', 'drop' or 'keep'.")
    gave = catalog.sql(query) if isinstance(query, str) else None
    notes: list[str] = []
    ids, contents = _split_contents(catalog, split, role)
    if gave is not None:
        if "checkpoint_id" not in gave.column_names:
            raise CatalogError(
                f"The query gives {', '.join(gave.column_names)}; a dataset needs a column checkpoint_id."
            )
        ids = gave.column("checkpoint_id").to_pylist()
    elif query is not None:
        ids = list(query)
    rows = _index(catalog, ids)
    if contents is not None:
        inside = rows.filter(pc.is_in(rows.column("content_hash"), value_set=pa.array(contents)))
        if inside.num_rows < rows.num_rows:
            side = f"role {role} of split {split}" if role else f"split {split}"
            notes.append(f"{rows.num_rows - inside.num_rows} networks left out: not in {side}.")
        rows = inside
    _require(rows, notes)
    values = np.full(rows.num_rows, np.nan)
    if target is not None:
        values = _targets(catalog, gave, rows.column("checkpoint_id"), target)
        lacking = np.isnan(values)
        if lacking.any():
            text = (
                f"{int(lacking.sum())} of {rows.num_rows} networks have no {target} (NULL or NaN)"
            )
            if missing == "error":
                example = rows.column("checkpoint_id")[int(lacking.argmax())].as_py()
                raise CatalogError(
                    f"{text}, for example {example}. Leave them out with missing='drop', keep them with "
                    "missing='keep', or choose others in the query."
                )
            if missing == "drop":
                notes.append(f"{int(lacking.sum())} networks left out: no {target}.")
                rows, values = rows.filter(pa.array(~lacking)), values[~lacking]
                _require(rows, notes)
            else:
                notes.append(f"{text}; their target is NaN.")
    return WeightDataset(
        gatherers(catalog.reader, rows),
        rows.column("checkpoint_id").to_pylist(),
        rows.column("architecture_id").to_pylist(),
        values,
        target,
        notes,
    )


def _split_contents(
    catalog: Catalog, split: str | None, role: str | None
) -> tuple[list[str] | None, list[str] | None]:
    """Checkpoint ids and content hashes of (a role of) a split; (None, None) without one."""
    if split is None:
        return None, None
    from zooplatform.splits import find_split, split_members

    members = split_members(catalog, find_split(catalog, split), role)
    return [m.checkpoint_id for m in members], [m.content_hash for m in members]


def _index(catalog: Catalog, ids: Sequence[str] | None) -> pa.Table:
    """Where the weights of checkpoints are, each once, in the order of their content hashes."""
    table = catalog.snapshot().table("checkpoints", _INDEX, keep=True)
    if ids is None:
        table = table.filter(pc.equal(table.column("state"), "stored"))
    else:
        asked = pa.array(ids, type=pa.string()).unique()
        at = pc.index_in(asked, value_set=table.column("checkpoint_id").combine_chunks())
        if at.null_count:
            raise UnknownIdError("checkpoint", str(asked.filter(at.is_null())[0].as_py()))
        table = table.take(at)
        headers = table.filter(pc.not_equal(table.column("state"), "stored"))
        if headers.num_rows:
            raise CatalogError(
                f"{headers.num_rows} of {table.num_rows} checkpoints have no weights in the catalog (for example "
                f"{headers.column('checkpoint_id')[0].as_py()}). Add `where state = 'stored'` to the query, or ingest "
                "them without --header-only."
            )
    return table.sort_by([("content_hash", "ascending"), ("checkpoint_id", "ascending")])


def _require(rows: pa.Table, notes: Sequence[str]) -> None:
    if not rows.num_rows:
        raise CatalogError(" ".join(["The dataset holds no network.", *notes]))


def _targets(
    catalog: Catalog, gave: pa.Table | None, ids: pa.ChunkedArray, target: str
) -> npt.NDArray[np.float64]:
    """(N,) the target of every checkpoint: a column of the query if it has one of this name, else of `wide`."""
    if gave is not None and target in gave.column_names:
        table, source = gave.select(["checkpoint_id", target]), "the query"
    else:
        source = "the view `wide`"
        name = '"' + target.replace('"', '""') + '"'
        try:
            table = catalog.sql(f"select checkpoint_id, {name} from wide")
        except QueryError as exc:
            known = catalog.sql("select * from wide limit 0").column_names
            raise ConfigError(
                f"There is no target {target!r}, neither in the query nor in `wide`. Columns: {', '.join(known)}."
            ) from exc
    kind = table.schema.field(1).type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise ConfigError(
            f"Target {target!r} of {source} is {kind}, no number. Cast it in the query: `... ::double as {target}`."
        )
    pairs = pa.table({"id": table.column(0), "value": table.column(1)}).group_by(["id", "value"])
    distinct = pairs.aggregate([])
    at = pc.index_in(ids, value_set=distinct.column("id").combine_chunks())
    if len(distinct.column("id").unique()) < distinct.num_rows:
        raise ConfigError(
            f"The query gives some checkpoints several values of {target!r}. Choose one of them in the query."
        )
    values = distinct.column("value").take(at).cast(pa.float64())
    found: npt.NDArray[np.float64] = values.fill_null(float("nan")).to_numpy()
    return np.array(found)
