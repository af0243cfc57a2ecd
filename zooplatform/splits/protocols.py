"""Published protocols as splits, with what is odd about them said."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from zooplatform.errors import ConfigError, SourceError

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from zooplatform.catalog import Catalog
    from zooplatform.splits.candidates import Candidate, Candidates, Span

__all__ = [
    "NFN",
    "PROTOCOLS",
    "SCHURHOLT",
    "SCHURHOLT_RATIO",
    "Protocol",
    "nfn_roles",
    "read_order",
    "within_schurholt_limits",
]

NFN = "nfn-2023"
SCHURHOLT = "schurholt-2022"
SCHURHOLT_RATIO = "70/15/15"

# Networks of the Small CNN Zoo were trained for 86 epochs; the protocol hard-codes this.
NFN_STEP = 86
# Weights beyond this are taken for diverged.
_LARGEST_WEIGHT = 5.0
_NOT_WEIGHTS = ("running_mean", "running_var", "num_batches_tracked")


class Protocol(NamedTuple):
    """A published way to split; `summary` says what it does and what is odd about it."""

    summary: str
    source: str


PROTOCOLS: dict[str, Protocol] = {
    NFN: Protocol(
        "The final checkpoints of a Small CNN Zoo in the order of the published split file (--order): the last half is "
        "test; the first half, shuffled by Python's random.Random(0), is 80 % train and 20 % val. The file has a "
        "header `0` that the original code reads as a row, so row 0 comes first as well as in its own place, and if "
        "it is a final checkpoint it moves every cut by half a place and can be in two roles. This is kept.",
        "Zhou et al., Permutation Equivariant Neural Functionals, NeurIPS 2023",
    ),
    SCHURHOLT: Protocol(
        "70/15/15 by model over checkpoints without NaN, infinities and weights beyond 5. The original shuffles the "
        "order in which the file system lists folders, which no other machine can repeat; here the content of the "
        "networks and --seed decide.",
        "Schürholt et al., Model Zoos, NeurIPS 2022 Datasets and Benchmarks",
    ),
}


def read_order(path: str | os.PathLike[str]) -> list[int]:
    """The row numbers of a published split file as the original code reads them: its header is a row.

    Raises:
        SourceError: the file is missing or holds something else.
    """
    file = Path(path)
    try:
        words = file.read_text(encoding="utf-8").replace(",", "\n").split()
        order = [int(word) for word in words]
    except OSError as exc:
        raise SourceError(file, f"it cannot be read ({exc.strerror}).", "Check the path.") from exc
    except ValueError as exc:
        raise SourceError(
            file, f"it is no list of row numbers ({exc}).", "Take the `*_split.csv` of the zoo."
        ) from exc
    if not order:
        raise SourceError(file, "it is empty.", "Take the `*_split.csv` of the zoo.")
    return order


def nfn_roles(
    catalog: Catalog, candidates: Candidates, order: Sequence[int], steps: Span, *, subject: object
) -> tuple[list[tuple[str, Candidate]], list[str]]:
    """Roles and members by the NFN protocol, and notes about them. A member can have two roles.

    Args:
        catalog: for the file rows that the checkpoints came from.
        candidates: among them every final checkpoint of one zoo.
        order: rows of the zoo's file, as `read_order` gives them.
        steps: what counts as final.
        subject: what error texts call the order.

    Raises:
        ConfigError: the candidates are not a whole zoo, or not of a kind that has rows.
        SourceError: the order is for another zoo.
    """
    step_of = _steps_by_row(catalog, candidates)
    if set(order) != set(step_of):
        raise SourceError(
            subject,
            f"it orders rows 0 to {max(order)} ({len(set(order))} different ones); the zoo in the catalog has "
            f"{len(step_of)} rows up to {max(step_of)}.",
            "Take the file of this zoo, and ingest all of its checkpoints.",
        )
    by_row = _rows_of_members(catalog, candidates.members)
    absent = [row for row, step in step_of.items() if step in steps and row not in by_row]
    if absent:
        raise ConfigError(
            f"The query leaves out {len(absent)} checkpoints at step {steps} (the first is row {min(absent)} of the "
            "file), which would move all others. Let it name every checkpoint of the zoo."
        )
    final = [by_row[row] for row in order if row in by_row]
    middle = int(0.5 * len(final))
    first_half = list(range(middle))
    random.Random(0).shuffle(first_half)  # noqa: S311 - what the protocol does
    cut = int(0.8 * middle)
    roles = [("train", final[at]) for at in first_half[:cut]]
    roles += [("val", final[at]) for at in first_half[cut:]]
    roles += [("test", member) for member in final[middle:]]
    notes = []
    if len(order) > len(set(order)):
        notes.append(
            "The order names row 0 twice, as published (the file's header is read as a row)."
        )
    return roles, notes


def _rows_of_members(catalog: Catalog, members: Sequence[Candidate]) -> dict[int, Candidate]:
    table = catalog.sql(
        "select checkpoint_id, value::bigint as row from metrics where name = 'source_row'"
    )
    row_of = dict(
        zip(table.column("checkpoint_id").to_pylist(), table.column("row").to_pylist(), strict=True)
    )
    return {row_of[m.checkpoint_id]: m for m in members if m.checkpoint_id in row_of}


def _steps_by_row(catalog: Catalog, candidates: Candidates) -> dict[int, int | None]:
    """Step by row of the file for every checkpoint of the one zoo that the candidates are of."""
    table = catalog.sql(
        """
        select m.checkpoint_id, m.value::bigint as row, c.step, o.zoo_id
        from metrics as m join checkpoints as c using (checkpoint_id) join models as o using (model_id)
        where m.name = 'source_row'
        """
    )
    ids = pa.array([member.checkpoint_id for member in candidates.members], type=pa.string())
    chosen = table.filter(pc.is_in(table.column("checkpoint_id"), value_set=ids))
    zoos = sorted(chosen.column("zoo_id").unique().to_pylist())
    if chosen.num_rows < len(ids):
        raise ConfigError(
            f"{len(ids) - chosen.num_rows} of the {len(ids)} checkpoints did not come from a file with numbered rows. "
            f"Protocol {NFN} is for zoos ingested with `small-cnn-zoo:`."
        )
    if len(zoos) != 1:
        raise ConfigError(
            f"The query names checkpoints of {len(zoos)} zoos ({', '.join(zoos[:4])}); protocol {NFN} splits one. Add "
            "`where zoo_id = '...'`."
        )
    whole = table.filter(pc.equal(table.column("zoo_id"), zoos[0]))
    return dict(zip(whole.column("row").to_pylist(), whole.column("step").to_pylist(), strict=True))


def within_schurholt_limits(
    catalog: Catalog, members: Sequence[Candidate]
) -> tuple[list[Candidate], int]:
    """The members whose weights are all finite and at most 5 in absolute value, and how many others there are."""
    table = catalog.sql(
        """
        select distinct checkpoint_id from tensor_stats
        where not regexp_matches(name, ?)
            and (num_nan > 0 or num_inf > 0 or greatest(abs("min"), abs("max")) > ?)
        """,
        [rf"(^|\.)({'|'.join(_NOT_WEIGHTS)})$", _LARGEST_WEIGHT],
    )
    beyond = set(table.column("checkpoint_id").to_pylist())
    kept = [member for member in members if member.checkpoint_id not in beyond]
    return kept, len(members) - len(kept)
