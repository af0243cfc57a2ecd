"""Recipes: a TOML file that says which networks a zoo is made of."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import tomllib
from dataclasses import dataclass, field, fields
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from zooplatform.errors import ConfigError
from zooplatform.growing.ranges import Space

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["HYPERPARAMETERS", "DataRecipe", "Recipe", "builtin_recipes", "load_recipe"]

Engine: TypeAlias = Literal["auto", "grouped", "vmap", "loop"]
ENGINES = ("auto", "grouped", "vmap", "loop")

# Every hyper-parameter of a run, with what holds when a recipe does not name it.
HYPERPARAMETERS: Mapping[str, Any] = {
    "activation": None,
    "init": "default",
    "init_std": 0.05,
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "momentum": 0.0,
    "dropout": 0.0,
    "fraction": 1.0,
    "batch_size": 32,
    "seed": None,
    "frequency": None,
    "amplitude": 1.0,
    "phase": 0.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DataRecipe:
    """The images or the function, and how they are prepared.

    Attributes:
        source: `npz:FILE`, `folder:FOLDER`, `sklearn:digits`, `torchvision:NAME`,
            `hub:org/name[@revision]` or `function:sine`; a list of them makes one zoo per data set.
        folder: where relative paths start and where torchvision puts what it downloads; empty is
            the working directory, and `data` in it for downloads.
        test: images kept for testing where the data set has no test images of its own: a number,
            or a fraction below 1 (of a function: points, or a fraction of `train`).
        train: use only this many training images; 0 uses all. Of a function: training points.
        size: side to which images are resized (by averaging when smaller); 0 leaves them.
        grayscale: mix colours into one channel by their brightness.
        seed: seed of the split into training and test images.
    """

    source: tuple[str, ...]
    folder: str = ""
    test: float = 0.2
    train: int = 0
    size: int = 0
    grayscale: bool = False
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A zoo in the making; see docs/recipes.md for every key.

    Attributes:
        name: name of the zoo; with several data sets `NAME-DATASET`.
        data: the images.
        architecture: `family` (`cnn`, `mlp`, `timm`, ...) and what the adapter of that family takes.
        hyperparameters: values, lists (grid) and ranges by name of `HYPERPARAMETERS`.
        runs: number of networks; 0 means every grid point once.
        epochs: passes over the training images of a run.
        keep: epochs whose weights are kept, 0 being the initialisation.
        seed: seed of run 0 and of everything drawn; run `i` has `seed + i` unless the recipe fixes it.
        initialisation: `independent`, `shared`, or how many initialisations the runs share.
        branch: epochs that runs of one initialisation have in common: the same images in the same order, from where
            each goes on alone. 0 means that they have only the first weights in common.
        stack: networks trained together at most.
        engine: how they are trained together.
        train_metrics: training images of a run on which its training accuracy and loss are
            measured at most; 0 takes all.
        license: licence of the weights.
        citation: what to cite.
    """

    name: str
    data: DataRecipe
    architecture: Mapping[str, Any]
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    runs: int = 0
    epochs: int = 10
    keep: tuple[int, ...] = ()
    seed: int = 0
    initialisation: str | int = "independent"
    branch: int = 0
    stack: int = 32
    engine: Engine = "auto"
    train_metrics: int = 2000
    license: str | None = None
    citation: str | None = None

    @cached_property
    def space(self) -> Space:
        return Space(self.hyperparameters, self.seed)

    @property
    def num_runs(self) -> int:
        return self.runs or self.space.grid_size

    def digest(self, data_hash: str) -> str:
        """Names everything that decides the weights of run `i`: two recipes that differ in nothing
        but the number of runs or how they are stacked have the same digest.

        Args:
            data_hash: hash of the images.
        """
        said = {
            "architecture": self.architecture,
            "data": data_hash,
            "epochs": self.epochs,
            "hyperparameters": self.hyperparameters,
            "initialisation": self.initialisation,
            "keep": self.keep,
            "seed": self.seed,
        }
        if self.branch:  # recipes without keep the digest that they always had
            said["branch"] = self.branch
        text = json.dumps(said, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def builtin_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(resources.files("zooplatform.catalogs")))
    # Protocols of comparisons lie beside the recipes.
    others = ("matrix-", "rates-")
    files = (file for file in folder.glob("*.toml") if not file.stem.startswith(others))
    return {file.stem: file for file in sorted(files)}


def load_recipe(path: str | os.PathLike[str], settings: Iterable[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: the TOML file, or the name of a recipe that comes with the package.
        settings: `key=value` texts that replace values of the file, as in `runs=50` or
            `data.source="npz:mnist.npz"`; values are TOML, and what is not TOML is a text.

    Raises:
        ConfigError: the file cannot be read, or a key or value of it is not usable; the text
            names the file and the key.
    """
    file = Path(path)
    builtin = builtin_recipes()
    if not file.exists() and os.fspath(path) in builtin:
        file = builtin[os.fspath(path)]
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(
            f"{file}: the recipe cannot be read ({exc.strerror}). Give a TOML file, or one of the "
            f"recipes {', '.join(builtin)}."
        ) from exc
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ConfigError(f"{file} is not a TOML file: {exc}.") from exc
    for setting in settings:
        _set(table, setting)
    try:
        return _recipe(table)
    except ConfigError as exc:
        raise ConfigError(f"{file}: {exc}") from exc


def _set(table: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {setting!r}: write KEY=VALUE, for example --set runs=50.")
    *parents, leaf = key.strip().split(".")
    for parent in parents:
        inner = table.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {setting!r}: {parent!r} is a value, not a table.")
        table = inner
    try:
        table[leaf] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        table[leaf] = text


def _recipe(table: Mapping[str, Any]) -> Recipe:
    values = dict(table)
    _known("", values, [item.name for item in fields(Recipe)])
    for name in ("name", "data", "architecture"):
        if name not in values:
            raise ConfigError(f"{name!r} is missing; every recipe has it.")
    name = _typed("name", values["name"], str)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"name is {name!r}; use letters, digits, dots, dashes and underscores.")
    for key in ("data", "architecture", "hyperparameters"):
        _typed(key, values.get(key, {}), dict)
    epochs = _count("epochs", values.get("epochs", 10), least=0)
    hyperparameters = values.get("hyperparameters", {})
    _known("hyperparameters.", hyperparameters, list(HYPERPARAMETERS))
    family = values["architecture"].get("family")
    if not isinstance(family, str):
        raise ConfigError("architecture.family is missing; name one, for example 'cnn'.")
    engine = values.get("engine", "auto")
    if engine not in ENGINES:
        raise ConfigError(f"engine is {engine!r}; it must be one of {', '.join(ENGINES)}.")
    recipe = Recipe(
        name=name,
        data=_data(values["data"]),
        architecture=values["architecture"],
        hyperparameters=hyperparameters,
        runs=_count("runs", values.get("runs", 0), least=0),
        epochs=epochs,
        keep=_keep(values.get("keep", "last"), epochs),
        seed=_count("seed", values.get("seed", 0), least=0),
        initialisation=_initialisation(values.get("initialisation", "independent")),
        branch=_branch(values.get("branch", 0), values.get("initialisation"), epochs),
        stack=_count("stack", values.get("stack", 32), least=1),
        engine=engine,
        train_metrics=_count("train_metrics", values.get("train_metrics", 2000), least=0),
        license=_optional("license", values.get("license")),
        citation=_optional("citation", values.get("citation")),
    )
    _ = recipe.space  # refuses unusable ranges now, not in the middle of the zoo
    return recipe


def _data(table: Mapping[str, Any]) -> DataRecipe:
    _known("data.", table, [item.name for item in fields(DataRecipe)])
    source = table.get("source")
    sources = [source] if isinstance(source, str) else source
    if not isinstance(sources, list) or not sources or not all(isinstance(s, str) for s in sources):
        raise ConfigError(
            f"data.source is {source!r}; name a data set, for example 'sklearn:digits' or "
            "'npz:images.npz', or a list of them."
        )
    test = table.get("test", 0.2)
    if not isinstance(test, int | float) or isinstance(test, bool) or test <= 0:
        raise ConfigError(f"data.test is {test!r}; it must be a positive number.")
    return DataRecipe(
        source=tuple(sources),
        folder=_typed("data.folder", table.get("folder", ""), str),
        test=test,
        train=_count("data.train", table.get("train", 0), least=0),
        size=_count("data.size", table.get("size", 0), least=0),
        grayscale=_typed("data.grayscale", table.get("grayscale", False), bool),
        seed=_count("data.seed", table.get("seed", 0), least=0),
    )


def _keep(value: Any, epochs: int) -> tuple[int, ...]:
    """Kept epochs in order, from `all`, `last`, or a list of numbers and `"first-last"` texts."""
    if value == "all":
        return tuple(range(epochs + 1))
    if value == "last":
        return (epochs,)
    kept: set[int] = set()
    for item in value if isinstance(value, list) else [value]:
        match = re.fullmatch(r"(\d+)-(\d+)", item) if isinstance(item, str) else None
        if match:
            kept.update(range(int(match[1]), int(match[2]) + 1))
        elif isinstance(item, int) and not isinstance(item, bool):
            kept.add(item)
        else:
            raise ConfigError(
                f"keep holds {item!r}; it is 'all', 'last', or a list of epochs such as "
                '[0, "21-25", 50].'
            )
    if not kept or min(kept) < 0 or max(kept) > epochs:
        raise ConfigError(f"keep names epochs outside 0 to {epochs}: {sorted(kept)}.")
    return tuple(sorted(kept))


def _initialisation(value: Any) -> str | int:
    if value in ("independent", "shared"):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise ConfigError(
        f"initialisation is {value!r}; it must be 'independent', 'shared', or the number of "
        "initialisations that the runs share."
    )


def _branch(value: Any, initialisation: Any, epochs: int) -> int:
    branch = _count("branch", value, least=0)
    if branch and initialisation in (None, "independent"):
        raise ConfigError(
            f"branch is {branch}, but runs of independent initialisations have nothing in common; set "
            "initialisation to 'shared' or to a number of initialisations."
        )
    if branch > epochs:
        raise ConfigError(f"branch is {branch}; it must be at most epochs, {epochs}.")
    return branch


def _known(prefix: str, table: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {prefix + close[0]!r}?" if close else ""
            raise ConfigError(
                f"unknown key {prefix + key!r}.{hint} Known: {', '.join(sorted(known))}."
            )


def _typed(name: str, value: Any, kind: type[Any]) -> Any:
    if not isinstance(value, kind):
        raise ConfigError(f"{name} is {value!r}; it must be a {kind.__name__}.")
    return value


def _optional(name: str, value: Any) -> str | None:
    return None if value is None else str(_typed(name, value, str))


def _count(name: str, value: Any, *, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least {least}.")
    return value
