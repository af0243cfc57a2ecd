"""Rules that compare hyper-parameters and configurations with the layout: outputs, biases, parameters."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

from zooplatform.linting.findings import Finding, finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from zooplatform.catalog import Catalog

__all__ = ["biases", "outputs", "parameters"]

# The last part of a key, as public zoos and libraries write it (`model::o_dim`, `num_classes`).
_OUTPUTS = (
    "o_dim|out_dim|output_dim|num_outputs|n_outputs|num_classes|n_classes|nclasses|num_labels"
)
_BIASES = "use_bias|bias"
_PARAMETERS = "num_parameters|n_parameters|num_params|n_params|nparams|param_count|total_params"

_TRUTH = {"true": True, "1": True, "false": False, "0": False}


class _Claim(NamedTuple):
    """What some models of one zoo and one architecture declare."""

    zoo: str | None
    architecture_id: str
    key: str
    value: Any


def outputs(catalog: Catalog) -> Iterator[Finding]:
    """A declared number of outputs is that of the last layer, where that is a linear or convolutional one.

    One output for two classes passes: a binary classifier needs no more.
    """
    for claim, models, layout in _claims(catalog, _OUTPUTS):
        declared, actual = _whole(claim.value), _last_outputs(layout)
        # 0 means a network without its head, whose last layer says nothing.
        if declared is None or declared <= 0 or actual is None or declared == actual[1]:
            continue
        name, count = actual
        if (declared, count) == (2, 1):
            continue
        yield finding(
            "outputs",
            "warning",
            "model",
            models,
            zoo=claim.zoo,
            declared=f"{claim.key} = {declared} is declared",
            found=f"the last layer ({name}) has {count:,} outputs",
            repair=f"Go by the tensor; correct {claim.key} at the source and ingest it into a new catalog.",
        )


def biases(catalog: Catalog) -> Iterator[Finding]:
    """Linear and convolutional layers have biases exactly when that is declared."""
    for claim, models, layout in _claims(catalog, _BIASES):
        declared = _TRUTH.get(str(claim.value).lower())
        layers = [t for t in layout if t["layer_type"] in ("conv", "linear")]
        if declared is None or not layers:
            continue
        names = [t["name"] for t in layers if _is_bias(t)]
        if declared == bool(names):
            continue
        yield finding(
            "biases",
            "warning",
            "model",
            models,
            zoo=claim.zoo,
            declared=f"{claim.key} = {declared} is declared",
            found=(
                f"there are biases ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"
                if names
                else "no linear or convolutional layer has a bias"
            ),
            repair=f"Go by the tensors; correct {claim.key} at the source and ingest it into a new catalog.",
        )


def parameters(catalog: Catalog) -> Iterator[Finding]:
    """A declared number of parameters is that of the tensors, with or without buffers."""
    for claim, models, layout in _claims(catalog, _PARAMETERS):
        declared = _whole(claim.value)
        trained = sum(t["numel"] for t in layout if not _is_buffer(t))
        everything = sum(t["numel"] for t in layout)
        if declared is None or declared in (trained, everything):
            continue
        yield finding(
            "parameters",
            "warning",
            "model",
            models,
            zoo=claim.zoo,
            declared=f"{claim.key} = {declared:,} is declared",
            found=f"the tensors hold {trained:,} parameters ({everything:,} elements with buffers)",
            repair="Tensors may be missing from the file, or the count is of another network: compare the layout "
            "(`zoo show`) with the source.",
        )


# --- what is declared ------------------------------------------------------------------------------------------------


def _claims(
    catalog: Catalog, keys: str
) -> Iterator[tuple[_Claim, list[str], list[Mapping[str, Any]]]]:
    """Equal declarations with the models that make them, and their layout."""
    # Only configurations that name such a key are parsed.
    pattern = rf'"([^"]*[^"a-z])?({keys})"\s*:'
    rows = catalog.sql(
        """
        select m.model_id, m.zoo_id, m.architecture_id, m.config
        from models m where regexp_matches(m.config, ?, 'i')
        union all
        select m.model_id, m.zoo_id, m.architecture_id, a.config
        from models m join architectures a using (architecture_id)
        where regexp_matches(a.config, ?, 'i')
        order by all
        """,
        [pattern, pattern],
    )
    wanted = re.compile(rf"(?:.*[^a-z])?(?:{keys})", re.IGNORECASE)
    claims: defaultdict[_Claim, list[str]] = defaultdict(list)
    for model, zoo, arch, config in zip(*(c.to_pylist() for c in rows.columns), strict=True):
        for key, value in _flat(json.loads(config)):
            if wanted.fullmatch(key) and isinstance(value, bool | int | float | str):
                members = claims[_Claim(zoo, arch, key, value)]
                # An architecture may repeat what the hyper-parameters say.
                if not members or members[-1] != model:
                    members.append(model)
    layouts = _layouts(catalog, {claim.architecture_id for claim in claims})
    for claim, models in claims.items():
        if claim.architecture_id in layouts:
            yield claim, models, layouts[claim.architecture_id]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _layouts(catalog: Catalog, wanted: set[str]) -> dict[str, list[Mapping[str, Any]]]:
    if not wanted:
        return {}
    rows = catalog.sql(
        "select architecture_id, layout from architectures "
        "where architecture_id in (select unnest(?))",
        [sorted(wanted)],
    )
    return {row["architecture_id"]: row["layout"] for row in rows.to_pylist()}


def _whole(value: Any) -> int | None:
    """A declared count; None for what is not a whole number."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return int(number) if number.is_integer() else None


# --- what the tensors say --------------------------------------------------------------------------------------------


def _is_bias(tensor: Mapping[str, Any]) -> bool:
    return len(tensor["shape"]) == 1 and str(tensor["name"]).rpartition(".")[2] == "bias"


def _is_buffer(tensor: Mapping[str, Any]) -> bool:
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    floating = str(tensor["dtype"]).startswith(("float", "bfloat", "complex"))
    return not floating or str(tensor["name"]).rpartition(".")[2] in buffers


def _last_outputs(layout: list[Mapping[str, Any]]) -> tuple[str, int] | None:
    """Name and outputs of the last layer; None where it is no single linear or convolutional layer."""
    last = max((t["layer_index"] for t in layout if t["layer_index"] is not None), default=None)
    tensors = [t for t in layout if t["layer_index"] == last]
    if last is None or any(t["layer_type"] not in ("conv", "linear") for t in tensors):
        return None
    matrices = [t for t in tensors if len(t["shape"]) >= 2]
    if len(matrices) != 1:
        return None
    # The bias decides where there is one: transposed convolutions have their inputs first.
    size = next((t["shape"][0] for t in tensors if _is_bias(t)), matrices[0]["shape"][0])
    return matrices[0]["name"], size
