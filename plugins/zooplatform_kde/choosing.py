"""Which of the groups that a generator was fitted on a condition asks for.

Nothing is learnt here. Names are compared, and an instruction is a set of words: those that name a data set, or what
its images show, decide first; then those that name hyper-parameters (`gelu`, `adam`) or the architecture. An
instruction of which no word is known, or that names a data set which is known of but was not fitted on, is refused.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from zooplatform.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from zooplatform.fitting import Blueprint
    from zooplatform.interfaces import Condition

__all__ = ["Choosable", "choose", "signature", "words_of"]

# What people call the images of well-known data sets, by a name of lowercase letters and digits.
_SYNONYMS: dict[str, tuple[str, ...]] = {
    "mnist": ("digit", "handwritten", "handwriting", "number", "numeral"),
    "digits": ("digit", "handwritten", "handwriting", "number", "numeral"),
    "usps": ("digit", "handwritten", "postal", "mail", "envelope"),
    "fashion": ("fashionmnist", "clothe", "clothing", "garment", "apparel", "shoe", "shirt", "dress"),
    "fashionmnist": ("fashion", "clothe", "clothing", "garment", "apparel", "shoe", "shirt", "dress"),
    "notmnist": ("letter", "glyph", "font", "typeface"),
    "emnist": ("letter", "handwritten", "character"),
    "kmnist": ("kuzushiji", "japanese", "hiragana", "character"),
    "svhn": ("house", "street", "number", "digit"),
    "cifar10": ("cifar", "object", "photo", "photograph", "animal", "vehicle"),
    "cifar100": ("cifar", "object", "photo", "photograph"),
    "stl10": ("stl", "object", "photo", "photograph", "animal", "vehicle"),
    "sine": ("wave", "sinusoid"),
}  # fmt: skip
_STOP = frozenset(
    {"a", "an", "and", "are", "as", "at", "best", "by", "for", "from", "good", "in", "is", "it"}
    | {"of", "on", "or", "that", "the", "this", "to", "with"}
    # What can be said of any network says nothing.
    | {"big", "large", "model", "net", "network", "new", "please", "small", "some", "tiny", "zoo"}
)


class Choosable(Protocol):
    """A group as `choose` sees it.

    `common` are the hyper-parameters that all its networks share.
    """

    @property
    def dataset(self) -> str: ...
    @property
    def blueprint(self) -> Blueprint: ...
    @property
    def common(self) -> Mapping[str, Any]: ...


class _Score(NamedTuple):
    dataset: float
    rest: float


def choose(
    groups: Sequence[Choosable],
    condition: Condition | None,
    signatures: Mapping[str, torch.Tensor],
) -> list[int]:
    """The numbers of the groups that meet a condition; all of them without one.

    Args:
        groups: what there is.
        condition: what is asked for.
        signatures: of the images of data sets, by name.

    Raises:
        ConfigError: none does; the text lists what there is.
    """
    left = list(range(len(groups)))
    if condition is None:
        return left
    if condition.dataset is not None:
        wanted = condition.dataset.lower()
        left = [at for at in left if groups[at].dataset.lower() == wanted]
        _require(left, groups, f"was not fitted on the data set {condition.dataset!r}")
    if condition.architecture_id is not None:
        start = condition.architecture_id
        left = [at for at in left if groups[at].blueprint.architecture_id.startswith(start)]
        _require(left, groups, f"was not fitted on the architecture {start!r} for this")
    for key, value in (condition.build_config or {}).items():
        left = [at for at in left if _value(groups[at], key) == value]
        _require(left, groups, f"has no networks with {key} = {value!r} for this")
    named = False
    if condition.instruction is not None and condition.instruction.strip():
        left, named = _by_words(groups, left, condition.instruction, said=condition.dataset)
    if condition.images is not None and condition.dataset is None and not named:
        left = _by_images(groups, left, condition.images, signatures)
    return left


def words_of(text: str) -> set[str]:
    """Lowercase words without those that say nothing, in singular; two that stand side by side as one, too."""
    plain = [word.strip(".") for word in re.findall(r"[a-z0-9.]+", text.lower())]
    plain = [word for word in plain if word]
    joined = {first + second for first, second in pairwise(plain)}
    kept = {word for word in plain if word not in _STOP}
    return kept | joined | {word[:-1] for word in kept if word.endswith("s") and len(word) > 3}


def signature(images: torch.Tensor) -> torch.Tensor:
    """(2, C, H, W) mean and standard deviation of (N, C, H, W) images, pixel by pixel."""
    import torch

    return torch.stack([images.float().mean(dim=0), images.float().std(dim=0, unbiased=False)])


# --- words ------------------------------------------------------------------------------------------------------------


def _by_words(
    groups: Sequence[Choosable], left: list[int], instruction: str, said: str | None
) -> tuple[list[int], bool]:
    """Those whose names share most with an instruction, and whether it named a data set."""
    words = words_of(instruction)
    scores = {at: _score(groups[at], words) for at in left}
    most = max(score.dataset for score in scores.values())
    if said is None and most == 0 and any(_of_dataset(name, words) >= 4 for name in _SYNONYMS):
        _require([], groups, f"was not fitted on the data set that {instruction!r} names")
    if said is None:
        left = [at for at in left if scores[at].dataset == most]
    rest = max(scores[at].rest for at in left)
    if said is None and most == 0 and rest == 0:
        _require([], groups, f"knows no word of {instruction!r}")
    return [at for at in left if scores[at].rest == rest], most > 0


def _score(group: Choosable, words: set[str]) -> _Score:
    blueprint = group.blueprint
    settings = {**group.common, **blueprint.config}
    named = {str(value).lower() for value in settings.values() if isinstance(value, str)}
    named |= words_of(blueprint.name.replace("_", " ").replace("-", " ")) | {
        blueprint.family.lower()
    }
    # What a data set is called is no hyper-parameter, though it is among them.
    named -= words_of(group.dataset) | {group.dataset.lower()}
    return _Score(_of_dataset(group.dataset, words), float(len(named & words)))


def _of_dataset(name: str, words: set[str]) -> float:
    """How much of the words is about a data set: its name counts 4, a part of it 2, what its images show 1."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    if not plain:
        return 0.0
    parts = set(re.findall(r"[a-z0-9]+", name.lower())) - {plain}
    # Of two names that are both there, the longer one is meant: `notmnist`, not `mnist`.
    score = (4.0 + len(plain) / 100) * (plain in words) + 2.0 * len(parts & words)
    return score + len(set(_SYNONYMS.get(plain, ())) & words)


# --- other parts of a condition ---------------------------------------------------------------------------------------


def _by_images(
    groups: Sequence[Choosable],
    left: list[int],
    images: torch.Tensor,
    signatures: Mapping[str, torch.Tensor],
) -> list[int]:
    """Those of the data set whose images have the most similar mean and spread, pixel by pixel."""
    own = signature(images.flatten(0, 1))
    distances = {
        name: float((found - own).square().mean())
        for name, found in signatures.items()
        if found.shape == own.shape and any(groups[at].dataset == name for at in left)
    }
    if not distances:
        shape = tuple(images.shape[2:])
        _require([], groups, f"knows no data set with images of the shape {shape}")
    best = min(distances, key=lambda name: (distances[name], name))
    return [at for at in left if groups[at].dataset == best]


def _value(group: Choosable, key: str) -> Any:
    config = group.blueprint.config
    return config[key] if key in config else group.common.get(key)


def _require(left: Sequence[int], groups: Sequence[Choosable], problem: str) -> None:
    if left:
        return
    known = sorted({f"{_described(group)}" for group in groups})
    raise ConfigError(f"This generator {problem}. It knows: {'; '.join(known)}.")


def _described(group: Choosable) -> str:
    blueprint = group.blueprint
    text = (
        f"{group.dataset or 'a data set without a name'} with {blueprint.name or blueprint.family}"
    )
    activation = _value(group, "activation")
    return (
        f"{text} ({f'activation {activation}, ' if activation else ''}architecture "
        f"{blueprint.architecture_id})"
    )
