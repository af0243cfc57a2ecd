"""The report card of generators: one JSON file of what their networks can do and how new they are.

    report = evaluate_generators(catalog, ["my-igpg", "pca"], Wishes(dataset="mnist"), output=Path("card.json"))
    report.results["rows"][0]["relative_novelty"]

Beside the generators stand `scratch` (as training begins), `zoo` (held-out runs) and `copy` (training networks as they
are). Finished parts are lines of `<output>.state.jsonl`; the same call goes on after an interruption.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from zooplatform.artifacts import find_artifact, load_artifact
from zooplatform.errors import ConfigError
from zooplatform.evaluation.records import machine, versions, write_json
from zooplatform.generation.images import task_images
from zooplatform.generation.networks import Builder
from zooplatform.scorecard.entrants import (
    GeneratorEntrant,
    generator_entrants,
    reference_entrants,
)
from zooplatform.scorecard.examining import Examiner
from zooplatform.scorecard.parts import Parts
from zooplatform.scorecard.reconstruction import Reconstructs
from zooplatform.scorecard.rows import Row
from zooplatform.scorecard.sides import fitted_on, read_side, usual_of
from zooplatform.scorecard.wishes import Wishes
from zooplatform.scorecard.wrong import wrong_figures

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from zooplatform.artifacts import Artifact
    from zooplatform.catalog import Catalog
    from zooplatform.generation.images import TaskData
    from zooplatform.interfaces import Progress
    from zooplatform.scorecard.cost import Cost
    from zooplatform.scorecard.entrants import Entrant
    from zooplatform.scorecard.networks import Networks
    from zooplatform.scorecard.reconstruction import Reconstruction
    from zooplatform.scorecard.sides import Side

__all__ = ["FORMAT", "CardReport", "Wishes", "evaluate_generators", "state_path"]

FORMAT = 1

_Found: TypeAlias = "dict[str, list[Any]]"


@dataclass(frozen=True, slots=True, kw_only=True)
class CardReport:
    """What evaluating did.

    Attributes:
        results: what was written, or would have been.
        path: the file, None where none was asked for.
        reused: parts that an earlier call had finished.
        missing: parts that are still to be done, because the time was up.
    """

    results: Mapping[str, Any]
    path: Path | None
    reused: int
    missing: int


class TimeIsUpError(Exception):
    """No part is begun or finished any more."""


def state_path(output: Path) -> Path:
    """Where finished parts are kept."""
    return output.with_name(f"{output.name}.state.jsonl")


def evaluate_generators(
    catalog: Catalog,
    names: Sequence[str],
    wishes: Wishes,
    *,
    output: Path | None = None,
    data_folder: str | os.PathLike[str] | None = None,
    sources: Mapping[str, str] | None = None,
    device: str = "cpu",
    max_minutes: float | None = None,
    progress: Progress | None = None,
) -> CardReport:
    """Draw networks from stored generators and measure them; nothing is added to the catalog.

    Args:
        catalog: holds the generators and the networks that they were fitted on.
        names: of the generators.
        wishes: what is measured.
        output: JSON file for the results; nothing is kept without it.
        data_folder, sources: where the images are, as for `task_images`.
        device: torch device on which networks are measured and fine-tuned.
        max_minutes: begin nothing after this time; the same call goes on then.
        progress: where to say how far it is.

    Raises:
        ConfigError: a generator, the data set, the split or a wish is not usable.
        SourceError, NotInstalledError: the images cannot be had, or scipy is missing.
    """
    end = None if max_minutes is None else time.monotonic() + 60 * max_minutes
    artifacts = _artifacts(catalog, names)
    query, split = fitted_on(artifacts, wishes.query, wishes.split)
    training = read_side(catalog, query, split, "train", wishes.dataset, wishes.architecture)
    if wishes.wrong_dataset == training.dataset:
        raise ConfigError(f"{training.dataset!r} cannot be the wrong data set too. Name another.")
    held_out = read_side(catalog, query, split, "test", training.dataset, wishes.architecture)
    wanted = list(dict.fromkeys([training.dataset, *filter(None, [wishes.wrong_dataset])]))
    tasks = task_images(
        catalog,
        training.ids,
        folder=data_folder,
        sources=sources,
        names=wanted,
        final=wishes.final,
    )
    card = _Card(
        catalog, artifacts, wishes, tasks, training, held_out, device, end, progress, output
    )
    results = card.run()
    results = {
        "format": FORMAT,
        "kind": "report card",
        "name": output.stem if output is not None else f"card-{training.dataset}",
        "title": f"Report card of generators on {training.dataset}",
        "complete": card.missing == 0,
        "dataset": training.dataset,
        "query": query,
        "split": split,
        **results,
        "versions": versions(),
        "machine": machine(1, device),
    }
    if output is not None:
        results = write_json(output, results)
    return CardReport(results=results, path=output, reused=card.reused, missing=card.missing)


def _artifacts(catalog: Catalog, names: Sequence[str]) -> list[Artifact]:
    found = [find_artifact(catalog, name, "generator") for name in names]
    called = [one.name for one in found]
    if not found or len(set(called)) < len(called):
        raise ConfigError(
            "Name one or more generators, each once and none like another; `zoo generator ls` lists them."
        )
    return found


class _Card:
    """One report card in the making."""

    def __init__(
        self,
        catalog: Catalog,
        artifacts: Sequence[Artifact],
        wishes: Wishes,
        tasks: Mapping[str, TaskData],
        training: Side,
        held_out: Side,
        device: str,
        end: float | None,
        progress: Progress | None,
        output: Path | None,
    ) -> None:
        self._catalog, self._wishes, self._device = catalog, wishes, device
        self._training, self._held_out, self._tasks = training, held_out, tasks
        self._end, self._progress = end, progress
        self._build = Builder(catalog.recogniser)
        self._artifacts = {one.name: one for one in artifacts}
        self._generators = {one.name: load_artifact(catalog, one) for one in artifacts}
        self._schooling = usual_of(training)
        self._parts = Parts(None if output is None else state_path(output), self._common())
        self.missing = 0

    @property
    def reused(self) -> int:
        """Parts that an earlier call had finished."""
        return self._parts.reused

    def run(self) -> dict[str, Any]:
        """Every part that is not done yet, and the figures of all."""
        wishes, task = self._wishes, self._tasks[self._training.dataset]
        examiner = Examiner(
            task,
            self._training,
            build=self._build,
            schooling=self._schooling,
            epochs=wishes.epochs,
            n=wishes.n,
            train_images=wishes.train_images,
            compared_images=wishes.compared_images,
            tried=wishes.tried,
            seed=wishes.seed,
            device=self._device,
            check=self._check,
        )
        entrants = [
            *reference_entrants(self._training, self._held_out, wishes.n, wishes.seed, self._build),
            *generator_entrants(
                self._catalog, self._artifacts, self._generators, wishes, self._training.dataset
            ),
        ]
        labels = [one.label for one in entrants]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ConfigError(
                f"Two rows would be called {twice[0]!r}. Store the generator under another name."
            )
        found: _Found = {
            name: [] for name in ("rows", "wrong", "cost", "reconstruction", "refused")
        }
        for entrant in entrants:
            self._examine(entrant, examiner, found)
        self._reconstruct(examiner, found)
        reference = examiner.reference
        return {
            "settings": {
                **asdict(wishes),
                "learning_rates": list(self._schooling.grid),
                "schooling": self._schooling._asdict(),
            },
            "generators": [self._about(one) for one in self._artifacts.values()],
            "images": {name: one.describe() | _sizes(one) for name, one in self._tasks.items()},
            "zoo": {
                "training_networks": len(self._training.networks),
                "training_runs": len(set(self._training.runs)),
                "training_runs_of_dataset": len(self._training.last()),
                "held_out_runs": len(self._held_out.last()),
                "distance": reference.zoo_distance,
                "left_out": asdict(reference.zoo),
                "diversity": asdict(examiner.zoo_diversity),
            },
            **found,
            "notes": [
                *self._training.notes,
                *self._held_out.notes,
                *(note for one in self._tasks.values() for note in one.notes),
            ],
        }

    @staticmethod
    def _about(artifact: Artifact) -> dict[str, Any]:
        return {
            "name": artifact.name,
            "artifact_id": artifact.artifact_id,
            "backend": artifact.backend,
            "plugin_version": artifact.plugin_version,
            "config": artifact.config,
            "fit_seconds": artifact.metrics.get("fit_seconds"),
            "train_sha256": artifact.data.get("train", {}).get("sha256"),
        }

    # --- parts -------------------------------------------------------------------------------------------------------

    def _examine(self, entrant: Entrant, examiner: Examiner, found: _Found) -> None:
        """The rows of one method, as far as time allows."""
        networks: Networks | None = None
        cost: Cost | None = None
        for part in ("as made", "fine-tuned") if any(self._wishes.epochs) else ("as made",):
            decides = self._decides(part, entrant)
            record = self._parts.find(part, entrant.label, decides)
            if record is None:
                try:
                    self._check()
                    if networks is None or cost is None:
                        self._say(f"{entrant.label}: drawing", 0, None)
                        networks, cost = entrant.make()
                    if part == "as made":
                        record = self._as_made(entrant, networks, cost, examiner)
                    else:
                        record = self._finetuned(entrant, networks, examiner)
                except TimeIsUpError:
                    self.missing += 1
                    continue
                except ConfigError as exc:
                    # It does not know what was asked for, or nothing can be said of what it made: an answer too.
                    found["refused"].append({"method": entrant.label, "reason": str(exc)})
                    return
                self._parts.keep(part, entrant.label, decides, record)
            # Read as rows, so that none without its novelty gets into the results.
            found["rows"] += [Row.from_json(row).to_json() for row in record["rows"]]
            for name in ("wrong", "cost"):
                found[name] += record.get(name, [])

    def _as_made(
        self, entrant: Entrant, networks: Networks, cost: Cost, examiner: Examiner
    ) -> dict[str, Any]:
        self._say(f"{entrant.label}: measuring", 0, None)
        rows = examiner.zero_shot(entrant.label, networks, entrant.about)
        rows += examiner.readouts(entrant.label, networks, entrant.about, self._wishes.readouts)
        wrong = wrong_figures(
            entrant, networks, examiner, self._tasks, self._wishes, self._build, self._device
        )
        return {
            "rows": [row.to_json() for row in rows],
            "wrong": wrong,
            "cost": [{"method": entrant.label, **cost.to_json()}],
        }

    def _finetuned(
        self, entrant: Entrant, networks: Networks, examiner: Examiner
    ) -> dict[str, Any]:
        some = networks.take(range(min(self._wishes.finetuned, len(networks))))
        made = [(entrant.label, some, entrant.about)]
        made += examiner.read_out(entrant.label, some, entrant.about, self._wishes.readouts)
        rows = []
        for label, networks, about in made:
            say = partial(self._say, f"{label}: epochs")
            rows += examiner.finetuned(label, networks, about, say)
        return {"rows": [row.to_json() for row in rows]}

    def _reconstruct(self, examiner: Examiner, found: _Found) -> None:
        places = self._held_out.drawn(self._wishes.n, self._wishes.seed)
        if len(places) < 2:
            return  # nothing to tell a reconstruction from

        networks = self._held_out.networks.take(places)

        def part(label: str, decides: dict[str, Any], make: Callable[[], Reconstruction]) -> None:
            decides |= {"n": self._wishes.n, "seed": self._wishes.seed}
            record = self._parts.find("reconstruction", label, decides)
            if record is None:
                try:
                    self._check()
                    self._say(f"{label}: reconstructing", 0, None)
                    record = {"row": make().to_json()}
                except TimeIsUpError:
                    self.missing += 1
                    return
                except ConfigError as exc:
                    reason = {"method": f"{label}, reconstruction", "reason": str(exc)}
                    found["refused"].append(reason)
                    return
                self._parts.keep("reconstruction", label, decides, record)
            found["reconstruction"].append(record["row"])

        for name, one in self._generators.items():
            if isinstance(one, Reconstructs):
                artifact = self._artifacts[name].artifact_id
                part(
                    name,
                    {"artifact": artifact},
                    lambda name=name, one=one: examiner.reconstruction(name, one, networks),  # type: ignore[misc]
                )
        if found["reconstruction"]:
            part("constant", {}, lambda: examiner.constant(networks))

    # --- beside ------------------------------------------------------------------------------------------------------

    def _common(self) -> dict[str, Any]:
        """What decides every part."""
        return {
            "format": FORMAT,
            "training": _hash(self._training.ids),
            "own": list(self._training.own),
            "held_out": _hash(self._held_out.ids),
            "dataset": self._tasks[self._training.dataset].sha256,
        } | ({"final": True} if self._wishes.final else {})

    def _decides(self, part: str, entrant: Entrant) -> dict[str, Any]:
        """What decides a part of a method: another wish makes only those parts anew which it changes."""
        wishes = self._wishes
        found: dict[str, Any] = {
            "entrant": dict(entrant.decides),
            "architecture": wishes.architecture,
            "n": wishes.n,
            "compared_images": wishes.compared_images,
            "seed": wishes.seed,
        }
        generator = isinstance(entrant, GeneratorEntrant)
        if generator:
            found |= {"top_k": wishes.top_k, "options": dict(wishes.options)}
        if wishes.readouts:
            found |= {"readouts": list(wishes.readouts)}
        if wishes.train_images is not None and (wishes.readouts or part == "fine-tuned"):
            found |= {"train_images": wishes.train_images}
        if part == "fine-tuned":
            later = sorted({epochs for epochs in wishes.epochs if epochs})
            return found | {
                "finetuned": wishes.finetuned,
                "tried": wishes.tried,
                "epochs": later,
                "rates": self._schooling.grid,
            }
        if generator:
            there = wishes.wrong_dataset
            found |= {
                "wrong_instructions": wishes.wrong_instructions,
                "wrong_dataset": None if there is None else self._tasks[there].sha256,
            }
        return found | {"zero_shot": 0 in wishes.epochs}

    def _check(self) -> None:
        if self._end is not None and time.monotonic() >= self._end:
            raise TimeIsUpError

    def _say(self, what: str, done: int, total: int | None) -> None:
        if self._progress is not None:
            self._progress(what, done, total)


def _hash(ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def _sizes(task: TaskData) -> dict[str, int]:
    return {f"num_{name}": len(getattr(task, name).y) for name in ("train", "validation", "test")}
