"""The catalog as one object."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zooplatform.catalog.building import build_network
from zooplatform.catalog.checking import Problem, check, check_artifacts
from zooplatform.catalog.commits import Guard, Rows, Snapshot, Tables
from zooplatform.catalog.compaction import compact
from zooplatform.catalog.export import export_checkpoint
from zooplatform.catalog.garbage import Removed, collect_garbage
from zooplatform.catalog.ids import resolve_id
from zooplatform.catalog.reader import Reader
from zooplatform.catalog.storing import store_checkpoint, store_population
from zooplatform.catalog.tensor_writer import TensorIndex
from zooplatform.catalog.writer import Draft, ZooRecord
from zooplatform.errors import CatalogError
from zooplatform.interfaces import CheckpointRecord, PopulationBatch
from zooplatform.properties import Properties
from zooplatform.recognise import Recogniser

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pyarrow as pa
    import torch
    from torch import nn

    from zooplatform.catalog.connection import Engine
    from zooplatform.catalog.mirror import Mirror
    from zooplatform.catalog.population import Population
    from zooplatform.catalog.predicting import Predictions
    from zooplatform.datasets import Missing, WeightDataset
    from zooplatform.ingest import IngestReport
    from zooplatform.interfaces import Checkpoint, Progress, StateDict
    from zooplatform.registry import Registry

__all__ = ["Catalog"]


class Catalog:
    """A database of trained networks: open it with `open_catalog`.

    `url` is what was opened, `path` the folder on this machine: of a remote catalog, which can only be read, its cache.
    Every method sees the newest committed state; what a method returns stays as it was.
    """

    def __init__(
        self, path: Path, *, registry: Registry | None = None, mirror: Mirror | None = None
    ) -> None:
        self.path = path
        self.url = str(path) if mirror is None else mirror.url
        self._given_registry = registry
        self._tables = Tables(path, mirror)
        self._tensor_index = TensorIndex()
        self._engine: Engine | None = None
        self._predictions: Predictions | None = None
        self._known_recogniser: Recogniser | None = None
        self._known_reader: Reader | None = None

    def __repr__(self) -> str:
        return f"Catalog({self.url!r})"

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the database connection; the catalog can still be used and opens another."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _local(self) -> Tables:
        """The tables, for what changes files.

        Raises:
            CatalogError: the catalog is remote.
        """
        if self._tables.mirror is not None:
            raise CatalogError(
                f"{self.url}: a remote catalog can only be read. Copy it to a local disk, change the copy, and copy "
                "that back."
            )
        return self._tables

    @property
    def registry(self) -> Registry:
        """The plugins that this catalog uses."""
        if self._given_registry is None:
            from zooplatform.plugins import load_plugins

            self._given_registry = load_plugins()
        return self._given_registry

    @property
    def recogniser(self) -> Recogniser:
        """Asks the architecture adapters what a layout is."""
        if self._known_recogniser is None:
            self._known_recogniser = Recogniser(self.registry)
        return self._known_recogniser

    @cached_property
    def _properties(self) -> Properties:
        return Properties(self.registry)

    def snapshot(self) -> Snapshot:
        """The newest committed state."""
        return self._tables.snapshot()

    @property
    def reader(self) -> Reader:
        """Finds tensors in the newest snapshot."""
        snapshot = self.snapshot()
        if self._known_reader is None or self._known_reader.snapshot is not snapshot:
            self._known_reader = Reader(snapshot)
        return self._known_reader

    # --- SQL ----------------------------------------------------------------------------------------------------------

    def engine(self) -> Engine:
        """The DuckDB connection over the newest snapshot; kept until something is committed."""
        from zooplatform.catalog.connection import Engine
        from zooplatform.catalog.predicting import Predictions

        snapshot = self.snapshot()
        if self._engine is None or self._engine.snapshot is not snapshot:
            self.close()
            if self._predictions is None:  # outlives the engine: a fitted predictor is loaded once
                self._predictions = Predictions(self.path, self.registry, snapshot.mirror)
            self._engine = Engine(snapshot, self.registry, predictions=self._predictions)
        return self._engine

    def sql(self, query: str, parameters: Sequence[Any] = ()) -> pa.Table:
        """Run one SELECT over the views of the catalog.

        Raises:
            QueryError: DuckDB refused it, or it is more than a query.
        """
        return self.engine().sql(query, parameters)

    # --- reading ------------------------------------------------------------------------------------------------------

    def resolve(self, kind: str, given: str) -> str:
        """The full id of a `zoo`, `model`, `checkpoint` or `artifact` from the id or the beginning of one.

        Raises:
            UnknownIdError: there is none, or several begin so.
        """
        return resolve_id(self.snapshot(), kind, given)

    def state_dict(self, checkpoint_id: str, *, verify: bool = False) -> StateDict:
        """The tensors of a checkpoint: names, order, dtypes and bits as they came.

        Tensors are mapped from the catalog's files, not read; writing to them changes private memory only. Tied tensors
        are one object. Types that torch does not know come as their bytes.

        Args:
            checkpoint_id: the id, or the beginning of one.
            verify: compare every byte with the hash that was committed.

        Raises:
            UnknownIdError: there is none.
            CatalogError: only its header was ingested.
            IntegrityError: the stored bytes are missing or, with `verify`, changed.
        """
        return self.reader.state_dict(self.resolve("checkpoint", checkpoint_id), verify=verify)

    def tensor(self, checkpoint_id: str, name: str, *, verify: bool = False) -> torch.Tensor:
        """One tensor of a checkpoint, mapped like those of `state_dict`.

        Raises:
            UnknownIdError: there is no such checkpoint, or it has no such tensor.
            CatalogError, IntegrityError: as `state_dict`.
        """
        return self.reader.tensor(self.resolve("checkpoint", checkpoint_id), name, verify=verify)

    def population(
        self, query: str | Sequence[str] | None = None, *, verify: bool = False
    ) -> Population:
        """Checkpoints of one architecture as one matrix: a view of the file where they came as a population and lie
        side by side, gathered otherwise.

        Args:
            query: SQL that gives a column `checkpoint_id`, a sequence of ids, or None for the whole catalog. The order
                is kept.
            verify: compare every network with the hash that was committed.

        Raises:
            CatalogError: the checkpoints are of several architectures, of a dtype that numpy lacks, or headers alone.
        """
        ids: Sequence[str] | None
        if isinstance(query, str):
            table = self.sql(query)
            if "checkpoint_id" not in table.column_names:
                raise CatalogError(
                    f"The query gives {', '.join(table.column_names)}; a population needs a column checkpoint_id."
                )
            ids = table.column("checkpoint_id").to_pylist()
        else:
            ids = query
        return self.reader.population(ids, verify=verify)

    def dataset(
        self,
        query: str | Sequence[str] | None = None,
        *,
        target: str | None = "test_accuracy",
        split: str | None = None,
        role: str | None = None,
        missing: Missing = "error",
    ) -> WeightDataset:
        """Checkpoints with a target as a torch Dataset, of any architectures, read from the mapped files.

        The order depends on the content of the networks alone: it is the same on every machine.

        Args:
            query: SQL that gives a column `checkpoint_id`, a sequence of ids, or None for all members of the split or
                the whole catalog.
            target: a column of the query, or of the view `wide`; None for no target.
            split: name or id of a split; checkpoints that are not in it are left out.
            role: only this role of the split (`train`, `val`, `test`).
            missing: what happens to networks whose target is NULL or NaN: `error`, `drop` or `keep`. The dataset's
                `notes` say how many were left out.

        Raises:
            CatalogError: nothing is left, weights are not stored, or targets are missing.
            ConfigError: there is no such target or role.
            UnknownIdError: there is no such checkpoint or split.
        """
        from zooplatform.datasets import build_dataset

        return build_dataset(self, query, target=target, split=split, role=role, missing=missing)

    def build(self, checkpoint_id: str, *, config: Mapping[str, Any] | None = None) -> nn.Module:
        """The network itself, in evaluation mode, with the weights loaded strictly.

        Args:
            checkpoint_id: the id, or the beginning of one.
            config: what the network is, where its source did not say: as in a `config.json`, for example
                `{"architecture": "resnet18"}` for a model of timm.

        Raises:
            ArchitectureError: no adapter can build this architecture; the text says what is missing.
        """
        return build_network(self, self.resolve("checkpoint", checkpoint_id), config)

    def export(self, checkpoint_id: str, path: str | os.PathLike[str]) -> Path:
        """Write a checkpoint as safetensors.

        A checkpoint that came from one `.safetensors` file becomes the same file again, byte for byte. When `path` is a
        folder, or has no suffix, the files of a sharded checkpoint are written there under their own names.

        Raises:
            IntegrityError: the stored bytes are not what was ingested; nothing is left at `path`.
        """
        return export_checkpoint(self.reader, self.resolve("checkpoint", checkpoint_id), Path(path))

    # --- writing ------------------------------------------------------------------------------------------------------

    def ingest(
        self,
        ref: str | os.PathLike[str],
        *,
        zoo: str | None = None,
        header_only: bool = False,
        revision: str | None = None,
        progress: Progress | None = None,
    ) -> IngestReport:
        """Bring in what a reference names: one commit per checkpoint, or per batch of a population.

        Args:
            ref: `scheme:rest`, or a path.
            zoo: population to put the models in; population sources name their own by default.
            header_only: names, shapes and dtypes alone, without fetching weights.
            revision: branch, tag or commit, for sources that have them.
            progress: called with (what, done, total).

        Raises:
            SourceError: the reference was refused and nothing of it stored. Where it names several checkpoints, those
                that fail are in the report and the others are stored.
        """
        from zooplatform.ingest import ingest

        return ingest(
            self,
            os.fspath(ref),
            zoo=zoo,
            header_only=header_only,
            revision=revision,
            progress=progress,
        )

    def append(
        self,
        batch: PopulationBatch,
        *,
        zoo: str,
        source: str = "",
        license: str | None = None,
        citation: str | None = None,
    ) -> tuple[str, ...]:
        """Store checkpoints of one architecture in one durable commit.

        Returns:
            The checkpoint ids, in the order of the rows; rows that were stored before are not written again.

        Raises:
            SchemaError: the batch does not fit its layout.
        """
        record = ZooRecord(zoo, source or None, license, citation)
        return tuple(self.write_population(batch, record).checkpoint_ids)

    def write_population(self, batch: PopulationBatch, zoo: ZooRecord | None) -> Draft:
        """As `append`; gives the whole draft that was committed."""
        return store_population(
            self._local(), self.recogniser, self._properties, batch=batch, zoo=zoo
        )

    def add_state_dicts(
        self,
        states: Iterable[Mapping[str, torch.Tensor]],
        records: Sequence[CheckpointRecord],
        *,
        zoo: str,
        family: str = "",
        config: Mapping[str, Any] | None = None,
    ) -> tuple[str, ...]:
        """Store torch state dicts of one architecture as a population, in one durable commit.

        Raises:
            SchemaError: a state dict has another layout than the first.
        """
        from zooplatform.catalog.packing import pack

        layout, weights, aside = pack(states)
        batch = PopulationBatch(
            layout=layout,
            weights=weights,
            rows=tuple(records),
            aside=aside,
            family=family,
            config=config or {},
        )
        return self.append(batch, zoo=zoo)

    def write_checkpoint(
        self,
        checkpoint: Checkpoint,
        zoo: ZooRecord | None,
        *,
        header_only: bool = False,
        described: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> Draft:
        """Store one open checkpoint in one durable commit; gives the draft that was committed.

        `described` is `adapter`, `family`, `name` and `config` of the architecture, where they are known already.
        """
        return store_checkpoint(
            self._local(),
            self.recogniser,
            self._properties,
            self._tensor_index,
            checkpoint=checkpoint,
            zoo=zoo,
            header_only=header_only,
            described=described,
            progress=progress,
        )

    def commit(
        self,
        message: str,
        rows: Mapping[str, Rows],
        *,
        replaces: Sequence[str] = (),
        guard: Guard | None = None,
        base: Snapshot | None = None,
    ) -> str:
        """Append plain rows to tables, all or none; returns the commit id.

        Args:
            message: what changed.
            rows: rows by table, without `commit_id`.
            replaces: tables in which rows supersede earlier ones with the same key.
            guard: is called with the state (a `Snapshot`) that the commit will come right after, other writers' commits
                included, and refuses it by raising; then nothing is committed.
            base: the state that the rows were made from, the newest by default; they supersede rows of the same keys
                that others committed since.
        """
        return self._local().commit(
            message, rows, base=base or self.snapshot(), replaces=replaces, guard=guard
        )

    # --- care ---------------------------------------------------------------------------------------------------------

    def check(self, *, deep: bool = False, lint: bool = False) -> list[Problem]:
        """What is wrong with the catalog.

        Args:
            deep: read every stored byte and compare it with its hash.
            lint: where nothing is damaged, also compare what is declared with what the tensors say; what that finds
                are `zooplatform.linting.Finding`s, of severity `warning` or `note`.
        """
        problems = check(self._local(), deep=deep)
        if not any(problem.kind in ("log", "table") for problem in problems):
            problems += check_artifacts(self, deep=deep)
        if lint and not problems:
            from zooplatform.linting import lint as run_lint

            problems = [*run_lint(self)]
        return problems

    def gc(self, *, grace_seconds: float = 3600.0, dry_run: bool = False) -> list[Removed]:
        """Remove files that no commit names and that no living writer is making."""
        return collect_garbage(self._local(), grace_seconds=grace_seconds, dry_run=dry_run)

    def compact(self) -> dict[str, int]:
        """Merge small files; every query gives the same as before. Returns the number of files merged, by table."""
        self.close()
        return compact(self._local())
