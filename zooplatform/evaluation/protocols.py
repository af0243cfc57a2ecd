"""Protocol files: which zoos, targets and methods are compared, and in which cells.

A protocol is a TOML file; `docs/evaluation.md` explains every key.

    protocol = load_protocol("matrix-sne.toml")
    protocol.zoos["sne-arch1-mnist"].dataset
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from zooplatform.errors import ConfigError

if TYPE_CHECKING:
    import os

__all__ = [
    "KINDS",
    "CellSpec",
    "Method",
    "Protocol",
    "SplitSpec",
    "Zoo",
    "builtin_protocols",
    "load_protocol",
    "parse_protocol",
]

KINDS = (
    "in-distribution",
    "cross-dataset",
    "cross-architecture",
    "pooled",
    "leave-one-out",
    "data-fraction",
    "leakage",
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PREFIX = "matrix-"
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Zoo:
    """One population of the comparison.

    Attributes:
        name: what tables call it.
        dataset: data set that its networks were trained on.
        architecture: what its networks have in common; cells of one architecture compare these words.
        query: SQL with a column `checkpoint_id`; the zoo of this name in the catalog by default.
    """

    name: str
    dataset: str
    architecture: str
    query: str = ""


@dataclass(frozen=True, kw_only=True)
class SplitSpec:
    """How every zoo is split; each split is frozen in the catalog as `<name>.<zoo>`.

    Attributes:
        name: first part of the names of the splits.
        by: what stays together, as in `zoo split create --by`.
        ratio: train/val/test.
        seed: of the draw.
        final: share of the test groups that are kept for the last look, frozen as `<name>.<zoo>.final`; 0 keeps none.
    """

    name: str
    by: str = "model"
    ratio: str = "70/15/15"
    seed: int = 0
    final: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the tables.

    Attributes:
        label: what tables call it.
        backend: name of the predictor.
        config: a named configuration of the backend, a table, or both (a table with the key `base`).
        seeds: of its fits; those of the protocol by default.
        baseline: whether it is one of those that the others are measured against.
        architectures: `any`, or `one` where it can be fitted on and asked about one architecture only.
        trials: configurations tried on the validation data; 0 or 1 takes `config` as it is.
        search: name of a key -> range, in the words of recipes.
        max_minutes: limit of one fit.
    """

    label: str
    backend: str
    config: str | Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    baseline: bool = False
    architectures: str = "any"
    trials: int = 0
    search: Mapping[str, Any] = field(default_factory=dict)
    max_minutes: float | None = None


@dataclass(frozen=True, kw_only=True)
class CellSpec:
    """One block of cells.

    Attributes:
        kind: one of `KINDS`.
        targets, methods, zoos: those of the protocol by default.
        seeds: those of the methods by default.
        fractions: shares of the training runs, for `data-fraction`.
        across: `dataset` (zoos of one architecture belong together) or `all`, for `pooled` and `leave-one-out`.
        pooled: fit on all zoos of the other architecture, for `cross-architecture`.
    """

    kind: str
    targets: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    zoos: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    fractions: tuple[float, ...] = ()
    across: str = "dataset"
    pooled: bool = False


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A comparison: everything that decides its figures, apart from the networks.

    Attributes:
        name: of the tables and their files.
        title: over the page.
        zoos, targets, methods: by name; a target is SQL over `wide` and the map `hyper` of hyper-parameters.
        split: how every zoo is split.
        cells: what is compared.
        seeds: of the fits.
        draws: of the bootstrap.
        source: the file as it was read, for the record.
    """

    name: str
    title: str
    zoos: Mapping[str, Zoo]
    targets: Mapping[str, str]
    methods: Mapping[str, Method]
    split: SplitSpec
    cells: tuple[CellSpec, ...]
    seeds: tuple[int, ...] = (0,)
    draws: int = 1000
    source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The first 32 hex digits of the SHA-256 of what the file says."""
        text = json.dumps(self.source, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def builtin_protocols() -> dict[str, Path]:
    """The protocols that come with the package, by name."""
    folder = Path(str(resources.files("zooplatform.catalogs")))
    found = sorted(folder.glob(f"{_PREFIX}*.toml"))
    return {file.stem: file for file in found}


def load_protocol(given: str | os.PathLike[str]) -> Protocol:
    """Read a protocol.

    Args:
        given: a TOML file, or the name of a protocol that comes with the package (`matrix-sne`).

    Raises:
        ConfigError: it cannot be read, or something in it is not usable; the text names the file and the key.
    """
    path = Path(given)
    if not path.suffix and not path.exists():
        builtin = builtin_protocols()
        if str(given) not in builtin:
            raise ConfigError(
                f"There is no protocol {str(given)!r}. Give a TOML file or one of: {', '.join(builtin) or 'none'}."
                + _close(str(given), builtin)
            )
        path = builtin[str(given)]
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(
            f"{path}: the protocol cannot be read ({exc.strerror}). Give a TOML file."
        ) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: not TOML: {exc}.") from exc
    return parse_protocol(table, where=str(path))


def parse_protocol(table: Mapping[str, Any], *, where: str = "protocol") -> Protocol:
    """A protocol from the tables of its file.

    Raises:
        ConfigError: something is missing, unknown or contradicts itself.
    """
    _known(table, Protocol, where, also=("split",), but=("source",))
    for key in ("name", "split", "zoos", "targets", "methods", "cells"):
        if not table.get(key):
            raise ConfigError(
                f"{where}: {key} is missing. See docs/evaluation.md for what it holds."
            )
    zoos = {
        name: _made(
            Zoo, {**_table(item, f"{where}: zoos.{name}"), "name": name}, f"{where}: zoos.{name}"
        )
        for name, item in _table(table["zoos"], f"{where}: zoos").items()
    }
    methods = {
        label: _method(label, item, f"{where}: methods.{label}")
        for label, item in _table(table["methods"], f"{where}: methods").items()
    }
    targets = _table(table["targets"], f"{where}: targets")
    for name, sql in targets.items():
        if not isinstance(sql, str) or not name.isidentifier():
            raise ConfigError(
                f"{where}: targets.{name} = {sql!r}; a target is a plain name and SQL, such as "
                'ggap = "train_accuracy - test_accuracy".'
            )
    split = _made(SplitSpec, _table(table["split"], f"{where}: split"), f"{where}: split")
    cells = table["cells"]
    if not isinstance(cells, list):
        raise ConfigError(f"{where}: cells is one table; write [[cells]] over each.")
    plain = {
        item.name: _typed(table[item.name], str(item.type), f"{where}: {item.name}")
        for item in fields(Protocol)
        if item.name in ("name", "title", "seeds", "draws") and item.name in table
    }
    protocol = Protocol(
        **{"title": table["name"], **plain},
        zoos=zoos,
        targets=targets,
        methods=methods,
        split=split,
        cells=tuple(
            _made(CellSpec, _table(item, f"{where}: cells"), f"{where}: cells[{at}]")
            for at, item in enumerate(cells)
        ),
        source=dict(table),
    )
    _check(protocol, where)
    return protocol


def _method(label: str, table: Any, where: str) -> Method:
    made = _made(Method, {**_table(table, where), "label": label}, where)
    if made.trials > 1 and not made.search:
        raise ConfigError(f"{where}: trials = {made.trials} needs search, the ranges to draw from.")
    if made.search and made.trials < 2:
        raise ConfigError(f"{where}: search needs trials = 2 or more.")
    if made.architectures not in ("any", "one"):
        raise ConfigError(f"{where}: architectures is {made.architectures!r}; write any or one.")
    return made


def _check(protocol: Protocol, where: str) -> None:
    """What single keys cannot show."""
    names = [protocol.name, protocol.split.name, *protocol.zoos]
    for name in names:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"{where}: {name!r} cannot be a name. Use letters, digits, '.', '_' and '-', a letter or digit first."
            )
    if not 0 <= protocol.split.final < 1:
        raise ConfigError(f"{where}: split.final is {protocol.split.final}; it is a share below 1.")
    if protocol.draws < 1 or not protocol.seeds:
        raise ConfigError(f"{where}: seeds and draws hold at least one.")
    for at, cell in enumerate(protocol.cells):
        spot = f"{where}: cells[{at}]"
        if cell.kind not in KINDS:
            raise ConfigError(
                f"{spot}: unknown kind {cell.kind!r}. Known: {', '.join(KINDS)}.{_close(cell.kind, KINDS)}"
            )
        for key, known in (
            ("targets", protocol.targets),
            ("methods", protocol.methods),
            ("zoos", protocol.zoos),
        ):
            for name in getattr(cell, key):
                if name not in known:
                    raise ConfigError(
                        f"{spot}: {key} names {name!r}. Known: {', '.join(known)}.{_close(name, known)}"
                    )
        if (cell.kind == "data-fraction") != bool(cell.fractions):
            raise ConfigError(f"{spot}: fractions belong to kind data-fraction, and it needs them.")
        if any(not 0 < share <= 1 for share in cell.fractions):
            raise ConfigError(f"{spot}: fractions are above 0 and at most 1.")
        if cell.across not in ("dataset", "all"):
            raise ConfigError(f"{spot}: across is {cell.across!r}; write dataset or all.")
        if cell.pooled and cell.kind != "cross-architecture":
            raise ConfigError(f"{spot}: pooled belongs to kind cross-architecture.")


def _made(kind: type[_T], table: Mapping[str, Any], where: str) -> _T:
    """A dataclass from a table, its types looked at."""
    _known(table, kind, where)
    values = {}
    for item in fields(kind):  # type: ignore[arg-type]
        if item.name not in table:
            if item.default is MISSING and item.default_factory is MISSING:
                raise ConfigError(f"{where}: {item.name} is missing.")
            continue
        values[item.name] = _typed(table[item.name], str(item.type), f"{where}: {item.name}")
    return kind(**values)


def _typed(value: Any, annotation: str, where: str) -> Any:
    """`value` where it fits the annotation of its field."""
    if annotation.startswith("tuple"):
        inner = annotation[len("tuple[") :].split(",")[0]
        if not isinstance(value, list):
            raise ConfigError(f"{where} is {value!r}; it must be a list.")
        return tuple(_typed(one, inner, where) for one in value)
    for words, kinds in (
        ("str", (str,)),
        ("bool", (bool,)),
        ("int", (int,)),
        ("float", (int, float)),
        ("Mapping", (Mapping,)),
    ):
        fits = isinstance(value, kinds) and (words == "bool" or not isinstance(value, bool))
        if fits and re.search(rf"\b{words}\b", annotation.split("[")[0]):
            return value
    raise ConfigError(f"{where} is {value!r}; it must be of type {annotation}.")


def _known(
    table: Mapping[str, Any],
    kind: type[Any],
    where: str,
    *,
    also: Sequence[str] = (),
    but: Sequence[str] = (),
) -> None:
    names = [item.name for item in fields(kind) if item.name not in but]
    for key in table:
        if key not in names and key not in also:
            raise ConfigError(
                f"{where}: unknown key {key!r}. Known: {', '.join(names)}.{_close(key, names)}"
            )


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {value!r}; it must be a table.")
    return value


def _close(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
