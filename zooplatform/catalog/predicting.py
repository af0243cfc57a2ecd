"""Predictions and embeddings of stored networks: `zoo_predict` in SQL, and the table `embeddings`.

What a fitted predictor says of a checkpoint never changes, so each prediction is made once: it is stored as a row of
`metrics` (origin `predicted`) that names the artifact, and the next query reads it there.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from zooplatform.artifacts import (
    find_artifact,
    list_artifacts,
    load_artifact,
    prediction_key,
)
from zooplatform.errors import CatalogError, IntegrityError, QueryError, UnknownIdError, ZooError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import duckdb

    from zooplatform.artifacts import Artifact, PredictionKey
    from zooplatform.catalog.catalog import Catalog
    from zooplatform.catalog.mirror import Mirror
    from zooplatform.catalog.snapshot import Snapshot
    from zooplatform.interfaces import NetworkBatch, Predictor
    from zooplatform.registry import Registry

__all__ = [
    "NEAREST",
    "NEAREST_SQL",
    "PREDICT",
    "PREDICTION_FUNCTIONS",
    "Predictions",
    "find_predictor",
    "store_embeddings",
]

log = logging.getLogger(__name__)

PREDICT, NEAREST = "zoo_predict", "nearest"

# What the catalog itself adds to `zoo_functions()`.
PREDICTION_FUNCTIONS: tuple[dict[str, Any], ...] = (
    {
        "name": PREDICT,
        "kind": "function",
        "parameters": ["artifact", "checkpoint_id"],
        "returns": "DOUBLE",
        "null_handling": "NULL in, NULL out; NULL for a checkpoint without weights",
        "summary": "What a fitted predictor says of a checkpoint; made once, then read from `metrics`.",
    },
    {
        "name": NEAREST,
        "kind": "table function",
        "parameters": ["checkpoint_id", "artifact", "k"],
        "returns": "TABLE(checkpoint_id VARCHAR, distance DOUBLE)",
        "null_handling": "no rows for NULL",
        "summary": "The k checkpoints whose stored embeddings are nearest, by cosine distance.",
    },
)

# An artifact is chosen as by `find_predictor`; by an aggregate, since DuckDB cannot join laterally with ORDER BY here.
NEAREST_SQL = """
    CREATE MACRO nearest(of_checkpoint, of_artifact, k) AS TABLE
    SELECT e.checkpoint_id, list_cosine_distance(e.values, q.values)::DOUBLE AS distance
    FROM embeddings AS e JOIN embeddings AS q USING (artifact_id)
    WHERE artifact_id = (
            SELECT arg_max(a.artifact_id, (
                a.name = of_artifact, a.artifact_id = of_artifact, a.created_at, a.commit_id))
            FROM artifacts AS a
            WHERE a.kind = 'predictor' AND of_artifact IN (
                a.name, left(a.artifact_id, length(of_artifact)),
                a.backend || ':' || json_extract_string(a.data, '$.target'))
        )
        AND q.checkpoint_id = of_checkpoint AND e.checkpoint_id <> of_checkpoint
    ORDER BY distance, e.checkpoint_id
    LIMIT k
"""

# Networks read at once, and values: whatever the size of a network, memory stays bounded.
_BATCH, _BATCH_VALUES = 1024, 1 << 26


def find_predictor(catalog: Catalog, given: str) -> Artifact:
    """The predictor that is meant: by name, id or beginning of an id, or the newest of `backend:target`.

    Raises:
        UnknownIdError: there is none; the text lists those that there are.
        CatalogError: it is an artifact of another kind.
    """
    backend, colon, target = given.partition(":")  # no name has one
    if not colon:
        return find_artifact(catalog, given, "predictor")
    predictors = list_artifacts(catalog, "predictor")
    for artifact in predictors:
        if (artifact.backend, artifact.data.get("target")) == (backend, target):
            return artifact
    known = sorted({f"{a.backend}:{a.data.get('target')}" for a in predictors})
    there = f"There are {', '.join(known)}." if known else "It holds no predictor."
    remedy = (
        f"{there} `zoo predictor fit {backend} --target {target} --name NAME --query SQL` makes it."
    )
    raise UnknownIdError("predictor", given, remedy=remedy)


class _Fitted:
    """A predictor in memory and what it said; `new` are checkpoints whose value is not in the catalog yet."""

    def __init__(self, artifact: Artifact, values: dict[str, float]) -> None:
        self.artifact, self.values = artifact, values
        self.new: list[str] = []
        self.predictor: Predictor | None = None

    @property
    def key(self) -> PredictionKey:
        return prediction_key(self.artifact)


class Predictions:
    """Answers `zoo_predict` for the queries over one catalog.

    DuckDB calls from its own threads while the engine that runs the query waits for it. So nothing in here asks that
    engine: what has to be read of the catalog is read through a catalog object of its own.
    """

    def __init__(self, path: Path, registry: Registry, mirror: Mirror | None = None) -> None:
        self._path, self._registry, self._mirror = path, registry, mirror
        self._lock = threading.RLock()
        self._opened: Catalog | None = None
        self._fitted: dict[str, _Fitted] = {}
        self._named: tuple[int, dict[str, _Fitted]] = (-1, {})
        self._states: tuple[int, dict[str, str]] = (-1, {})

    def define(
        self,
        connection: duckdb.DuckDBPyConnection,
        snapshot: Snapshot,
        failures: list[ZooError],
    ) -> None:
        """Create the function in a connection over `snapshot`; a name goes on meaning the same artifact there.

        What goes wrong in it is added to `failures`: of an exception DuckDB only passes the text on.
        """
        from duckdb.func import FunctionNullHandling, PythonUDFType

        def predict(artifacts: pa.ChunkedArray, ids: pa.ChunkedArray) -> pa.Array:
            try:
                return self._column(snapshot, artifacts, ids)
            except IntegrityError as exc:
                failures.append(exc)
                raise
            except Exception as exc:
                foreseen = isinstance(exc, ZooError)
                failures.append(
                    QueryError(f"{PREDICT}: {exc if foreseen else _fault(artifacts, exc)}")
                )
                failures[-1].__cause__ = exc
                raise

        connection.create_function(
            PREDICT,
            predict,
            ["VARCHAR", "VARCHAR"],
            "DOUBLE",
            type=PythonUDFType.ARROW,
            null_handling=FunctionNullHandling.SPECIAL,
        )

    def _column(
        self, snapshot: Snapshot, artifacts: pa.ChunkedArray, ids: pa.ChunkedArray
    ) -> pa.Array:
        """One prediction for each of the rows that DuckDB brings at once (up to 2,048)."""
        rows = list(zip(artifacts.to_pylist(), ids.to_pylist(), strict=True))
        asked: dict[str, list[str | None]] = {}
        for given, checkpoint in rows:
            if given is not None:
                asked.setdefault(given, []).append(checkpoint)
        with self._lock:
            said = {given: self._values(snapshot, given, own) for given, own in asked.items()}
        values = [said[g].get(c) if g is not None else None for g, c in rows]
        return pa.array(values, type=pa.float64())

    def _values(
        self, snapshot: Snapshot, given: str, ids: Sequence[str | None]
    ) -> dict[str, float]:
        fitted = self._named_fitted(snapshot, given)
        missing = list(dict.fromkeys(i for i in ids if i is not None and i not in fitted.values))
        if missing:
            self._predict(fitted, missing)
        return fitted.values

    def _named_fitted(self, snapshot: Snapshot, given: str) -> _Fitted:
        version, named = self._named
        if version != snapshot.version:
            self._named = (snapshot.version, named := {})
        if given not in named:  # and from then on meant throughout the query
            artifact = find_predictor(self._catalog(), given)
            if artifact.artifact_id not in self._fitted:
                stored = self._stored(prediction_key(artifact))
                self._fitted[artifact.artifact_id] = _Fitted(artifact, stored)
            named[given] = self._fitted[artifact.artifact_id]
        return named[given]

    def _catalog(self) -> Catalog:
        if self._opened is None:
            from zooplatform.catalog.catalog import Catalog

            self._opened = Catalog(self._path, registry=self._registry, mirror=self._mirror)
        return self._opened

    def _stored(self, key: PredictionKey) -> dict[str, float]:
        """The predictions of an artifact that are in the catalog."""
        with self._catalog() as catalog:
            rows = catalog.sql(
                "SELECT checkpoint_id, value FROM metrics WHERE origin = 'predicted' "
                "AND dataset = ? AND split = ? AND name = ? AND value IS NOT NULL",
                [*key],
            )
        return dict(zip(*(column.to_pylist() for column in rows.columns), strict=True))

    def _predict(self, fitted: _Fitted, ids: Sequence[str]) -> None:
        catalog = self._catalog()
        states = self._checkpoint_states(catalog.snapshot())
        for checkpoint in ids:
            if checkpoint not in states:
                raise UnknownIdError(
                    "checkpoint",
                    checkpoint,
                    remedy="Give whole checkpoint ids, as in the column checkpoint_id of `checkpoints`.",
                )
        stored = [i for i in ids if states[i] == "stored"]
        if stored:
            if fitted.predictor is None:
                fitted.predictor = load_artifact(catalog, fitted.artifact)
            said = _said(catalog, fitted.predictor, fitted.artifact.name, stored)
            fitted.values.update(said)
            fitted.new.extend(said)

    def _checkpoint_states(self, snapshot: Snapshot) -> dict[str, str]:
        if self._states[0] != snapshot.version:
            table = snapshot.table("checkpoints", ["checkpoint_id", "state"], keep=True)
            columns = (column.to_pylist() for column in table.columns)
            self._states = (snapshot.version, dict(zip(*columns, strict=True)))
        return self._states[1]

    def store(self) -> None:
        """Keep in the catalog what was predicted since the last time, where it can be written."""
        with self._lock:
            for fitted in self._fitted.values():
                if fitted.new and self._mirror is None:
                    self._store(fitted)

    def _store(self, fitted: _Fitted) -> None:
        new, fitted.new = fitted.new, []
        key = fitted.key
        catalog = self._catalog()
        try:
            # Another process may have stored the same ones since this one looked.
            base = catalog.snapshot()
            there = self._stored(key)
            rows = [
                {
                    "checkpoint_id": i,
                    **key._asdict(),
                    "value": fitted.values[i],
                    "origin": "predicted",
                }
                for i in new
                if i not in there
            ]
            if rows:
                message = f"{len(rows)} predictions of {fitted.artifact.name}"
                catalog.commit(message, {"metrics": rows}, base=base)
        except CatalogError as exc:
            log.warning(
                "%s: predictions could not be kept and are made again next time: %s",
                self._path,
                exc,
            )


def _fault(artifacts: pa.ChunkedArray, exc: Exception) -> str:
    """What to say of an exception that nobody foresaw: a fault of the predictor."""
    names = ", ".join(repr(name) for name in artifacts.unique().to_pylist())
    return f"{names} failed, which is a fault of its plugin: {type(exc).__name__}: {exc}"


def _said(
    catalog: Catalog, predictor: Predictor, name: str, ids: Iterable[str]
) -> dict[str, float]:
    """What a predictor says of stored checkpoints, whatever mix of architectures they are of."""
    said: dict[str, float] = {}
    for batch in _batches(catalog, [*ids]):
        try:
            values = predictor.predict(batch).tolist()
        except ZooError as exc:
            raise QueryError(
                f"{name!r} cannot predict networks of architecture {batch.architecture_id}: {exc} "
                "Leave them out with `where architecture_id = ...`."
            ) from exc
        said.update(zip(batch.ids, values, strict=True))
    return said


def _batches(catalog: Catalog, ids: Sequence[str]) -> Iterator[NetworkBatch]:
    from zooplatform.fitting import network_batches

    data = catalog.dataset(ids, target=None)
    widest = max(1, *(vector.width for vector in data.architectures.values()))
    for _, batch in network_batches(data, max(1, min(_BATCH, _BATCH_VALUES // widest))):
        yield batch


def store_embeddings(
    catalog: Catalog, artifact: str, query: str | Sequence[str] | None = None
) -> int:
    """Embed checkpoints and keep the vectors in the table `embeddings`; gives how many were new.

    What the artifact has embedded before is not embedded again.

    Args:
        catalog: a local catalog.
        artifact: a predictor, as `zoo_predict` takes it.
        query: SQL that gives a column `checkpoint_id`, a sequence of ids, or None for every stored checkpoint.

    Raises:
        UnknownIdError: there is no such predictor or checkpoint.
        CatalogError: weights are not stored, or the catalog cannot be written.
        ArtifactError: the artifact is damaged.
    """
    base = catalog.snapshot()
    found = find_predictor(catalog, artifact)
    data = catalog.dataset(query, target=None)
    there = catalog.sql(
        "SELECT checkpoint_id FROM embeddings WHERE artifact_id = ?", [found.artifact_id]
    ).column("checkpoint_id")
    known = pc.is_in(pa.array(data.ids), value_set=there.combine_chunks())
    wanted = [i for i, old in zip(data.ids, known.to_pylist(), strict=True) if not old]
    if not wanted:
        return 0
    predictor = load_artifact(catalog, found)
    parts = []
    for batch in _batches(catalog, wanted):
        vectors = predictor.embed(batch).float().cpu().contiguous()
        count, width = vectors.shape
        parts.append(
            pa.table(
                {
                    "checkpoint_id": pa.array(batch.ids),
                    "artifact_id": pa.array([found.artifact_id] * count),
                    "values": pa.ListArray.from_arrays(
                        pa.array(range(0, (count + 1) * width, width), pa.int32())
                        if width
                        else pa.array([0] * (count + 1), pa.int32()),
                        pa.array(vectors.flatten().numpy()),
                    ),
                }
            )
        )
    rows = pa.concat_tables(parts)
    catalog.commit(f"{rows.num_rows} embeddings of {found.name}", {"embeddings": rows}, base=base)
    return int(rows.num_rows)
