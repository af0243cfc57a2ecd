"""Source `pdiff-zoo:`: checkpoints whose file names are all that is known of them (p-diff, RPG).

`dataset/<category>/<tag>/checkpoint/NNNN_acc0.xxxx_seedSSSS_<tag>[_class<bits>].pth`: number, test accuracy as a
fraction, seed of the run, and with `class` the classes of a binary task as the bits of a whole number.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

from zooplatform.errors import SourceError
from zooplatform.interfaces import (
    CheckpointRecord,
    MetricRecord,
    ModelInfo,
    PopulationBatch,
    Progress,
)
from zooplatform_zoos.batching import Item, Network, Reports, stream
from zooplatform_zoos.names import folder_of, walk
from zooplatform_zoos.torchfile import read_torch, state_dict_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["PdiffZoo", "parse_name"]

_SUFFIXES = (".pth", ".pt")
_ACCURACY = re.compile(r"^acc(\d+(?:\.\d+)?|nan)$")
_SEED = re.compile(r"^seed(\d+)$")
_CLASS = re.compile(r"^class(\d+)$")
_MAX_CLASSES = 4096


def parse_name(stem: str) -> dict[str, Any] | None:
    """`number`, `accuracy`, `seed`, `tag` and `class` of a file name without its ending, or None.

    The pieces after the number may come in any order; what is none of them is the tag.
    """
    first, *pieces = stem.split("_")
    if not first.isascii() or not first.isdigit():
        return None
    found: dict[str, Any] = {"number": int(first), "tag": []}
    for piece in pieces:
        if match := _ACCURACY.match(piece):
            found["accuracy"] = float(match[1])
        elif match := _SEED.match(piece):
            found["seed"] = int(match[1])
        elif match := _CLASS.match(piece):
            found["class"] = int(match[1])
        elif piece:
            found["tag"].append(piece)
    if not {"accuracy", "seed"} <= set(found):
        return None
    found["tag"] = "_".join(found["tag"])
    return found


class PdiffZoo:
    """Every checkpoint file below a folder; one tag and seed (and class) is one training run."""

    def describe(self, ref: str) -> Mapping[str, str]:
        """The name of the zoo: its folder's."""
        return {"name": folder_of(ref, "pdiff-zoo").name}

    def batches(
        self,
        ref: str,
        *,
        done: frozenset[tuple[str, int | None]] = frozenset(),
        progress: Progress | None = None,
    ) -> Iterator[PopulationBatch]:
        """Batches of one layout each.

        Raises:
            SourceError: no file of the folder has such a name.
        """
        folder = folder_of(ref, "pdiff-zoo")
        reports = Reports()
        files = [path for path in walk(folder) if path.suffix in _SUFFIXES]
        named = [(path, found) for path in files if (found := parse_name(path.stem)) is not None]
        if not named:
            raise SourceError(
                folder,
                "no file is named NNNN_acc0.xxxx_seedSSSS_<tag>.pth.",
                "Give the folder above the checkpoint folders.",
            )
        known = {path for path, _ in named}
        for path in files:
            if path not in known:
                reports.fail(
                    f"pdiff-zoo:{ref}/{path.relative_to(folder)}",
                    "its name does not say number, accuracy and seed, which are nowhere else",
                )
        # Accuracies are fractions in the published files; one above 1 says that the folder counts in percent.
        percent = {path.parent for path, found in named if found["accuracy"] > 1}
        for parent in sorted(percent):
            reports.note(f"{parent.name}: accuracies are given in percent; stored as fractions")
        items = (
            _item(path, found, folder, ref, reports, percent=path.parent in percent)
            for path, found in named
        )
        yield from stream(
            items, reports, what=folder.name, total=len(named), done=done, progress=progress
        )


def _item(
    path: Path, found: Mapping[str, Any], folder: Path, ref: str, reports: Reports, *, percent: bool
) -> Item:
    where = path.parent.relative_to(folder)
    parts = [part for part in where.parts if part not in ("dataset", "checkpoint")]
    run = f"{found['tag']}_seed{found['seed']}"
    config: dict[str, Any] = {"tag": found["tag"], "seed": found["seed"]}
    if len(parts) > 1:
        config["category"] = parts[-2]
    if "class" in found:
        bits = found["class"]
        run += f"_class{bits}"
        config["class"] = bits
        config["classes"] = [
            i for i in range(min(bits.bit_length(), _MAX_CLASSES)) if bits >> i & 1
        ]
    if percent:
        config["source::accuracy_unit"] = "percent"
    name = (where / run).as_posix()
    info = ModelInfo(
        key=f"pdiff-zoo:{folder.name}/{name}",
        name=name,
        source=f"pdiff-zoo:{ref}",
        seed=found["seed"],
        config=config,
    )
    accuracy = found["accuracy"] / (100 if percent else 1)
    record = CheckpointRecord(
        model=info,
        step=found["number"],
        metrics=(MetricRecord(name="test_accuracy", value=accuracy, split="test"),),
    )
    shown = f"pdiff-zoo:{ref}/{path.relative_to(folder)}"
    return Item(info.key, found["number"], shown, partial(_load, path, record, reports))


def _load(path: Path, record: CheckpointRecord, reports: Reports) -> Network:
    state, notes = state_dict_of(read_torch(path), path)
    for note in notes:
        reports.note(note)
    return Network(state=state, record=record)
