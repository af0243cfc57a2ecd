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
        "How does accuracy grow while the networks train?",
        """\
select epoch, count(*) as networks, round(min(value), 4) as worst, round(avg(value), 4) as mean,
    round(max(value), 4) as best
from metrics join checkpoints using (checkpoint_id)
where name = 'test_accuracy'
group by epoch order by epoch""",
    ),
    (
        "How do the weights of each layer grow with them?",
        """\
select name as layer, round(avg(l2) filter (epoch = first_epoch), 3) as norm_at_first,
    round(avg(l2) filter (epoch = last_epoch), 3) as norm_at_last
from tensor_stats join checkpoints using (checkpoint_id),
    (select min(epoch) as first_epoch, max(epoch) as last_epoch from checkpoints)
where name like '%.weight'
group by tensor_index, name order by tensor_index""",
    ),
    (
        "Which networks lie nearest to the best one, by the cosine of their weights?",
        """\
with best as (
    select checkpoint_id, model_id, weights
    from metrics join population_weights using (checkpoint_id) join checkpoints using (checkpoint_id)
    where name = 'test_accuracy' order by value desc, checkpoint_id limit 1
)
select m.name as network, c.epoch, round(list_cosine_similarity(p.weights, best.weights), 4) as cosine,
    c.model_id = best.model_id as same_run
from population_weights p join checkpoints c using (checkpoint_id) join models m using (model_id), best
where p.checkpoint_id <> best.checkpoint_id
order by cosine desc, p.checkpoint_id limit 5""",
    ),
)

_BEST = """\
select checkpoint_id, value from metrics
where name = 'test_accuracy' order by value desc, checkpoint_id limit 1"""


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
        counts = catalog.sql(
            """select (select count(*) from models) as num_models,
                (select count(*) from checkpoints) as num_checkpoints,
                (select any_value(num_parameters) from checkpoints) as num_parameters"""
        ).to_pylist()[0]
        yield DemoStep(
            name="open",
            title="Open a catalog of small networks, trained on scikit-learn's handwritten digits",
            how=f"zoo ls -c {path}",
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
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"{folder} is already there and not from this demo. Give --output another folder."
        )
    built = Path(str(resources.files("zooplatform.catalogs"))) / ZOO
    if not (built / "FORMAT").is_file():
        raise ConfigError(f"{built} is missing from this installation. Install zooplatform again.")
    folder.mkdir(parents=True, exist_ok=True)
    # Under a passing name first: an interrupted copy must not look like a catalog.
    copying = folder / f".{ZOO}.copying"
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
    checkpoint_id, stored = best["checkpoint_id"], best["value"]
    exported = catalog.export(checkpoint_id, folder / "best.safetensors")
    yield DemoStep(
        name="export",
        title="Export the best network to a safetensors file",
        how=f"zoo export {checkpoint_id} {exported} -c {catalog.path}",
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
        how=f'network = zooplatform.open_catalog("{catalog.path}").build("{checkpoint_id}")',
        result={
            "num_images": num_images,
            "measured_accuracy": measured,
            "stored_accuracy": stored,
            "equal": True,
        },
    )
