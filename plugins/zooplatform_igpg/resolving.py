"""From what is asked for to what is known: which blueprint and data set a condition means.

An instruction is read by `understanding`, which gives probabilities of data sets, architectures and activations.
Every pair of a known data set and a known blueprint is scored by them and by how many training networks there are of
it, and the best is taken. So an instruction that says nothing known still gets what is known best, and the details of
the sample say how little was understood.

Legend for shapes: D known data sets, I size of a data set's vector, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from zooplatform.errors import ArtifactError, ConfigError
from zooplatform.interfaces import Condition
from zooplatform_igpg.images import embed_dataset, image_encoder, pooled
from zooplatform_igpg.instructions import Captioner, Subject, look_of
from zooplatform_igpg.text import text_encoder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zooplatform.fitting import Blueprint
    from zooplatform_igpg.telling import DatasetVectors
    from zooplatform_igpg.text import TextEncoder
    from zooplatform_igpg.understanding import Understanding

__all__ = ["Cell", "Kinds", "Meaning", "Resolver", "activation_of"]

_UNSEEN = 0.02  # share of all networks that a pair which no training network is of counts as
_SURE = 0.5  # confidence below which a level in an instruction is not followed


class Cell(NamedTuple):
    """Networks of one blueprint and data set."""

    blueprint: int
    dataset: str


def activation_of(blueprint: Blueprint) -> str:
    """The activation by the configuration of a blueprint; empty if it does not say."""
    found = blueprint.config.get("activation")
    return found if isinstance(found, str) else ""


class Kinds:
    """The kinds of networks there are, and how their values are numbered for captions.

    Attributes:
        cells: with the number of training networks of each.
        datasets, activations: names, sorted; the unknown data set is none of them.
        architectures: numbers of blueprints that stand for all that differ in the activation only.
    """

    def __init__(
        self, blueprints: Sequence[Blueprint], cells: Mapping[Cell, int], levels: int
    ) -> None:
        self.blueprints = tuple(blueprints)
        self.cells = {cell: int(count) for cell, count in sorted(cells.items())}
        self.levels = levels
        self.datasets = sorted({cell.dataset for cell in cells} - {""})
        used = sorted({cell.blueprint for cell in cells})
        self.activations = sorted({activation_of(blueprints[b]) for b in used} - {""})
        self.architectures: list[int] = []
        self.architecture_of: dict[int, int] = {}
        by_shape: dict[str, int] = {}
        for number in used:
            blueprint = blueprints[number]
            rest = {k: v for k, v in blueprint.config.items() if k != "activation"}
            shape = f"{blueprint.architecture_id} {blueprint.family} {sorted(rest.items())!r}"
            if shape not in by_shape:
                by_shape[shape] = len(self.architectures)
                self.architectures.append(number)
            self.architecture_of[number] = by_shape[shape]

    def captioner(self) -> Captioner:
        looks = [look_of(self.blueprints[number]) for number in self.architectures]
        return Captioner(self.datasets, looks, self.activations, self.levels)

    def subject(self, cell: Cell, level: int = -1) -> Subject:
        activation = activation_of(self.blueprints[cell.blueprint])
        return Subject(
            self.datasets.index(cell.dataset) if cell.dataset else -1,
            self.architecture_of[cell.blueprint],
            self.activations.index(activation) if activation else -1,
            level,
        )


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What a condition was taken for.

    Attributes:
        cell: blueprint and data set; the data set may be empty.
        like: the cell of training networks that it is most like, where there are none of `cell`.
        level: asked for, -1 if it was not.
        text: (U,) the understood instruction, or None.
        dataset: (I,) the vector of the data set by images that were given, or None.
        classes: (K, I / 2) vectors of its classes.
        named: whether the data set was named or said in words, and not only shown.
        details: for the lineage.
    """

    cell: Cell
    like: Cell
    level: int = -1
    text: torch.Tensor | None = None
    dataset: torch.Tensor | None = None
    classes: torch.Tensor | None = None
    named: bool = True
    details: Mapping[str, Any]


class Resolver:
    """Understands conditions.

    Args:
        kinds: what is known.
        understanding: of instructions.
        text: name of the text encoder and what it said of itself when fitting.
        images: the same of the image encoder.
        datasets: what the known data sets look like.
    """

    def __init__(
        self,
        kinds: Kinds,
        understanding: Understanding,
        text: tuple[str, Mapping[str, Any]],
        images: tuple[str, Mapping[str, Any]],
        datasets: DatasetVectors,
    ) -> None:
        self.kinds, self.understanding = kinds, understanding
        self._looks, self.datasets = datasets, datasets.typical
        self._text, self._images = text, images
        self._encoder: TextEncoder | None = None

    def __call__(self, condition: Condition | None) -> Meaning:
        """What is meant.

        Raises:
            ConfigError: nothing known meets it; the text lists what is known.
        """
        kinds = self.kinds
        instruction, dataset, architecture, images, config = condition or Condition()
        details: dict[str, Any] = {}
        scores = {facet: [0.0] * max(1, size) for facet, size in kinds.captioner().sizes().items()}
        text = None
        if instruction is not None and instruction.strip():
            text, scores = self._read(instruction)
            details["instruction"] = instruction
        vector = classes = None
        if images is not None:
            classes = self._embedded(images)
            vector = self._looks.told(pooled(classes))
            classes = self._looks.told_classes(classes)
        allowed = self._allowed(architecture, config)
        if dataset is not None and dataset not in kinds.datasets:
            raise ConfigError(
                f"Nothing is known of data set {dataset!r}. Known: {', '.join(kinds.datasets) or 'none'}. "
                "Of a new one give images."
            )
        near = self._nearness(vector)
        cells = {
            Cell(blueprint, name): score
            for blueprint in allowed
            for name in ([dataset] if dataset is not None else kinds.datasets or [""])
            for score in [self._score(Cell(blueprint, name), scores, near)]
        }
        cell = max(cells, key=lambda one: (cells[one], -one.blueprint, one.dataset))
        like = cell if cell in kinds.cells else self._like(cell, vector)
        confidence = self._confidence(cells, cell)
        if text is not None and kinds.datasets:
            confidence *= math.exp(
                scores["speaks"][1]
            )  # an instruction may say nothing that is known
        level, sure = -1, 0.0
        if text is not None:
            levels = torch.tensor(scores["level"]).softmax(0)
            sure, level = float(levels.max()), int(levels.argmax())
            level = level if sure > _SURE and kinds.levels > 1 else -1
        blueprint = kinds.blueprints[cell.blueprint]
        details |= {
            "dataset": cell.dataset,
            "blueprint": cell.blueprint,
            "architecture": blueprint.name or blueprint.architecture_id,
            "activation": activation_of(blueprint),
            "confidence": round(confidence, 4),
            "seen": cell in kinds.cells,
        }
        if level >= 0:
            details["level"] = level
        return Meaning(
            cell=cell, like=like, level=level, text=text, dataset=vector, classes=classes,
            named=dataset is not None or text is not None, details=details,
        )  # fmt: skip

    # --- reading ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _read(self, instruction: str) -> tuple[torch.Tensor, dict[str, list[float]]]:
        if self._encoder is None:
            self._encoder = text_encoder(*self._text)
        hidden = self.understanding(self._encoder.encode([instruction]))
        said = self.understanding.said(hidden)
        return hidden[0], {facet: values[0].tolist() for facet, values in said.items()}

    def _embedded(self, images: torch.Tensor) -> torch.Tensor:
        name, described = self._images
        encoder = image_encoder(name)
        if encoder.describe() != dict(described):
            raise ArtifactError(
                f"The image encoder {name} is another one than the generator was fitted with ({encoder.describe()} "
                f"instead of {dict(described)}). Put its weights there, or fit again."
            )
        return embed_dataset(encoder, images)

    def _allowed(self, architecture: str | None, config: Mapping[str, Any] | None) -> list[int]:
        """Blueprints of an architecture with what a configuration says."""
        used = sorted({cell.blueprint for cell in self.kinds.cells})
        found = used
        if architecture is not None:
            ids = {b: self.kinds.blueprints[b].architecture_id for b in used}
            found = [b for b in found if architecture and ids[b].startswith(architecture)]
            if not found:
                raise ConfigError(
                    f"No network of architecture {architecture!r} was fitted on. Known: {self._listed(used)}."
                )
            if len({ids[b] for b in found}) > 1:
                raise ConfigError(
                    f"Architecture {architecture!r} may be one of {self._listed(found)}. Give more of the id."
                )
        if config:
            fitting = [b for b in found if _meets(self.kinds.blueprints[b].config, config)]
            if not fitting:
                raise ConfigError(
                    f"No network with {dict(config)!r} in its configuration was fitted on. "
                    f"Known: {self._listed(found)}."
                )
            found = fitting
        return found

    def _listed(self, blueprints: Sequence[int]) -> str:
        said = []
        for number in blueprints:
            one = self.kinds.blueprints[number]
            activation = activation_of(one)
            said.append(
                f"{one.architecture_id} ({one.name}{', ' + activation if activation else ''})"
            )
        return ", ".join(said)

    # --- choosing -----------------------------------------------------------------------------------------------------

    def _score(
        self, cell: Cell, scores: Mapping[str, Sequence[float]], near: Sequence[float]
    ) -> float:
        subject = self.kinds.subject(cell)
        total = sum(self.kinds.cells.values())
        found = math.log(self.kinds.cells.get(cell, _UNSEEN * total) / total)
        if subject.dataset >= 0:
            found += scores["dataset"][subject.dataset] + near[subject.dataset]
        found += scores["architecture"][subject.architecture]
        if subject.activation >= 0:
            found += scores["activation"][subject.activation]
        return found

    def _nearness(self, vector: torch.Tensor | None) -> list[float]:
        """By data set, minus the distance of its vector to the given one; 0 without one."""
        count = max(1, len(self.kinds.datasets))
        if vector is None or not len(self.datasets):
            return [0.0] * count
        distances = (self.datasets - vector).norm(dim=1).nan_to_num(1e3)
        # The nearest counts fully, one that is twice as far hardly.
        near = (-4 * distances / distances.min().clamp_min(1e-6)).clamp_min(-20)
        return [float(value) for value in near]

    def _like(self, cell: Cell, vector: torch.Tensor | None) -> Cell:
        """The cell of training networks of the same blueprint whose data set is most alike."""
        same = [c for c in self.kinds.cells if c.blueprint == cell.blueprint]
        wanted = vector
        if wanted is None and cell.dataset:
            wanted = self.datasets[self.kinds.datasets.index(cell.dataset)]

        def distance(other: Cell) -> tuple[float, int]:
            far = math.inf
            if wanted is not None and other.dataset:
                own = self.datasets[self.kinds.datasets.index(other.dataset)]
                far = float((own - wanted).norm().nan_to_num(math.inf))
            return far, -self.kinds.cells[other]

        return min(same, key=distance)

    @staticmethod
    def _confidence(cells: Mapping[Cell, float], chosen: Cell) -> float:
        """Probability of the chosen pair among all that were possible."""
        values = torch.tensor(list(cells.values()), dtype=torch.float64)
        return float(values.softmax(0)[list(cells).index(chosen)])


def _meets(config: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """Whether all that is asked for is in a configuration; tables are compared key by key."""
    for key, value in asked.items():
        if key not in config:
            return False
        if isinstance(value, dict) and isinstance(config[key], dict):
            if not _meets(config[key], value):
                return False
        elif _plain(config[key]) != _plain(value):
            return False
    return True


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
