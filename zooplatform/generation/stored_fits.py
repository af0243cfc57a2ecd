"""Fits a generator on networks of a catalog and stores what comes out.

    artifact = fit_generator(catalog, "igpg", name="my-igpg", query=query, data_folder="images")

A fit that is interrupted goes on when the same call is made again (`zooplatform.evaluation.fit_support`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zooplatform.artifacts import check_name, require_writable, store_artifact
from zooplatform.evaluation.configurations import configuration
from zooplatform.evaluation.fit_support import about, check_device, fit_split, fit_state
from zooplatform.fitting import GeneratorData
from zooplatform.generation.facts import licences, network_facts
from zooplatform.generation.images import available_images
from zooplatform.generation.networks import Builder
from zooplatform.splits import find_split, split_members

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping

    from zooplatform.artifacts import Artifact
    from zooplatform.catalog import Catalog
    from zooplatform.generation.facts import KnownNetworks
    from zooplatform.generation.images import TaskData
    from zooplatform.interfaces import Generator, Progress

__all__ = ["fit_generator", "fitted_ids", "generator_data"]


def fit_generator(
    catalog: Catalog,
    backend: str,
    *,
    name: str,
    query: str,
    split: str | None = None,
    config: str | None = None,
    settings: Iterable[str] = (),
    seed: int = 0,
    device: str = "cpu",
    max_minutes: float | None = None,
    data_folder: str | os.PathLike[str] | None = None,
    sources: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> Artifact:
    """Fit a generator and store it.

    The artifact's `data` says what it was fitted on: `query`, `split` and `split_id`, `seed`, counts and a digest of
    the `train` and `validation` networks, `datasets` (how many networks are of each, and which images were read),
    `architectures`, `licenses` (how many networks of either side are under which), and `notes`. Its `metrics` are
    what the backend reports, and `fit_seconds`.

    Args:
        catalog: a local catalog.
        backend: name of the generator backend.
        name: of the artifact.
        query: SQL with a column `checkpoint_id`.
        split: fitted on its role train, validated on val; by default one is drawn from the query and the seed, 70/15/15
            by training run (networks that were trained together, of one `stack`, stay together), and frozen under a
            name of its own.
        config: a name that the backend knows, or a TOML file.
        settings: `KEY=VALUE`, replacing values of the configuration.
        seed: of the draw and of the fit.
        device: torch device.
        max_minutes: after which fitting ends with the best so far.
        data_folder, sources: where the images of the data sets are, as for `task_images`. Those that cannot be had are
            left out, and a note says why.
        progress: where to say how far it is.

    Raises:
        ConfigError: configuration, split, device, or a source that was given are not usable.
        CatalogError: nothing to fit on, the catalog cannot be written, or the same fit is running.
        ArchitectureError: networks like one of these could not be built.
        PluginError: there is no such backend.
    """
    check_name(name)
    require_writable(catalog)
    check_device(device)
    generator: Generator = catalog.registry.generators.create(backend)
    table = configuration(backend, generator, config, settings)
    # Before a split is frozen for it, and before hours of fitting: whether the query is usable.
    build = Builder(catalog.recogniser)
    for blueprint in network_facts(catalog, catalog.dataset(query, target=None).ids).blueprints:
        build(blueprint)
    chosen = fit_split(catalog, query, split, seed)
    given, about_them = generator_data(
        catalog,
        query,
        chosen.split_id,
        data_folder=data_folder,
        sources=sources,
    )
    data = {
        "query": query,
        "split": chosen.name,
        "split_id": chosen.split_id,
        "seed": seed,
        **about_them,
    }
    owner = catalog.registry.generators.owner(backend)
    notes = data.pop("notes")  # say where files were looked for, which decides nothing
    with fit_state(catalog, ["generator", backend, owner.version, table, data]) as folder:
        report = generator.fit(
            # The clock of `max_minutes` starts here.
            replace(
                given, device=device, max_minutes=max_minutes, folder=folder, progress=progress
            ),
            config=table,
            seed=seed,
        )
        return store_artifact(
            catalog,
            kind="generator",
            backend=backend,
            name=name,
            instance=generator,
            config=table,
            data={**data, "notes": [*notes, *report.notes]},
            metrics={**report.metrics, "fit_seconds": report.seconds},
        )


def generator_data(
    catalog: Catalog,
    query: str,
    split: str,
    *,
    data_folder: str | os.PathLike[str] | None = None,
    sources: Mapping[str, str] | None = None,
) -> tuple[GeneratorData, dict[str, Any]]:
    """What a generator is fitted on, and what is to be said of it for the record.

    Args:
        catalog: holds the networks.
        query: SQL with a column `checkpoint_id`.
        split: name or id; learnt from is its role train, chosen by val.
        data_folder, sources: as for `fit_generator`.

    Raises:
        As `fit_generator`.
    """
    sides = {
        role: catalog.dataset(query, target=None, split=split, role=role)
        for role in ("train", "val")
    }
    train, validation = sides["train"], sides["val"]
    ids = [*train.ids, *validation.ids]
    known = network_facts(catalog, ids)
    images, missing = available_images(catalog, ids, folder=data_folder, sources=sources)
    # That either side leaves the other out needs no note.
    notes = [n for side in sides.values() for n in side.notes if "not in role" not in n]
    if known.generated:
        notes.append(f"{known.generated:,} of {len(ids):,} networks were generated themselves.")
    data = GeneratorData(
        train=train,
        validation=validation,
        facts=known.facts,
        blueprints=known.blueprints,
        images={name: found.images for name, found in images.items()},
        build=Builder(catalog.recogniser),
    )
    return data, {
        "train": about(catalog, train),
        "validation": about(catalog, validation),
        "datasets": _datasets(known, images),
        "architectures": _architectures(known),
        "licenses": licences(known.facts.values()),
        "notes": [*notes, *missing],
    }


def _datasets(known: KnownNetworks, images: Mapping[str, TaskData]) -> dict[str, Any]:
    counts = Counter(fact.dataset for fact in known.facts.values() if fact.dataset)
    return {
        name: {
            "checkpoints": count,
            "images": images[name].describe() if name in images else None,
        }
        for name, count in sorted(counts.items())
    }


def _architectures(known: KnownNetworks) -> list[dict[str, Any]]:
    """Each layout once, with the ways in which networks of it are built."""
    counts = Counter(fact.blueprint for fact in known.facts.values())
    found: dict[str, dict[str, Any]] = {}
    for number, blueprint in enumerate(known.blueprints):
        entry = found.setdefault(
            blueprint.architecture_id,
            {
                "architecture_id": blueprint.architecture_id,
                "name": blueprint.name,
                "family": blueprint.family,
                "num_parameters": blueprint.vector.num_parameters,
                "checkpoints": 0,
                "blueprints": 0,
            },
        )
        entry["checkpoints"] += counts[number]
        entry["blueprints"] += 1
    return list(found.values())


def fitted_ids(catalog: Catalog, artifact: Artifact, role: str = "train") -> list[str]:
    """The checkpoints that a generator was fitted on (role `train`) or chosen by (`val`), in the order of its dataset.

    Networks that were added later and have the content of one of them, copies that it made, are not among them.

    Raises:
        CatalogError: the split or the networks are not there any more.
    """
    split_id = artifact.data["split_id"]
    members = {m.checkpoint_id for m in split_members(catalog, find_split(catalog, split_id), role)}
    data = catalog.dataset(artifact.data["query"], target=None, split=split_id, role=role)
    return [one for one in data.ids if one in members]
