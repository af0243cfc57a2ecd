"""What the generator `igpg` can be told.

    {"base": "best", "epochs": 20, "tokenizer": {"base": "kmeans", "codebook_size": 64}}

All keys are flat but those of the tokenizer, which has a table of its own (see `vq_config`). `describe` writes
everything out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from zooplatform.errors import ConfigError
from zooplatform_igpg.settings import at_least, checked, is_whole, on_base

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CONFIGS",
    "ConditionConfig",
    "IgpgConfig",
    "SpaceConfig",
    "TrainingConfig",
    "TransformerConfig",
]

_CHOICES: dict[str, tuple[str, ...]] = {
    "codec": ("vq", "klt", "activations"),
    "center": ("none", "mean", "basin"),
    "encode": ("auto", "plain", "functional"),
    "schedule": ("cosine", "linear", "constant"),
    "places": ("both", "counted", "own"),
    "klt_grid": ("even", "likely"),
    "describe_architecture": ("layout", "text"),
}

CONFIGS: dict[str, dict[str, Any]] = {
    # A fit in seconds, for tests and first looks.
    "debug": {
        "dim": 32, "depth": 1, "heads": 2, "center": "mean", "epochs": 8, "captions": 16, "understanding_steps": 150,
        "understanding_captions": 600, "tokenizer": {"base": "debug"},
    },
    # As in the paper where it says so (arXiv 2504.02012): a VQ-VAE, one sequence a network, AdamW from 1e-4 down
    # linearly, 5 images a class through CLIP, no basins. Its sizes fit a GPU; the language model is one that can be
    # had.
    "paper": {
        "dim": 512, "depth": 8, "heads": 8, "kv_heads": 8, "rope": False, "patch": 1, "context": 768, "window": 128,
        "learning_rate": 1e-4, "schedule": "linear", "weight_decay": 0.01, "epochs": 200, "patience": 0,
        "tokenizer": {"base": "paper"}, "basins": 0, "center": "none", "level_condition": False,
        "text": "hf:sentence-transformers/all-MiniLM-L6-v2", "describe_architecture": "text",
        "images": "timm:vit_base_patch32_clip_224.openai",
    },
    # The difference from the mean of networks that began alike, with few bits, is what is written.
    "best": {
        "center": "basin", "basins": "auto", "epochs": 120, "patience": 12, "tokenizer": {"base": "kmeans"},
    },
    # The same in principal components of each basin: a few tokens for a network.
    "klt": {
        "codec": "klt", "center": "basin", "basins": "auto", "epochs": 150, "patience": 15, "dim": 64, "depth": 2,
        "patch": 1,
    },
    # Networks of independent seeds: aligned to one of them, codes that keep the function.
    "aligned": {
        "center": "none", "basins": 0, "align": True, "epochs": 60, "tokenizer": {"base": "best"},
    },
    # By what networks do with unlabelled images in place of what they are: those that it writes work, whether they have
    # a beginning in common or not.
    "activations": {
        "codec": "activations", "center": "none", "basins": "auto", "klt_rank": 32, "epochs": 60, "patience": 6,
        "batch_size": 32, "dim": 64, "depth": 2, "patch": 1,
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of the transformer.

    Attributes:
        dim: width.
        depth: layers.
        heads: of attention.
        kv_heads: of keys and values; fewer make sampling faster (Shazeer 2019, arXiv 1911.02150).
        hidden: width of the nets between, in widths of the model.
        code_hidden: width of the net that embeds what a code stands for.
        dropout: in attention and nets.
        rope: rotary positions within a pass.
        places: what a place is known by: `counted` positions, a vector of its `own`, or both.
        own_places: layouts of more tokens have no vectors of their own.
        context: places of one pass; longer networks are written block by block.
        window: places of the block before that a block sees.
        patch: codes that are written at a step; `context` and `window` are multiples of it.
    """

    dim: int = 96
    depth: int = 3
    heads: int = 4
    kv_heads: int = 1
    hidden: int = 3
    code_hidden: int = 64
    dropout: float = 0.1
    rope: bool = True
    places: str = "both"
    own_places: int = 4096
    context: int = 1024
    window: int = 128
    patch: int = 4

    def __post_init__(self) -> None:
        for name in (
            "dim",
            "depth",
            "heads",
            "kv_heads",
            "hidden",
            "code_hidden",
            "context",
            "patch",
        ):
            at_least(name, getattr(self, name), 1)
        _below_one("dropout", self.dropout)
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise ConfigError(
                f"dim {self.dim} over heads {self.heads} is not an even whole number; use for example dim 96, heads 4."
            )
        if self.heads % self.kv_heads:
            raise ConfigError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}.")
        if self.window >= self.context:
            raise ConfigError(f"window is {self.window}; use less than context, {self.context}.")
        if self.context % self.patch or self.window % self.patch:
            raise ConfigError(
                f"context {self.context} and window {self.window} are not multiples of patch {self.patch}."
            )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the transformer is fitted.

    Attributes:
        epochs: passes over the training networks.
        batch_size: networks of a step, all of one blueprint and at one block.
        learning_rate: the highest one.
        weight_decay: of matrices, by AdamW.
        beta2: of AdamW.
        schedule: up for `warmup` of all steps, then `cosine` or `linear` down, or `constant`.
        warmup: share of the steps.
        clip_norm: largest norm of a gradient; 0 is no limit.
        patience: epochs without a better validation likelihood after which fitting stops; 0 never stops early.
        smoothing: of labels.
        tokenizer_share: share of the time, where it is limited, that the tokenizer has.
    """

    epochs: int = 100
    batch_size: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    beta2: float = 0.98
    schedule: str = "cosine"
    warmup: float = 0.05
    clip_norm: float = 1.0
    patience: int = 15
    smoothing: float = 0.0
    tokenizer_share: float = 0.4

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            at_least(name, getattr(self, name), 1)
        for name in ("warmup", "beta2", "smoothing", "tokenizer_share"):
            _below_one(name, getattr(self, name))
        if self.learning_rate <= 0:
            raise ConfigError(f"learning_rate is {self.learning_rate:g}; use a number above 0.")


@dataclass(frozen=True, kw_only=True)
class ConditionConfig:
    """What the transformer is told, and how texts and images are read.

    Attributes:
        text: text encoder, `hash`, `hash:BUCKETS` or `hf:NAME`.
        images: image encoder, `moments`, `filters` or `timm:MODEL`.
        per_class: examples of a class that a data set is described by.
        describe_architecture: by numbers of its `layout`, or by a `text` through the text encoder.
        class_tokens: a token for every class beside the one for the data set.
        level_condition: whether the transformer is told how good a network is.
        levels: into how many equal parts accuracies are divided.
        drop: probability of leaving out each condition in training.
        drop_all: probability of leaving out all that guidance is about.
        captions: instructions written for every kind of network.
        understanding_captions, understanding_steps: texts and steps that reading instructions is learnt from.
        draws: sets of examples of a data set that training draws from.
    """

    text: str = "hash"
    images: str = "moments"
    per_class: int = 5
    describe_architecture: str = "layout"
    class_tokens: bool = False
    level_condition: bool = True
    levels: int = 4
    drop: float = 0.15
    drop_all: float = 0.1
    captions: int = 64
    understanding_captions: int = 4000
    understanding_steps: int = 600
    draws: int = 16

    def __post_init__(self) -> None:
        for name in (
            *("per_class", "levels", "captions", "draws"),
            *("understanding_captions", "understanding_steps"),
        ):
            at_least(name, getattr(self, name), 1)
        for name in ("drop", "drop_all"):
            _below_one(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class SpaceConfig:
    """What of networks becomes codes.

    Attributes:
        codec: `vq`, the tokenizer; `klt`: principal components of each basin, each a scalar code; or `activations`:
            principal components of what networks do with unlabelled images, needs those.
        center: what is subtracted first: nothing, the `mean` of the networks of one blueprint and data set, or that of
            their `basin`.
        basins: clusters of networks with one data set and blueprint, such as those of common initialisations: a number,
            0 for none, or `auto`, chosen on the validation networks.
        align: put hidden units into the order in which weights lie nearest to a training network.
        augment: further copies of the training networks, hidden units permuted.
        encode: `functional` codes keep what layers compute (see the tokenizer), `plain` ones the weights; `auto` is
            `functional` where the tokenizer is set to it and nothing is subtracted.
        flat: noise that is added to networks along directions in which their function hardly changes (see `flatness`),
            in units of the usual distance between runs of a basin; needs images.
        klt_rank: components at most, of `activations` too.
        klt_codes: codes of a component.
        klt_grid: how they lie, `even` or `likely` (see `spaces.KltCodec`).
        activation_images: of a data set that activations are taken on; they become part of the artifact.
        activation_positions: of a layer's map that count, at most.
        ridge: penalty on the weights of a layer that are found for activations (`ActivationSpace.solve`).
    """

    codec: str = "vq"
    center: str = "none"
    basins: str | int = "auto"
    align: bool = False
    augment: int = 0
    encode: str = "auto"
    flat: float = 0.0
    klt_rank: int = 48
    klt_codes: int = 64
    klt_grid: str = "even"
    activation_images: int = 256
    activation_positions: int = 8
    ridge: float = 1e-4

    def __post_init__(self) -> None:
        at_least("klt_rank", self.klt_rank, 1)
        at_least("klt_codes", self.klt_codes, 2)
        if isinstance(self.basins, str) and self.basins != "auto":
            raise ConfigError(f"basins is {self.basins!r}; use auto, 0 for none, or a number.")
        if self.center == "basin" and self.basins == 0:
            raise ConfigError("center basin needs basins: set basins to auto or a number.")
        at_least("activation_images", self.activation_images, 1)
        at_least("activation_positions", self.activation_positions, 1)
        if self.ridge <= 0:
            raise ConfigError(f"ridge is {self.ridge:g}; use a number above 0.")
        if self.codec == "activations":
            whole = {"center": "none", "align": False, "augment": 0}
            for name, value in whole.items():
                if getattr(self, name) != value:
                    raise ConfigError(
                        f"codec activations looks at whole networks and matches their units itself: set {name} to "
                        f"{str(value).lower()}."
                    )
        if self.codec == "klt" and self.center == "none":
            raise ConfigError("codec klt describes differences: set center to mean or basin.")
        if self.augment and (self.center != "none" or self.basins not in (0, "auto")):
            raise ConfigError(
                "augment puts hidden units into other orders, where basins and their means say nothing: "
                "set center to none and basins to 0."
            )
        if self.encode == "functional" and (self.center != "none" or self.codec != "vq"):
            raise ConfigError(
                "encode functional looks at whole networks: set center to none and codec to vq."
            )


@dataclass(frozen=True, kw_only=True)
class IgpgConfig:
    """A whole generator; the attributes are described in the parts."""

    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    conditions: ConditionConfig = field(default_factory=ConditionConfig)
    space: SpaceConfig = field(default_factory=SpaceConfig)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    rows: int = 0

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> IgpgConfig:
        """From a mapping; an empty one is `best`.

        `rows` is how many networks are sampled in one pass; 0 chooses by their length.

        Raises:
            ConfigError: a key is not known, or its value does not fit.
        """
        table = on_base(given, CONFIGS, "best")
        tokenizer = table.pop("tokenizer", {})
        if not isinstance(tokenizer, dict):
            raise ConfigError(
                f"tokenizer is {tokenizer!r}; give a table of keys of the tokenizer vq."
            )
        rows = _checked("rows", table.pop("rows", 0), {"rows": 0})
        defaults = {f.name: f.default for part in _PARTS.values() for f in fields(part)}
        values = {name: _checked(name, value, defaults) for name, value in table.items()}
        parts: dict[str, Any] = {
            name: part(**{f.name: values[f.name] for f in fields(part) if f.name in values})
            for name, part in _PARTS.items()
        }
        return cls(**parts, tokenizer=tokenizer, rows=rows)

    def describe(self) -> dict[str, Any]:
        """Everything, flat, as `parse` takes it."""
        flat: dict[str, Any] = {}
        for name in _PARTS:
            flat |= asdict(getattr(self, name))
        return flat | {"tokenizer": dict(self.tokenizer), "rows": self.rows}


_PARTS: dict[str, Any] = {
    "transformer": TransformerConfig,
    "training": TrainingConfig,
    "conditions": ConditionConfig,
    "space": SpaceConfig,
}


def _checked(name: str, value: Any, defaults: Mapping[str, Any]) -> Any:
    if name == "basins":  # a number or a word
        if not is_whole(value) and not isinstance(value, str):
            raise ConfigError(f"basins is {value!r}; use auto or a whole number.")
        return value
    return checked(name, value, defaults, _CHOICES, ("tokenizer", "rows", "base"))


def _below_one(name: str, value: float) -> None:
    if value >= 1:
        raise ConfigError(f"{name} is {value:g}; use a number from 0 to below 1.")
