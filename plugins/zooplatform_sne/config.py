"""What the predictor `sne` can be told: members of an ensemble, their encoders, and how they are fitted.

    {"base": "best", "epochs": 20}                                    # a named configuration, changed
    {"members": [{"encoder": "statistics", "count": 3}, {"encoder": "propagation", "units": 48}]}

A key beside `members` is for every member whose encoder knows it. `describe` writes everything out.
"""

from __future__ import annotations

import difflib
import inspect
import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from zooplatform.errors import ConfigError
from zooplatform_sne.losses import LOSSES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from zooplatform_sne.encoder import NetworkEncoder

__all__ = ["CONFIGS", "ENCODERS", "MemberConfig", "SneConfig", "TrainingConfig", "build_encoder"]

ENCODERS = ("statistics", "propagation", "probes", "chunk", "neuron")
_CHOICES = {
    "schedule": ("onecycle", "cosine", "constant"),
    "loss": LOSSES,
    "combine": ("mean", "stack"),
    "target_kind": ("auto", "bounded", "free"),
}

CONFIGS: dict[str, dict[str, Any]] = {
    "debug": {
        "members": [{"encoder": "statistics", "statistics": "plain", "dim": 16, "epochs": 15}],
    },
    "paper": {
        "members": [
            {
                "encoder": "chunk", "loss": "bce", "epochs": 50, "learning_rate": 1e-3,
                "depth": 2, "augment": False, "invariance": 0.1,
            }
        ],
    },
    "weights": {
        "guard": 6.0,
        "guard_share": 0.6,
        "members": [
            {"encoder": "propagation", "epochs": 10, "learning_rate": 1.5e-3, "count": 2},
            {"encoder": "probes", "epochs": 12, "batch_size": 32, "guarded": True, "count": 2},
        ],
    },
    "best": {
        "trees": 1.0,
        "perceptron": 1.0,
        "companion_responses": True,
        "guard": 1.0,
        "members": [
            {
                "encoder": "statistics", "statistics": "both", "responses": True, "count": 3,
                "epochs": 20, "dropout": 0.3, "weight_decay": 0.1,
            },
            {"encoder": "probes", "epochs": 12, "batch_size": 32, "guarded": True},
        ],
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How one model is fitted.

    Attributes:
        epochs: passes over the training networks.
        batch_size: networks of a step, all of one architecture.
        learning_rate: the highest one.
        weight_decay: of matrices, by AdamW.
        beta2: of AdamW.
        schedule: `onecycle` (up for `warmup` of all steps, then a cosine down), `cosine` or `constant`.
        warmup: share of the steps.
        clip_norm: largest norm of a gradient; 0 is no limit.
        loss, rank_weight, huber_delta: see `losses`.
        patience: epochs without a better validation tau after which fitting stops; 0 never stops early.
        ema: decay of a moving average of the parameters, which is then what is kept; 0 is none.
        head_hidden, head_dropout: of the map from embedding to score.
        cache_mb: memory for prepared networks; beyond it they are prepared for every batch.
    """

    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    beta2: float = 0.999
    schedule: str = "onecycle"
    warmup: float = 0.25
    clip_norm: float = 1.0
    loss: str = "auto"
    rank_weight: float = 1.0
    huber_delta: float = 1.0
    patience: int = 0
    ema: float = 0.0
    head_hidden: int = 64
    head_dropout: float = 0.1
    cache_mb: int = 4096

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "head_hidden"):
            _least(name, getattr(self, name), 1)
        for name in ("warmup", "ema", "head_dropout", "beta2"):
            if getattr(self, name) >= 1:
                raise ConfigError(
                    f"{name} is {getattr(self, name):g}; use a number from 0 to below 1."
                )
        if self.learning_rate <= 0:
            raise ConfigError(f"learning_rate is {self.learning_rate:g}; use a number above 0.")

    def describe(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class MemberConfig:
    """Models of one encoder that differ by their seed.

    Attributes:
        encoder: one of `ENCODERS`.
        count: models.
        weight: of the mean of their scores in the ensemble, when `combine` is `mean`.
        guarded: they move the score of the others, but only so far; see `fusion`.
        options: every option of the encoder.
        training: how each is fitted.
    """

    encoder: str
    count: int = 1
    weight: float = 1.0
    guarded: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> MemberConfig:
        """From flat keys.

        Raises:
            ConfigError: a key is not known, or its value does not fit.
        """
        if not isinstance(given, dict):
            raise ConfigError(f"A member is a table of keys, not {given!r}.")
        encoder = given.get("encoder", "statistics")
        known = _member_defaults(encoder)
        checked = {name: _checked(name, value, known) for name, value in given.items()}
        options = {n: checked.get(n, v) for n, v in encoder_options(encoder).items()}
        training = {f.name: checked.get(f.name, f.default) for f in fields(TrainingConfig)}
        count, weight = checked.get("count", 1), checked.get("weight", 1.0)
        _least("count", count, 1)
        if weight <= 0:
            raise ConfigError(f"weight is {weight:g}; use a number above 0.")
        return cls(
            encoder=encoder, count=count, weight=weight, options=options,
            guarded=checked.get("guarded", False),
            training=TrainingConfig(**training),
        )  # fmt: skip

    def describe(self) -> dict[str, Any]:
        """Flat, as `parse` takes it."""
        own: dict[str, Any] = {"encoder": self.encoder, "count": self.count}
        own |= {"weight": self.weight, "guarded": self.guarded}
        return own | dict(self.options) | self.training.describe()


@dataclass(frozen=True, kw_only=True)
class SneConfig:
    """A whole predictor.

    Attributes:
        members: what is averaged.
        combine: `mean` of the scores by the members' weights, or `stack`: weights of the models, none negative and 1 in
            sum, that make the squared error of the score least on the validation networks.
        target_kind: `bounded` targets lie in [0, 1] and are predicted as logits, `free` ones are standardised; `auto`
            takes targets that all lie in [0, 1] for bounded.
        logit_clip: bounded targets are kept this far from 0 and 1.
        trees, perceptron: weights of gradient boosting and of a perceptron on aggregated rich statistics among the
            members; 0 has none. See `companions`.
        companion_responses: trees and perceptron read what a network does with fixed inputs, too; see `responses`.
        guard, guard_share: how far guarded members move the score, and by which share of the difference; see `fusion`.
    """

    members: tuple[MemberConfig, ...]
    combine: str = "mean"
    trees: float = 0.0
    perceptron: float = 0.0
    companion_responses: bool = False
    guard: float = 4.0
    guard_share: float = 0.5
    target_kind: str = "auto"
    logit_clip: float = 0.005

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> SneConfig:
        """From a mapping; an empty one is `best`.

        Raises:
            ConfigError: a key is not known, or its value does not fit.
        """
        given = dict(given)
        base = given.pop("base", None if "members" in given else "best")
        if base is not None:
            if base not in CONFIGS:
                raise ConfigError(f"Unknown base {base!r}. Known: {', '.join(CONFIGS)}.")
            given = CONFIGS[base] | given
        members = given.pop("members")
        if not isinstance(members, list | tuple) or not members:
            raise ConfigError(f"members is {members!r}; give a list of at least one table.")
        own = {f.name: f.default for f in fields(cls) if f.name != "members"}
        settings = {n: _checked(n, given.pop(n), own) for n in own if n in given}
        if not 0 < settings.get("logit_clip", 0.1) < 0.5:
            raise ConfigError("logit_clip lies between 0 and 0.5.")
        parsed = [MemberConfig.parse(member) for member in _with_shared(members, given, [*own])]
        if all(member.guarded for member in parsed):
            raise ConfigError("Every member is guarded; leave one that they are guarded by.")
        if settings.get("guard_share", 0) > 1:
            raise ConfigError(f"guard_share is {settings['guard_share']:g}; use 0 to 1.")
        return cls(members=tuple(parsed), **settings)

    @property
    def companions(self) -> tuple[float, float]:
        """Weights in the order of `COMPANIONS`."""
        return self.trees, self.perceptron

    def describe(self) -> dict[str, Any]:
        """Everything, as `parse` takes it."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "members"}
        return own | {"members": [member.describe() for member in self.members]}


def _with_shared(
    members: Sequence[Any], shared: Mapping[str, Any], own: Sequence[str]
) -> list[dict[str, Any]]:
    """Members with the keys given beside them, each where it is known."""
    known = [
        _member_defaults(m.get("encoder", "statistics")) if isinstance(m, dict) else {}
        for m in members
    ]
    for name in shared:
        if name == "encoder" or not any(name in defaults for defaults in known):
            every = {key for defaults in known for key in defaults}
            raise _unknown(name, (every - {"encoder"}) | {"base", "members", *own})
    return [
        {**member, **{n: v for n, v in shared.items() if n in defaults}}
        if isinstance(member, dict)
        else member
        for member, defaults in zip(members, known, strict=True)
    ]


def _member_defaults(encoder: object) -> dict[str, Any]:
    own: dict[str, Any] = {"encoder": "", "count": 1, "weight": 1.0, "guarded": False}
    training = {f.name: f.default for f in fields(TrainingConfig)}
    return own | encoder_options(encoder) | training


# --- encoders ---------------------------------------------------------------------------------------------------------


def encoder_options(encoder: object) -> dict[str, Any]:
    """The options of an encoder with their defaults.

    Raises:
        ConfigError: there is no such encoder.
    """
    if encoder in ("chunk", "neuron"):
        return _flat(_default_settings(str(encoder)))
    parameters = inspect.signature(_encoder_class(encoder)).parameters
    return {name: parameter.default for name, parameter in parameters.items()}


def build_encoder(encoder: str, options: Mapping[str, Any]) -> NetworkEncoder:
    """A new encoder, its parameters drawn from torch's random state.

    Raises:
        ConfigError: an option does not fit.
    """
    made: Callable[..., NetworkEncoder] = _encoder_class(encoder)
    if encoder in ("chunk", "neuron"):
        return made(_nested(_default_settings(encoder), options))
    return made(**options)


def _encoder_class(encoder: object) -> Any:
    if encoder == "statistics":
        from zooplatform_sne.tokens import StatisticsEncoder

        return StatisticsEncoder
    if encoder == "propagation":
        from zooplatform_sne.propagation import PropagationEncoder

        return PropagationEncoder
    if encoder == "probes":
        from zooplatform_sne.probes import ProbeEncoder

        return ProbeEncoder
    if encoder == "chunk":
        from zooplatform_sne.chunks import ChunkEncoder

        return ChunkEncoder
    if encoder == "neuron":
        from zooplatform_sne.neurons import NeuronEncoder

        return NeuronEncoder
    raise ConfigError(f"Unknown encoder {encoder!r}. Known: {', '.join(ENCODERS)}.")


def _default_settings(encoder: str) -> Any:
    if encoder == "chunk":
        from zooplatform_sne.chunks import ChunkSettings

        return ChunkSettings()
    from zooplatform_sne.neurons import NeuronSettings

    return NeuronSettings()


def _flat(settings: Any) -> dict[str, Any]:
    """The values of settings, those of nested settings among them."""
    found: dict[str, Any] = {}
    for one in fields(settings):
        value = getattr(settings, one.name)
        found |= _flat(value) if is_dataclass(value) else {one.name: value}
    return found


def _nested(settings: Any, options: Mapping[str, Any]) -> Any:
    """Settings like the given ones with other values: the reverse of `_flat`."""
    made = {}
    for one in fields(settings):
        value = getattr(settings, one.name)
        made[one.name] = _nested(value, options) if is_dataclass(value) else options[one.name]
    return type(settings)(**made)


# --- values -----------------------------------------------------------------------------------------------------------


def _checked(name: str, value: Any, known: Mapping[str, Any]) -> Any:
    """`value`, of the type of the default of this name."""
    if name not in known:
        raise _unknown(name, known)
    if name in _CHOICES and value not in _CHOICES[name]:
        raise ConfigError(f"{name} is {value!r}; use one of {', '.join(_CHOICES[name])}.")
    default = known[name]
    if isinstance(default, bool):
        fits, wanted = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        fits = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        wanted = "a whole number, not negative"
    elif isinstance(default, float):
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        fits = fits and math.isfinite(value) and value >= 0
        wanted = "a number, not negative"
        value = float(value) if fits else value
    else:
        fits, wanted = isinstance(value, type(default)), f"a {type(default).__name__}"
    if not fits:
        raise ConfigError(f"{name} is {value!r}; use {wanted}.")
    return value


def _least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name} is {value}; use a whole number from {least} on.")


def _unknown(name: str, known: Any) -> ConfigError:
    text = f"Unknown key {name!r}. Known: {', '.join(sorted(known))}."
    close = difflib.get_close_matches(name, list(known), n=1)
    return ConfigError(text + (f" Did you mean {close[0]!r}?" if close else ""))
