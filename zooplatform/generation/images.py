"""The images that networks of a catalog were trained and measured on, found again by what their lineage says.

    data = task_images(catalog, ids, folder="images")["mnist"]
    data.train.x, data.validation.x, data.test.x       # three parts that share no image

A lineage edge `trained_on` names the source (`npz:mnist.npz`), how its images were prepared, and the SHA-256 of what
came of it; what is read now has to have the same.

Legend for shapes: N images of a part, and C, H, W of an image; or F values where inputs are vectors.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from zooplatform.config import load_settings
from zooplatform.errors import ConfigError, NotInstalledError, SourceError
from zooplatform.fitting import TaskImages
from zooplatform.generation.facts import dataset_of
from zooplatform.growing.images import ImageData, Split, read_images, read_unused
from zooplatform.growing.recipe import DataRecipe

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    from zooplatform.catalog import Catalog

__all__ = [
    "VALIDATION_SHARE",
    "Preparation",
    "TaskData",
    "available_images",
    "preparations",
    "read_task",
    "task_images",
]

# Share of the training images that learning rates and the like are chosen on; nothing is fitted to them.
VALIDATION_SHARE = 0.1

_MOST_FINAL = 10_000

_TRAINED_ON = """
    select c.checkpoint_id, m.config, l.parent_id, l.detail
    from (select unnest(?::varchar[]) as checkpoint_id) asked
    join checkpoints c using (checkpoint_id) join models m using (model_id)
    left join lineage l on l.child_id = m.model_id and l.relation = 'trained_on'
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskData:
    """A data set in three parts that share no image.

    Attributes:
        name: short name, `mnist`.
        source: the reference that it was read from.
        sha256: of its prepared training and test images together, as in the lineage of networks.
        train: what networks and generators may learn from.
        validation: `VALIDATION_SHARE` of the training images, to choose by.
        test: what networks are measured on; of a last look, images that they were neither trained nor tested on.
        num_classes: classes from 0 to `num_classes` - 1.
        recipe: how the images were prepared.
        notes: what was left out and why.
    """

    name: str
    source: str
    sha256: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    recipe: DataRecipe
    notes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input, (C, H, W) or (F,)."""
        return tuple(self.train.x.shape[1:])

    @property
    def images(self) -> TaskImages:
        """The training part, as generators get it."""
        return TaskImages(self.name, self.train.x, self.train.y, self.num_classes)

    def describe(self) -> dict[str, Any]:
        """For records: what it is, not where it lies."""
        return {
            "sha256": self.sha256,
            "shape": list(self.shape),
            "num_classes": self.num_classes,
            "num_train": len(self.train.y),
            "size": self.recipe.size,
            "grayscale": self.recipe.grayscale,
        }

    def image_data(self) -> ImageData:
        """The training and the test part, as growing trains and measures on."""
        return ImageData(
            name=self.name,
            source=self.source,
            train=self.train,
            test=self.test,
            num_classes=self.num_classes,
            sha256=self.sha256,
        )


class Variant(NamedTuple):
    """One way in which the images of a data set were prepared, and for how many networks.

    `stated` says that the lineage tells all of it, as older ones do not.
    """

    source: str
    recipe: DataRecipe
    sha256: str
    networks: int
    stated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What lineages say of one data set.

    Attributes:
        name: of the data set.
        variants: what networks were trained on, that of most networks first; empty where no lineage says it.
        networks: how many networks are of this data set.
    """

    name: str
    variants: tuple[Variant, ...] = ()
    networks: int = 0


def preparations(catalog: Catalog, ids: Iterable[str]) -> dict[str, Preparation]:
    """The data sets of networks, by name; those of which nothing is known are left out."""
    wanted = list(dict.fromkeys(ids))
    variants: dict[str, Counter[tuple[str, str]]] = {}
    counts: Counter[str] = Counter()
    for row in catalog.sql(_TRAINED_ON, [wanted]).to_pylist():
        parent, detail = row["parent_id"], row["detail"]
        name = dataset_of(json.loads(row["config"] or "{}"), parent)
        if not name:
            continue
        counts[name] += 1
        known = variants.setdefault(name, Counter())
        if parent is not None and not parent.startswith("function:"):
            # How many of the images a single network saw makes no other data set.
            said = {k: v for k, v in json.loads(detail or "{}").items() if k != "num_train"}
            known[parent, json.dumps(said, sort_keys=True)] += 1
    return {
        name: Preparation(
            name=name,
            networks=counts[name],
            variants=_merged(
                _variant(parent, json.loads(said), networks)
                for (parent, said), networks in sorted(found.items())
            ),
        )
        for name, found in sorted(variants.items())
    }


def _merged(variants: Iterable[Variant]) -> tuple[Variant, ...]:
    """Of those that are the same images, one; that of most networks first."""
    by_hash: dict[str, Variant] = {}
    for one in variants:
        other = by_hash.get(one.sha256, one)
        clearer = one if one.stated else other
        count = one.networks + (other.networks if other is not one else 0)
        by_hash[one.sha256] = clearer._replace(networks=count)
    return tuple(sorted(by_hash.values(), key=lambda v: (-v.networks, v.sha256)))


def _variant(source: str, detail: Mapping[str, Any], networks: int) -> Variant:
    kept = {item.name for item in fields(DataRecipe)} - {"source", "folder"}
    given = {key: value for key, value in (detail.get("data") or {}).items() if key in kept}
    stated = bool(given)
    if not stated and detail.get("num_test"):
        # Older lineages say only how many images were kept for testing; the hash tells whether that is enough.
        given = {"test": detail["num_test"]}
    recipe = DataRecipe(source=(source,), **given)
    return Variant(source, recipe, str(detail.get("sha256") or ""), networks, stated)


# --- reading ----------------------------------------------------------------------------------------------------------


def task_images(
    catalog: Catalog,
    ids: Iterable[str],
    *,
    folder: str | os.PathLike[str] | None = None,
    sources: Mapping[str, str] | None = None,
    names: Sequence[str] | None = None,
    final: bool = False,
) -> dict[str, TaskData]:
    """The data sets of networks, read anew.

    Args:
        catalog: holds the networks.
        ids: checkpoint ids.
        folder: where relative paths of sources start; by default the setting `data_folder` (`ZOO_DATA_FOLDER`), else
            the working directory.
        sources: other sources by the name of the data set, for images that lie elsewhere now; compared with the same
            hash.
        names: only these data sets; all by default.
        final: the test part is what all recipes left out, at most 10,000 images, for a last look.

    Raises:
        ConfigError: the images are not those that the networks were trained on, a name is not one of theirs, or
            nothing is left for a last look.
        SourceError: a data set cannot be had; the text says what to do.
        NotInstalledError: it needs a library that is not installed.
    """
    known = preparations(catalog, ids)
    _check_names(known, [*(sources or {}), *(names or ())])
    wanted = known if names is None else dict.fromkeys(names)
    return {
        name: read_task(known[name], folder=folder, source=(sources or {}).get(name), final=final)
        for name in wanted
    }


def available_images(
    catalog: Catalog,
    ids: Iterable[str],
    *,
    folder: str | os.PathLike[str] | None = None,
    sources: Mapping[str, str] | None = None,
) -> tuple[dict[str, TaskData], list[str]]:
    """As `task_images`, but what cannot be had is left out: what could be had, and why the rest could not.

    A source that is given in `sources` has to be there.
    """
    known = preparations(catalog, ids)
    _check_names(known, list(sources or {}))
    found: dict[str, TaskData] = {}
    notes = []
    for name, preparation in known.items():
        given = (sources or {}).get(name)
        try:
            found[name] = read_task(preparation, folder=folder, source=given)
        except (ConfigError, SourceError, NotInstalledError) as exc:
            if given is not None:
                raise
            notes.append(f"Images of {name} left out: {exc}")
        else:
            notes += found[name].notes
    return found, notes


def read_task(
    preparation: Preparation,
    *,
    folder: str | os.PathLike[str] | None = None,
    source: str | None = None,
    final: bool = False,
) -> TaskData:
    """One data set, read anew; arguments and errors as for `task_images`."""
    name = preparation.name
    where = str(load_settings().data_folder if folder is None else folder)
    if not preparation.variants:
        raise ConfigError(
            f"Data set {name!r}: no lineage says which images its networks were trained on, so there is nothing to "
            "compare others with."
        )
    sizes = {(one.recipe.size, one.recipe.grayscale) for one in preparation.variants}
    if len(sizes) > 1:
        said = ", ".join(str(size) for size, _ in sorted(sizes))
        raise ConfigError(
            f"Data set {name!r}: its networks take images of several sizes or colours (sizes {said}; 0 is as they "
            "come). Choose networks of one in the query."
        )
    first, *others = (_read(name, one, where, source) for one in preparation.variants)
    notes = []
    if others:
        notes.append(
            f"Data set {name!r} was split in {len(others) + 1} ways; the images are those of "
            f"{preparation.variants[0].networks:,} of {preparation.networks:,} networks."
        )
    if final:
        recipe = replace(preparation.variants[0].recipe, folder=where)
        seen = [part for one in (first, *others) for part in (one.train, one.test)]
        test, _ = _unseen(read_unused(source or recipe.source[0], recipe), seen)
        test = Split(test.x[:_MOST_FINAL], test.y[:_MOST_FINAL])
    elif others:
        test, dropped = _unseen(first.test, [other.train for other in others])
        notes[0] += f" {dropped:,} of its test images are left out, which others trained on."
    else:
        test = first.test
    if not len(test.y):
        raise ConfigError(
            f"Data set {name!r}: its networks were trained or tested on all images, so none is left for a last look. "
            "Leave it out, or grow networks on fewer (data.train)."
            if final
            else f"Data set {name!r}: of the test images of some networks none is unseen by the others. Choose "
            "networks of one recipe in the query."
        )
    kept = len(first.train.y) - round(VALIDATION_SHARE * len(first.train.y))
    if not 0 < kept < len(first.train.y):
        raise ConfigError(f"Data set {name!r} has {len(first.train.y)} training images, too few.")
    return TaskData(
        name=name,
        source=first.source,
        sha256=first.sha256,
        # Their order was drawn already when they were prepared.
        train=Split(first.train.x[:kept], first.train.y[:kept]),
        validation=Split(first.train.x[kept:], first.train.y[kept:]),
        test=test,
        num_classes=first.num_classes,
        recipe=preparation.variants[0].recipe,
        notes=tuple(notes),
    )


def _read(name: str, variant: Variant, folder: str, source: str | None) -> ImageData:
    given = source or variant.source
    try:
        data = read_images(given, replace(variant.recipe, folder=folder))
    except SourceError as exc:
        raise SourceError(
            exc.subject,
            exc.reason,
            f"Say where the images of {name!r} are: --data-folder FOLDER (or ZOO_DATA_FOLDER), or "
            f"--data {name}=SOURCE.",
        ) from exc
    if data.sha256 != variant.sha256:
        raise ConfigError(
            f"Data set {name!r}: the images of {given} are not those that the networks were trained on (SHA-256 "
            f"{data.sha256[:12]}…, their lineage says {variant.sha256[:12] or 'nothing'}…). Give the same file: "
            f"--data-folder FOLDER, or --data {name}=SOURCE."
        )
    return data


def _unseen(test: Split, others: Sequence[Split]) -> tuple[Split, int]:
    """The images that are in none of the other parts, and how many are."""
    seen = {row.tobytes() for part in others for row in part.x.numpy()}
    new = torch.tensor([row.tobytes() not in seen for row in test.x.numpy()], dtype=torch.bool)
    return Split(test.x[new], test.y[new]), int((~new).sum())


def _check_names(known: Mapping[str, Preparation], given: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(
                f"{name!r} is no data set of these networks. They have {', '.join(known) or 'none'}."
            )
