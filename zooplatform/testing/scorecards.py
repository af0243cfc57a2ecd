"""A zoo and generators of which the figures of a report card are known beforehand."""

from __future__ import annotations

import atexit
import importlib
import shutil
import sys
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from zooplatform.catalog import open_catalog
from zooplatform.generation.stored_fits import fit_generator
from zooplatform.plugins import load_plugins
from zooplatform.splits import create_split
from zooplatform.testing.installs import PluginInstaller
from zooplatform.testing.stripes import grow_stripes

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ALL", "SAMPLE_TRICKS", "SPLIT", "TRICKS", "card_folder", "installed_tricks"]

ALL = "select checkpoint_id from wide"
SPLIT = "card"
TRICKS = ("copy", "permuted", "noise", "mean", "constant")

# `trick` says what it gives: training networks as they are, in another order of hidden units, with noise; their mean;
# one of them always. All of them know only what they saw.
SAMPLE_TRICKS = """
import json

import torch
from safetensors.torch import load_file, save_file

from zooplatform import hookimpl
from zooplatform.errors import ConfigError
from zooplatform.fitting import Blueprint, network_batches
from zooplatform.interfaces import FitReport, GeneratedBatch, GeneratorSpec
from zooplatform.symmetry import permute

TRICKS = ("copy", "permuted", "noise", "mean", "constant")


class Tricks:
    CONFIGS = {name: {"trick": name} for name in TRICKS}

    def fit(self, data, *, config, seed):
        self.trick = config.get("trick", "copy")
        self.blueprints = data.blueprints
        found = {}
        for indices, batch in network_batches(data.train):
            for row, one in zip(batch.weights, batch.ids):
                fact = data.facts[one]
                last = found.get(fact.model_id)
                if last is None or last[0] < fact.epoch:
                    found[fact.model_id] = (fact.epoch, fact.dataset, fact.blueprint, row)
        self.networks = [found[run][1:] for run in sorted(found)]
        return FitReport(metrics={"runs": len(self.networks)}, seconds=0.1)

    def sample(self, n, *, condition=None, seed, temperature=1.0, top_k=None, options=None):
        if options:
            raise ConfigError(f"tricks has no option {sorted(options)}.")
        wanted = condition and (condition.dataset or condition.instruction)
        known = sorted({dataset for dataset, _, _ in self.networks})
        fitting = [one for one in self.networks if wanted in (None, one[0])]
        if not fitting:
            raise ConfigError(f"tricks knows {', '.join(known)}, not {wanted!r}.")
        draw = torch.Generator().manual_seed(seed)
        for number in range(n):
            dataset, at, weights = fitting[0 if self.trick == "constant" else number % len(fitting)]
            blueprint, weights = self.blueprints[at], weights[None].clone()
            if self.trick == "permuted":
                weights = permute(weights, blueprint.vector, draw)
            if self.trick == "noise":
                weights += 0.3 * temperature * torch.randn(weights.shape, generator=draw)
            if self.trick == "mean":
                weights = torch.stack([one[2] for one in fitting if one[1] == at]).mean(0)[None]
            yield GeneratedBatch(weights, blueprint, dataset)

    def reconstruct(self, weights, blueprint):
        if self.trick == "noise":
            raise ConfigError("noise has no codes.")
        if self.trick == "constant":
            return self.networks[0][2].expand_as(weights).clone()
        return weights

    def save(self, folder):
        save_file(
            {str(at): one[2].clone() for at, one in enumerate(self.networks)},
            folder / "tricks.safetensors",
        )
        said = {
            "trick": self.trick,
            "networks": [one[:2] for one in self.networks],
            "blueprints": [blueprint.to_json() for blueprint in self.blueprints],
        }
        (folder / "tricks.json").write_text(json.dumps(said))

    def load(self, folder):
        said = json.loads((folder / "tricks.json").read_text())
        tensors = load_file(folder / "tricks.safetensors")
        self.trick = said["trick"]
        self.blueprints = [Blueprint.from_json(one) for one in said["blueprints"]]
        self.networks = [
            (dataset, blueprint, tensors[str(at)])
            for at, (dataset, blueprint) in enumerate(said["networks"])
        ]


@hookimpl
def zoo_register_generators():
    return [
        GeneratorSpec(name="tricks", factory="zoo_test_tricks:Tricks", summary="What it is told to be.")
    ]
"""


@cache
def card_folder() -> Path:
    """A folder with a catalog `zoo` and the images of its networks, made once in a process: copy it to change it.

    There are sixteen runs on each of `rows` and `columns` with two checkpoints each, a split of them called `card`,
    and a generator `my-TRICK` for each of `TRICKS`, of the plugin `SAMPLE_TRICKS`, which has to be installed to load
    them (`installed_tricks`).
    """
    folder = Path(tempfile.mkdtemp(prefix="zoo-card-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with (
        installed_tricks(folder),
        open_catalog(folder / "zoo", create=True, registry=load_plugins(strict=True)) as catalog,
    ):
        # Few steps, so that networks err.
        grow_stripes(
            catalog,
            folder,
            "runs=16",
            "stack=16",
            "epochs=2",
            "keep=[1, 2]",
            "hyperparameters.learning_rate=4e-3",
        )
        # Which run gets which role depends on its weights, which no two kinds of processors give alike.
        create_split(catalog, SPLIT, ALL, by="model", stratify="zoo", seed=0, ratio="50/25/25")
        for trick in TRICKS:
            fit_generator(
                catalog,
                "tricks",
                name=f"my-{trick}",
                query=ALL,
                split=SPLIT,
                config=trick,
                data_folder=folder,
            )
    return folder


@contextmanager
def installed_tricks(folder: Path) -> Iterator[None]:
    """Has the plugin installed, in a folder of its own, for the length of the block."""
    site = folder / "site"
    site.mkdir(exist_ok=True)
    installer = PluginInstaller(site)
    sys.path.insert(0, str(site))
    try:
        installer.install("tricks", SAMPLE_TRICKS)
        yield
    finally:
        sys.path.remove(str(site))
        installer.forget()
        importlib.invalidate_caches()
