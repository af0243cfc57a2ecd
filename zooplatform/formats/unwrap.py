"""The weights inside a training checkpoint: which of its nested containers is the state dict, and what is left out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from zooplatform.errors import SourceError
from zooplatform.formats.limits import shown
from zooplatform.formats.planned import PlannedTensor

__all__ = ["Found", "KeyPath", "find_weights"]

KeyPath: TypeAlias = "tuple[Any, ...]"

# Where training code puts the state dict, most telling first.
_WEIGHT_KEYS = (
    "model_state_dict",
    "state_dict",
    "model_state",
    "model",
    "module",
    "network",
    "net",
    "params",
    "weights",
)
# What training code keeps beside it.
_TRAINING = re.compile(
    r"(.*_)?(optimi[sz]ers?|optim|opt|(lr_?)?sched(uler)?s?|(grad_?)?scaler|amp|ema)(_.*)?"
    r"|(.*_)?rng(_.*)?|random_state|callbacks|loops|args|cfg|config|hparams|hyper_parameters|history",
    re.IGNORECASE,
)
_PREFIXES = ("module.", "_orig_mod.")
_MAX_DEPTH = 64
_MAX_ENTRIES = 5_000_000
_MAX_NAME = 256


@dataclass(frozen=True, slots=True)
class Found:
    """The weights of a checkpoint.

    Attributes:
        tensors: name -> (the keys that lead to it from the top, the tensor), in state-dict order.
        step, epoch: what the checkpoint says of its training, if it does plainly.
        notes: what was left out or renamed.
        architecture: name of the model, where the training code wrote it beside the weights as `arch`.
    """

    tensors: dict[str, tuple[KeyPath, PlannedTensor]]
    step: int | None
    epoch: float | None
    notes: tuple[str, ...]
    architecture: str | None = None


@dataclass(frozen=True, slots=True)
class _Size:
    entries: int
    tensors: int


def find_weights(top: Any, subject: object) -> Found:
    """Find the state dict in `top`, the content of a torch file.

    Raises:
        SourceError: there are no tensors, or containers hold themselves or unfold without end.
    """
    measure = _Measure(subject)
    if measure(top).tensors == 0:
        raise SourceError(
            subject,
            "It holds no tensors.",
            "Give the file of the weights, not of settings or results.",
        )
    if isinstance(top, Mapping) and {"state", "param_groups"} <= set(top):
        raise SourceError(
            subject,
            "It is the state of an optimizer, not weights.",
            "Give the file of the model beside it.",
        )
    notes: list[str] = []
    step: int | None = None
    epoch: float | None = None
    architecture: str | None = None
    path: KeyPath = ()
    weights = top
    while isinstance(weights, Mapping):
        architecture = architecture or _text(weights, "arch")
        step = step if step is not None else _whole(weights, "global_step", "step", "iteration")
        epoch = epoch if epoch is not None else _number(weights, "epoch")
        chosen = _wrapped(weights, measure)
        if chosen is None:
            break
        for key, value in weights.items():
            if key != chosen and measure(value).tensors:
                notes.append(
                    f"left out {shown(str(key))}: {measure(value).tensors} tensor(s) of training state"
                )
        path, weights = (*path, chosen), weights[chosen]
    if path:
        notes.insert(0, f"the weights were found in {'.'.join(map(str, path))}")

    flat: dict[str, tuple[KeyPath, PlannedTensor]] = {}
    skipped: list[str] = []
    _flatten(weights, "", path, flat, skipped, measure, subject)
    if not flat:
        raise SourceError(
            subject,
            f"It holds no weights, only training state: {', '.join(skipped[:3])}.",
            "Give the file of the model.",
        )
    if skipped:
        more = f" and {len(skipped) - 3} more" if len(skipped) > 3 else ""
        notes.append(f"left out what is no tensor of the model: {', '.join(skipped[:3])}{more}")
    return Found(_without_prefixes(flat, notes), step, epoch, tuple(notes), architecture)


class _Measure:
    """Counts entries and tensors below a container, each container once however often it is named."""

    def __init__(self, subject: object) -> None:
        self._subject = subject
        self._known: dict[int, _Size] = {}
        self._open: set[int] = set()

    def __call__(self, value: Any) -> _Size:
        if isinstance(value, PlannedTensor):
            return _Size(1, 1)
        if not isinstance(value, dict | list | tuple):
            return _Size(1, 0)
        key = id(value)
        if key in self._known:
            return self._known[key]
        if key in self._open:
            raise SourceError(
                self._subject,
                "It holds a container that contains itself.",
                "Save it again without.",
            )
        if len(self._open) >= _MAX_DEPTH:
            raise SourceError(
                self._subject,
                f"Its containers are nested deeper than {_MAX_DEPTH}.",
                "Save a flat state dict.",
            )
        self._open.add(key)
        sizes = [self(child) for child in (value.values() if isinstance(value, dict) else value)]
        self._open.remove(key)
        size = _Size(1 + sum(s.entries for s in sizes), sum(s.tensors for s in sizes))
        if size.entries > _MAX_ENTRIES:
            raise SourceError(
                self._subject,
                f"Its containers unfold to more than {_MAX_ENTRIES:,} entries, naming each other again and again.",
                "Save a flat state dict.",
            )
        self._known[key] = size
        return size


def _wrapped(mapping: Mapping[Any, Any], measure: _Measure) -> str | None:
    """The key whose value holds the weights, or None when `mapping` itself does.

    A generic key such as `model` is not followed when tensors of other parts lie beside it: nothing that may be a
    weight is dropped.
    """
    holders = [
        key
        for key in _WEIGHT_KEYS
        if isinstance(mapping.get(key), Mapping) and measure(mapping[key]).tensors
    ]
    if not holders:
        return None
    chosen = holders[0]
    if chosen in _WEIGHT_KEYS[:3]:
        return chosen
    beside = (
        key
        for key, value in mapping.items()
        if key != chosen
        and measure(value).tensors
        and not _TRAINING.fullmatch(str(key))
        and not _scalar(value)
    )
    return chosen if next(beside, None) is None else None


def _scalar(value: Any) -> bool:
    return isinstance(value, PlannedTensor) and value.num_elements == 1


def _flatten(
    value: Any,
    prefix: str,
    path: KeyPath,
    flat: dict[str, tuple[KeyPath, PlannedTensor]],
    skipped: list[str],
    measure: _Measure,
    subject: object,
) -> None:
    """Put every tensor below `value` into `flat` under its dotted name."""
    if isinstance(value, PlannedTensor):
        name = prefix or "tensor"
        if name in flat:
            raise SourceError(
                subject,
                f"Two tensors have the name {shown(name)}.",
                "Save it again with unique names.",
            )
        flat[name] = (path, value)
        return
    if not isinstance(value, dict | list | tuple):
        skipped.append(f"{shown(prefix)} ({type(value).__name__})")
        return
    if not measure(value).tensors:
        skipped.append(f"{shown(prefix)} (a {type(value).__name__} without tensors)")
        return
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in items:
        if isinstance(key, bytes):
            key_text = key.decode("utf-8", "backslashreplace")
        elif isinstance(key, str | int) and not isinstance(key, bool):
            key_text = str(key)
        elif measure(child).tensors:
            raise SourceError(
                subject,
                f"A tensor lies under a key of type {type(key).__name__}.",
                "Save a state dict with names.",
            )
        else:
            continue
        name = f"{prefix}.{key_text}" if prefix else key_text
        training = _TRAINING.fullmatch(key_text) and not isinstance(child, PlannedTensor)
        if not prefix and training and measure(child).tensors:
            skipped.append(f"{shown(name)} ({measure(child).tensors} tensors of training state)")
            continue
        _flatten(child, name, (*path, key), flat, skipped, measure, subject)


def _without_prefixes(
    flat: dict[str, tuple[KeyPath, PlannedTensor]], notes: list[str]
) -> dict[str, tuple[KeyPath, PlannedTensor]]:
    """Names without the prefixes that DataParallel and torch.compile put before every one of them."""
    again = True
    while again:
        again = False
        for prefix in _PREFIXES:
            if all(name.startswith(prefix) and len(name) > len(prefix) for name in flat):
                flat = {name[len(prefix) :]: found for name, found in flat.items()}
                notes.append(f"removed the prefix {prefix} from every name")
                again = True
    return flat


def _whole(mapping: Mapping[Any, Any], *keys: str) -> int | None:
    for key in keys:
        value = mapping.get(key)
        if type(value) is int and 0 <= value < 1 << 63:
            return value
    return None


def _number(mapping: Mapping[Any, Any], key: str) -> float | None:
    value = mapping.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        return None
    return float(value)


def _text(mapping: Mapping[Any, Any], key: str) -> str | None:
    value = mapping.get(key)
    return value if isinstance(value, str) and 0 < len(value) <= _MAX_NAME else None
