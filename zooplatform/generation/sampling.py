"""Networks from a stored generator, taken into the catalog with what they came from.

    report = sample_networks(catalog, "my-igpg", 8, instruction="a small CNN for fashion items, gelu", seed=0)
    network = catalog.build(report.checkpoint_ids[0])

The id of a network follows from the generator, from all that was asked, and from its number: asked again, the same
networks come under the same ids.

Legend for shapes: n networks, B of one batch, P values of one network.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zooplatform.artifacts import (
    find_artifact,
    load_artifact,
    prediction_key,
    require_writable,
)
from zooplatform.catalog.writer import ZooRecord
from zooplatform.config import load_settings
from zooplatform.errors import ConfigError
from zooplatform.generation.choosing import Judge, choose
from zooplatform.generation.drawing import check_asked, condition_of, draw, example_images
from zooplatform.generation.facts import joined_licence
from zooplatform.generation.networks import Builder
from zooplatform.interfaces import (
    CheckpointRecord,
    LineageRecord,
    MetricRecord,
    ModelInfo,
    PopulationBatch,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from zooplatform.artifacts import Artifact
    from zooplatform.catalog import Catalog
    from zooplatform.generation.choosing import Chosen
    from zooplatform.interfaces import GeneratedBatch, Progress

__all__ = ["SampleReport", "sample_networks"]

# Networks and bytes of weights of one commit at most.
_COMMIT_NETWORKS = 256
_COMMIT_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleReport:
    """What sampling gave.

    Attributes:
        checkpoint_ids: of the networks, in their order.
        zoo: where they are.
        new: how many were not in the catalog before.
        differing: how many were there before with other weights, which stay: the machine, or the plugin, is another.
        license: of the networks, from those of the training networks; None where none is declared.
        predictions: of the judge for each network, empty without one.
        kinds: how many of the networks are of which kind, in words (`mnist, tiny-zoo, gelu`).
        confidence: how sure the generator is at least of what was meant, where it says so; from 0 to 1.
        generator: the artifact.
    """

    checkpoint_ids: tuple[str, ...]
    zoo: str
    new: int
    differing: int
    license: str | None
    predictions: tuple[float, ...]
    kinds: Mapping[str, int]
    confidence: float | None
    generator: Artifact


class _Request(NamedTuple):
    """What decides the networks: `asked` as JSON, and a digest of it."""

    asked: dict[str, Any]
    digest: str


def sample_networks(
    catalog: Catalog,
    name: str,
    n: int,
    *,
    instruction: str | None = None,
    dataset: str | None = None,
    architecture: str | None = None,
    build_config: Mapping[str, Any] | None = None,
    images: str | None = None,
    data_folder: str | os.PathLike[str] | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int | None = None,
    options: Mapping[str, Any] | None = None,
    best_of: int = 1,
    judge: str | None = None,
    zoo: str | None = None,
    progress: Progress | None = None,
) -> SampleReport:
    """Draw networks from a stored generator and store them.

    Every network is checked, and one of each kind is built and loaded strictly before any is stored. Whatever ends
    the process, the same call goes on: what is stored already is not stored again.

    Args:
        catalog: a local catalog.
        name: of the generator, or its id.
        n: number of networks.
        instruction: plain words.
        dataset: one of the data sets that it was fitted on.
        architecture: one of its architectures, by name, id, or beginning of an id.
        build_config: of the architecture, or part of it (`{"activation": "gelu"}`).
        images: source of a data set of which the generator is shown examples, as in recipes: `npz:usps.npz`.
        data_folder: where a relative path in `images` starts; the setting `data_folder` by default.
        seed, temperature, top_k, options: as for `Generator.sample`; the seed also draws the examples.
        best_of: so many candidates are drawn for each network; the judge picks one.
        judge: name of a stored predictor. It picks the candidate of the highest prediction, or of the lowest where its
            target is a loss, an error or a gap; without candidates to pick from it only gives its prediction.
        zoo: where the networks go; `generated-NAME` by default.
        progress: told of networks that are drawn.

    Raises:
        UnknownIdError: there is no such generator or judge.
        ConfigError: the generator does not know what is asked for, or an argument is not usable.
        PluginError: the generator gives what is no network.
        ArchitectureError: its networks cannot be built.
        CatalogError: the catalog cannot be written.
    """
    require_writable(catalog)
    check_asked(n, temperature, top_k)
    if best_of < 1 or (best_of > 1 and judge is None):
        raise ConfigError(
            f"best_of={best_of} needs a judge: the name of a stored predictor (--judge)."
            if best_of > 1
            else f"best_of={best_of} leaves nothing to pick from. Give 1 or more."
        )
    artifact = find_artifact(catalog, name, "generator")
    judging = None if judge is None else Judge.load(catalog, judge)
    examples, shown = None, None
    if images is not None:
        folder = load_settings().data_folder if data_folder is None else data_folder
        examples, data = example_images(artifact, images, folder=folder, seed=seed)
        shown = {"source": images, "sha256": data.sha256, "per_class": examples.shape[1]}
    condition = condition_of(
        artifact,
        instruction=instruction,
        dataset=dataset,
        architecture=architecture,
        build_config=build_config,
        images=examples,
    )
    request = _request(
        instruction=instruction,
        dataset=dataset,
        architecture_id=None if condition is None else condition.architecture_id,
        build_config=build_config,
        images=shown,
        seed=seed,
        temperature=temperature,
        top_k=top_k,
        options=options,
        best_of=best_of,
        judge=None if judging is None else judging.artifact.artifact_id,
    )
    zoo = zoo or f"generated-{artifact.name}"
    drawn = draw(
        catalog,
        artifact,
        n * best_of,
        condition=condition,
        seed=seed,
        temperature=temperature,
        top_k=top_k,
        options=options,
        generator=load_artifact(catalog, artifact),
    )
    ids: list[str] = []
    predictions: list[float] = []
    kinds: Counter[str] = Counter()
    confidences: list[float] = []
    new = differing = 0
    origin = _Origin(catalog, artifact, request, zoo, judging)
    told = _told(drawn, f"sample {artifact.name}", n * best_of, progress)
    for chunk in _chunks(choose(told, best_of, judging)):
        stored = origin.store(len(ids), chunk)
        ids += stored.ids
        new += len(stored.ids) - stored.known
        differing += stored.differing
        predictions += [one.prediction for one in chunk if one.prediction is not None]
        kinds.update(map(_kind, chunk))
        said = (one.details.get("confidence") for one in chunk)
        confidences += [value for value in said if isinstance(value, int | float)]
    return SampleReport(
        checkpoint_ids=tuple(ids),
        zoo=zoo,
        new=new,
        differing=differing,
        license=origin.license,
        predictions=tuple(predictions),
        kinds=dict(kinds.most_common()),
        confidence=min(confidences, default=None),
        generator=artifact,
    )


def _request(**asked: Any) -> _Request:
    """What was asked, without what says nothing; equal requests have equal digests."""
    said = {key: value for key, value in asked.items() if value is not None}
    try:
        text = json.dumps(said, sort_keys=True)
    except TypeError as exc:
        raise ConfigError(f"Options and configurations are plain values of JSON: {exc}.") from exc
    return _Request(json.loads(text), hashlib.sha256(text.encode()).hexdigest()[:16])


def _kind(network: Chosen) -> str:
    blueprint = network.blueprint
    activation = blueprint.config.get("activation")
    words = (network.dataset, blueprint.name or blueprint.family, activation)
    return ", ".join(word for word in words if isinstance(word, str) and word)


def _told(
    batches: Iterable[GeneratedBatch], what: str, total: int, progress: Progress | None
) -> Iterator[GeneratedBatch]:
    """The same batches, each said to `progress`."""
    done = 0
    for batch in batches:
        done += len(batch.weights)
        if progress is not None:
            progress(what, done, total)
        yield batch


def _chunks(networks: Iterable[Chosen]) -> Iterator[list[Chosen]]:
    """Networks of one commit each, in their order."""
    chunk: list[Chosen] = []
    size = 0
    for one in networks:
        chunk.append(one)
        size += one.weights.nbytes
        if len(chunk) == _COMMIT_NETWORKS or size >= _COMMIT_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


class _Stored(NamedTuple):
    """Checkpoint ids; how many of them the catalog had before, and how many of these with other weights."""

    ids: list[str]
    known: int
    differing: int


class _Origin:
    """Stores networks with what they came from."""

    def __init__(
        self,
        catalog: Catalog,
        artifact: Artifact,
        request: _Request,
        zoo: str,
        judge: Judge | None,
    ) -> None:
        self._catalog, self._artifact, self._request = catalog, artifact, request
        self._zoo, self._judge = zoo, judge
        self._builder = Builder(catalog.recogniser)
        self._built: set[str] = set()
        self.license = joined_licence(list(artifact.data.get("licenses", {})))

    def store(self, first: int, networks: Sequence[Chosen]) -> _Stored:
        """Store networks, of which the first has the number `first`; one of each kind is built before any is."""
        kinds = {id(one.blueprint): one.blueprint for one in networks}
        texts = {at: json.dumps(kind.to_json(), sort_keys=True) for at, kind in kinds.items()}
        groups: dict[str, list[int]] = {}
        for at, one in enumerate(networks):
            groups.setdefault(texts[id(one.blueprint)], []).append(at)
        for key, places in groups.items():
            if key not in self._built:
                self._builder.load(networks[places[0]].blueprint, networks[places[0]].weights)
                self._built.add(key)
        found = [""] * len(networks)
        known = differing = 0
        record = ZooRecord(self._zoo, f"generate:{self._artifact.name}", self.license)
        for places in groups.values():
            batch = self._batch([networks[at] for at in places], [first + at for at in places])
            draft = self._catalog.write_population(batch, record)
            known += draft.known
            if draft.known:
                stored = self._catalog.population(draft.checkpoint_ids).weights.numpy()
                differing += int((stored != batch.weights).any(axis=1).sum())
            for at, checkpoint in zip(places, draft.checkpoint_ids, strict=True):
                found[at] = checkpoint
        return _Stored(found, known, differing)

    def _batch(self, networks: Sequence[Chosen], numbers: Sequence[int]) -> PopulationBatch:
        """Networks of one blueprint."""
        blueprint = networks[0].blueprint
        if blueprint.vector.dtype not in ("float16", "float32", "float64"):
            raise ConfigError(
                f"Networks of {blueprint.vector.dtype} cannot be stored as a population. Fit on networks of float32."
            )
        aside = None
        if blueprint.vector.aside_bytes:
            row = np.frombuffer(blueprint.aside, np.uint8)
            aside = np.repeat(row[None], len(networks), axis=0)
        return PopulationBatch(
            layout=blueprint.vector.layout,
            weights=np.ascontiguousarray(np.stack([one.weights.numpy() for one in networks])),
            rows=[self._record(one, at) for one, at in zip(networks, numbers, strict=True)],
            aside=aside,
            family=blueprint.family,
            name=blueprint.name,
            config=blueprint.config,
        )

    def _record(self, network: Chosen, number: int) -> CheckpointRecord:
        artifact, request = self._artifact, self._request
        config = {
            "dataset": network.dataset or None,
            "activation": network.blueprint.config.get("activation"),
        }
        detail = {
            "generator": artifact.name,
            "backend": artifact.backend,
            "backend_version": artifact.plugin_version,
            **request.asked,
            "index": number,
            "candidate": network.candidate,
            "prediction": network.prediction,
            "predictions": list(network.predictions),
            "licenses": list(artifact.data.get("licenses", {})),
            "details": dict(network.details),
        }
        return CheckpointRecord(
            model=ModelInfo(
                key=f"generate:{artifact.artifact_id}/{number}",
                name=f"{artifact.name}-{request.digest[:6]}-{number:05d}",
                source=f"generate:{artifact.name}",
                revision=request.digest,
                license=self.license,
                seed=request.asked["seed"],
                config={key: value for key, value in config.items() if value is not None},
                lineage=(
                    LineageRecord(
                        parent=artifact.artifact_id,
                        relation="generated_by",
                        detail={
                            key: value
                            for key, value in detail.items()
                            if value not in (None, [], {})
                        },
                    ),
                ),
            ),
            metrics=self._metrics(network),
        )

    def _metrics(self, network: Chosen) -> tuple[MetricRecord, ...]:
        """The prediction, where `zoo_predict` and `wide` look for it."""
        if self._judge is None or network.prediction is None:
            return ()
        key = prediction_key(self._judge.artifact)
        value = network.prediction
        return (MetricRecord(**key._asdict(), value=value, origin="predicted"),)
