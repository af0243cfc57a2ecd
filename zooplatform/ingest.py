"""Source to catalog: what a reference names is opened, recognised, stored and committed."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pyarrow.compute as pc

from zooplatform.catalog.writer import Draft, ZooRecord
from zooplatform.errors import SourceError, ZooError
from zooplatform.layout import model_id

if TYPE_CHECKING:
    from zooplatform.catalog import Catalog
    from zooplatform.interfaces import ModelRef, PopulationSource, Progress, Source

__all__ = ["IngestReport", "ingest", "split_reference"]

log = logging.getLogger(__name__)

_SCHEME = re.compile(r"^([a-z][a-z0-9+-]+):(?!//|\\)(.+)$", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestReport:
    """What an ingest did.

    Attributes:
        checkpoint_ids: every checkpoint that the reference named and the catalog now holds.
        model_ids: their models.
        skipped: (reference, reason) of what was there already.
        failed: (reference, error) of what was refused.
        notes: what was left out or changed on the way, and why.
        num_stored: how many of the checkpoints were not there before.
        bytes_read: bytes of weights read from the source.
        bytes_stored: bytes of new weight files.
    """

    checkpoint_ids: tuple[str, ...] = ()
    model_ids: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    num_stored: int = 0
    bytes_read: int = 0
    bytes_stored: int = 0


@dataclass
class _Progress:
    """The report in the making."""

    checkpoints: list[str] = field(default_factory=list)
    models: dict[str, None] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)
    num_stored: int = 0
    bytes_read: int = 0
    bytes_stored: int = 0

    def add(self, draft: Draft) -> None:
        self.checkpoints += draft.checkpoint_ids
        self.models |= dict.fromkeys(draft.model_ids)
        self.num_stored += len(draft.checkpoint_ids) - draft.known
        self.bytes_stored += draft.bytes_stored

    def report(self) -> IngestReport:
        return IngestReport(
            checkpoint_ids=tuple(self.checkpoints),
            model_ids=tuple(self.models),
            skipped=tuple(self.skipped),
            failed=tuple(self.failed),
            notes=tuple(self.notes),
            num_stored=self.num_stored,
            bytes_read=self.bytes_read,
            bytes_stored=self.bytes_stored,
        )


def split_reference(ref: str, schemes: frozenset[str] = frozenset()) -> tuple[str, str]:
    """`scheme:rest`; a bare path means `local:`.

    Raises:
        SourceError: the reference is empty, or its scheme is none of `schemes` and it is not a path either.
    """
    found = _SCHEME.match(ref)
    if found and (not schemes or found.group(1) in schemes):
        return found.group(1), found.group(2)
    if not ref.strip():
        raise SourceError(
            repr(ref), "the reference is empty.", "Give a path or scheme:rest, see `zoo plugins`."
        )
    if ref.removesuffix(":") in schemes and not Path(ref).exists():
        raise SourceError(
            ref, "The reference ends after the scheme.", f"Give {ref.removesuffix(':')}:rest."
        )
    if found and not Path(ref).exists():
        return found.group(1), found.group(2)
    return "local", ref


def ingest(
    catalog: Catalog,
    ref: str,
    *,
    zoo: str | None,
    header_only: bool,
    revision: str | None,
    progress: Progress | None,
) -> IngestReport:
    """See `Catalog.ingest`."""
    registry = catalog.registry
    schemes = frozenset(spec.scheme for spec in registry.sources.specs())
    scheme, rest = split_reference(ref, schemes)
    spec, source = registry.source_for_scheme(scheme)
    if spec.population:
        if header_only or revision:
            raise SourceError(
                ref, f"{scheme}: takes neither --header-only nor --revision.", "Leave them out."
            )
        return _population(catalog, cast("PopulationSource", source), scheme, rest, zoo, progress)
    return _checkpoints(
        catalog,
        cast("Source", source),
        rest,
        zoo=zoo,
        header_only=header_only,
        revision=revision,
        progress=progress,
    )


def _checkpoints(
    catalog: Catalog,
    source: Source,
    rest: str,
    *,
    zoo: str | None,
    header_only: bool,
    revision: str | None,
    progress: Progress | None,
) -> IngestReport:
    state = _Progress()
    record = ZooRecord(zoo) if zoo else None
    errors: list[ZooError] = []
    refs = list(source.list(rest, revision=revision))
    for found in refs:
        known = None if header_only else _stored(catalog, found)
        if known is not None:
            state.add(known)
            state.skipped.append((found.ref, "already in the catalog"))
            continue
        try:
            draft = _one(
                catalog, source, found, record, state, header_only=header_only, progress=progress
            )
        except ZooError as exc:
            errors.append(exc)
            state.failed.append((found.ref, str(exc)))
            continue
        state.add(draft)
        if draft.known:
            state.skipped.append((found.ref, "already in the catalog"))
        else:
            catalog.registry.notify_model_ingested(catalog, draft.model_ids[0], state.report())
    if errors and len(refs) == 1:
        raise errors[0]
    return state.report()


def _stored(catalog: Catalog, found: ModelRef) -> Draft | None:
    """What the catalog holds of a reference whose key and revision say what it is, so that it need not be opened."""
    if not found.key or not found.revision:
        return None
    model = model_id(found.key, found.revision)
    columns = ["model_id", "checkpoint_id", "state"]
    rows = catalog.snapshot().table("checkpoints", columns, keep=True)
    rows = rows.filter(pc.equal(rows.column("model_id"), model))
    if not rows.num_rows or set(rows.column("state").to_pylist()) != {"stored"}:
        return None
    return Draft(
        checkpoint_ids=rows.column("checkpoint_id").to_pylist(),
        model_ids=[model],
        known=rows.num_rows,
    )


def _one(
    catalog: Catalog,
    source: Source,
    found: ModelRef,
    zoo: ZooRecord | None,
    state: _Progress,
    *,
    header_only: bool,
    progress: Progress | None,
) -> Draft:
    with source.open(found, header_only=header_only, progress=progress) as checkpoint:
        draft = catalog.write_checkpoint(
            checkpoint, zoo, header_only=header_only, progress=progress
        )
        state.notes |= dict.fromkeys(f"{found.ref}: {note}" for note in checkpoint.header.notes)
        if not draft.known and not header_only:
            state.bytes_read += sum(t.size_bytes for t in checkpoint.header.tensors)
        return draft


def _population(
    catalog: Catalog,
    source: PopulationSource,
    scheme: str,
    rest: str,
    zoo: str | None,
    progress: Progress | None,
) -> IngestReport:
    about = source.describe(rest)
    record = ZooRecord(
        zoo or about.get("name") or Path(rest).name,
        f"{scheme}:{rest}",
        about.get("license") or None,
        about.get("citation") or None,
    )
    state = _Progress()
    for batch in source.batches(
        rest, done=_done(catalog, record.zoo_id, about.get("revision") or None), progress=progress
    ):
        state.failed += batch.failed
        state.notes |= dict.fromkeys(batch.notes)
        if not len(batch.rows):
            continue
        draft = catalog.write_population(batch, record)
        state.add(draft)
        state.bytes_read += batch.weights.nbytes
        if catalog.registry.hears_of_models:
            report = state.report()
            for model in draft.model_ids:
                catalog.registry.notify_model_ingested(catalog, model, report)
    if not state.num_stored and not state.failed:
        state.skipped.append((f"{scheme}:{rest}", "already in the catalog"))
    return state.report()


def _done(catalog: Catalog, zoo_id: str, revision: str | None) -> frozenset[tuple[str, int | None]]:
    """(model key, step) of what the zoo holds of this revision, so that an import goes on where it ended."""
    snapshot = catalog.snapshot()
    models = snapshot.table("models", ["model_id", "zoo_id", "source_key", "revision"], keep=True)
    models = models.filter(pc.equal(models.column("zoo_id"), zoo_id))
    if revision is not None:
        models = models.filter(pc.equal(models.column("revision"), revision))
    if not models.num_rows:
        return frozenset()
    keys = dict(
        zip(
            models.column("model_id").to_pylist(),
            models.column("source_key").to_pylist(),
            strict=True,
        )
    )
    rows = snapshot.table("checkpoints", ["model_id", "step"], keep=True)
    rows = rows.filter(
        pc.is_in(rows.column("model_id"), value_set=models.column("model_id").combine_chunks())
    )
    steps = zip(rows.column("model_id").to_pylist(), rows.column("step").to_pylist(), strict=True)
    return frozenset((keys[model], step) for model, step in steps)
