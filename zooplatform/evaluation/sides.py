"""Who is on which side: the frozen splits of a protocol's zoos, and the networks of each side with their targets."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zooplatform.errors import ConfigError
from zooplatform.splits import create_split, list_splits, split_members

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    from zooplatform.catalog import Catalog
    from zooplatform.datasets import WeightDataset
    from zooplatform.evaluation.plan import Task
    from zooplatform.evaluation.protocols import Protocol
    from zooplatform.splits import Split

__all__ = [
    "Rows",
    "Sides",
    "freeze_sides",
    "networks",
    "scored_networks",
    "scored_rows",
    "torn_groups",
]


@dataclass(frozen=True)
class Sides:
    """The frozen splits of a protocol by zoo.

    Attributes:
        main: train, val and test of every zoo.
        final: of its test networks: `train` is what is looked at, `test` what is kept for the last look.
        leaky: the networks that are not kept, split by checkpoint; where a cell needs it.
    """

    main: Mapping[str, Split]
    final: Mapping[str, Split]
    leaky: Mapping[str, Split]

    def of(self, zoo: str, *, leaky: bool) -> Split:
        return (self.leaky if leaky else self.main)[zoo]

    def ids(self) -> dict[str, dict[str, str]]:
        """Name and id of every split, by zoo: what says which networks the figures are about."""
        return {
            zoo: {
                split.name: split.split_id
                for split in (self.main[zoo], self.final.get(zoo), self.leaky.get(zoo))
                if split is not None
            }
            for zoo in self.main
        }


@dataclass(frozen=True)
class Rows:
    """The test networks of a zoo that have a target, by checkpoint id.

    Attributes:
        ids: N checkpoint ids, sorted.
        targets: (N,) float64, finite.
        runs: (N,) number of the training run of each.
        last: (N,) whether it is the last kept checkpoint of its run.
        final: (N,) whether it is kept for the last look.
        num_lacking: networks without this target.
    """

    ids: tuple[str, ...]
    targets: npt.NDArray[np.float64]
    runs: npt.NDArray[np.int64]
    last: npt.NDArray[np.bool_]
    final: npt.NDArray[np.bool_]
    num_lacking: int


def freeze_sides(catalog: Catalog, protocol: Protocol, tasks: Iterable[Task]) -> Sides:
    """The splits of a protocol, made where they are not there yet.

    Raises:
        ConfigError: a split of the name was drawn in another way.
        CatalogError: the catalog cannot be written.
    """
    known = {split.name: split for split in list_splits(catalog)}
    spec = protocol.split
    leaky_zoos = {zoo for task in tasks if task.leaky for zoo in task.train}
    main, final, leaky = {}, {}, {}
    for zoo in protocol.zoos.values():
        name = f"{spec.name}.{zoo.name}"
        query = zoo.query or f"select checkpoint_id from wide where zoo = '{zoo.name}'"
        main[zoo.name] = _frozen(
            catalog, known, name, query, by=spec.by, ratio=spec.ratio, seed=spec.seed
        )
        inside = f"select checkpoint_id from splits where name = '{name}'"
        if spec.final:
            kept = round(100 * spec.final, 6)
            final[zoo.name] = _frozen(
                catalog,
                known,
                f"{name}.final",
                f"{inside} and role = 'test'",
                by=spec.by,
                ratio=f"{100 - kept:g}/{kept:g}",
                seed=spec.seed,
            )
            inside += (
                " and checkpoint_id not in (select checkpoint_id from splits "
                f"where name = '{name}.final' and role = 'test')"
            )
        if zoo.name in leaky_zoos:
            leaky[zoo.name] = _frozen(
                catalog,
                known,
                f"{name}.leaky",
                inside,
                by="checkpoint",
                ratio=spec.ratio,
                seed=spec.seed,
            )
    return Sides(main, final, leaky)


def _frozen(
    catalog: Catalog,
    known: Mapping[str, Split],
    name: str,
    query: str,
    *,
    by: str,
    ratio: str,
    seed: int,
) -> Split:
    """The split of this name. One that is there stays as it is, although the zoo may have grown since."""
    if name not in known:
        return create_split(catalog, name, query, by=by, ratio=ratio, seed=seed)
    found = known[name]
    drawn = (found.by, found.detail.get("ratio"), found.seed)
    if drawn != (by, ratio, seed):
        raise ConfigError(
            f"Split {name!r} is frozen by {found.by}, {found.detail.get('ratio')}, seed {found.seed}; the protocol "
            f"asks for {by}, {ratio}, seed {seed}. Give split.name another name in the protocol."
        )
    return found


_HYPER = (
    "(select model_id, map(list(key), list(value)) as hyper from hyperparameters group by model_id)"
)


def _value(sql: str) -> str:
    """A target as SQL that gives NULL for what is not finite."""
    value = f"(({sql})::double)"
    return f"case when isfinite{value} then {value} end"


def networks(
    catalog: Catalog, protocol: Protocol, sides: Sides, task: Task, role: str, *, seed: int = 0
) -> WeightDataset:
    """The training or validation networks of a task.

    Args:
        catalog, protocol, sides: where they are and what they are.
        task: zoos, target and fraction.
        role: `train` or `val`.
        seed: with a fraction, decides which runs are taken.

    Raises:
        CatalogError: no network has the target.
    """
    names = ", ".join(f"'{sides.of(zoo, leaky=task.leaky).name}'" for zoo in task.train)
    query = (
        f'select checkpoint_id, {_value(protocol.targets[task.target])} as "{task.target}" '
        f"from wide left join {_HYPER} using (model_id) where checkpoint_id in "
        f"(select checkpoint_id from splits where name in ({names}) and role = '{role}')"
    )
    if role == "train" and task.fraction < 1:
        kept = [
            run
            for zoo in task.train
            for run in _share_of_runs(catalog, sides.of(zoo, leaky=task.leaky), task.fraction, seed)
        ]
        query += f" and model_id in ({', '.join(map(repr, kept))})"
    return catalog.dataset(query, target=task.target, missing="drop")


def scored_networks(
    catalog: Catalog, protocol: Protocol, sides: Sides, task: Task, zoo: str
) -> WeightDataset:
    """The test networks of `zoo`, the kept ones included."""
    return networks(catalog, protocol, sides, task._replace(train=(zoo,), fraction=1.0), "test")


def _share_of_runs(catalog: Catalog, split: Split, fraction: float, seed: int) -> list[str]:
    """Model ids of a share of the training runs: the runs of a smaller share are among those of a larger one.

    The order is that of a hash of the seed and of what the networks hold, so it is the same on every machine.
    """
    contents = defaultdict(list)
    for member in split_members(catalog, split, "train"):
        contents[member.model_id].append(member.content_hash)

    def place(model_id: str) -> bytes:
        text = "\n".join([str(seed), *sorted(contents[model_id])])
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    ordered = sorted(contents, key=place)
    return ordered[: math.ceil(fraction * len(ordered) - 1e-9)]


def scored_rows(
    catalog: Catalog, protocol: Protocol, sides: Sides, zoo: str, *, leaky: bool
) -> dict[str, Rows]:
    """The test networks of a zoo by target: what is scored, and how."""
    split = sides.of(zoo, leaky=leaky)
    kept = sides.final.get(zoo)
    columns = ", ".join(f'{_value(sql)} as "t_{name}"' for name, sql in protocol.targets.items())
    table = catalog.sql(
        f"""
        with inside as (select checkpoint_id from splits where name = ? and role = 'test'),
        kept as (select checkpoint_id from splits where name = ? and role = 'test'),
        latest as (
            select checkpoint_id, row_number() over (
                partition by model_id order by coalesce(step, epoch) desc nulls last
            ) = 1 as is_last
            from checkpoints
            where checkpoint_id in (select checkpoint_id from splits where name = ?)
        )
        select wide.checkpoint_id, model_id, is_last, wide.checkpoint_id in (from kept) as is_final, {columns}
        from wide join latest using (checkpoint_id) left join {_HYPER} using (model_id)
        where wide.checkpoint_id in (from inside) order by wide.checkpoint_id
        """,
        [split.name, kept.name if kept is not None else "", sides.main[zoo].name],
    )
    data: dict[str, Any] = {name: table.column(name).to_pylist() for name in table.column_names}
    number = {run: at for at, run in enumerate(sorted(set(data["model_id"])))}
    runs = np.array([number[run] for run in data["model_id"]], np.int64)
    found = {}
    for target in protocol.targets:
        values = table.column(f"t_{target}").fill_null(float("nan")).to_numpy()
        has = np.isfinite(values)
        found[target] = Rows(
            ids=tuple(np.array(data["checkpoint_id"], dtype=object)[has].tolist()),
            targets=values[has],
            runs=runs[has],
            last=np.array(data["is_last"], bool)[has],
            final=np.array(data["is_final"], bool)[has],
            num_lacking=int((~has).sum()),
        )
    return found


def torn_groups(catalog: Catalog, split: Split) -> list[str]:
    """Groups (in the words of `split.by`) that have networks both in `train` or `val` and in `test`: leaks.

    An intact split gives an empty list; that of a split by checkpoint names the runs that it tears.
    """
    members = split_members(catalog, split)
    key_of = {m.checkpoint_id: m.model_id for m in members}
    if split.by not in ("model", "checkpoint"):
        table = catalog.sql("select model_id, value from hyperparameters where key = ?", [split.by])
        value_of = dict(
            zip(
                table.column("model_id").to_pylist(), table.column("value").to_pylist(), strict=True
            )
        )
        key_of = {m.checkpoint_id: value_of.get(m.model_id, m.model_id) for m in members}
    fitted = {key_of[m.checkpoint_id] for m in members if m.role != "test"}
    return sorted(fitted & {key_of[m.checkpoint_id] for m in members if m.role == "test"})
