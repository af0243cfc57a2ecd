"""The predictor `sne`: an ensemble of encoders with their heads.

Legend for shapes: N networks, B networks of a batch, P values of one network, E models of the ensemble (companions,
where there are any, are the last), d size of all embeddings side by side.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from zooplatform.errors import ArtifactError, ConfigError
from zooplatform.fit_state import drop_prefix, read_state, with_prefix, write_state
from zooplatform.interfaces import FitReport
from zooplatform_sne.companions import new_companions
from zooplatform_sne.config import CONFIGS, SneConfig, build_encoder
from zooplatform_sne.data import Networks, PreparedData, usable_rows
from zooplatform_sne.fusion import Fusion, stacked_shares
from zooplatform_sne.losses import TargetScale, kendall_tau
from zooplatform_sne.training import Fitted, Head, Job, SneModel, fit_model, scores_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from zooplatform.fitting import FitData
    from zooplatform.interfaces import NetworkBatch
    from zooplatform_sne.companions import Companion
    from zooplatform_sne.config import MemberConfig

__all__ = ["SnePredictor"]

_FORMAT = 1
_WEIGHTS, _DESCRIPTION = "models.safetensors", "predictor.json"
_SLICE_VALUES = 1 << 22  # values of weights that are looked at at once
_SLICE_ROWS = 1024


class SnePredictor:
    """Predicts a number for networks of any architecture; see the module `config` for what it can be told."""

    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = CONFIGS

    def __init__(self) -> None:
        self._config: SneConfig | None = None
        self._scale = TargetScale(bounded=True)
        self._target = ""
        self._models: list[list[SneModel]] = []  # by member
        self._companions: list[Companion] = []
        self._fusion = Fusion(base=np.ones(1), guarded=np.zeros(1))
        self._device = torch.device("cpu")

    # --- fitting ------------------------------------------------------------------------------------------------------

    def fit(self, data: FitData, *, target: str, config: Mapping[str, Any], seed: int) -> FitReport:
        """See `Predictor.fit`. With `data.folder`, every model keeps its state there until the caller removes it."""
        began = time.monotonic()
        parsed = SneConfig.parse(config)
        kind: Any = parsed.target_kind
        for part in (data.train, data.validation):  # before any weight is read
            TargetScale.of(part.targets, kind="free")
        train, validation = Networks(data.train), Networks(data.validation)
        scale = TargetScale.of(train.targets, kind=kind, clip=parsed.logit_clip)
        self._config, self._scale, self._target = parsed, scale, target
        self._device = torch.device(data.device)
        self._models = []
        if data.folder is not None:
            data.folder.mkdir(parents=True, exist_ok=True)
        left = sum(member.count for member in parsed.members)
        reports: dict[str, Fitted] = {}
        scores = []
        for index, member in enumerate(parsed.members):
            models: list[SneModel] = []
            parts: tuple[PreparedData, PreparedData] | None = None
            for number in range(member.count):
                name = f"{index}-{member.encoder}-{number}"
                own_seed = _seed(seed, index, number)
                model = self._new(member, own_seed)
                if parts is None:  # prepared once: that does not depend on parameters
                    fitted_on = self._prepared(train, model, member, training=True)
                    parts = fitted_on, self._prepared(validation, model, member, training=False)
                model.encoder.calibrate(parts[0].calibration())
                job = Job(
                    train=parts[0], validation=parts[1], scale=scale, settings=member.training,
                    seed=own_seed, name=name, progress=data.progress,
                    state=data.folder / f"{name}.safetensors" if data.folder else None,
                    seconds=max(0.0, data.seconds_left() / left),
                )  # fmt: skip
                reports[name] = fit_model(model, job)
                scores.append(scores_of(model, parts[1], member.training.batch_size * 4))
                models.append(model)
                left -= 1
            self._models.append(models)
        self._companions = new_companions(parsed.companions, responses=parsed.companion_responses)
        for companion in self._companions:
            companion.fit(data, target=target, scale=scale, seed=seed)
            scores.append(companion.validation_scores(data, scale)[validation.rows])
        stacked = np.stack(scores)
        self._fusion = self._fused(parsed, stacked, validation)
        return self._report(reports, stacked, train, validation, time.monotonic() - began)

    def _fused(
        self, config: SneConfig, scores: npt.NDArray[np.float64], validation: Networks
    ) -> Fusion:
        """How the scores (E, N) of the validation networks are best joined."""
        listed = [(m.weight / m.count, m.guarded) for m in config.members for _ in range(m.count)]
        listed += [(companion.weight, False) for companion in self._companions]
        weights, guards = (np.array(column) for column in zip(*listed, strict=True))
        base, guarded = np.where(guards, 0, weights), np.where(guards, weights, 0)
        if config.combine == "stack":
            wanted = self._scale.scores(torch.from_numpy(validation.targets)).numpy()
            base[~guards] = stacked_shares(scores[~guards], wanted)
        return Fusion.fit(base, guarded, scores, share=config.guard_share, guard=config.guard)

    def _new(self, member: MemberConfig, seed: int) -> SneModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = build_encoder(member.encoder, member.options)
            head = Head(encoder.dim, member.training.head_hidden, member.training.head_dropout)
        return SneModel(encoder, head).to(self._device)

    def _prepared(
        self, networks: Networks, model: SneModel, member: MemberConfig, *, training: bool
    ) -> PreparedData:
        return PreparedData(
            networks,
            model.encoder,
            device=self._device,
            training=training,
            weights=training and bool(member.options.get("invariance", 0)),
            cache_bytes=member.training.cache_mb << 20,
        )

    def _report(
        self,
        reports: Mapping[str, Fitted],
        scores: npt.NDArray[np.float64],
        train: Networks,
        validation: Networks,
        seconds: float,
    ) -> FitReport:
        joined = self._fusion(scores)
        predicted = self._scale.predictions(torch.from_numpy(joined)).numpy()
        metrics = {
            "validation_tau": kendall_tau(joined, validation.targets),
            "validation_mae": float(np.abs(predicted - validation.targets).mean()),
            "num_train": float(len(train.rows)),
            "num_validation": float(len(validation.rows)),
            "num_parameters": float(sum(p.numel() for m in self._flat() for p in m.parameters())),
        }
        notes = []
        for part, networks in (("training", train), ("validation", validation)):
            if networks.left_out:
                notes.append(
                    f"{networks.left_out} {part} networks left out: NaN or infinite weights."
                )
        for at, companion in enumerate(self._companions, start=len(reports)):
            name = companion.name
            metrics[f"validation_tau/{name}"] = kendall_tau(scores[at], validation.targets)
        for at, (name, fitted) in enumerate(reports.items()):
            metrics[f"validation_tau/{name}"] = fitted.tau
            metrics[f"best_epoch/{name}"] = float(fitted.best_epoch)
            metrics[f"seconds/{name}"] = fitted.seconds
            metrics[f"share/{name}"] = float(self._fusion.base[at] + self._fusion.guarded[at])
            notes += [f"{name}: {note}." for note in fitted.notes]
        return FitReport(metrics=metrics, seconds=seconds, notes=tuple(notes))

    # --- asking -------------------------------------------------------------------------------------------------------

    def embed(self, batch: NetworkBatch) -> torch.Tensor:
        """(B, d): the embeddings of all models side by side; NaN for networks with NaN or infinite weights."""
        return self._ask(batch)[0]

    def predict(self, batch: NetworkBatch) -> torch.Tensor:
        """(B,) float64; NaN for networks with NaN or infinite weights."""
        scores = self._fusion(self._ask(batch)[1].numpy().T)
        return self._scale.predictions(torch.from_numpy(scores))

    @torch.no_grad()
    def _ask(self, batch: NetworkBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (B, d) and scores (B, E), a slice of the networks at a time."""
        if self._config is None:
            raise ConfigError("This predictor is not fitted. Call fit, or load one.")
        models = self._flat()
        dim = sum(model.encoder.dim for model in models)
        embedded = torch.full((len(batch.weights), dim), torch.nan)
        columns = len(models) + len(self._companions)
        scores = torch.full((len(batch.weights), columns), torch.nan, dtype=torch.float64)
        size = min(_SLICE_ROWS, max(1, _SLICE_VALUES // max(1, batch.weights.shape[1])))
        for start in range(0, len(batch.weights), size):
            weights = batch.weights[start : start + size]
            good = usable_rows(weights)
            if not good.any():
                continue
            at = start + good.nonzero().squeeze(1)
            kept = weights if good.all() else weights[good]
            found = list(self._run(batch._replace(weights=kept.to(self._device))))
            embedded[at] = torch.cat([vectors for vectors, _ in found], dim=1).cpu()
            values = [values.double().cpu() for _, values in found]
            usable = batch._replace(weights=kept)
            values += [companion.scores(usable, self._scale) for companion in self._companions]
            scores[at] = torch.stack(values, dim=1)
        return embedded, scores

    def _run(self, batch: NetworkBatch) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Embeddings and scores of each model; networks are prepared once for all models of a member."""
        for models in self._models:
            prepared = models[0].encoder.prepare(batch)
            prepared = {name: value.to(self._device) for name, value in prepared.items()}
            for model in models:
                model.eval()
                vectors = model.encoder(prepared, batch.vector)
                yield vectors, model.head(vectors)

    def _flat(self) -> list[SneModel]:
        return [model for models in self._models for model in models]

    # --- storing ------------------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        if self._config is None:
            raise ConfigError("This predictor is not fitted. Call fit, or load one.")
        tensors = {
            "base": torch.from_numpy(self._fusion.base),
            "guarded": torch.from_numpy(self._fusion.guarded),
        }
        for number, model in enumerate(self._flat()):
            tensors |= with_prefix(str(number), model.state_dict())
        write_state(folder / _WEIGHTS, tensors, {"format": _FORMAT})
        described = {
            "format": _FORMAT,
            "target": self._target,
            "scale": self._scale.describe(),
            "config": self._config.describe(),
            "fusion": {"share": self._fusion.share, "limit": self._fusion.limit},
        }
        for companion in self._companions:
            companion.save(folder)
        text = json.dumps(described, indent=2, sort_keys=True)
        (folder / _DESCRIPTION).write_text(text + "\n", encoding="utf-8")

    def load(self, folder: Path) -> None:
        path = folder / _DESCRIPTION
        try:
            described = json.loads(path.read_text(encoding="utf-8"))
            found = described["format"]
            if found != _FORMAT:
                raise ArtifactError(
                    f"{path} has format {found}, this version reads {_FORMAT}. Install the version that wrote it."
                )
            config = SneConfig.parse(described["config"])
            scale = TargetScale.from_description(described["scale"])
            target = str(described["target"])
            limits = {key: float(described["fusion"][key]) for key in ("share", "limit")}
        except FileNotFoundError:
            raise ArtifactError(f"{path} is missing. Fit the predictor again.") from None
        except ArtifactError:
            raise
        except (ValueError, KeyError, TypeError) as exc:
            raise ArtifactError(f"{path} is damaged ({exc}). Fit the predictor again.") from exc
        tensors, _ = read_state(folder / _WEIGHTS)
        models: list[list[SneModel]] = []
        number = 0
        try:
            for member in config.members:
                models.append([])
                for _ in range(member.count):
                    model = self._new(member, 0)
                    model.load_state_dict(drop_prefix(str(number), tensors))
                    models[-1].append(model.eval())
                    number += 1
            fusion = Fusion(
                base=tensors["base"].numpy(), guarded=tensors["guarded"].numpy(), **limits
            )
        except (RuntimeError, KeyError) as exc:
            raise ArtifactError(
                f"{folder / _WEIGHTS} does not fit {path}: {str(exc)[:300]}. It was changed, or written by a version "
                "with other statistics. Fit the predictor again."
            ) from exc
        companions = new_companions(config.companions, responses=config.companion_responses)
        for companion in companions:
            companion.load(folder)
        self._config, self._scale, self._target = config, scale, target
        self._models, self._companions, self._fusion = models, companions, fusion


def _seed(seed: int, member: int, number: int) -> int:
    """The seed of a model, unrelated to those of the others."""
    return int(np.random.SeedSequence([seed, member, number]).generate_state(1)[0])
