"""What all backends share: one learner per architecture or one for any mix, searches, and files.

Legend for shapes: B networks of a batch, D inputs.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np
import safetensors
import torch
from safetensors.torch import load_file, save_file

from zooplatform.errors import ArtifactError, ConfigError
from zooplatform.fitting import kendall_tau, network_batches
from zooplatform.interfaces import FitReport, NetworkBatch
from zooplatform.layout import VectorLayout, architecture_id
from zooplatform_statnn.learners import Budget, State, Table, tau_of
from zooplatform_statnn.nets import Net
from zooplatform_statnn.scaling import TargetScale
from zooplatform_statnn.settings import Settings, draw, read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from zooplatform.datasets import WeightDataset
    from zooplatform.fitting import FitData
    from zooplatform_statnn.learners import Learner

__all__ = ["InputsPredictor"]

FORMAT = 1
_SETTINGS = TypeVar("_SETTINGS", bound=Settings)
# Where networks of any architecture share one learner, it is kept under this name.
_ANY = "any"


class InputsPredictor(Generic[_SETTINGS]):
    """A predictor that reads numbers off a network and learns from them.

    Backends say what is read (`read`), what learns (`learner`) and their settings.

    Attributes:
        NAME: of the backend.
        SETTINGS: its settings.
        CONFIGS: named configurations.
        SPACE: what a search over several `trials` draws from.
        PER_ARCHITECTURE: inputs of different architectures cannot be compared, so each has a learner of its own.
    """

    NAME: ClassVar[str]
    SETTINGS: ClassVar[type[Any]]
    CONFIGS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}, "tuned": {"trials": 16}}
    SPACE: ClassVar[Mapping[str, Sequence[Any]]] = {}
    PER_ARCHITECTURE: ClassVar[bool] = True

    def __init__(self) -> None:
        self._settings: dict[str, _SETTINGS] = {}
        self._learners: dict[str, Learner] = {}
        self._vectors: dict[str, VectorLayout] = {}
        self._scale: TargetScale | None = None

    # --- what a backend fills ---------------------------------------------------------------------

    def read(self, batch: NetworkBatch) -> torch.Tensor:
        """(B, D) float32, finite."""
        raise NotImplementedError

    def learner(self, settings: _SETTINGS) -> Learner:
        """An unfitted learner."""
        raise NotImplementedError

    # --- the interface ----------------------------------------------------------------------------

    def fit(self, data: FitData, *, target: str, config: Mapping[str, Any], seed: int) -> FitReport:
        """See `Predictor.fit`."""
        start = time.monotonic()
        settings = read_settings(self.SETTINGS, config, self.NAME)
        for side in (data.train, data.validation):
            TargetScale.of(side.targets, "none", target)  # refuses what is not finite
        self._scale = TargetScale.of(data.train.targets, settings.target_transform, target)
        self._settings, self._learners, self._vectors = {}, {}, {}
        train, validation = self._tables(data.train), self._tables(data.validation)
        absent = sorted(set(train) - set(validation))
        if absent:
            raise ConfigError(
                f"Predictor {self.NAME!r} fits one model per architecture, and the validation networks have none of "
                f"{', '.join(absent)}. Draw a split that has both, or use aggregate or aggregate-rich."
            )
        deadline = start + data.seconds_left()
        figures: dict[str, float] = {}
        for at, group in enumerate(sorted(train)):
            budget = Budget(deadline, data.device).share(len(train) - at)
            figures = self._search(
                settings, group, train[group], validation[group], seed, budget, data
            )
        predictions = self._predictions(data.validation)
        tau = kendall_tau(predictions, data.validation.targets)
        seconds = time.monotonic() - start
        metrics = {
            "val_kendall_tau": tau,
            "val_mae": float(np.abs(predictions - data.validation.targets).mean()),
            "seconds": seconds,
            "num_train": float(len(data.train)),
            **(figures if len(train) == 1 else {"models": float(len(train))}),
        }
        return FitReport(metrics=metrics, seconds=seconds, notes=self._fit_notes(settings))

    def embed(self, batch: NetworkBatch) -> torch.Tensor:
        """See `Predictor.embed`."""
        learner, vector = self._of(batch)
        return learner.embed(self.read(batch), vector)

    def predict(self, batch: NetworkBatch) -> torch.Tensor:
        """See `Predictor.predict`."""
        learner, vector = self._of(batch)
        assert self._scale is not None
        return self._scale.inverse(learner.predict(self.read(batch), vector))

    # --- fitting ----------------------------------------------------------------------------------

    def _group(self, vector: VectorLayout) -> str:
        return architecture_id(vector.layout) if self.PER_ARCHITECTURE else _ANY

    def _tables(self, data: WeightDataset) -> dict[str, list[Table]]:
        """Inputs and targets by group, a table for each architecture; of statistics, one for all."""
        assert self._scale is not None
        parts: dict[str, list[tuple[torch.Tensor, npt.NDArray[np.int64]]]] = {}
        vectors: dict[str, VectorLayout] = {}
        for indices, batch in network_batches(data):
            name = architecture_id(batch.vector.layout)
            vectors[name] = batch.vector
            parts.setdefault(name, []).append((self.read(batch), indices))
        found: dict[str, list[Table]] = {}
        for name, read in sorted(parts.items()):
            inputs = torch.cat([part for part, _ in read])
            targets = data.targets[np.concatenate([indices for _, indices in read])]
            table = Table(inputs, self._scale.forward(targets), vectors[name])
            group = self._group(vectors[name])
            self._vectors.setdefault(group, vectors[name])
            found.setdefault(group, []).append(table)
        return {group: self._joined(tables) for group, tables in found.items()}

    def _joined(self, tables: list[Table]) -> list[Table]:
        """Tables as the learner takes them."""
        return tables

    def _search(
        self,
        settings: _SETTINGS,
        group: str,
        train: Sequence[Table],
        validation: Sequence[Table],
        seed: int,
        budget: Budget,
        data: FitData,
    ) -> dict[str, float]:
        """Fit every configuration of the search, keep the best on the validation networks."""
        best = -math.inf
        trials = draw(settings, self.SPACE, seed=seed)
        figures: dict[str, float] = {}
        tried = 0
        for at, candidate in enumerate(trials):
            if at and budget.over:
                break
            learner = self.learner(candidate)
            learner.fit(
                train,
                validation,
                seed=seed,
                budget=budget.share(len(trials) - at),
                progress=data.progress,
            )
            tried += 1
            tau = tau_of(learner, validation)
            if tau > best:
                best = tau
                self._learners[group], self._settings[group] = learner, candidate
                figures = dict(learner.notes())
        return {**figures, "trials": float(tried)}

    def _fit_notes(self, settings: _SETTINGS) -> tuple[str, ...]:
        notes = []
        if len(self._learners) > 1:
            notes.append(f"{len(self._learners)} architectures, a model of its own for each.")
        for group, kept in sorted(self._settings.items()):
            base = asdict(settings)
            changed = {k: v for k, v in asdict(kept).items() if v != base[k]}
            if changed:
                told = ", ".join(f"{key} = {value}" for key, value in changed.items())
                notes.append(f"{group}: the search chose {told}.")
        return tuple(notes)

    def _predictions(self, data: WeightDataset) -> npt.NDArray[np.float64]:
        found = np.empty(len(data))
        for indices, batch in network_batches(data):
            found[indices] = self.predict(batch).numpy()
        return found

    def _of(self, batch: NetworkBatch) -> tuple[Learner, VectorLayout]:
        """The learner for the networks of a batch.

        Raises:
            ConfigError: nothing is fitted, or nothing for their architecture.
        """
        if self._scale is None or not self._learners:
            raise ConfigError(
                f"Predictor {self.NAME!r} is not fitted. Fit it, or load an artifact."
            )
        group = self._group(batch.vector)
        if group not in self._learners:
            raise ConfigError(
                f"Predictor {self.NAME!r} knows the architectures it was fitted on "
                f"({', '.join(sorted(self._learners))}), not {group}. Fit it on networks of that one too, or use "
                "aggregate, aggregate-rich or aggregate-mlp, which take any."
            )
        return self._learners[group], batch.vector

    # --- files ------------------------------------------------------------------------------------

    def save(self, folder: Path) -> None:
        """See `Predictor.save`."""
        if self._scale is None or not self._learners:
            raise ConfigError(
                f"Predictor {self.NAME!r} is not fitted, so there is nothing to save."
            )
        groups: list[dict[str, Any]] = []
        tensors: dict[str, torch.Tensor] = {}
        for at, (group, learner) in enumerate(sorted(self._learners.items())):
            state = learner.state()
            tensors |= {f"{at}.{k}": v.detach().contiguous() for k, v in state.tensors.items()}
            for name, text in state.texts.items():
                (folder / f"{name}-{at}.txt").write_text(text, encoding="utf-8")
            groups.append(
                {
                    "group": group,
                    "layout": self._vectors[group].rows(),
                    "settings": asdict(self._settings[group]),
                    "values": state.values,
                    "texts": sorted(state.texts),
                }
            )
        save_file(tensors, folder / "predictor.safetensors")
        record = {
            "format": FORMAT,
            "backend": self.NAME,
            "target": self._scale.to_json(),
            "models": groups,
        }
        text = json.dumps(record, indent=1, sort_keys=True)
        (folder / "predictor.json").write_text(text + "\n", encoding="utf-8")

    def load(self, folder: Path) -> None:
        """See `Predictor.load`."""
        try:
            record = json.loads((folder / "predictor.json").read_text(encoding="utf-8"))
            if record["format"] != FORMAT or record["backend"] != self.NAME:
                raise ArtifactError(
                    f"it is format {record['format']} of {record['backend']!r}, this reads format {FORMAT} of "
                    f"{self.NAME!r}"
                )
            tensors = load_file(folder / "predictor.safetensors")
            scale = TargetScale.from_json(record["target"])
            learners, settings, vectors = {}, {}, {}
            for at, item in enumerate(record["models"]):
                group = item["group"]
                vectors[group] = VectorLayout.from_rows(item["layout"])
                settings[group] = read_settings(self.SETTINGS, item["settings"], self.NAME)
                learners[group] = learner = self.learner(settings[group])
                if isinstance(learner, Net):
                    learner.of_architecture(vectors[group])
                own = {
                    name.partition(".")[2]: value
                    for name, value in tensors.items()
                    if name.startswith(f"{at}.")
                }
                texts = {
                    name: (folder / f"{name}-{at}.txt").read_text(encoding="utf-8")
                    for name in item["texts"]
                }
                learner.restore(State(own, item["values"], texts))
        except ArtifactError as exc:
            raise self._damaged(folder, exc) from exc
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise self._damaged(folder, exc) from exc
        except safetensors.SafetensorError as exc:
            raise self._damaged(folder, exc) from exc
        self._learners, self._settings, self._vectors = learners, settings, vectors
        self._scale = scale

    def _damaged(self, folder: Path, exc: BaseException) -> ArtifactError:
        reason = f"{exc}" if isinstance(exc, ArtifactError) else f"{type(exc).__name__}: {exc}"
        return ArtifactError(
            f"{folder}: no artifact that predictor {self.NAME!r} can load ({reason}). Fit it again."
        )
