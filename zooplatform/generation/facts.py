"""What the catalog says of networks that a generator learns from: how they are built, on what, how well they do.

    known = network_facts(catalog, train.ids)
    known.facts["d5c3..."].dataset             # "mnist"
    known.blueprints[known.facts["d5c3..."].blueprint].config["activation"]

Legend for shapes: E bytes of a network kept aside.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from zooplatform.datasets import build_dataset
from zooplatform.errors import ArchitectureError, UnknownIdError
from zooplatform.fitting import Blueprint, NetworkFacts

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from zooplatform.catalog import Catalog

__all__ = [
    "KnownNetworks",
    "dataset_name",
    "dataset_of",
    "joined_licence",
    "licences",
    "network_facts",
]

# What a licence is called that nobody declared, in a list of several.
UNKNOWN_LICENCE = "unknown"

_NETWORKS = """
    select c.checkpoint_id, c.model_id, c.architecture_id, c.epoch, m.license, m.config, m.build_config,
        any_value(l.parent_id) as trained_on,
        coalesce(bool_or(g.child_id is not null), false) as generated
    from (select unnest(?::varchar[]) as checkpoint_id) asked
    join checkpoints c using (checkpoint_id) join models m using (model_id)
    left join lineage l on l.child_id = m.model_id and l.relation = 'trained_on'
    left join lineage g on g.child_id = m.model_id and g.relation = 'generated_by'
    group by all
"""

_METRICS = """
    select checkpoint_id, case when split = '' or starts_with(name, split || '_') then name
        else split || '_' || name end as name, value
    from metrics semi join (select unnest(?::varchar[]) as checkpoint_id) using (checkpoint_id)
    where origin <> 'predicted' and value is not null
    order by origin = 'measured', dataset desc, split desc
"""


class KnownNetworks(NamedTuple):
    """Facts of networks by checkpoint id, and the blueprints that they point to.

    Attributes:
        facts: of every network.
        blueprints: in an order that depends on what they are alone.
        generated: number of networks that were themselves made by a generator.
    """

    facts: dict[str, NetworkFacts]
    blueprints: tuple[Blueprint, ...]
    generated: int


def network_facts(catalog: Catalog, ids: Iterable[str]) -> KnownNetworks:
    """What is known of networks whose weights are stored.

    Args:
        catalog: holds them.
        ids: checkpoint ids.

    Raises:
        UnknownIdError: there is no such checkpoint.
        ArchitectureError: no architecture adapter knows how to build one of them.
    """
    wanted = list(dict.fromkeys(ids))
    rows = {row["checkpoint_id"]: row for row in catalog.sql(_NETWORKS, [wanted]).to_pylist()}
    missing = next((one for one in wanted if one not in rows), None)
    if missing is not None:
        raise UnknownIdError("checkpoint", missing)
    kinds = {one: (rows[one]["architecture_id"], rows[one]["build_config"]) for one in wanted}
    first: dict[tuple[str, str | None], str] = {}
    for one in wanted:
        first.setdefault(kinds[one], one)
    made = {kind: _blueprint(catalog, one) for kind, one in first.items()}
    # Two records may say the same in other words.
    said = {kind: _text(blueprint) for kind, blueprint in made.items()}
    order = sorted(set(said.values()))
    by_text = {text: made[kind] for kind, text in reversed(said.items())}
    place = {kind: order.index(text) for kind, text in said.items()}
    metrics: dict[str, dict[str, float]] = {one: {} for one in wanted}
    for checkpoint, name, value in zip(
        *catalog.sql(_METRICS, [wanted]).to_pydict().values(), strict=True
    ):
        metrics[checkpoint][name] = value  # the measured ones come last
    configs: dict[str, dict[str, Any]] = {}
    facts = {}
    for one in wanted:
        row = rows[one]
        config = configs.setdefault(row["model_id"], json.loads(row["config"] or "{}"))
        facts[one] = NetworkFacts(
            checkpoint_id=one,
            model_id=row["model_id"],
            blueprint=place[kinds[one]],
            dataset=dataset_of(config, row["trained_on"]),
            config=config,
            metrics=metrics[one],
            epoch=row["epoch"],
            license=row["license"],
        )
    generated = sum(row["generated"] for row in rows.values())
    return KnownNetworks(facts, tuple(by_text[text] for text in order), generated)


def _text(blueprint: Blueprint) -> str:
    """What a blueprint is, whatever its name and the network that its bytes aside are from."""
    config = json.dumps(blueprint.config, sort_keys=True, default=str)
    return f"{blueprint.architecture_id}\0{blueprint.family}\0{config}"


def _blueprint(catalog: Catalog, checkpoint_id: str) -> Blueprint:
    """How a checkpoint is built, as `Catalog.build` does it, with its bytes aside."""
    reader = catalog.reader
    architecture, adapter, config = reader.description(checkpoint_id)
    if adapter is None:
        raise ArchitectureError(
            f"Checkpoint {checkpoint_id}: no architecture adapter recognised it, so networks like it could not be "
            f"built. Leave architecture {architecture} out of the query, or install a plugin that knows it."
        )
    named = reader.snapshot.row("architectures", architecture, ["name"])
    return Blueprint(
        vector=reader.vector(architecture),
        family=adapter,
        config=config,
        name=(named or {}).get("name") or "",
        aside=build_dataset(catalog, [checkpoint_id], target=None).read_aside([0]).tobytes(),
    )


# --- data sets and licences -------------------------------------------------------------------------------------------


def dataset_of(config: Mapping[str, Any], trained_on: str | None) -> str:
    """Short name of the data set of a network: its own hyper-parameter `dataset`, or what its lineage says."""
    given = config.get("dataset")
    if isinstance(given, str) and given:
        return given
    return dataset_name(trained_on) if trained_on else ""


def dataset_name(source: str) -> str:
    """`mnist` of `npz:folder/mnist.npz`, `torchvision:MNIST` or `hub:org/mnist@main`: as data sets name themselves."""
    scheme, colon, rest = source.partition(":")
    if not colon:
        scheme, rest = "", source
    last = rest.rstrip("/").rpartition("/")[2]
    if scheme == "hub":
        return last.partition("@")[0].lower()
    if scheme == "torchvision":
        return last.lower()
    return last.removesuffix(".npz")


def licences(facts: Iterable[NetworkFacts]) -> dict[str, int]:
    """How many networks are under which licence; `unknown` counts those that declare none."""
    counts = Counter(fact.license or UNKNOWN_LICENCE for fact in facts)
    return dict(sorted(counts.items()))


def joined_licence(names: Sequence[str]) -> str | None:
    """The licence of what was made from networks under these, all of which hold; None where none is declared."""
    if not set(names) - {UNKNOWN_LICENCE}:
        return None
    return " AND ".join(sorted(set(names)))
