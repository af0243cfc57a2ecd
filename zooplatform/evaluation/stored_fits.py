"""Fits a backend on networks of a catalog and stores what comes out.

    artifact = fit_predictor(catalog, "sne", name="accuracy", query=query, target="test_accuracy")

A fit that is interrupted goes on when the same call is made again (`fit_support`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zooplatform.artifacts import check_name, require_writable, store_artifact
from zooplatform.errors import ConfigError
from zooplatform.evaluation.configurations import configuration
from zooplatform.evaluation.fit_support import about, check_device, fit_split, fit_state
from zooplatform.evaluation.predictions import predict_dataset
from zooplatform.evaluation.scores import kendall_tau, mae, r2, spearman
from zooplatform.fitting import FitData

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from zooplatform.artifacts import Artifact
    from zooplatform.catalog import Catalog
    from zooplatform.interfaces import FitReport, Predictor, Progress, StateDict, Tokenizer

__all__ = ["fit_predictor", "fit_tokenizer"]

_EVERY = "select checkpoint_id from checkpoints where state = 'stored'"


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
    check_device(device)
    predictor: Predictor = catalog.registry.predictors.create(backend)
    table = configuration(backend, predictor, config, settings)
    # Before a split is frozen for it: whether the query and the target are usable.
    catalog.dataset(query, target=target, missing="drop")
    chosen = fit_split(catalog, query, split, seed)
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
        "train": about(catalog, train),
        "validation": about(catalog, validation),
        # That either side leaves the other out needs no note.
        "notes": [n for side in sides.values() for n in side.notes if "not in role" not in n],
    }
    owner = catalog.registry.predictors.owner(backend)
    with fit_state(catalog, [backend, owner.version, table, data]) as folder:
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
    split: str | None = None,
    config: str | None = None,
    settings: Iterable[str] = (),
    data_folder: str | None = None,
    sources: Mapping[str, str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Artifact:
    """Fit a tokenizer and store it.

    A backend that has `fit_networks(data, config=, seed=) -> FitReport` is given the networks as a predictor is; what
    it reports becomes the `metrics`. Without a split they are measured on the networks that it was fitted on.

    Args:
        catalog: a local catalog.
        backend: name of the tokenizer backend.
        name: of the artifact.
        query: SQL with a column `checkpoint_id`; every stored checkpoint by default. Weights are read only as far as
            the backend asks for them.
        split: fitted on its role train, measured on val; images are then there for backends that learn from what
            networks compute.
        config, settings, seed: as `fit_predictor`.
        data_folder, sources: where images are, as for `zooplatform.generation.images.task_images`.
        progress: where to say how far it is.

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

    metrics: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    if hasattr(tokenizer, "fit_networks"):
        data = _networks(catalog, query, split, data_folder, sources, progress)
        report: FitReport = tokenizer.fit_networks(data, config=table, seed=seed)
        read, notes = len(data.train), report.notes
        metrics = {**report.metrics, "fit_seconds": report.seconds}
    elif split is not None:
        raise ConfigError(
            f"Tokenizer {backend!r} has nothing to measure on a split. Leave --split out."
        )
    else:
        tokenizer.fit(states(), seed=seed, config=table)
    return store_artifact(
        catalog,
        kind="tokenizer",
        backend=backend,
        name=name,
        instance=tokenizer,
        config=table,
        data={
            "query": query,
            "split": split,
            "seed": seed,
            "checkpoints": read,
            "notes": list(notes),
        },
        metrics=metrics,
    )


def _networks(
    catalog: Catalog,
    query: str | None,
    split: str | None,
    data_folder: str | None,
    sources: Mapping[str, str] | None,
    progress: Progress | None,
) -> FitData:
    """What a tokenizer is fitted on: with a split also facts and images, without one every network on both sides."""
    if split is None:
        every = catalog.dataset(query, target=None)
        return FitData(train=every, validation=every, progress=progress)
    from zooplatform.generation.stored_fits import generator_data

    data, _ = generator_data(
        catalog, query or _EVERY, split, data_folder=data_folder, sources=sources
    )
    return replace(data, progress=progress)
