"""What a stored predictor says of networks of a catalog, and how well that agrees with what was measured.

    predictor = load_artifact(catalog, find_artifact(catalog, "accuracy"))
    values = predict(catalog, predictor, ids)
    evaluate(catalog, "accuracy", query, target="test_accuracy", split="main").scores.kendall_tau

Legend for shapes: N networks, P values of one network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from zooplatform.artifacts import find_artifact, load_artifact, prediction_key
from zooplatform.errors import CatalogError, ConfigError
from zooplatform.evaluation.scores import Scores, scores
from zooplatform.interfaces import NetworkBatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from zooplatform.artifacts import Artifact
    from zooplatform.catalog import Catalog
    from zooplatform.datasets import WeightDataset
    from zooplatform.interfaces import Predictor

__all__ = [
    "RUNS",
    "Evaluation",
    "evaluate",
    "predict",
    "predict_dataset",
    "queried_ids",
    "runs_of",
    "seen_in_fit",
    "store_predictions",
]

# At most so many networks and so many of their values (64 MB in float32) are read at once.
_MOST_NETWORKS = 4096
_MOST_VALUES = 1 << 24

# Networks that were trained together share the hyper-parameter `stack`: they are one run when sides are kept apart.
RUNS = """
    select c.checkpoint_id, c.model_id, c.content_hash,
        coalesce(m.zoo_id || '/' || h.value, c.model_id) as run
    from checkpoints c join models m using (model_id)
    left join hyperparameters h on h.model_id = c.model_id and h.key = 'stack'
"""


def predict(catalog: Catalog, predictor: Predictor, ids: Sequence[str]) -> npt.NDArray[np.float64]:
    """(N,) predictions for checkpoints of any mix of architectures, in the order of `ids`.

    Raises:
        UnknownIdError: there is no such checkpoint.
        CatalogError: a checkpoint has no weights.
        ConfigError: the predictor cannot read networks of one of the architectures, or does not give one number each.
    """
    data = catalog.dataset(list(ids), target=None)
    place = {checkpoint: at for at, checkpoint in enumerate(data.ids)}
    found: npt.NDArray[np.float64] = predict_dataset(predictor, data)[[place[i] for i in ids]]
    return found


def queried_ids(catalog: Catalog, query: str) -> list[str]:
    """The checkpoints that a query names, each once, in the order of its rows.

    Raises:
        CatalogError: the query has no column `checkpoint_id`.
        QueryError: DuckDB refused it.
    """
    gave = catalog.sql(query)
    if "checkpoint_id" not in gave.column_names:
        raise CatalogError(
            f"The query gives {', '.join(gave.column_names)}; predictions need a column checkpoint_id."
        )
    found: list[str] = gave.column("checkpoint_id").unique().to_pylist()
    return found


def predict_dataset(predictor: Predictor, data: WeightDataset) -> npt.NDArray[np.float64]:
    """(N,) predictions in the order of `data`; raises as `predict`."""
    values = np.empty(len(data))
    for indices, batch in _batches(data):
        said = predictor.predict(batch).detach().cpu().double().numpy()
        if said.shape != (len(indices),):
            raise ConfigError(
                f"{type(predictor).__name__} gives predictions of shape {said.shape} for {len(indices)} networks; one "
                "number for each is wanted. Its plugin has to be repaired."
            )
        values[indices] = said
    return values


def _batches(data: WeightDataset) -> Iterator[tuple[npt.NDArray[np.int64], NetworkBatch]]:
    """Every network once: batches of one architecture that are bounded in memory, whatever the size of a network."""
    layouts = data.architectures
    names = np.array(data.architecture_ids, dtype=object)
    for group in data.order(_MOST_NETWORKS):
        vector = layouts[names[group[0]]]
        step = max(1, min(len(group), _MOST_VALUES // max(1, vector.width)))
        for at in range(0, len(group), step):
            part = group[at : at + step]
            weights, _, ids, architecture_id = data.read(part)
            yield part, NetworkBatch(weights, vector, tuple(ids), architecture_id)


def store_predictions(
    catalog: Catalog, artifact: Artifact, ids: Sequence[str], values: npt.NDArray[np.float64]
) -> int:
    """Keep predictions as rows of `metrics` of origin `predicted`; gives how many were new.

    They lie where `zoo_predict` looks for them (`prediction_key`), and `wide` shows them as `predicted_<target>`.
    """
    key = prediction_key(artifact)
    base = catalog.snapshot()  # whoever stores the same ones from here on is superseded
    known = catalog.sql(
        "select checkpoint_id from metrics where origin = 'predicted' "
        "and dataset = ? and split = ? and name = ?",
        [*key],
    )
    there = set(known.column(0).to_pylist())
    said = dict(zip(ids, values.tolist(), strict=True))
    rows = [
        {"checkpoint_id": i, **key._asdict(), "value": value, "origin": "predicted"}
        for i, value in said.items()
        if i not in there
    ]
    if rows:
        message = f"{len(rows)} predictions of {artifact.name}"
        catalog.commit(message, {"metrics": rows}, base=base)
    return len(rows)


# --- evaluation ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A predictor asked about networks whose target is known.

    Attributes:
        artifact: the predictor.
        scores: the figures.
        target, query, split, role: what was asked.
        num_seen: rows that are of training runs that the predictor was fitted on or chosen by; above 0, the figures
            flatter.
        notes: what was left out and why.
    """

    artifact: Artifact
    scores: Scores
    target: str
    query: str | None
    split: str | None
    role: str | None
    num_seen: int
    notes: tuple[str, ...]


def evaluate(
    catalog: Catalog,
    name: str,
    query: str | None = None,
    *,
    target: str | None = None,
    split: str | None = None,
    role: str | None = None,
    seed: int = 0,
    draws: int = 1000,
) -> Evaluation:
    """Compare predictions with a target; networks that have none are left out.

    Args:
        catalog: holds predictor and networks.
        name: of the predictor, or its id.
        query: SQL with a column `checkpoint_id`; all members of the split by default.
        target: a column of the query or of `wide`; what it was fitted to by default.
        split: only members of this split.
        role: of the split, `test` by default.
        seed: of the bootstrap.
        draws: of the bootstrap.

    Raises:
        UnknownIdError: there is no such predictor or split.
        CatalogError: no network with a target is left.
        ConfigError: the predictor cannot read a network, or a prediction is not finite.
    """
    artifact = find_artifact(catalog, name, "predictor")
    target = target or artifact.data.get("target")
    if target is None:
        raise ConfigError(f"Predictor {name!r} does not say what it predicts; give a target.")
    role = role or ("test" if split is not None else None)
    data = catalog.dataset(query, target=target, split=split, role=role, missing="drop")
    predictor: Predictor = load_artifact(catalog, artifact)
    runs = runs_of(catalog, data.ids)
    return Evaluation(
        artifact=artifact,
        scores=scores(
            data.targets,
            predict_dataset(predictor, data),
            runs.column("model_id").to_pylist(),
            seed,
            draws,
        ),
        target=target,
        query=query,
        split=split,
        role=role,
        num_seen=int(seen_in_fit(catalog, artifact, runs).sum()),
        notes=data.notes,
    )


def runs_of(catalog: Catalog, ids: Sequence[str]) -> pa.Table:
    """`checkpoint_id`, `model_id`, `content_hash` and `run` of checkpoints, in the order of `ids`."""
    table = catalog.sql(RUNS)
    at = pc.index_in(pa.array(ids, pa.string()), value_set=_column(table, "checkpoint_id"))
    found: pa.Table = table.take(at)
    return found


def seen_in_fit(catalog: Catalog, artifact: Artifact, runs: pa.Table) -> npt.NDArray[np.bool_]:
    """(N,) whether a network is of a training run, or a copy of a network, that the artifact was fitted on.

    Args:
        catalog: holds the split that it was fitted on.
        artifact: whose `data` says on what it was fitted.
        runs: of the networks, as `runs_of` gives them.
    """
    found = np.zeros(runs.num_rows, bool)
    fitted = _fitted_ids(catalog, artifact.data)
    if not fitted:
        return found
    theirs = runs_of(catalog, fitted)
    for column in ("run", "content_hash"):
        same = pc.is_in(runs.column(column), value_set=_column(theirs, column).unique())
        found |= same.to_numpy().astype(bool)
    return found


def _fitted_ids(catalog: Catalog, data: Any) -> list[str]:
    """The checkpoints that an artifact was fitted on or chosen by."""
    from zooplatform.splits import find_split

    if not data.get("split_id"):
        return []
    roles = [r for r in ("train", "val") if r in find_split(catalog, data["split_id"]).checkpoints]
    parts = (
        catalog.dataset(data.get("query"), target=None, split=data["split_id"], role=role).ids
        for role in roles
    )
    return [checkpoint for part in parts for checkpoint in part]


def _column(table: pa.Table, name: str) -> pa.Array:
    return table.column(name).combine_chunks()
