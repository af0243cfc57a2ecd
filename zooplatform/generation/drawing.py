"""Networks from a stored generator, checked as they come and not yet part of any catalog.

    artifact = find_artifact(catalog, "my-igpg", "generator")
    for batch in draw(catalog, artifact, 50, condition=Condition(dataset="mnist"), seed=0):
        network = Builder(catalog.recogniser).load(batch.blueprint, batch.weights[0])

Legend for shapes: n networks, B of one batch, P values of one network; K classes with S images each of shape (C, H, W).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from zooplatform.artifacts import load_artifact
from zooplatform.errors import ConfigError, PluginError
from zooplatform.fitting import TaskImages
from zooplatform.growing.images import read_images
from zooplatform.growing.recipe import DataRecipe
from zooplatform.interfaces import Condition, GeneratedBatch

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from zooplatform.artifacts import Artifact
    from zooplatform.catalog import Catalog
    from zooplatform.growing.images import ImageData
    from zooplatform.interfaces import Generator

__all__ = ["EXAMPLES", "check_asked", "condition_of", "draw", "example_images"]

# Images of each class that describe a data set, as in the paper (arXiv 2504.02012, section 3.2).
EXAMPLES = 5


def draw(
    catalog: Catalog,
    artifact: Artifact,
    n: int,
    *,
    condition: Condition | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    options: Mapping[str, Any] | None = None,
    generator: Generator | None = None,
) -> Iterator[GeneratedBatch]:
    """`n` networks in batches as they are made; nothing is stored.

    Args:
        catalog: holds the artifact.
        artifact: the generator.
        n: number of networks.
        condition, seed, temperature, top_k, options: as for `Generator.sample`.
        generator: the loaded artifact, where it is at hand; loaded by default.

    Yields:
        Batches whose weights (B, P) lie on the CPU, in the main dtype of their layout, all finite.

    Raises:
        ConfigError: the generator refuses the condition or an option.
        PluginError: what it gives is no networks of the blueprint that it names, not finite, or not `n` of them.
        ArtifactError: the artifact cannot be loaded.
    """
    check_asked(n, temperature, top_k)
    made: Generator = load_artifact(catalog, artifact) if generator is None else generator
    label = f"Generator {artifact.name!r} ({artifact.backend})"
    count = 0
    for batch in made.sample(
        n, condition=condition, seed=seed, temperature=temperature, top_k=top_k, options=options
    ):
        yield _checked(batch, label, count)
        count += len(batch.weights)
        if count > n:
            break
    if count != n:
        raise PluginError(
            f"{label} gave {'more than ' if count > n else ''}{min(count, n)} networks where {n} were asked for. Its "
            "plugin has to be repaired."
        )


def check_asked(n: int, temperature: float, top_k: int | None) -> None:
    """Raises ConfigError unless networks can be drawn so."""
    if n < 1:
        raise ConfigError(f"{n} networks are none. Ask for 1 or more.")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ConfigError(f"Temperature {temperature} is not usable. Give 0 or more.")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"top_k={top_k} leaves no code to draw. Give 1 or more.")


def _checked(batch: GeneratedBatch, label: str, before: int) -> GeneratedBatch:
    """A batch on the CPU and in the dtype of its layout."""
    vector, weights = batch.blueprint.vector, batch.weights.detach()
    repair = "Its plugin has to be repaired."
    if weights.dim() != 2 or weights.shape[1] != vector.width:
        raise PluginError(
            f"{label} gave networks of shape {tuple(weights.shape)}; those of the layout that it names "
            f"({batch.blueprint.name or batch.blueprint.architecture_id}) have {vector.width:,} values. {repair}"
        )
    if len(batch.blueprint.aside) != vector.aside_bytes:
        raise PluginError(
            f"{label} gave {len(batch.blueprint.aside)} bytes aside; the layout that it names has "
            f"{vector.aside_bytes}. {repair}"
        )
    if batch.details and len(batch.details) != len(weights):
        raise PluginError(
            f"{label} gave details of {len(batch.details)} networks beside the weights of {len(weights)}. {repair}"
        )
    weights = weights.to("cpu", getattr(torch, vector.dtype)).contiguous()
    wrong = ~weights.isfinite().all(dim=1)
    if wrong.any():
        raise PluginError(
            f"{label} gave a network with weights that are not finite (number {before + int(wrong.int().argmax())}). "
            "Take another temperature or seed, or fit it again on networks that are finite."
        )
    return batch._replace(weights=weights)


# --- what a generator is told -----------------------------------------------------------------------------------------


def condition_of(
    artifact: Artifact,
    *,
    instruction: str | None = None,
    dataset: str | None = None,
    architecture: str | None = None,
    build_config: Mapping[str, Any] | None = None,
    images: torch.Tensor | None = None,
) -> Condition | None:
    """What was asked for, as a generator takes it; None where nothing was.

    Args:
        artifact: the generator that is asked.
        instruction: plain words.
        dataset: one of the data sets that it was fitted on.
        architecture: one of the architectures that it was fitted on, by name, id, or beginning of an id.
        build_config: as in `Condition`.
        images: (K, S, C, H, W) examples of a data set.

    Raises:
        ConfigError: it was fitted on no such data set or architecture; the text lists those that it was.
    """
    known = artifact.data.get("datasets", {})
    if dataset is not None and dataset not in known:
        raise ConfigError(
            f"Generator {artifact.name!r} was not fitted on a data set {dataset!r}. It knows "
            f"{', '.join(known) or 'none'}; show it examples of another with --images."
        )
    chosen = None if architecture is None else _architecture(artifact, architecture)
    given = Condition(instruction, dataset, chosen, images, build_config)
    return None if given == Condition() else given


def _architecture(artifact: Artifact, given: str) -> str:
    known = artifact.data.get("architectures", [])
    found = [item for item in known if given in (item["name"], item["architecture_id"])]
    found = found or [item for item in known if given and item["architecture_id"].startswith(given)]
    if len(found) != 1:
        said = [f"{item['name'] or 'unnamed'} ({item['architecture_id']})" for item in known]
        what = f"{len(found)} architectures are called" if found else "It was fitted on none called"
        raise ConfigError(
            f"Generator {artifact.name!r}: {what} {given!r}. It knows {', '.join(said) or 'none'}."
        )
    chosen: str = found[0]["architecture_id"]
    return chosen


def example_images(
    artifact: Artifact,
    source: str,
    *,
    folder: str | os.PathLike[str] = "",
    per_class: int = EXAMPLES,
    seed: int = 0,
) -> tuple[torch.Tensor, ImageData]:
    """Examples of a data set that need not be one of the fit, prepared as the images of the fit were.

    Args:
        artifact: the generator that is to see them.
        source: of the images, as in recipes: `npz:usps.npz`.
        folder: where a relative path starts.
        per_class: S.
        seed: which of the training images are taken.

    Returns:
        (K, S, C, H, W), and the data set that they are from.

    Raises:
        ConfigError: the generator was fitted without images, or on images of several shapes.
        SourceError, NotInstalledError: the source cannot be had.
    """
    every = [item["images"] for item in artifact.data.get("datasets", {}).values()]
    shapes = {tuple(item["shape"]) for item in every if item}
    if not shapes:
        raise ConfigError(
            f"Generator {artifact.name!r} was fitted without images, so it cannot be shown any. Fit it again where the "
            "images of its data sets are (--data-folder)."
        )
    if len(shapes) > 1:
        raise ConfigError(
            f"Generator {artifact.name!r} was fitted on images of several shapes "
            f"({', '.join(map(str, sorted(shapes)))}), so it is not known how to prepare others. Name a data set."
        )
    (shape,) = shapes
    recipe = DataRecipe(source=(source,), folder=str(folder))
    if len(shape) == 3:
        recipe = DataRecipe(
            source=(source,), folder=str(folder), size=shape[1], grayscale=shape[0] == 1
        )
    data = read_images(source, recipe)
    if data.shape != shape:
        raise ConfigError(
            f"The images of {source} are of shape {data.shape}; those that generator {artifact.name!r} was fitted on "
            f"are of shape {shape}. Give others."
        )
    train = TaskImages(data.name, data.train.x, data.train.y, data.num_classes)
    return train.examples(per_class, seed), data
