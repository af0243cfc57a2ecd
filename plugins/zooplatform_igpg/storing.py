"""A fitted generator as files: `generator.json`, `generator.safetensors`, and what its codec writes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from zooplatform.errors import ArtifactError, ZooError
from zooplatform.fit_state import drop_prefix, read_state, with_prefix, write_state
from zooplatform.fitting import Blueprint
from zooplatform_igpg.config import IgpgConfig
from zooplatform_igpg.fitted import Known
from zooplatform_igpg.flatness import Flatness, LayerSpread
from zooplatform_igpg.prepared import Aligner
from zooplatform_igpg.preparing import BasinTable
from zooplatform_igpg.resolving import Cell, Kinds
from zooplatform_igpg.spaces import make_codec
from zooplatform_igpg.telling import DatasetVectors
from zooplatform_igpg.understanding import Understanding

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

__all__ = ["load_known", "read_json", "save_known"]

_FORMAT = 1
_DESCRIPTION, _TENSORS = "generator.json", "generator.safetensors"


def save_known(known: Known, folder: Path) -> None:
    """Write a fitted generator into a folder that is there."""
    known.codec.save(folder)
    tensors = with_prefix("writer", known.writer.state_dict())
    tensors |= with_prefix("understanding", known.understanding.state_dict())
    tensors |= {
        "datasets.mean": known.datasets.raw_mean,
        "datasets.spread": known.datasets.raw_spread,
        "datasets.draws": known.datasets.draws,
        "architectures": known.architectures,
    }
    if known.datasets.classes is not None:
        tensors["datasets.classes"] = known.datasets.classes
    for number, table in known.tables.items():
        own = {"centres": table.centres, "scale": table.scale}
        own |= {} if table.means is None else {"means": table.means}
        own |= {} if table.least is None else {"least": table.least}
        tensors |= with_prefix(f"basins.{number}", own)
    for number, basins in known.flatness.items():
        for basin, flat in basins.items():
            factors = {str(at): layer.factor for at, layer in enumerate(flat.layers)}
            tensors |= with_prefix(f"flatness.{number}.{basin}", factors)
    if known.aligner is not None:
        tensors |= with_prefix("references", known.aligner.references)
    write_state(folder / _TENSORS, tensors, {"format": _FORMAT})
    described = {
        "format": _FORMAT,
        "config": known.config.describe(),
        "seed": known.seed,
        "blueprints": [blueprint.to_json() for blueprint in known.kinds.blueprints],
        "cells": [[c.blueprint, c.dataset, count] for c, count in known.kinds.cells.items()],
        "basins": {
            str(number): {"datasets": t.datasets, "counts": t.counts, "first": t.first}
            for number, t in known.tables.items()
        },
        "flatness": {
            str(number): {
                str(basin): {
                    "unit": flat.unit,
                    "layers": [[one.weight, one.bias, one.units] for one in flat.layers],
                }
                for basin, flat in basins.items()
            }
            for number, basins in known.flatness.items()
        },
        "text": dict(known.text),
        "images": known.datasets.described,
        "has_levels": known.has_levels,
    }
    (folder / _DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n")


def load_known(folder: Path) -> Known:
    """Read what `save_known` wrote.

    Raises:
        ArtifactError: a file is missing, damaged or of another format.
    """
    described = read_json(folder / _DESCRIPTION)
    if described.get("format") != _FORMAT:
        raise ArtifactError(
            f"{folder / _DESCRIPTION} has format {described.get('format')!r}, not {_FORMAT}. Fit again."
        )
    tensors, _ = read_state(folder / _TENSORS)
    try:
        return _restored(folder, described, tensors)
    except ArtifactError:
        raise
    except (
        *(KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError, ZooError),
    ) as exc:
        raise ArtifactError(
            f"{folder} is damaged ({type(exc).__name__}: {exc}). Fit the generator again."
        ) from exc


def _restored(
    folder: Path, described: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> Known:
    config = IgpgConfig.parse(described["config"])
    blueprints = [Blueprint.from_json(one) for one in described["blueprints"]]
    codec = make_codec(config, blueprints)
    codec.load(folder)
    tables = {}
    for number, said in described["basins"].items():
        own = drop_prefix(f"basins.{number}", tensors)
        tables[int(number)] = BasinTable(
            list(said["datasets"]), list(said["counts"]), own["centres"], own.get("means"),
            own["scale"], int(said["first"]), own.get("least"),
        )  # fmt: skip
    cells = {Cell(int(b), str(name)): int(count) for b, name, count in described["cells"]}
    kinds = Kinds(blueprints, cells, config.conditions.levels)
    read = drop_prefix("understanding", tensors)
    understanding = Understanding(read["trunk.0.weight"].shape[1], kinds.captioner().sizes())
    understanding.load_state_dict(read)
    references = drop_prefix("references", tensors)
    known = Known(
        config=config,
        seed=int(described["seed"]),
        kinds=kinds,
        codec=codec,
        tables=tables,
        datasets=DatasetVectors(
            tensors["datasets.mean"], tensors["datasets.spread"], tensors["datasets.draws"],
            tensors.get("datasets.classes"), described["images"],
        ),
        architectures=tensors["architectures"],
        understanding=understanding.eval(),
        text=dict(described["text"]),
        has_levels=bool(described["has_levels"]),
        flatness=_flatness(described["flatness"], tensors),
        aligner=Aligner(references) if references else None,
    )  # fmt: skip
    known.writer.load_state_dict(drop_prefix("writer", tensors))
    known.writer.eval()
    return known


def _flatness(
    described: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> dict[int, dict[int, Flatness]]:
    found: dict[int, dict[int, Flatness]] = {}
    for number, basins in described.items():
        for basin, said in basins.items():
            factors = drop_prefix(f"flatness.{number}.{basin}", tensors)
            layers = [
                LayerSpread(int(weight), int(bias), int(units), factors[str(at)])
                for at, (weight, bias, units) in enumerate(said["layers"])
            ]
            found.setdefault(int(number), {})[int(basin)] = Flatness(layers, float(said["unit"]))
    return found


def read_json(path: Path) -> dict[str, Any]:
    """The table in a file.

    Raises:
        ArtifactError: it is missing, damaged or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing. Fit the generator again.") from None
    except (OSError, ValueError) as exc:
        raise ArtifactError(f"{path} is damaged ({exc}). Fit the generator again.") from exc
    if not isinstance(found, dict):
        raise ArtifactError(f"{path} is damaged: it holds no table. Fit the generator again.")
    return found
