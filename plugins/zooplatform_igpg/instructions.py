"""Instructions for training: what is known of a network, said in many ways.

An instruction mentions some facets of a network (data set, architecture, activation, how good it is) and is silent on
others. With every text comes what it says: for each facet the weights of the values that it leaves possible. A text
that says nothing of a facet leaves all values, and a phrase that fits several leaves those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zooplatform_igpg import wording

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zooplatform.fitting import Blueprint

__all__ = ["FACETS", "Caption", "Captioner", "Look", "Subject", "describe_layers", "look_of"]

# What is told apart; `speaks` is whether a known data set is named at all.
FACETS = ("dataset", "architecture", "activation", "level", "speaks")
_TYPO, _DROP = 0.02, 0.02  # of letters and of words
_FIRST = 2.0  # how much likelier the first data set of a group is meant


class Subject(NamedTuple):
    """A network by the numbers of its values; -1 where nothing is known."""

    dataset: int
    architecture: int
    activation: int
    level: int


class Caption(NamedTuple):
    """A text and, by facet, the weights of the values that it leaves possible; they sum to 1."""

    text: str
    said: dict[str, np.ndarray[Any, np.dtype[np.float64]]]


@dataclass(frozen=True)
class Look:
    """What can be said about an architecture.

    Attributes:
        kind: `cnn resnet mlp transformer other`.
        name: of the architecture.
        convolutions, linears: layers of these types.
        parameters: trained ones.
        norm: whether there are normalisation layers.
    """

    kind: str
    name: str
    convolutions: int
    linears: int
    parameters: int
    norm: bool


def look_of(blueprint: Blueprint) -> Look:
    """What can be said about the architecture of a blueprint, from its layers and its configuration."""
    types = [layer.type for layer in blueprint.vector.layers()]
    config = str(dict(blueprint.config)).lower() + blueprint.name.lower()
    if "attention" in types:
        kind = "transformer"
    elif "conv" in types:
        kind = "resnet" if "resid" in config or "resnet" in config else "cnn"
    else:
        kind = "mlp" if "linear" in types else "other"
    return Look(
        kind=kind,
        name=blueprint.name,
        convolutions=types.count("conv"),
        linears=types.count("linear"),
        parameters=blueprint.vector.num_parameters,
        norm="norm" in types,
    )


def describe_layers(blueprint: Blueprint) -> str:
    """The architecture as a standardised text (IGPG, table 7): every layer with its shape, then what is configured."""
    fields = blueprint.vector.by_name
    parts = []
    for layer in blueprint.vector.layers():
        shape = fields[layer.tensors[0]].spec.shape
        parts.append(f"{layer.type} {'x'.join(map(str, shape))}")
    activation = blueprint.config.get("activation")
    tail = f"; activation {activation}" if isinstance(activation, str) else ""
    return f"{blueprint.family} {blueprint.name}: " + ", ".join(parts) + tail


class Captioner:
    """Writes instructions for networks of known values.

    Args:
        datasets: names; the empty one is an unknown data set, of which nothing is said.
        looks: of the architectures.
        activations: names.
        levels: how many there are; the last is the best.
    """

    def __init__(
        self,
        datasets: Sequence[str],
        looks: Sequence[Look],
        activations: Sequence[str],
        levels: int,
    ) -> None:
        self.datasets, self.looks = tuple(datasets), tuple(looks)
        self.activations, self.levels = tuple(activations), levels
        self._keys = [wording.known_name(name) for name in self.datasets]
        # What is said of data sets that are not known here, and not of known ones too.
        known = {words for key in self._keys for words in wording.DATASETS.get(key, ())}
        near = {key for names in wording.GROUPS for key in names if set(names) & set(self._keys)}
        self._foreign = [
            words
            for key, listed in wording.DATASETS.items()
            for words in listed
            if key not in self._keys and key not in near and words not in known
        ]
        sizes = sorted({look.parameters for look in self.looks})
        self._small = {sizes[0]} if len(sizes) > 1 else set()
        self._large = set(sizes[-max(1, len(sizes) // 3) :]) if len(sizes) > 1 else set()

    def sizes(self) -> dict[str, int]:
        """Number of values by facet, at least 1."""
        counts = (len(self.datasets), len(self.looks), len(self.activations), self.levels, 2)
        return {facet: max(1, count) for facet, count in zip(FACETS, counts, strict=True)}

    def caption(self, subject: Subject, draw: np.random.Generator) -> Caption:
        """An instruction for the network, by chance."""
        said = {facet: np.full(size, 1 / size) for facet, size in self.sizes().items()}
        said["speaks"] = np.array([1.0, 0.0])
        style = draw.random()
        if style < 0.12:
            return Caption(self._noise(draw), said)
        words: dict[str, str] = {}
        if subject.dataset >= 0 and draw.random() < 0.75:
            words["dataset"], said["dataset"] = self._dataset(subject.dataset, draw)
            said["speaks"] = np.array([0.0, 1.0])
        kind, said["architecture"] = self._kind(subject.architecture, draw)
        details = ""
        if subject.architecture >= 0 and draw.random() < 0.35:
            details, left = self._details(subject.architecture, draw)
            said["architecture"] = _both(said["architecture"], left)
        size = ""
        if draw.random() < 0.35:
            size, left = self._size(subject.architecture, draw)
            said["architecture"] = _both(said["architecture"], left)
        if subject.activation >= 0 and draw.random() < 0.5:
            words["activation"] = _one(self._activation_words(subject.activation), draw)
            said["activation"] = _only(len(self.activations), [subject.activation])
        if subject.level >= 0 and self.levels > 1 and draw.random() < 0.4:
            if subject.level == self.levels - 1:
                words["level"], said["level"] = _one(wording.HIGH, draw), _last(self.levels)
            elif subject.level == 0:
                words["level"] = _one(wording.LOW, draw)
                said["level"] = _only(self.levels, [0])
        text = self._keywords if style < 0.3 else self._sentence
        return Caption(_garbled(text(words, kind, details, size, draw), draw), said)

    # --- the parts ----------------------------------------------------------------------------------------------------

    def _dataset(self, number: int, draw: np.random.Generator) -> tuple[str, Any]:
        key = self._keys[number]
        own = wording.DATASETS.get(key, ())
        plain = self.datasets[number].replace("_", " ").replace("-", " ")
        groups = [(names, said) for names, said in wording.GROUPS.items() if key in names]
        if groups and draw.random() < 0.2:
            names, phrases = groups[int(draw.integers(len(groups)))]
            left = np.array([float(k in names) for k in self._keys])
            left[[k == names[0] for k in self._keys]] *= _FIRST
            return _one(phrases, draw), left / left.sum()
        if not own or draw.random() < 0.2:
            listed = (self.datasets[number], plain, f"the {plain} data set", f"{plain} images")
            return _one(listed, draw), _only(len(self.datasets), [number])
        same = [at for at, k in enumerate(self._keys) if k == key]
        return _one(own, draw), _only(len(self.datasets), same)

    def _kind(self, number: int, draw: np.random.Generator) -> tuple[str, Any]:
        every = np.full(max(1, len(self.looks)), 1 / max(1, len(self.looks)))
        if number < 0 or draw.random() < 0.35:
            return _one(wording.ANY_KIND, draw), every
        look = self.looks[number]
        if look.name and draw.random() < 0.12:
            same = [at for at, other in enumerate(self.looks) if other.name == look.name]
            return look.name, _only(len(self.looks), same)
        kinds = (
            {look.kind, "cnn"} if look.kind == "resnet" and draw.random() < 0.15 else {look.kind}
        )
        fits = [at for at, other in enumerate(self.looks) if other.kind in kinds]
        return _one(wording.BY_KIND["cnn" if "cnn" in kinds else look.kind], draw), _only(
            len(self.looks), fits
        )

    def _details(self, number: int, draw: np.random.Generator) -> tuple[str, Any]:
        look = self.looks[number]
        choices: list[tuple[str, Any]] = []
        if look.convolutions:
            count = look.convolutions
            word = _number(count, draw)
            fits = [a for a, other in enumerate(self.looks) if other.convolutions == count]
            choices += [(f"with {word} convolutions", fits), (f"of {word} conv layers", fits)]
        total = look.convolutions + look.linears
        fits = [a for a, o in enumerate(self.looks) if o.convolutions + o.linears == total]
        choices += [(f"with {_number(total, draw)} layers", fits), (f"{total} layers deep", fits)]
        fits = [a for a, o in enumerate(self.looks) if o.norm == look.norm]
        if look.norm:
            choices += [("with batch norm", fits), ("with normalisation layers", fits)]
        else:
            choices += [("without batch norm", fits)]
        count = look.parameters
        fits = [a for a, o in enumerate(self.looks) if abs(o.parameters - count) <= 0.1 * count]
        size = f"{count:,}" if draw.random() < 0.5 else f"{count}"
        rough = f"{count / 1000:.1f}k" if count < 10**6 else f"{count / 10**6:.1f} million"
        choices += [(f"of {size} parameters", fits), (f"with about {rough} weights", fits)]
        text, fits = choices[int(draw.integers(len(choices)))]
        return text, _only(len(self.looks), fits)

    def _size(self, number: int, draw: np.random.Generator) -> tuple[str, Any]:
        count = self.looks[number].parameters if number >= 0 else -1
        every = list(range(len(self.looks)))
        for words, sizes in ((wording.SMALL, self._small), (wording.LARGE, self._large)):
            if count in sizes:
                fits = [at for at, look in enumerate(self.looks) if look.parameters in sizes]
                return _one(words, draw), _only(len(self.looks), fits)
        # All of one size, or neither small nor large: then the word says nothing.
        word = _one(wording.SMALL, draw) if len(self.looks) < 2 else ""
        return word, _only(max(1, len(self.looks)), every or [0])

    def _activation_words(self, number: int) -> Sequence[str]:
        name = self.activations[number]
        return wording.ACTIVATIONS.get(name, (name, name.replace("_", " ")))

    def _noise(self, draw: np.random.Generator) -> str:
        """A text about something that no network here is for."""
        count = int(draw.integers(1, 8))
        words = [_one(wording.NOISE, draw) for _ in range(count)]
        topic = " ".join(words[: int(draw.integers(1, 4))])
        if self._foreign and draw.random() < 0.4:
            topic = _one(self._foreign, draw)
            words = [topic]
        if draw.random() < 0.6:
            words = [_one(wording.OPENINGS, draw), _one(wording.ARTICLES, draw),
                     _one(wording.ANY_KIND, draw), _one(wording.TASKS, draw).format(x=topic)]  # fmt: skip
        if draw.random() < 0.3:
            words.append(_one(wording.FILLERS, draw))
        return _garbled(" ".join(word for word in words if word), draw)

    # --- texts --------------------------------------------------------------------------------------------------------

    def _sentence(
        self,
        words: Mapping[str, str],
        kind: str,
        details: str,
        size: str,
        draw: np.random.Generator,
    ) -> str:
        noun = [_one(wording.OPENINGS, draw), _one(wording.ARTICLES, draw)]
        before, behind = [size], [details]
        if "level" in words:
            if draw.random() < 0.6:
                before.append(words["level"])
            else:
                behind.append(
                    _one(("that is {x}", "which is {x}", "of {x} quality", ", {x},"), draw).format(
                        x=words["level"]
                    )
                )
        if "activation" in words:
            where = (
                "with {x}", "using {x}", "with {x} activations", ", {x},", "and {x}", "on {x}",
                "with {x} as activation",
            )  # fmt: skip
            if draw.random() < 0.25:
                before.append(words["activation"])
            else:
                behind.append(_one(where, draw).format(x=words["activation"]))
        if "dataset" in words:
            if draw.random() < 0.15:
                before.append(words["dataset"])
            else:
                behind.append(_one(wording.TASKS, draw).format(x=words["dataset"]))
        for _ in range(int(draw.integers(0, 3))):
            behind.append(_one(wording.FILLERS, draw))
        noun += [before[i] for i in draw.permutation(len(before))] + [kind]
        behind = [behind[i] for i in draw.permutation(len(behind))]
        joined = _one((" ", " ", ", "), draw).join(part for part in behind if part)
        text = " ".join(part for part in noun if part) + (" " + joined if joined else "")
        return text + _one(("", "", ".", "!", "?"), draw)

    def _keywords(
        self,
        words: Mapping[str, str],
        kind: str,
        details: str,
        size: str,
        draw: np.random.Generator,
    ) -> str:
        parts = [*words.values(), kind, details, size]
        if draw.random() < 0.3:
            parts.append(_one(wording.FILLERS, draw))
        parts = [part for part in parts if part]
        order = draw.permutation(len(parts))
        return _one((", ", " ", " / ", "; ", " + "), draw).join(parts[i] for i in order)


def _one(listed: Sequence[str], draw: np.random.Generator) -> str:
    return listed[int(draw.integers(len(listed)))]


def _only(size: int, values: Sequence[int]) -> Any:
    left = np.zeros(size)
    left[list(values)] = 1 / len(values)
    return left


def _last(size: int) -> Any:
    return _only(size, [size - 1])


def _both(one: Any, other: Any) -> Any:
    """Values that both leave possible."""
    left = one * other
    return left / left.sum() if left.sum() > 0 else one


def _number(count: int, draw: np.random.Generator) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return words[count] if count < len(words) and draw.random() < 0.6 else str(count)


def _garbled(text: str, draw: np.random.Generator) -> str:
    """Some words missing, some letters wrong, another case: as people write."""
    style = draw.random()
    text = text.lower() if style < 0.5 else text.upper() if style < 0.53 else text
    if draw.random() < 0.5:
        return text
    words = [word for word in text.split(" ") if draw.random() >= _DROP] or text.split(" ")
    letters = list(" ".join(words))
    for at in np.flatnonzero(draw.random(len(letters)) < _TYPO):
        if letters[at].isalpha():
            kind = draw.integers(3)
            if kind == 0:
                letters[at] = ""
            elif kind == 1:
                letters[at] = letters[at] * 2
            elif at + 1 < len(letters):
                letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return "".join(letters)
