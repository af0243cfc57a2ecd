"""What a tokenizer costs and what it loses, on networks of a catalog.

    found = evaluate_tokenizer(catalog, "my-vq", query, split="main", role="test", data_folder="images")
    found.bits_per_weight, found.relative_error, found.codes["perplexity"], found.datasets["mnist"].accuracy

Networks go through the codes and back. Where their images can be had, accuracy after that stands beside agreement and
diversity, and beside a decoder that always emits one and the same network (`zooplatform.scorecard.reconstruction`).

Legend for shapes: n networks, T tokens of one, K codes.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from zooplatform.artifacts import find_artifact, load_artifact
from zooplatform.errors import ArchitectureError, CatalogError, ConfigError
from zooplatform.fitting import Blueprint, network_batches
from zooplatform.generation.facts import network_facts
from zooplatform.generation.images import available_images
from zooplatform.generation.networks import Builder
from zooplatform.scorecard.networks import Bench, Networks
from zooplatform.scorecard.reconstruction import compared, constant_decoder
from zooplatform.scorecard.sides import read_side

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from torch import nn

    from zooplatform.artifacts import Artifact
    from zooplatform.catalog import Catalog
    from zooplatform.datasets import WeightDataset
    from zooplatform.generation.images import TaskData
    from zooplatform.interfaces import TokenBatch
    from zooplatform.layout import VectorLayout
    from zooplatform.scorecard.reconstruction import Reconstruction

__all__ = [
    "CodeUse",
    "TokenizerEvaluation",
    "bits_per_weight",
    "encoded",
    "evaluate_tokenizer",
    "through_codes",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerEvaluation:
    """Figures of n networks.

    Attributes:
        artifact: the tokenizer.
        n: networks.
        bits_per_weight: of the network that needs most.
        num_tokens: of the longest network.
        relative_error: squared distance to the original over the squared norm of the original, mean over networks.
        seconds_per_network: of coding and decoding.
        codes: `perplexity` (mean of the levels), `dead_codes` and `codebook_use` (of all levels); empty for tokens that
            are no indices.
        datasets: by data set, what is left of its networks on its test images, and of a decoder that ignores the codes.
        notes: what was left out and why.
    """

    artifact: Artifact
    n: int
    bits_per_weight: float
    num_tokens: int
    relative_error: float
    seconds_per_network: float
    codes: Mapping[str, float]
    datasets: Mapping[str, tuple[Reconstruction, Reconstruction]]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.artifact.name,
            "backend": self.artifact.backend,
            "artifact_id": self.artifact.artifact_id,
            "n": self.n,
            "bits_per_weight": self.bits_per_weight,
            "num_tokens": self.num_tokens,
            "relative_error": self.relative_error,
            "seconds_per_network": self.seconds_per_network,
            **self.codes,
            "datasets": {
                name: {**own.to_json(), "constant": constant.to_json()}
                for name, (own, constant) in self.datasets.items()
            },
        }


def evaluate_tokenizer(
    catalog: Catalog,
    given: str,
    query: str,
    *,
    split: str | None = None,
    role: str | None = None,
    n: int = 200,
    seed: int = 0,
    data_folder: str | os.PathLike[str] | None = None,
    sources: Mapping[str, str] | None = None,
) -> TokenizerEvaluation:
    """Send networks through a stored tokenizer and back.

    Args:
        catalog: holds tokenizer and networks.
        given: name or id of the tokenizer.
        query: SQL with a column `checkpoint_id`.
        split: only members of this split; `role` test unless said otherwise. The decoder that ignores the codes then
            emits the best network of role train, else the best of those that are asked about.
        role: of the split.
        n: networks at most, drawn by the seed.
        seed: of the draw.
        data_folder, sources: where images are, as for `task_images`.

    Raises:
        UnknownIdError: there is no such tokenizer.
        ConfigError: a role without a split, or images that are not those of the networks.
        TokenizerError: the tokenizer cannot code a network.
    """
    if role is not None and split is None:
        raise ConfigError(f"Role {role!r} is a role of a split; give split=NAME too.")
    role = "test" if split is not None and role is None else role
    artifact = find_artifact(catalog, given, "tokenizer")
    tokenizer = load_artifact(catalog, artifact)
    data = catalog.dataset(query, target=None, split=split, role=role)
    ids = list(data.ids)
    if len(ids) > n:
        draw = np.random.default_rng(seed)
        ids = [ids[at] for at in sorted(draw.choice(len(ids), n, replace=False).tolist())]
        data = catalog.dataset(ids, target=None)
    groups, images, notes = _groups(catalog, data, data_folder, sources)
    build = Builder(catalog.recogniser)
    use = CodeUse(tokenizer)
    errors: list[torch.Tensor] = []
    datasets = {}
    tokens, bits, seconds = 0, 0.0, 0.0
    for name, originals in groups.items():
        shown = images[name].train.x if name in images else None
        began = time.perf_counter()
        made, batches = through_codes(tokenizer, originals, shown, build)
        seconds += time.perf_counter() - began
        for part, back, batch in zip(originals.parts, made.parts, batches, strict=True):
            use.add(batch, part.blueprint.vector)
            tokens = max(tokens, batch.tokens.shape[1])
            bits = max(bits, bits_per_weight(tokenizer, batch, part.blueprint.vector))
            apart = (back.weights - part.weights).double().square().sum(1)
            errors.append(apart / part.weights.double().square().sum(1).clamp(min=1e-30))
        if name in images and len(originals) > 1:
            train = originals if split is None else _train(catalog, query, split, name)
            datasets[name] = _measured(artifact.name, originals, made, train, images[name], build)
    return TokenizerEvaluation(
        artifact=artifact,
        n=len(ids),
        bits_per_weight=bits,
        num_tokens=tokens,
        relative_error=float(torch.cat(errors).mean()),
        seconds_per_network=seconds / len(ids),
        codes=use.figures(),
        datasets=datasets,
        notes=tuple(notes),
    )


def _groups(
    catalog: Catalog,
    data: WeightDataset,
    data_folder: str | os.PathLike[str] | None,
    sources: Mapping[str, str] | None,
) -> tuple[dict[str, Networks], dict[str, TaskData], list[str]]:
    """Networks by the name of their data set, empty where it is not known; the images that can be had; notes."""
    notes: list[str] = list(data.notes)
    images: dict[str, TaskData] = {}
    found: dict[str, list[tuple[torch.Tensor, Blueprint]]] = {}
    try:
        known = network_facts(catalog, data.ids)
    except ArchitectureError as exc:
        notes.append(f"Only weights are compared: {exc}")
        for _, batch in network_batches(data):
            plain = Blueprint(vector=batch.vector, family="", config={})
            found.setdefault("", []).append((batch.weights, plain))
    else:
        images, missing = available_images(catalog, data.ids, folder=data_folder, sources=sources)
        notes += missing
        for _, batch in network_batches(data):
            facts = [known.facts[one] for one in batch.ids]
            for kind in dict.fromkeys((fact.dataset, fact.blueprint) for fact in facts):
                rows = [
                    row for row, fact in enumerate(facts) if (fact.dataset, fact.blueprint) == kind
                ]
                own = batch.weights[rows], known.blueprints[kind[1]]
                found.setdefault(kind[0], []).append(own)
    return {name: Networks.collect(parts) for name, parts in found.items()}, images, notes


def _train(catalog: Catalog, query: str, split: str, dataset: str) -> Networks:
    """The last training networks of a data set."""
    side = read_side(catalog, query, split, "train", dataset)
    return side.networks.take(side.last(side.own))


def _measured(
    label: str,
    originals: Networks,
    made: Networks,
    train: Networks,
    images: TaskData,
    build: Callable[[Blueprint], nn.Module],
) -> tuple[Reconstruction, Reconstruction]:
    """What is left of networks, and the row of the decoder that ignores codes; the latter's network is chosen on
    validation images."""
    bench = Bench(build, images.image_data())
    x, y = images.test.x, images.test.y
    scores = bench.answers(train, images.validation.x).accuracy(images.validation.y)
    constant = constant_decoder(originals, train, scores)
    own = compared(label, originals, made, bench=bench, x=x, y=y)
    return own, compared("one and the same network", originals, constant, bench=bench, x=x, y=y)


# --- codes ------------------------------------------------------------------------------------------------------------


def through_codes(
    tokenizer: Any,
    networks: Networks,
    images: torch.Tensor | None,
    build: Callable[[Blueprint], nn.Module],
) -> tuple[Networks, list[TokenBatch]]:
    """Networks through the codes of a fitted tokenizer and back, and the codes of each part.

    Args:
        tokenizer: any.
        networks: n of them.
        images: unlabelled ones, for a tokenizer that codes what networks compute; None where there are none.
        build: a new network of a blueprint.
    """
    weights, batches = [], []
    for part in networks.parts:
        vector = part.blueprint.vector
        batch = encoded(tokenizer, part.weights, part.blueprint, images, build)
        back, _ = tokenizer.decode_population(batch, layout=vector.layout, layers=vector.layers())
        weights.append(back.float())
        batches.append(batch)
    return networks.with_weights(weights), batches


def encoded(
    tokenizer: Any,
    weights: torch.Tensor,
    blueprint: Blueprint,
    images: torch.Tensor | None,
    build: Callable[[Blueprint], nn.Module],
) -> TokenBatch:
    """Networks (B, P) of one blueprint as tokens, for what they compute where tokenizer and images allow it.

    Raises:
        CatalogError: the tokenizer takes networks one by one only.
    """
    vector = blueprint.vector
    weights = weights.to(getattr(torch, vector.dtype))
    found: TokenBatch
    if images is not None and hasattr(tokenizer, "encode_functional"):
        found = tokenizer.encode_functional(
            weights, blueprint=blueprint, images=images, build=build
        )
        return found
    if not hasattr(tokenizer, "encode_population"):
        raise CatalogError(
            f"{type(tokenizer).__name__} has no encode_population, which is needed to code many networks. Its plugin "
            "has to provide it."
        )
    aside = None
    if vector.aside_bytes:
        own = blueprint.aside or bytes(vector.aside_bytes)
        one = torch.frombuffer(bytearray(own), dtype=torch.uint8)
        aside = one.expand(len(weights), -1)
    found = tokenizer.encode_population(
        weights, layout=vector.layout, layers=vector.layers(), aside=aside
    )
    return found


def bits_per_weight(tokenizer: Any, batch: TokenBatch, vector: VectorLayout) -> float:
    """What the tokenizer says, else the size of its codes, else that of the values of its tokens."""
    if hasattr(tokenizer, "bits_per_weight"):
        return float(tokenizer.bits_per_weight(vector.layout, vector.layers()))
    real = int(batch.mask[0].sum())
    if hasattr(tokenizer, "codebook_size"):
        return real * math.log2(tokenizer.codebook_size) / vector.width
    return 8 * batch.tokens.element_size() * real / vector.width


@dataclass
class CodeUse:
    """How often each code was used.

    Attributes:
        tokenizer: of indices, or of anything else, which has no codes to count.
        counts: (levels, K), None before the first codes.
    """

    tokenizer: Any
    counts: torch.Tensor | None = field(default=None, init=False)

    def add(self, batch: TokenBatch, vector: VectorLayout) -> None:
        """Count the codes (B, T) of networks of one layout."""
        if batch.tokens.is_floating_point() or not hasattr(self.tokenizer, "codebook_size"):
            return
        size = int(self.tokenizer.codebook_size)
        levels = torch.zeros(batch.tokens.shape[1], dtype=torch.int64)
        if hasattr(self.tokenizer, "token_levels"):
            levels = self.tokenizer.token_levels(vector.layout, vector.layers())
        number = int(levels.max()) + 1 if len(levels) else 1
        if self.counts is None:
            self.counts = torch.zeros((number, size), dtype=torch.float64)
        for level in range(number):
            own = batch.tokens[:, levels == level].flatten().cpu()
            self.counts[level] += torch.bincount(own, minlength=size).double()

    def figures(self) -> dict[str, float]:
        """`perplexity`, `dead_codes` and `codebook_use`; nothing where no code was counted."""
        if self.counts is None:
            return {}
        shares = self.counts / self.counts.sum(1, keepdim=True).clamp(min=1)
        entropy = -(shares * shares.clamp(min=1e-300).log()).sum(1)
        dead = int((self.counts == 0).sum())
        return {
            "perplexity": float(entropy.exp().mean()),
            "dead_codes": float(dead),
            "codebook_use": 1 - dead / self.counts.numel(),
        }
