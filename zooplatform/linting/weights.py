"""Rules about single weights: not finite, constant, dead units."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from zooplatform.linting.findings import LAYOUT, Finding, finding, plural

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from zooplatform.catalog import Catalog

__all__ = ["constant", "dead_units", "not_finite"]

# Networks that are read at once.
_BLOCK = 2048

_NOT_FINITE = """
    select m.zoo_id, list(distinct s.checkpoint_id order by s.checkpoint_id) as ids,
        count(distinct c.model_id) as num_models,
        sum(s.num_nan) as num_nan, sum(s.num_inf) as num_inf,
        list(distinct s.name order by s.name) as names
    from tensor_stats s join checkpoints c using (checkpoint_id) join models m using (model_id)
    where s.num_nan + s.num_inf > 0 group by all order by all"""


def not_finite(catalog: Catalog) -> Iterator[Finding]:
    """Weights are finite numbers."""
    for row in catalog.sql(_NOT_FINITE).to_pylist():
        yield finding(
            "not-finite",
            "warning",
            "checkpoint",
            row["ids"],
            zoo=row["zoo_id"],
            declared="weights are numbers",
            found=f"{row['num_nan']:,} are NaN and {row['num_inf']:,} infinite, in "
            f"{plural(row['num_models'], 'model')} ({_some(row['names'])})",
            repair="The runs diverged; leave them out with `where checkpoint_id not in (select checkpoint_id from "
            "tensor_stats where num_nan + num_inf > 0)`.",
        )


_CONSTANT = f"""
    select m.zoo_id, s.name, min(s.min) as low, max(s.max) as high,
        list(s.checkpoint_id order by s.checkpoint_id) as ids
    from tensor_stats s join checkpoints c using (checkpoint_id) join models m using (model_id)
    join {LAYOUT} l on l.architecture_id = c.architecture_id and l.name = s.name
    where s.min = s.max and s.num_nan + s.num_inf = 0 and l.numel > 1 and len(l.shape) >= 2
    group by all order by all"""


def constant(catalog: Catalog) -> Iterator[Finding]:
    """The values of a matrix or kernel differ.

    Vectors are not checked: biases of zeros and scales of ones are usual starts.
    """
    for row in catalog.sql(_CONSTANT).to_pylist():
        value = f"{row['low']:g}" if row["low"] == row["high"] else "one value each"
        yield finding(
            "constant",
            "warning",
            "checkpoint",
            row["ids"],
            zoo=row["zoo_id"],
            declared=f"{row['name']} holds weights",
            found=f"all its values are equal ({value})",
            repair="It was never initialised, or training collapsed: its units cannot be told apart. Check the run, or "
            "leave these checkpoints out.",
        )


# A unit whose incoming weights are all zero needs as many zeros as it has inputs. All zeros are left to `constant`.
_DEAD = f"""
    select m.zoo_id, c.architecture_id, s.name, c.shard_id is not null as in_population,
        list(s.checkpoint_id order by c.shard_id, c.shard_row) as ids
    from tensor_stats s join checkpoints c using (checkpoint_id) join models m using (model_id)
    join {LAYOUT} l on l.architecture_id = c.architecture_id and l.name = s.name
    where l.layer_type in ('conv', 'linear') and len(l.shape) >= 2
        and s.num_zero >= l.numel / l.shape[1] and s.num_zero < l.numel
    group by all order by all"""


def dead_units(catalog: Catalog) -> Iterator[Finding]:
    """Every unit of a linear or convolutional layer has an incoming weight that is not zero.

    Without one its value before the activation is its bias, whatever the input: that follows from the weights alone.
    Units that are silent on all data (ReLU after very negative sums) depend on the data and are not looked for.
    """
    found: defaultdict[tuple[str | None, str], list[tuple[str, int]]] = defaultdict(list)
    for row in catalog.sql(_DEAD).to_pylist():
        for checkpoint, dead in zip(row["ids"], _dead_counts(catalog, row), strict=True):
            if dead:
                found[row["zoo_id"], row["name"]].append((checkpoint, dead))
    for (zoo, name), members in found.items():
        members.sort()
        units = sum(dead for _, dead in members)
        yield finding(
            "dead-units",
            "note",
            "checkpoint",
            [checkpoint for checkpoint, _ in members],
            zoo=zoo,
            declared=f"the units of {name} depend on the input",
            found=f"{plural(units, 'unit')} in {plural(len(members), 'checkpoint')} have incoming weights of zero only "
            f"({members[0][1]} in the first)",
            repair="Pruned on purpose, or lost in training; their output is a constant and can be folded into the "
            "next bias.",
        )


def _dead_counts(catalog: Catalog, row: Mapping[str, Any]) -> Iterator[int]:
    """How many units of one tensor are dead, by checkpoint, in the order of `row["ids"]`."""
    ids, name = row["ids"], row["name"]
    if row["in_population"]:
        population = catalog.population(ids)
        field = population.vector.by_name[name]
        if not field.aside:
            part = slice(field.offset, field.offset + field.spec.num_elements)
            for start in range(0, len(ids), _BLOCK):
                rows = np.arange(start, min(start + _BLOCK, len(ids)))
                block = population.read(rows)[:, part]
                yield from _zero_units(block.reshape(len(rows), field.spec.shape[0], -1)).tolist()
            return
    for checkpoint in ids:
        tensor = catalog.state_dict(checkpoint)[name]
        yield int((tensor.flatten(1) == 0).all(dim=1).sum())


def _zero_units(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """(N, units, inputs) to the number of units with zeros only, (N,)."""
    count: npt.NDArray[np.int64] = (~values.any(axis=2)).sum(axis=1)
    return count


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
