"""Builds the catalog in `catalogs/digits` from its recipe: `python catalogs/build.py`.

Beside the catalog's own files it gets `test_images.npz`, the images on which its test accuracies
were measured: `x` (N, 1, 8, 8) float32 from 0 to 1, `y` (N,) int64. Every stored network is built
again from the finished catalog and must give exactly the accuracy that the catalog says.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch

from zooplatform.catalog import Catalog, open_catalog
from zooplatform.errors import IntegrityError
from zooplatform.growing import grow, load_recipe
from zooplatform.growing.images import Split, read_images

HERE = Path(__file__).parent
RECIPE = HERE / "digits-demo.toml"
IMAGES = "test_images.npz"

log = logging.getLogger(__name__)


def build(folder: Path) -> None:
    """Make the catalog in `folder`, which must not be there yet.

    Raises:
        IntegrityError: a rebuilt network is not as accurate as the catalog says.
    """
    recipe = load_recipe(RECIPE)
    data = read_images(recipe.data.source[0], recipe.data)
    with open_catalog(folder, create=True) as catalog:
        grow(recipe, catalog, on_stack=lambda stack: log.info("%s", stack.stack))
        catalog.compact()
        catalog.gc(grace_seconds=0)
        np.savez_compressed(folder / IMAGES, x=data.test.x.numpy(), y=data.test.y.numpy())
        verify(catalog, data.test)


def verify(catalog: Catalog, images: Split) -> None:
    """Measure every network again, one at a time."""
    rows = catalog.sql("select checkpoint_id, test_accuracy from wide").to_pylist()
    for row in rows:
        with torch.no_grad():
            hits = catalog.build(row["checkpoint_id"])(images.x).argmax(1) == images.y
        measured = hits.sum().item() / len(images.y)
        if measured != row["test_accuracy"]:
            raise IntegrityError(
                f"{row['checkpoint_id']} classifies {measured} of the images rightly, but the "
                f"catalog says {row['test_accuracy']}. The grouped and the plain forward pass differ."
            )
    log.info("%d networks give the accuracies that the catalog says", len(rows))


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("zooplatform").setLevel(logging.WARNING)
    os.environ["LOGNAME"] = "zooplatform"  # the author that the commits of the catalog name
    # Sums have one order only in one thread.
    torch.set_num_threads(1)
    target = HERE / "digits"
    with tempfile.TemporaryDirectory(dir=HERE, prefix=".digits-") as work:
        made = Path(work) / "digits"
        build(made)
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)


if __name__ == "__main__":
    main()
