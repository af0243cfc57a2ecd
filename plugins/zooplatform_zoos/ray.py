"""Source `ray-zoo:`: Ray Tune trees of the published zoos (Schürholt et al.) and their relatives."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from zooplatform.errors import SourceError
from zooplatform.interfaces import (
    CheckpointRecord,
    LineageRecord,
    MetricRecord,
    ModelInfo,
    PopulationBatch,
    Progress,
    StateDict,
)
from zooplatform.layout import model_id
from zooplatform_zoos.batching import Item, Network, Reports, stream
from zooplatform_zoos.names import digest, flat, folder_of, is_accuracy, metric_name, seed_of
from zooplatform_zoos.published import published_config
from zooplatform_zoos.ray_files import (
    Results,
    Trial,
    find_trials,
    numbers,
    read_config,
    read_results,
    weight_file,
)
from zooplatform_zoos.torchfile import read_torch, state_dict_of

__all__ = ["RayZoo"]

_PARENT = "pretraining::model::path"
_DATASET_KEYS = ("dataset", "dataset::name", "training::dataset", "data::name", "dataset_name")
# Above this an accuracy cannot be a fraction; rounding can lift a fraction slightly over 1.
_PERCENT = 1.5


@dataclass(frozen=True)
class _Conventions:
    """What holds for a whole zoo and cannot be told from one line."""

    percent: bool
    iteration_offset: int  # iteration = checkpoint number + offset
    epoch_offset: int  # epoch = iteration - offset


class RayZoo:
    """Every checkpoint folder of every trial; the trial is the model, the folder's number the step."""

    def describe(self, ref: str) -> Mapping[str, str]:
        """The name of the zoo: its folder's."""
        return {"name": folder_of(ref, "ray-zoo").name}

    def batches(
        self,
        ref: str,
        *,
        done: frozenset[tuple[str, int | None]] = frozenset(),
        progress: Progress | None = None,
    ) -> Iterator[PopulationBatch]:
        """Batches of one layout and one network configuration each.

        Raises:
            SourceError: there is no trial in the folder.
        """
        folder = folder_of(ref, "ray-zoo")
        trials = list(find_trials(folder))
        if not any(trial.checkpoints for trial in trials):
            raise SourceError(
                folder,
                "no folder with checkpoint_N folders is in it.",
                "Give the folder of the zoo, above the folders of the trials.",
            )
        reports = Reports()
        conventions = _conventions(trials, reports)
        infos = _models(trials, folder, ref, conventions, reports)
        total = sum(len(trial.checkpoints) for trial in trials)
        items = _items(trials, infos, conventions, reports)
        yield from stream(
            items, reports, what=folder.name, total=total, done=done, progress=progress
        )


def _conventions(trials: list[Trial], reports: Reports) -> _Conventions:
    """Look at every trial's lines once: percent or fraction, and how lines and checkpoints are counted."""
    largest, starts, votes = 0.0, 0, {0: 0, 1: 0}
    with_lines = 0
    for trial in trials:
        results = read_results(trial)
        if not results.lines or not trial.checkpoints:
            largest = max(largest, _largest_inside(trial))
            continue
        with_lines += 1
        largest = max(largest, results.largest_accuracy())
        starts += results.starts_with_evaluation()
        first, last = trial.checkpoints[0][0], trial.checkpoints[-1][0]
        counted_from_one = min(results.lines) == 1 and max(results.lines) == last + 1
        votes[1 if first == 0 and counted_from_one else 0] += 1
    percent = largest > _PERCENT
    if percent:
        reports.note("accuracies are given in percent; stored as fractions")
    reports.note("optimizer and scheduler files are not weights and were left out")
    offset = 1 if votes[1] > votes[0] else 0
    return _Conventions(percent, offset, 1 if starts * 2 > with_lines else 0)


def _largest_inside(trial: Trial) -> float:
    """The largest accuracy that the checkpoint files of a trial without result lines state themselves."""
    largest = 0.0
    for _, folder in trial.checkpoints:
        try:
            content = read_torch(weight_file(folder), header_only=True)
        except SourceError:
            continue  # reported when the checkpoint itself is read
        last = content.get("last_result") if isinstance(content, Mapping) else None
        if isinstance(last, Mapping):
            largest = max([largest, *(v for k, v in numbers(last) if is_accuracy(k))])
    return largest


def _models(
    trials: list[Trial], folder: Path, ref: str, conventions: _Conventions, reports: Reports
) -> dict[str, ModelInfo]:
    """The model of each trial by the trial's name; parents before their fine-tuned children."""
    configs: dict[str, dict[str, Any]] = {}
    for trial in trials:
        config, notes = read_config(trial, read_results(trial))
        for note in notes:
            reports.note(note)
        configs[trial.name] = config
    infos: dict[str, ModelInfo] = {}

    def info(name: str, above: frozenset[str]) -> ModelInfo:
        if name in infos:
            return infos[name]
        config = dict(configs[name])
        lineage: tuple[LineageRecord, ...] = ()
        given = config.get(_PARENT)
        if isinstance(given, str) and given:
            parent = _parent(given, name, configs)
            if parent is None or parent in above:
                reports.note(f"{name}: its pre-trained network {given} is not in this zoo")
                known = f"ray-zoo:{given}"
            else:
                found = info(parent, above | {name})
                known = model_id(found.key, found.revision)
            number = re.findall(r"checkpoint_(\d+)", given)
            detail: dict[str, Any] = {"path": given}
            if number:
                detail["checkpoint"] = int(number[-1])
            lineage = (LineageRecord(parent=known, relation="finetuned_from", detail=detail),)
        if conventions.percent:
            config["source::accuracy_unit"] = "percent"
        infos[name] = ModelInfo(
            key=f"ray-zoo:{folder.name}/{name}@{digest(configs[name])[:12]}",
            name=name,
            source=f"ray-zoo:{ref}",
            seed=seed_of(config),
            config=config,
            lineage=lineage,
        )
        return infos[name]

    for trial in trials:
        info(trial.name, frozenset({trial.name}))
    return infos


def _parent(given: str, child: str, configs: Mapping[str, object]) -> str | None:
    """The trial that the path of another machine means: the one whose name shares most folders with it."""
    parts = PurePosixPath(given.replace("\\", "/")).parts
    parts = tuple(part for part in parts if not part.startswith("checkpoint"))
    best, longest = None, 0
    for name in configs:
        names = PurePosixPath(name).parts
        if name == child or names[-1] not in parts:
            continue
        end = len(parts) - parts[::-1].index(names[-1])
        shared = 0
        while shared < min(end, len(names)) and parts[end - 1 - shared] == names[-1 - shared]:
            shared += 1
        if shared > longest:
            best, longest = name, shared
    return best


def _items(
    trials: list[Trial],
    infos: Mapping[str, ModelInfo],
    conventions: _Conventions,
    reports: Reports,
) -> Iterator[Item]:
    for trial in trials:
        info = infos[trial.name]
        if not trial.checkpoints:
            reports.fail(
                f"{info.source}/{trial.name}", "it has result lines but no checkpoint folder"
            )
            continue
        results = read_results(trial)
        for note in results.notes:
            reports.note(note)
        for number, folder in trial.checkpoints:
            load = partial(_load, trial, info, results, conventions, reports, number, folder)
            yield Item(info.key, number, f"{info.source}/{trial.name}/{folder.name}", load)


def _load(
    trial: Trial,
    info: ModelInfo,
    results: Results,
    conventions: _Conventions,
    reports: Reports,
    number: int,
    folder: Path,
) -> Network:
    path = weight_file(folder)
    content = read_torch(path)
    state, notes = state_dict_of(content, path)
    iteration = number + conventions.iteration_offset
    line = results.lines.get(iteration)
    if isinstance(content, Mapping) and isinstance(content.get("last_result"), Mapping):
        line = {**content["last_result"], **(line or {})}
    else:
        for note in notes:
            reports.note(note)
    if line is None and results.lines:
        reports.note(f"{trial.name}: no result line for {folder.name}, so no metrics")
    if isinstance(content, Mapping) and isinstance(content.get("config"), Mapping):
        info = _with_config(info, content["config"])
    dataset = next(
        (value for key in _DATASET_KEYS if isinstance(value := info.config.get(key), str)), ""
    )
    record = CheckpointRecord(
        model=info,
        step=number,
        epoch=float(iteration - conventions.epoch_offset),
        metrics=_metrics(line or {}, dataset, percent=conventions.percent),
    )
    return _network(state, record)


def _with_config(info: ModelInfo, inside: Mapping[Any, Any]) -> ModelInfo:
    """The hyper-parameters of a checkpoint file that carries its own; the trial's files win."""
    own = {str(key): value for key, value in flat({str(k): v for k, v in inside.items()}).items()}
    return replace(info, config={**own, **info.config})


def _network(state: StateDict, record: CheckpointRecord) -> Network:
    found = published_config(state, record.model.config)
    if found is None:
        return Network(state=state, record=record)
    return Network(state=state, record=record, family="cnn", name=found["preset"], config=found)


def _metrics(line: Mapping[str, Any], dataset: str, *, percent: bool) -> tuple[MetricRecord, ...]:
    metrics = []
    for given, value in numbers(line):
        name, split = metric_name(given)
        if percent and is_accuracy(given):
            value /= 100.0
        metrics.append(MetricRecord(name=name, value=value, dataset=dataset, split=split))
    return tuple(metrics)
