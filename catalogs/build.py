"""Builds the catalog in `catalogs/digits` from its recipe: `python catalogs/build.py`.

Beside the catalog's own files it gets `test_images.npz`, the images on which its test accuracies
were measured: `x` (N, 1, 8, 8) float32 from 0 to 1, `y` (N,) int64. Every stored network is built
again from the finished catalog and must give exactly the accuracy that the catalog says.

It also gets a frozen split and a predictor of test accuracy that was fitted on the roles train and
val of that split. It is small: on the networks of the role test, which it never saw, the script
prints what it reaches.

A second zoo, `digits-shared`, is of networks that began alike. On it a generator is fitted, which
writes networks from an instruction; the script prints how accurate they are, and how far from the
networks that it was fitted on.

Weights, predictions and generated networks are the same in every build; ids and times are not.
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
from zooplatform.demo import GENERATOR, PREDICTOR, SHARED_ZOO, SPLIT, ZOO, generated_report
from zooplatform.errors import IntegrityError
from zooplatform.evaluation.predictions import evaluate
from zooplatform.evaluation.stored_fits import fit_predictor
from zooplatform.generation.stored_fits import fit_generator
from zooplatform.growing import grow, load_recipe
from zooplatform.growing.images import Split, read_images
from zooplatform.splits import create_split

HERE = Path(__file__).parent
RECIPE = HERE / "digits-demo.toml"
SHARED_RECIPE = HERE / "digits-shared.toml"
IMAGES = "test_images.npz"
# Three small models on the statistics of layers: they fit in seconds and need no other package.
SETTINGS = (
    *("count=3", "statistics=both", "dim=32", "dropout=0.3", "weight_decay=0.1"),
    *("epochs=60", "batch_size=16", "loss=bce"),
)
# Differences from the mean of networks that began alike, in a few principal components.
WRITER_SETTINGS = (
    *("codec=klt", "center=basin", "klt_rank=12", "klt_codes=16", "epochs=60"),
    "text=hash:256",
)

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
        fit(catalog)
        grow(
            load_recipe(SHARED_RECIPE),
            catalog,
            on_stack=lambda stack: log.info("%s", stack.stack),
        )
        fit_writer(catalog)
        catalog.compact()
        catalog.gc(grace_seconds=0)
        np.savez_compressed(folder / IMAGES, x=data.test.x.numpy(), y=data.test.y.numpy())
        verify(catalog, data.test)
        report(catalog)
        for wanted in ("tanh", "relu"):
            log.info("generated, %s: %s", wanted, generated_report(catalog, wanted, store=False))


def fit(catalog: Catalog) -> None:
    """Freeze the split and store the predictor.

    By stack, which is stricter than by training run: a quarter of the networks is kept for testing.
    """
    query = f"select checkpoint_id from wide where zoo_id = '{ZOO}'"
    create_split(catalog, SPLIT, query, by="stack", seed=0, ratio="60/15/25")
    fit_predictor(
        catalog,
        "sne",
        name=PREDICTOR,
        query=query,
        target="test_accuracy",
        split=SPLIT,
        config="debug",
        settings=SETTINGS,
    )


def fit_writer(catalog: Catalog) -> None:
    """Store the generator."""
    create_split(
        catalog,
        SHARED_ZOO,
        f"select checkpoint_id from wide where zoo_id = '{SHARED_ZOO}'",
        by="model",
        seed=0,
        ratio="70/15/15",
    )
    fit_generator(
        catalog,
        "igpg",
        name=GENERATOR,
        query=f"from wide where zoo_id = '{SHARED_ZOO}'",
        split=SHARED_ZOO,
        config="debug",
        settings=WRITER_SETTINGS,
    )


def report(catalog: Catalog) -> None:
    """Say what the predictor reaches on networks that it never saw."""
    found = evaluate(catalog, PREDICTOR, split=SPLIT)
    scores = found.scores
    log.info(
        "%s on %d checkpoints of %d networks that it never saw (%d seen): "
        "tau %.3f (%.3f to %.3f), mean absolute error %.3f",
        PREDICTOR,
        scores.n,
        scores.num_models,
        found.num_seen,
        scores.kendall_tau,
        *scores.kendall_tau_ci,
        scores.mae,
    )


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
