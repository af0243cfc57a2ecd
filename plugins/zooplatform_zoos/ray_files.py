"""The files of one Ray Tune trial: hyper-parameters, result lines, checkpoint folders."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any

from zooplatform.errors import SourceError
from zooplatform_zoos.names import flat, is_accuracy

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Results", "Trial", "find_trials", "numbers", "read_config", "read_results"]

_CHECKPOINT = re.compile(r"^checkpoint_(\d+)$")
_WEIGHT_FILES = ("checkpoints", "checkpoint.pt", "state.pt", "model.pt", "checkpoint", "model")
# What a Ray worker writes into each line about itself.
_HOUSEKEEPING = re.compile(
    r"^(config|training_iteration|epoch|trial_id|experiment_(id|tag)|date|timestamp|time_.*|done|"
    r"pid|hostname|node_ip|timesteps.*|episodes_total|iterations_since_restore|warmup_time|"
    r"should_checkpoint|checkpoint_dir_name|trial_name|trainable_name|logdir)$"
)
# str() of an object that was no plain value: the grid of ray.tune, a function, a class.
_OBJECT_TEXT = re.compile(r"^<.*(\bobject at 0x[0-9a-f]+|ray\.tune|\bfunction\b|\bclass\b).*>$")
_MAX_LINE = 32 << 20
_MAX_VALUES = 256


@dataclass(frozen=True, slots=True)
class Trial:
    """A folder with checkpoint folders: one training run. `name` is its path below the zoo."""

    folder: Path
    name: str
    checkpoints: tuple[tuple[int, Path], ...]  # (number, folder), by number


@dataclass
class Results:
    """The readable lines of `result.json`, by what the trainer counted."""

    lines: dict[int, Mapping[str, Any]] = field(default_factory=dict)  # iteration -> line
    notes: list[str] = field(default_factory=list)

    @property
    def config(self) -> Mapping[str, Any]:
        """Hyper-parameters as the last line repeats them."""
        for line in reversed(self.lines.values()):
            config = line.get("config")
            if isinstance(config, Mapping):
                return config
        return {}

    def largest_accuracy(self) -> float:
        """The largest finite accuracy of any split, 0 without one."""
        found = [
            value
            for line in self.lines.values()
            for name, value in numbers(line)
            if is_accuracy(name) and isfinite(value)
        ]
        return max(found, default=0.0)

    def starts_with_evaluation(self) -> bool:
        """Whether iteration 1 only tested the untrained network, so that iterations are one ahead of epochs."""
        line = self.lines.get(1)
        if line is None or 0 in self.lines:
            return False
        names = {name for name, _ in numbers(line)}
        trained = any(name.startswith("train") for name in names)
        return not trained and any(name.startswith("test") for name in names)


def find_trials(folder: Path) -> Iterator[Trial]:
    """Every trial below `folder`, in the order of their names."""
    pending = [folder]
    while pending:
        here = pending.pop()
        checkpoints, inner = [], []
        for entry in here.iterdir():
            if entry.is_symlink() or not entry.is_dir():
                continue
            match = _CHECKPOINT.match(entry.name)
            if match is None:
                inner.append(entry)
            else:
                checkpoints.append((int(match[1]), entry))
        checkpoints.sort(key=lambda found: (found[0], found[1].name))
        if checkpoints or (here != folder and (here / "result.json").is_file()):
            name = here.relative_to(folder).as_posix()
            yield Trial(here, folder.name if name == "." else name, tuple(checkpoints))
        pending.extend(sorted(inner, key=lambda path: path.name, reverse=True))


def weight_file(checkpoint: Path) -> Path:
    """The file with the weights of a checkpoint folder.

    Raises:
        SourceError: none of the known names is there.
    """
    for name in _WEIGHT_FILES:
        path = checkpoint / name
        if path.is_file():
            return path
    there = ", ".join(sorted(path.name for path in checkpoint.iterdir())[:10]) or "nothing"
    raise SourceError(
        checkpoint, f"none of {', '.join(_WEIGHT_FILES)} is in it, only {there}.", "Fetch it again."
    )


def read_results(trial: Trial) -> Results:
    """Read `result.json` line by line; a damaged line is noted and the others are used.

    Lines are numbered by `training_iteration`, else by `epoch`, else by their place: from 0 when there are as many
    lines as the last checkpoint's number plus one, otherwise from 1.
    """
    results = Results()
    path = trial.folder / "result.json"
    if not path.is_file():
        results.notes.append(f"{trial.name}: no result.json, so no metrics")
        return results
    unnumbered: list[Mapping[str, Any]] = []
    with path.open("rb") as file:
        for number, raw in enumerate(iter(lambda: file.readline(_MAX_LINE), b""), start=1):
            if not raw.strip():
                continue
            try:
                # Python's reader takes the bare NaN and Infinity tokens that these files hold.
                line = json.loads(raw)
            except (ValueError, RecursionError) as error:
                results.notes.append(f"{trial.name}: result.json line {number} is damaged: {error}")
                continue
            if not isinstance(line, Mapping):
                results.notes.append(f"{trial.name}: result.json line {number} is no object")
                continue
            iteration = line.get("training_iteration", line.get("epoch"))
            if isinstance(iteration, int | float) and isfinite(iteration):
                results.lines[int(iteration)] = (
                    line  # a restored run repeats lines: the last counts
                )
            else:
                unnumbered.append(line)
    if unnumbered and not results.lines:
        last = trial.checkpoints[-1][0] if trial.checkpoints else 0
        first = 0 if len(unnumbered) == last + 1 else 1
        results.lines = dict(enumerate(unnumbered, start=first))
    elif unnumbered:
        results.notes.append(f"{trial.name}: {len(unnumbered)} lines without training_iteration")
    return results


def read_config(trial: Trial, results: Results) -> tuple[dict[str, Any], list[str]]:
    """The hyper-parameters of this trial, flat, and notes.

    `params.json` is the trial's own; `config.json` can be the grid, whose objects were written as text, so such values
    are taken from the result lines or left out.
    """
    notes: list[str] = []
    given: dict[str, Any] = {}
    for name in ("params.json", "config.json"):
        path = trial.folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_bytes()[:_MAX_LINE])
        except (ValueError, RecursionError) as error:
            notes.append(f"{trial.name}: {name} is damaged: {error}")
            continue
        if isinstance(content, Mapping):
            given = flat(content)
            break
        notes.append(f"{trial.name}: {name} is no object")
    repeated = flat(results.config)
    config = {}
    for key, value in (given or repeated).items():
        if isinstance(value, str) and _OBJECT_TEXT.match(value):
            value = repeated.get(key, value)
            if isinstance(value, str) and _OBJECT_TEXT.match(value):
                notes.append(f"{trial.name}: {key} is {value[:80]}, not a value; left out")
                continue
        config[key] = value
    if not config:
        notes.append(f"{trial.name}: no params.json or config.json, so no hyper-parameters")
    return config, notes


def numbers(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The measured values of a result line; nested ones with `/` between the levels."""
    count = 0
    for key, value in line.items():
        name = f"{prefix}{key}"
        if not prefix and _HOUSEKEEPING.match(str(key)):
            continue
        if isinstance(value, Mapping):
            yield from numbers(value, f"{name}/")
        elif isinstance(value, list):
            yield from numbers(
                {str(at): item for at, item in enumerate(value[:_MAX_VALUES])}, f"{name}/"
            )
        elif isinstance(value, int | float) and not isinstance(value, bool):
            try:
                yield name, float(value)
            except OverflowError:
                yield name, float("inf") if value > 0 else float("-inf")
            count += 1
        if count >= _MAX_VALUES:
            return
