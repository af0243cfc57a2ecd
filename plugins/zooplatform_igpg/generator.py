"""The generator `igpg`: weights of new networks, written as codes by a transformer that is told what they are for.

Legend for shapes: N networks, P values of one network.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from zooplatform.errors import ConfigError
from zooplatform.fit_state import digest
from zooplatform.interfaces import FitReport
from zooplatform_igpg.basins import Viewer
from zooplatform_igpg.config import CONFIGS, IgpgConfig
from zooplatform_igpg.drawing import make_order, networks
from zooplatform_igpg.fitted import Known
from zooplatform_igpg.flatness import measure
from zooplatform_igpg.prepared import Centring
from zooplatform_igpg.preparing import prepare
from zooplatform_igpg.reporting import fit_metrics
from zooplatform_igpg.resolving import Kinds
from zooplatform_igpg.sides import CodeSide
from zooplatform_igpg.spaces import make_codec
from zooplatform_igpg.storing import load_known, read_json, save_known
from zooplatform_igpg.telling import (
    architecture_vectors,
    dataset_vectors,
    encode_side,
    tables_of,
)
from zooplatform_igpg.text import text_encoder
from zooplatform_igpg.training import Job, fit_writer
from zooplatform_igpg.understanding import learn_to_understand

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from zooplatform.fitting import Blueprint, GeneratorData
    from zooplatform.interfaces import Condition, GeneratedBatch
    from zooplatform_igpg.preparing import Preparation
    from zooplatform_igpg.spaces import Codec
    from zooplatform_igpg.text import TextEncoder

__all__ = ["IgpgGenerator"]


class IgpgGenerator:
    """Networks from an instruction, a data set and an architecture; see the module `config` for what it can be told."""

    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = CONFIGS

    def __init__(self) -> None:
        self._known: Known | None = None

    def _fitted(self) -> Known:
        if self._known is None:
            raise ConfigError("This generator is not fitted. Call fit, or load one.")
        return self._known

    # --- fitting ------------------------------------------------------------------------------------------------------

    def fit(self, data: GeneratorData, *, config: Mapping[str, Any], seed: int) -> FitReport:
        """See `Generator.fit`. With `data.folder`, tokenizer and transformer keep their state there.

        The report has `train_nll` and `validation_nll` (nats a token; `validation_nll_untold` is without conditions),
        `perplexity/level-i`, `tokens` and `bits_per_weight` of the longest network, `basins`, what the tokenizer
        measured as `tokenizer/...`, and as `understood/...` the share of unseen instructions that were understood.
        """
        began = time.monotonic()
        parsed = IgpgConfig.parse(config)
        encoder = text_encoder(
            parsed.conditions.text
        )  # what is missing is said before anything is read
        preparation = prepare(parsed, data, seed)
        known, measured = self._learn(parsed, data, preparation, encoder, seed)
        train = self._side(known, data, preparation, encoder, validation=False)
        assert train is not None
        known.writer.transformer.prefer(train.counts(known.writer.transformer))
        job = Job(
            train=train,
            validation=self._side(known, data, preparation, encoder, validation=True)
            or _no_side(train),
            settings=parsed.training,
            drop=parsed.conditions.drop,
            drop_all=parsed.conditions.drop_all,
            seed=seed,
            device=known.device,
            state=data.folder / "transformer.safetensors" if data.folder else None,
            seconds=max(0.0, data.seconds_left()),
            progress=data.progress,
        )
        fitted = fit_writer(known.writer, job)
        self._known = known
        metrics = measured | fit_metrics(
            known.writer, job, fitted, known.codec, data.blueprints, preparation
        )
        notes = [*preparation.notes, *fitted.notes]
        missing = [name for name in known.kinds.datasets if name not in data.images]
        if missing:
            notes.append(f"No images of {', '.join(missing)}: told by name and in words only.")
        if not known.datasets.described.get("pretrained", True):
            name = parsed.conditions.images
            notes.append(f"{name}: its weights could not be had, so its features are random ones.")
        return FitReport(metrics=metrics, seconds=time.monotonic() - began, notes=tuple(notes))

    def _learn(
        self,
        config: IgpgConfig,
        data: GeneratorData,
        preparation: Preparation,
        encoder: TextEncoder,
        seed: int,
    ) -> tuple[Known, dict[str, float]]:
        """Everything before the transformer, and what it measured."""
        conditions = config.conditions
        kinds = Kinds(data.blueprints, preparation.cells, conditions.levels)
        has_levels = bool((preparation.train_levels >= 0).any())
        understanding, understood = learn_to_understand(
            encoder,
            kinds.captioner(),
            [
                kinds.subject(cell, level)
                for cell in kinds.cells
                for level in ([-1, *range(conditions.levels)] if has_levels else [-1])
            ],
            count=conditions.understanding_captions,
            steps=conditions.understanding_steps,
            seed=seed,
        )
        codec, measured = self._codec(config, data, preparation, seed)
        known = Known(
            config=config,
            seed=seed,
            kinds=kinds,
            codec=codec,
            tables=preparation.tables,
            datasets=dataset_vectors(config, data, kinds.datasets, seed),
            architectures=architecture_vectors(config, data.blueprints, encoder),
            understanding=understanding,
            text=encoder.describe(),
            has_levels=has_levels,
            flatness=measure(data, preparation),
            aligner=preparation.aligner,
            device=torch.device(data.device),
        )
        metrics = {f"tokenizer/{name}": value for name, value in measured.items()}
        return known, metrics | {f"understood/{name}": share for name, share in understood.items()}

    def _codec(
        self, config: IgpgConfig, data: GeneratorData, preparation: Preparation, seed: int
    ) -> tuple[Codec, dict[str, float]]:
        """The codec, fitted or as an interrupted fit left it."""
        codec = make_codec(config, data.blueprints)
        validation = preparation.validation or preparation.train
        said = config.describe()
        fingerprint = digest([said, seed, preparation.train.ids, validation.ids])
        folder = None if data.folder is None else data.folder / "codec"
        if folder is not None and (folder / "done.json").is_file():
            done = read_json(folder / "done.json")
            if done.get("fingerprint") != fingerprint:
                raise ConfigError(
                    f"{folder} is the state of another fit (other networks, configuration or seed). "
                    "Give another folder, or remove it to start over."
                )
            codec.load(folder)
            codec.know(data)
            return codec, dict(done["metrics"])
        minutes = None
        if math.isfinite(data.seconds_left()):
            minutes = max(0.0, data.seconds_left()) * config.training.tokenizer_share / 60
        inner = None if data.folder is None else data.folder / "tokenizer-state"
        if inner is not None:
            inner.mkdir(parents=True, exist_ok=True)
        given = replace(
            data, train=preparation.train, validation=validation, max_minutes=minutes, folder=inner
        )
        metrics = codec.fit(given, preparation.train, seed)
        codec.know(data)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            codec.save(folder)
            done = {"fingerprint": fingerprint, "metrics": metrics}
            (folder / "done.json").write_text(json.dumps(done))
        return codec, metrics

    def _side(
        self,
        known: Known,
        data: GeneratorData,
        preparation: Preparation,
        encoder: TextEncoder,
        *,
        validation: bool,
    ) -> CodeSide | None:
        """The codes of one side; None where it has no networks."""
        own = preparation.validation if validation else preparation.train
        if own is None:
            return None
        levels = preparation.validation_levels if validation else preparation.train_levels
        tables = tables_of(
            known.config, known.kinds, own, preparation, levels, known.understanding, encoder,
            known.datasets, known.architectures, known.seed,
        )  # fmt: skip
        copies = [] if validation else preparation.copies
        side = encode_side(known.codec, own, copies, tables, known.config)
        for at, group in enumerate(side.groups):
            blueprint = int(tables.architecture[group.rows[0]])
            side.groups[at] = group._replace(places=known.places(blueprint))
        return side

    # --- drawing ------------------------------------------------------------------------------------------------------

    def sample(
        self,
        n: int,
        *,
        condition: Condition | None = None,
        seed: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Iterator[GeneratedBatch]:
        """See `Generator.sample`.

        An instruction that names nothing known is answered by what is known best; `details` of each network say what
        was understood, and how sure that is.

        Args:
            n, condition, seed, temperature, top_k: as there.
            options: `top_p` and `guidance` (see `sampling.Draw`); `level`, how good among those trained on, from 0; by
                default the best; `basin`, the number of one basin of the data set instead of one by chance; `spread`,
                how many times as far from the centre of a basin as codes say; `flat`, noise that the function does not
                feel, in place of that of the configuration; `progress`, called as in fitting.

        Raises:
            ConfigError: as there.
        """
        known = self._fitted()
        if n < 0:
            raise ConfigError(f"n is {n}; ask for 0 networks or more.")
        order = make_order(known, condition, temperature, top_k, dict(options or {}))
        return networks(known, order, n, seed)

    def reconstruct(
        self, weights: torch.Tensor, blueprint: Blueprint, *, data: GeneratorData | None = None
    ) -> torch.Tensor:
        """(N, P) networks as they come back from their codes; hidden units may be in another order.

        Args:
            weights: (N, P).
            blueprint: of all of them, one that was fitted on.
            data: images and builder, where codes keep the function; without them codes keep the weights.

        Raises:
            ConfigError: the blueprint is not known, or nothing is fitted.
        """
        known = self._fitted()
        number = known.number_of(blueprint)
        table, vector = known.tables[number], known.kinds.blueprints[number].vector
        plain = weights.float()
        if known.aligner is not None:
            plain = known.aligner(plain, vector, blueprint.architecture_id)
        basins = table.nearest(
            Viewer(table.scale, known.seed)(plain), list(range(len(table.datasets)))
        )
        if table.means is not None:
            plain = Centring(table.means, vector).take_out(plain, basins)
        if data is not None:
            known.codec.know(data)
        result = torch.empty_like(plain)
        names = [table.datasets[basin] for basin in basins.tolist()]
        for name in sorted(set(names)):
            own = torch.tensor([at for at, one in enumerate(names) if one == name])
            codes = known.codec.encode(plain[own], number, basins[own], name)
            result[own] = known.decode(codes, number, basins[own])
        return result

    # --- storing ------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """See `Generator.save`. Models behind `hf:` and `timm:` names are not part of it: they are named."""
        save_known(self._fitted(), folder)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote.

        Raises:
            ArtifactError: a file is missing, damaged or of another format.
        """
        self._known = load_known(folder)


def _no_side(other: CodeSide) -> CodeSide:
    """No networks at all."""
    return CodeSide([], other.tables, 2, 1)
