"""From a protocol to fits and cells: who is fitted on what, and which cell reads which fit.

One fit serves every cell that needs it: the same method, target, seed and training networks are fitted once and asked
about all test zoos.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from zooplatform.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from zooplatform.evaluation.protocols import CellSpec, Protocol, Zoo

__all__ = ["Cell", "Plan", "Task", "make_plan"]


class Task(NamedTuple):
    """What a method is fitted on.

    Attributes:
        target: name of the target.
        train: names of the zoos, sorted.
        fraction: share of the training runs of each zoo.
        leaky: whether the zoos are split by checkpoint instead, to show how much that flatters.
    """

    target: str
    train: tuple[str, ...]
    fraction: float = 1.0
    leaky: bool = False


class Cell(NamedTuple):
    """One figure per method: fitted by `task`, asked about the test networks of `test`."""

    kind: str
    task: Task
    test: str


@dataclass(frozen=True)
class Plan:
    """What has to be done.

    Attributes:
        cells: every cell, in the order of the protocol, with its methods and their seeds.
        tests: test zoos of every (method, task, seed).
    """

    cells: dict[Cell, dict[str, tuple[int, ...]]]
    tests: dict[tuple[str, Task, int], tuple[str, ...]]


def make_plan(protocol: Protocol, only: Sequence[str] = ()) -> Plan:
    """Expand a protocol.

    Args:
        protocol: what to expand.
        only: labels of the methods to keep; all of them by default.

    Raises:
        ConfigError: `only` names a method that is not there, or a block has no cell.
    """
    for label in only:
        if label not in protocol.methods:
            raise ConfigError(
                f"--only names {label!r}. Methods of {protocol.name}: {', '.join(protocol.methods)}."
            )
    cells: dict[Cell, dict[str, tuple[int, ...]]] = {}
    tests: dict[tuple[str, Task, int], list[str]] = {}
    for block in protocol.cells:
        found = list(_expand(protocol, block))
        if not found:
            raise ConfigError(
                f"{protocol.name}: {block.kind} has no cell for its zoos; it needs "
                + {
                    "cross-dataset": "two zoos of one architecture.",
                    "cross-architecture": "zoos of two architectures that share a data set.",
                    "leave-one-out": "two zoos that belong together.",
                }.get(block.kind, "a zoo.")
            )
        for cell in found:
            for label in block.methods or tuple(protocol.methods):
                method = protocol.methods[label]
                if (only and label not in only) or not _applies(
                    protocol, cell, method.architectures
                ):
                    continue
                seeds = block.seeds or method.seeds or protocol.seeds
                known = cells.setdefault(cell, {})
                known[label] = tuple(dict.fromkeys((*known.get(label, ()), *seeds)))
                for seed in seeds:
                    zoos = tests.setdefault((label, cell.task, seed), [])
                    if cell.test not in zoos:
                        zoos.append(cell.test)
    return Plan(cells, {key: tuple(zoos) for key, zoos in tests.items()})


def _applies(protocol: Protocol, cell: Cell, architectures: str) -> bool:
    asked = {protocol.zoos[name].architecture for name in (*cell.task.train, cell.test)}
    return architectures == "any" or len(asked) == 1


def _expand(protocol: Protocol, block: CellSpec) -> Iterator[Cell]:
    zoos = [protocol.zoos[name] for name in block.zoos or protocol.zoos]
    for target in block.targets or tuple(protocol.targets):
        for train, test, fraction in _pairs(block, zoos):
            task = Task(target, train, fraction, block.kind == "leakage")
            yield Cell(_kind(block), task, test)


def _kind(block: CellSpec) -> str:
    """What tables call a block: its kind, and what sets it apart from others of the kind."""
    if block.across == "all":
        return f"{block.kind}, all architectures"
    return f"{block.kind}, pooled" if block.pooled else block.kind


def _pairs(block: CellSpec, zoos: Sequence[Zoo]) -> Iterator[tuple[tuple[str, ...], str, float]]:
    """(training zoos, test zoo, fraction) of every cell of a block."""
    kind = block.kind
    if kind in ("in-distribution", "leakage", "data-fraction"):
        for zoo in zoos:
            for fraction in block.fractions or (1.0,):
                yield (zoo.name,), zoo.name, float(fraction)
    elif kind == "cross-dataset":
        for a in zoos:
            for b in zoos:
                if a.name != b.name and a.architecture == b.architecture:
                    yield (a.name,), b.name, 1.0
    elif kind == "cross-architecture":
        yield from _across(block, zoos)
    else:
        for group in _groups(block, zoos):
            for zoo in group:
                if kind == "pooled":
                    yield _names(group), zoo.name, 1.0
                else:
                    # Where architectures are pooled, no network of the data set may be left in training.
                    rest = [other for other in group if other.dataset != zoo.dataset]
                    if rest:
                        yield _names(rest), zoo.name, 1.0


def _across(block: CellSpec, zoos: Sequence[Zoo]) -> Iterator[tuple[tuple[str, ...], str, float]]:
    if block.pooled:
        for architecture in dict.fromkeys(zoo.architecture for zoo in zoos):
            train = _names(zoo for zoo in zoos if zoo.architecture == architecture)
            for zoo in zoos:
                if zoo.architecture != architecture:
                    yield train, zoo.name, 1.0
        return
    for a in zoos:
        for b in zoos:
            if a.architecture != b.architecture and a.dataset == b.dataset:
                yield (a.name,), b.name, 1.0


def _groups(block: CellSpec, zoos: Sequence[Zoo]) -> list[list[Zoo]]:
    if block.across == "all":
        return [list(zoos)]
    names = dict.fromkeys(zoo.architecture for zoo in zoos)
    return [[zoo for zoo in zoos if zoo.architecture == name] for name in names]


def _names(zoos: Iterable[Zoo]) -> tuple[str, ...]:
    return tuple(sorted(zoo.name for zoo in zoos))
