"""The platform's main job on a small real zoo: questions in SQL, a network out, its accuracy checked.

The zoo comes built with the package, so that the demo needs neither network nor training.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zooplatform.errors import ConfigError, IntegrityError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    import pyarrow as pa
    from torch import nn

    from zooplatform.catalog import Catalog
    from zooplatform.plugins import Registry

__all__ = ["DEFAULT_FOLDER", "ZOO", "DemoStep", "run_demo"]

DEFAULT_FOLDER = "zoo-demo"
ZOO = "digits"
IMAGES = "test_images.npz"

_QUESTIONS = (
    (
        "Which layers are the largest?",
        """\
select tensors[1] as layer, layer_type, num_parameters, human_bytes(size_bytes) as size, num_models
from layer_sizes
order by num_parameters desc, layer limit 10""",
    ),
    (
        "How do the weights of each layer grow while the networks learn?",
        f"""\
select s.name as layer, w.epoch, round(avg(s.l2), 3) as norm, round(stddev(s.l2), 3) as spread,
    round(avg(w.test_accuracy), 4) as accuracy
from tensor_stats s join wide w using (checkpoint_id)
where w.zoo_id = '{ZOO}' and s.name like '%.weight'
group by s.tensor_index, s.name, w.epoch
order by s.tensor_index, w.epoch""",
    ),
    (
        "Which networks lie nearest to the most accurate one, by the cosine of their weights?",
        f"""\
with ranked as (
    from wide join population_weights using (checkpoint_id, architecture_id)
    where zoo_id = '{ZOO}'
), best as (from ranked order by test_accuracy desc, checkpoint_id limit 1)
select other.model, other.epoch, round(other.test_accuracy, 4) as accuracy,
    round(cosine(other.weights, best.weights), 4) as similarity
from ranked other, best
where other.checkpoint_id <> best.checkpoint_id
order by similarity desc, other.checkpoint_id limit 5""",
    ),
)

_COUNTS = f"""\
select count(distinct model_id) as num_models, count(*) as num_checkpoints,
    any_value(num_parameters) as num_parameters
from wide where zoo_id = '{ZOO}'"""

_BEST = f"""\
select checkpoint_id, test_accuracy from wide where zoo_id = '{ZOO}'
order by test_accuracy desc, checkpoint_id limit 1"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoStep:
    """One thing that was done: what, how a user would do it, and what came of it."""

    name: str
    title: str
    how: str
    result: pa.Table | dict[str, Any]


def run_demo(
    folder: str | os.PathLike[str], *, registry: Registry | None = None
) -> Iterator[DemoStep]:
    """Do the main job in `folder` and yield each step when it is done.

    A folder that an earlier demo left is used again.

    Args:
        folder: where the catalog and the exported file go; stays behind.
        registry: the plugins; the installed ones by default.

    Raises:
        ConfigError: `folder` holds something else, or the package came without its zoo.
        IntegrityError: the rebuilt network is not as accurate as the catalog says.
    """
    from zooplatform.catalog import open_catalog

    folder = Path(folder)
    path = _unpacked(folder)
    with open_catalog(path, registry=registry) as catalog:
        counts = catalog.sql(_COUNTS).to_pylist()[0]
        yield DemoStep(
            name="open",
            title="Open a catalog of small networks, trained on scikit-learn's handwritten digits",
            how=f"zoo show {ZOO} -c {path}",
            result={"catalog": str(path), **counts},
        )
        for number, (title, query) in enumerate(_QUESTIONS, start=1):
            yield DemoStep(
                name=f"question-{number}", title=title, how=query, result=catalog.sql(query)
            )
        yield from _rebuild(catalog, folder)


def _unpacked(folder: Path) -> Path:
    """The demo's catalog inside `folder`; copied out of the package unless it is there."""
    path = folder / ZOO
    if (path / "FORMAT").is_file():
        return path
    # Under a passing name first: an interrupted copy must not look like a catalog.
    copying = folder / f".{ZOO}.copying"
    if folder.exists() and (
        not folder.is_dir() or any(item != copying for item in folder.iterdir())
    ):
        raise ConfigError(
            f"{folder} is already there and not from this demo. Give --output another folder."
        )
    built = Path(str(resources.files("zooplatform.catalogs"))) / ZOO
    if not (built / "FORMAT").is_file():
        raise ConfigError(f"{built} is missing from this installation. Install zooplatform again.")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(copying, ignore_errors=True)
    shutil.copytree(built, copying)
    copying.rename(path)
    return path


def _accuracy(network: nn.Module, images: Path) -> tuple[float, int]:
    """The share of the test images that `network` classifies rightly, and how many there are."""
    import numpy as np
    import torch

    with np.load(images) as data:
        x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    with torch.no_grad():
        right = (network(x).argmax(dim=1) == y).sum().item()
    return right / len(y), len(y)


def _rebuild(catalog: Catalog, folder: Path) -> Iterator[DemoStep]:
    """Export the best network, build it from the file alone and measure it again."""
    from safetensors.torch import load_file

    best = catalog.sql(_BEST).to_pylist()[0]
    checkpoint_id, stored = best["checkpoint_id"], best["test_accuracy"]
    exported = catalog.export(checkpoint_id, folder / "best.safetensors")
    yield DemoStep(
        name="export",
        title="Export the best network to a safetensors file",
        how=f"zoo export {checkpoint_id} {exported} -c {folder / ZOO}",
        result={
            "checkpoint_id": checkpoint_id,
            "file": str(exported),
            "size_bytes": exported.stat().st_size,
        },
    )
    network = catalog.build(checkpoint_id)
    network.load_state_dict(load_file(exported), strict=True)
    measured, num_images = _accuracy(network, catalog.path / IMAGES)
    if measured != stored:
        raise IntegrityError(
            f"Checkpoint {checkpoint_id} classifies {measured:.6f} of the test images, but the "
            f"catalog says {stored:.6f}. Remove {folder} and run the demo again."
        )
    yield DemoStep(
        name="evaluate",
        title="Build the network from that file and classify real images it has never seen",
        how=f"""\
network = zooplatform.open_catalog("{folder / ZOO}").build("{checkpoint_id}")
network.load_state_dict(safetensors.torch.load_file("{exported}"))""",
        result={
            "num_images": num_images,
            "measured_accuracy": measured,
            "stored_accuracy": stored,
            "equal": True,
        },
    )
