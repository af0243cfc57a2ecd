"""What each baseline can be told: keys, defaults and bounds."""

from __future__ import annotations

import difflib
import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from zooplatform.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ActivationSettings",
    "BootstrapSettings",
    "ClusterPcaSettings",
    "ClusterSettings",
    "DiffusionSettings",
    "KdeSettings",
    "NoiseSettings",
    "PcaSettings",
    "RandomSettings",
    "Settings",
    "SubsampleSettings",
    "read_settings",
]

T = TypeVar("T", bound="Settings")

_FITTING: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "true or false"),
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "int | str": ((int, str), "a whole number or 'auto'"),
    "float | str": ((int, float, str), "a number or 'auto'"),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every baseline has.

    Attributes:
        align: put the hidden units of all networks of a group into the order in which they lie nearest to those of its
            best network (git re-basin) before anything is learnt.
    """

    align: bool = False

    def __post_init__(self) -> None:
        for one in fields(self):
            self._check(one.name, str(one.type), getattr(self, one.name))

    def _check(self, key: str, kind: str, value: Any) -> None:
        fitting, wanted = _FITTING[kind]
        fits = isinstance(value, fitting) and (kind == "bool" or not isinstance(value, bool))
        if isinstance(value, str):
            fits = fits and value == "auto"
        if isinstance(value, float):
            fits = fits and math.isfinite(value)
        if not fits:
            raise ConfigError(f"{key} = {value!r}; use {wanted}.")

    def _at_least(self, key: str, least: float) -> None:
        value = getattr(self, key)
        if value != "auto" and value < least:
            raise ConfigError(f"{key} = {value} is too small; give {least} or more.")

    def describe(self) -> dict[str, Any]:
        """Every key with its value, as `read_settings` takes it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class RandomSettings(Settings):
    """Attributes:
    builds: untrained networks that are built to see how their constructor draws.
    """

    builds: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("builds", 2)


@dataclass(frozen=True, kw_only=True)
class NoiseSettings(Settings):
    """Attributes:
    sigma: standard deviation of the noise over that of the tensor it is added to.
    """

    sigma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("sigma", 0)


@dataclass(frozen=True, kw_only=True)
class ClusterSettings(Settings):
    """Attributes:
    clusters: how many are looked for; `auto` takes the number of largest silhouette, or one where none is above 0.1.
    max_clusters: most that `auto` looks at.
    """

    clusters: int | str = "auto"
    max_clusters: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("clusters", 1)
        self._at_least("max_clusters", 1)


@dataclass(frozen=True, kw_only=True)
class PcaSettings(Settings):
    """Attributes:
    components: principal components; `auto` takes that power of two up to 128 that the validation networks are
        likeliest under.
    """

    components: int | str = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("components", 0)


@dataclass(frozen=True, kw_only=True)
class ActivationSettings(PcaSettings):
    """Attributes:
    images: unlabelled training images that activations are taken on, at most; they become part of the artifact.
    positions: of a layer's map that count, at most.
    ridge: penalty on the weights of a layer, in units of the mean square of its inputs.
    clusters: of weights that a normal distribution is learnt for each, as in `ClusterSettings`; 1 puts no bounds.
    max_clusters: most that `auto` looks at.
    """

    images: int = 256
    positions: int = 8
    ridge: float = 1e-4
    clusters: int | str = 1
    max_clusters: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("images", "positions", "clusters", "max_clusters"):
            self._at_least(key, 1)
        if self.ridge <= 0:
            raise ConfigError(f"ridge = {self.ridge} is not above 0.")
        if self.align:
            raise ConfigError(
                "align = True puts hidden units in order by their weights; activation-pca always does so by what they "
                "put out. Leave it out."
            )


@dataclass(frozen=True, kw_only=True)
class ClusterPcaSettings(ClusterSettings):
    """Attributes:
    components: principal components of a cluster, as in `PcaSettings`.
    pooled: one covariance for all clusters, of the deviations from their means; otherwise each has its own.
    """

    components: int | str = 8
    pooled: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("components", 0)


@dataclass(frozen=True, kw_only=True)
class BootstrapSettings(ClusterSettings):
    """Attributes:
    clusters: layers come from networks of one cluster; 1 puts no bounds.
    """

    clusters: int | str = 1


@dataclass(frozen=True, kw_only=True)
class KdeSettings(ClusterSettings):
    """Attributes:
    clusters: chunks come from networks of one cluster; 1 puts no bounds.
    anchors: share of the training networks, the best ones, that densities are estimated from.
    chunk_size: values of a layer that are drawn together; 1 draws each alone, 0 a whole network.
    bandwidth: standard deviation of the kernels over that of each weight among the anchors; `auto` takes the value that
        the validation networks are likeliest under.
    """

    clusters: int | str = 1
    anchors: float = 0.3
    chunk_size: int = 64
    bandwidth: float | str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("chunk_size", 0)
        self._at_least("bandwidth", 0)
        if not 0 < self.anchors <= 1:
            raise ConfigError(f"anchors = {self.anchors}; use a share above 0 and up to 1.")


@dataclass(frozen=True, kw_only=True)
class SubsampleSettings(KdeSettings):
    """Attributes:
    candidates: networks drawn for each one that is given; the one with the lowest loss on training images is kept.
    images: training images that the loss is measured on, at most; they become part of the artifact.
    rounds: how often, when it is fitted, the best of what was drawn become the anchors of the next round.
    draws, keep: networks drawn in such a round, and how many of them are kept.
    """

    candidates: int = 20
    images: int = 512
    rounds: int = 0
    draws: int = 100
    keep: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("candidates", "images", "draws", "keep"):
            self._at_least(key, 1)
        self._at_least("rounds", 0)
        if self.keep > self.draws:
            raise ConfigError(f"keep = {self.keep} is more than draws = {self.draws}.")


@dataclass(frozen=True, kw_only=True)
class DiffusionSettings(Settings):
    """Attributes:
    components: of the principal components whose coordinates are the latent space; no more than the networks have.
    steps: steps of AdamW.
    batch_size: latents of a step.
    learning_rate: at the beginning; a cosine brings it to zero.
    width, depth: of the residual perceptron that tells the noise.
    levels: noise levels, and steps of sampling.
    """

    components: int = 64
    steps: int = 3000
    batch_size: int = 64
    learning_rate: float = 1e-3
    width: int = 256
    depth: int = 3
    levels: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("components", "steps", "batch_size", "width", "depth"):
            self._at_least(key, 1)
        self._at_least("levels", 2)
        if self.learning_rate <= 0:
            raise ConfigError(f"learning_rate = {self.learning_rate} is not above 0.")


def read_settings(kind: type[T], config: Mapping[str, Any], backend: str) -> T:
    """The settings of a backend from its configuration.

    Raises:
        ConfigError: a key is unknown, or its value does not fit.
    """
    known = [one.name for one in fields(kind)]
    for key in config:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"{backend} has no setting {key!r}. Known: {', '.join(sorted(known))}.{hint}"
            )
    return kind(**config)
