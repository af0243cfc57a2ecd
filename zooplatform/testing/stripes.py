"""A zoo of two data sets and two activations to fit generators on, and a small generator as a plugin of its own."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zooplatform.catalog import open_catalog
from zooplatform.evaluation.fit_support import fit_split
from zooplatform.growing import grow, load_recipe

if TYPE_CHECKING:
    import numpy.typing as npt

    from zooplatform.catalog import Catalog

__all__ = ["SAMPLE_GENERATOR", "grow_stripes", "stripe_images", "stripes_folder", "write_images"]

# Draws each weight from a normal distribution fitted to the networks of one data set and blueprint.
SAMPLE_GENERATOR = """
import json

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from zooplatform import hookimpl
from zooplatform.errors import ArtifactError, ConfigError
from zooplatform.fitting import Blueprint, network_batches
from zooplatform.interfaces import FitReport, GeneratedBatch, GeneratorSpec

SEEN = []  # what was given to `fit`


class Normal:
    CONFIGS = {"debug": {"spread": 0.5}}

    def __init__(self):
        self.kinds = None

    def fit(self, data, *, config, seed):
        unknown = set(config) - {"spread", "fail", "steps"}
        if unknown:
            raise ConfigError(f"normal has no setting {sorted(unknown)}.")
        SEEN.append(data)
        marker = None if data.folder is None else data.folder / "state.json"
        begun = json.loads(marker.read_text())["step"] if marker and marker.is_file() else 0
        for step in range(begun, config.get("steps", 0)):
            if marker:
                marker.write_text(json.dumps({"step": step}))
            if data.progress:
                data.progress("normal", step, None)
        self.begun = begun
        groups = {}
        for indices, batch in network_batches(data.train):
            for row, one in zip(batch.weights, batch.ids):
                fact = data.facts[one]
                groups.setdefault((fact.dataset, fact.blueprint), []).append(row)
        self.blueprints = data.blueprints
        self.kinds = [
            (dataset, number, torch.stack(rows).mean(0), torch.stack(rows).std(0, correction=0))
            for (dataset, number), rows in sorted(groups.items())
        ]
        self.spread = config.get("spread", 1.0)
        return FitReport(metrics={"kinds": len(self.kinds), "begun": begun}, seconds=0.5, notes=("fitted",))

    def sample(self, n, *, condition=None, seed, temperature=1.0, top_k=None, options=None):
        if self.kinds is None:
            raise ConfigError("normal is not fitted.")
        options = dict(options or {})
        broken = options.pop("broken", None)
        if options:
            raise ConfigError(f"normal has no option {sorted(options)}; it has broken.")
        fitting = [kind for kind in self.kinds if self._meets(kind, condition)]
        if not fitting:
            known = {f"{kind[0]} with {self.blueprints[kind[1]].name}" for kind in self.kinds}
            raise ConfigError(f"normal knows nothing like that. It knows {', '.join(sorted(known))}.")
        draw = torch.Generator().manual_seed(seed)
        for number in range(n - (broken == "few") + (broken == "many")):
            dataset, blueprint, mean, std = fitting[number % len(fitting)]
            noise = torch.randn(mean.shape, generator=draw)
            weights = (mean + temperature * self.spread * std * noise)[None]
            if broken == "nan" and number == 1:
                weights[0, 3] = float("nan")
            if broken == "shape":
                weights = weights[:, 1:]
            kind = self.blueprints[blueprint]
            details = {"drawn": number, **({"confidence": 0.25} if broken == "unsure" else {})}
            yield GeneratedBatch(weights, kind, dataset, (details,))

    def _meets(self, kind, condition):
        if condition is None:
            return True
        config = self.blueprints[kind[1]].config
        wanted = condition.build_config or {}
        if condition.instruction and condition.instruction not in (kind[0], config.get("activation")):
            return False
        return (
            condition.dataset in (None, kind[0])
            and self.blueprints[kind[1]].architecture_id.startswith(condition.architecture_id or "")
            and all(config.get(key) == value for key, value in wanted.items())
        )

    def save(self, folder):
        if self.kinds is None:
            raise ConfigError("normal is not fitted.")
        tensors = {}
        for number, kind in enumerate(self.kinds):
            tensors[f"{number}.mean"], tensors[f"{number}.std"] = kind[2], kind[3]
        save_file(tensors, folder / "normal.safetensors")
        said = {
            "kinds": [kind[:2] for kind in self.kinds],
            "spread": self.spread,
            "blueprints": [blueprint.to_json() for blueprint in self.blueprints],
        }
        (folder / "normal.json").write_text(json.dumps(said))

    def load(self, folder):
        try:
            said = json.loads((folder / "normal.json").read_text())
            tensors = load_file(folder / "normal.safetensors")
        except (OSError, ValueError, SafetensorError) as error:
            raise ArtifactError(f"{folder} cannot be read.") from error
        self.spread = said["spread"]
        self.blueprints = [Blueprint.from_json(one) for one in said["blueprints"]]
        self.kinds = [
            (dataset, number, tensors[f"{at}.mean"], tensors[f"{at}.std"])
            for at, (dataset, number) in enumerate(said["kinds"])
        ]


@hookimpl
def zoo_register_generators():
    return [
        GeneratorSpec(name="normal", factory="zoo_test_normal:Normal", summary="A normal distribution.")
    ]
"""

_RECIPE = """
name = "stripes"
runs = 8
epochs = 2
keep = [1, 2]
seed = 1
stack = 2
license = "CC0-1.0"

[data]
source = ["npz:rows.npz", "npz:columns.npz"]
folder = "FOLDER"
test = 30
size = 6

[architecture]
family = "cnn"
input = [1, 6, 6]
layers = [
    { type = "conv", out = 2, kernel = 3 },
    { type = "batchnorm" },
    { type = "activation" },
    { type = "flatten" },
    { type = "linear", out = 3 },
]

[hyperparameters]
activation = ["tanh", "relu"]
learning_rate = 1e-2
batch_size = 8
"""


def stripe_images(name: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """90 images of 12x12 pixels, bright in one of three stripes, and which: of `rows` or `columns`."""
    draw = np.random.RandomState(0 if name == "rows" else 1)
    y = np.arange(90) % 3
    x = draw.randint(0, 120, (90, 12, 12))
    for image, number in zip(x, y, strict=True):
        image[4 * number : 4 * number + 4] += 120
    return (x if name == "rows" else x.transpose(0, 2, 1)).astype(np.uint8), y


def write_images(folder: Path) -> None:
    """`rows.npz` and `columns.npz` of `stripe_images`."""
    for name in ("rows", "columns"):
        x, y = stripe_images(name)
        np.savez(folder / f"{name}.npz", x=x, y=y)


def grow_stripes(catalog: Catalog, folder: Path, *settings: str) -> None:
    """Sixteen networks of two data sets with two activations, two checkpoints each, into `stripes-rows` and
    `stripes-columns`; their images lie in `folder`."""
    write_images(folder)
    recipe = folder / "recipe.toml"
    recipe.write_text(_RECIPE.replace("FOLDER", str(folder)), encoding="utf-8")
    grow(load_recipe(recipe, settings), catalog)


@cache
def stripes_folder() -> Path:
    """A folder with the catalog `zoo` of `grow_stripes` and its images, made once in a process; copy it.

    Networks of both activations on both data sets are among those that a fit without a split learns from. Whether
    they are depends on the weights, and so on the processor: seeds are tried until it is so.
    """
    for seed in range(1, 30):
        folder = Path(tempfile.mkdtemp(prefix="zoo-stripes-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        with open_catalog(folder / "zoo", create=True) as catalog:
            grow_stripes(catalog, folder, f"seed={seed}")
        if _kinds_learnt(folder) == 4:
            return folder
    raise AssertionError("every seed leaves a kind of networks out of the training role")


def _kinds_learnt(folder: Path) -> int:
    """Pairs of data set and activation in the training role; the split is made in a copy."""
    scratch = shutil.copytree(folder / "zoo", folder / "scratch")
    with open_catalog(scratch) as catalog:
        drawn = fit_split(catalog, "select checkpoint_id from wide", None, 0)
        rows = catalog.sql(
            "select distinct w.zoo_id, h.value from splits s join wide w on w.checkpoint_id = s.checkpoint_id "
            "join hyperparameters h on h.model_id = w.model_id "
            "where s.name = ? and s.role = 'train' and h.key = 'activation'",
            [drawn.name],
        )
    shutil.rmtree(scratch)
    return int(rows.num_rows)
