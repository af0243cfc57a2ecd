"""Fits a backend on networks of a catalog and stores what comes out.

    artifact = fit_predictor(catalog, "sne", name="accuracy", query=query, target="test_accuracy")

A fit that is interrupted keeps its state in the catalog, in `artifacts/fit-<key>/`, and the same call goes on from it.
The key is a hash of everything that decides the result. The state is removed when the artifact is stored; where no call
goes on, `zoo gc` removes it after its grace period.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from zooplatform.artifacts import check_name, require_writable, store_artifact
from zooplatform.catalog.leases import lease
from zooplatform.errors import CatalogError, ConfigError
from zooplatform.evaluation.configurations import configuration
from zooplatform.evaluation.predictions import RUNS, predict_dataset, runs_of
from zooplatform.evaluation.scores import kendall_tau, mae, r2, spearman
from zooplatform.fitting import FitData
from zooplatform.splits import create_split, find_split

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from zooplatform.artifacts import Artifact
    from zooplatform.catalog import Catalog
    from zooplatform.datasets import WeightDataset
    from zooplatform.interfaces import Predictor, Progress, StateDict, Tokenizer
    from zooplatform.splits import Split

__all__ = ["DRAWN_RATIO", "fit_predictor", "fit_tokenizer"]

DRAWN_RATIO = "70/15/15"

_LOCK = "lock"


def fit_predictor(
    catalog: Catalog,
    backend: str,
    *,
    name: str,
    query: str,
    target: str,
    split: str | None = None,
    config: str | None = None,
    settings: Iterable[str] = (),
    seed: int = 0,
    device: str = "cpu",
    max_minutes: float | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Fit a predictor, measure it on its validation data and store it.

    Networks without the target are left out. The artifact's `data` says what it was fitted on: `query`, `target`,
    `split` and `split_id`, `seed`, counts and a digest of the `train` and `validation` networks, and `notes`. Its
    `metrics` are what the backend reports, and `validation_tau`, `validation_spearman`, `validation_r2`,
    `validation_mae` and `fit_seconds`, measured here.

    Args:
        catalog: a local catalog.
        backend: name of the predictor backend.
        name: of the artifact.
        query: SQL with a column `checkpoint_id`.
        target: a column of the query or of `wide`.
        split: fitted on its role train, validated on val; by default one is drawn from the query and the seed, 70/15/15
            by training run (networks that were trained together, of one `stack`, stay together), and frozen under a
            name of its own.
        config: a name that the backend knows, or a TOML file.
        settings: `KEY=VALUE`, replacing values of the configuration.
        seed: of the draw and of the fit.
        device: torch device.
        max_minutes: after which fitting ends with the best so far.
        progress: where to say how far it is.

    Raises:
        ConfigError: configuration, target, split or device are not usable.
        CatalogError: nothing to fit on, the catalog cannot be written, or the same fit is running.
        PluginError: there is no such backend.
    """
    check_name(name)
    require_writable(catalog)
    _check_device(device)
    predictor: Predictor = catalog.registry.predictors.create(backend)
    table = configuration(backend, predictor, config, settings)
    # Before a split is frozen for it: whether the query and the target are usable.
    catalog.dataset(query, target=target, missing="drop")
    chosen = _split(catalog, query, split, seed)
    sides = {
        role: catalog.dataset(
            query, target=target, split=chosen.split_id, role=role, missing="drop"
        )
        for role in ("train", "val")
    }
    train, validation = sides["train"], sides["val"]
    data: dict[str, Any] = {
        "query": query,
        "target": target,
        "split": chosen.name,
        "split_id": chosen.split_id,
        "seed": seed,
        "train": _about(catalog, train),
        "validation": _about(catalog, validation),
        # That either side leaves the other out needs no note.
        "notes": [n for side in sides.values() for n in side.notes if "not in role" not in n],
    }
    owner = catalog.registry.predictors.owner(backend)
    with _state(catalog, [backend, owner.version, table, data]) as folder:
        report = predictor.fit(
            FitData(
                train=train,
                validation=validation,
                device=device,
                max_minutes=max_minutes,
                folder=folder,
                progress=progress,
            ),
            target=target,
            config=table,
            seed=seed,
        )
        said = predict_dataset(predictor, validation)
        measured = {
            "validation_tau": kendall_tau(validation.targets, said),
            "validation_spearman": spearman(validation.targets, said),
            "validation_r2": r2(validation.targets, said),
            "validation_mae": mae(validation.targets, said),
            "fit_seconds": report.seconds,
        }
        return store_artifact(
            catalog,
            kind="predictor",
            backend=backend,
            name=name,
            instance=predictor,
            config=table,
            data={**data, "notes": [*data["notes"], *report.notes]},
            metrics={**report.metrics, **measured},
        )


def fit_tokenizer(
    catalog: Catalog,
    backend: str,
    *,
    name: str,
    query: str | None = None,
    config: str | None = None,
    settings: Iterable[str] = (),
    seed: int = 0,
) -> Artifact:
    """Fit a tokenizer and store it.

    Args:
        catalog: a local catalog.
        backend: name of the tokenizer backend.
        name: of the artifact.
        query: SQL with a column `checkpoint_id`; every stored checkpoint by default. Weights are read only as far as
            the backend asks for them.
        config, settings, seed: as `fit_predictor`.

    Raises:
        As `fit_predictor`.
    """
    check_name(name)
    require_writable(catalog)
    tokenizer: Tokenizer = catalog.registry.tokenizers.create(backend)
    table = configuration(backend, tokenizer, config, settings)
    read = 0

    def states() -> Iterator[StateDict]:
        nonlocal read
        for checkpoint in catalog.dataset(query, target=None).ids:
            read += 1
            yield catalog.state_dict(checkpoint)

    tokenizer.fit(states(), seed=seed, config=table)
    return store_artifact(
        catalog,
        kind="tokenizer",
        backend=backend,
        name=name,
        instance=tokenizer,
        config=table,
        data={"query": query, "seed": seed, "checkpoints": read},
    )


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as exc:  # torch says so in several ways
        reason = str(exc).splitlines()[0]
        raise ConfigError(
            f"Device {device!r} cannot be used ({reason}). `cpu` is always there."
        ) from exc


def _split(catalog: Catalog, query: str, given: str | None, seed: int) -> Split:
    """The split that was named, or one that is drawn."""
    if given is None:
        inner = query.strip().rstrip(";")
        drawn = f"select distinct checkpoint_id, run from (\n{inner}\n) join ({RUNS}) using (checkpoint_id)"
        return create_split(catalog, None, drawn, by="run", seed=seed, ratio=DRAWN_RATIO)
    found = find_split(catalog, given)
    lacking = [role for role in ("train", "val") if role not in found.checkpoints]
    if lacking:
        raise ConfigError(
            f"Split {found.name!r} has no role {', '.join(lacking)}; a fit needs train to learn from and val to choose "
            "by. Create one with `zoo split create NAME --ratio 70/15/15`."
        )
    return found


def _about(catalog: Catalog, data: WeightDataset) -> dict[str, Any]:
    """Counts of what was fitted on, and a digest of the networks and their targets."""
    runs = runs_of(catalog, data.ids)
    digest = hashlib.sha256("\n".join(runs.column("content_hash").to_pylist()).encode())
    digest.update(data.targets.tobytes())
    return {
        "checkpoints": len(data),
        "models": len(runs.column("model_id").unique()),
        "architectures": len(data.architectures),
        "sha256": digest.hexdigest(),
    }


@contextmanager
def _state(catalog: Catalog, decides: list[Any]) -> Iterator[Path]:
    """The folder in which a fit keeps its state; removed when the block ends well.

    Raises:
        CatalogError: another process is at the same fit.
    """
    key = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:32]
    folder = catalog.path / "artifacts" / f"fit-{key}"
    # What is younger than the lease of a living writer is not collected, and the lock is: it is touched below.
    with lease(catalog.path):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / _LOCK).open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise CatalogError(
                    f"The same fit is running ({folder}). Wait for it, or stop it and repeat the command, which then "
                    "goes on."
                ) from exc
            os.utime(folder / _LOCK)
            try:
                yield folder
            except BaseException:
                if [p.name for p in folder.iterdir()] == [_LOCK]:
                    shutil.rmtree(folder)  # there is nothing to go on from
                raise
            shutil.rmtree(folder)
