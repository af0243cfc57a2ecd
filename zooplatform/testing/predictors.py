"""What every predictor must do, as tests to inherit from.

class TestMyPredictor(PredictorContract):
    @pytest.fixture
    def make(self):
        return MyPredictor

It is fitted on small networks of two architectures with random weights, whose size decides the target: whatever looks
at their spread or their mean learns it.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import torch

from zooplatform.catalog import open_catalog
from zooplatform.errors import ConfigError
from zooplatform.fitting import FitData, network_batches
from zooplatform.interfaces import FitReport, MetricRecord
from zooplatform.testing.fits import FitContract, interrupting
from zooplatform.testing.samples import sample_population
from zooplatform.testing.saved_files import check_data_files

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from zooplatform.datasets import WeightDataset
    from zooplatform.interfaces import NetworkBatch

__all__ = ["PredictorContract"]

_TARGET = "test_accuracy"
_TRAIN, _VALIDATION = 48, 16  # networks of each architecture


class PredictorContract(FitContract):
    """Tests of a `Predictor`; inherit and give the fixture `make`.

    Attributes:
        tolerance: how far predictions may differ by the batch that a network is in: rounding.
        least_gain: share of the error of the mean that fitting has to take away.
        seconds: within which a fit ends whose time is over from the start.
    """

    tolerance: ClassVar[float] = 1e-5
    least_gain: ClassVar[float] = 0.1

    @pytest.fixture
    def families(self) -> tuple[str, ...]:
        """The architectures that it is fitted on: `mlp` and `cnn`, or one where it takes only one."""
        return ("mlp", "cnn")

    @pytest.fixture
    def data(self, families: tuple[str, ...]) -> FitData:
        return FitData(train=_networks(families, "train"), validation=_networks(families, "val"))

    @pytest.fixture
    def fitted(self, make: Callable[[], Any], config: dict[str, Any], data: FitData) -> Any:
        predictor = make()
        predictor.fit(data, target=_TARGET, config=config, seed=0)
        return predictor

    # --- fitting ------------------------------------------------------------------------------------------------------

    def test_it_learns(
        self, make: Callable[[], Any], config: dict[str, Any], data: FitData
    ) -> None:
        predictor = make()
        report = predictor.fit(data, target=_TARGET, config=config, seed=0)
        assert isinstance(report, FitReport)
        assert report.seconds >= 0
        assert all(isinstance(value, int | float) for value in report.metrics.values())
        wanted = data.validation.targets
        error = np.abs(_said(predictor, data.validation) - wanted).mean()
        of_the_mean = np.abs(data.train.targets.mean() - wanted).mean()
        assert error < (1 - self.least_gain) * of_the_mean, "no better than the training mean"

    def test_the_same_seed_gives_the_same_predictor(
        self, make: Callable[[], Any], config: dict[str, Any], fitted: Any, data: FitData
    ) -> None:
        torch.manual_seed(99)  # the state of the process is not to matter
        np.random.seed(99)
        again = make()
        again.fit(data, target=_TARGET, config=config, seed=0)
        assert (_said(again, data.validation) == _said(fitted, data.validation)).all()

    def test_a_fit_whose_time_is_over_ends(
        self, make: Callable[[], Any], config: dict[str, Any], data: FitData
    ) -> None:
        predictor = make()
        start = time.monotonic()
        hurried = replace(data, max_minutes=1e-6)
        predictor.fit(hurried, target=_TARGET, config=config, seed=0)
        assert time.monotonic() - start < self.seconds
        assert np.isfinite(_said(predictor, data.validation)).all()

    def test_an_interrupted_fit_goes_on(
        self,
        make: Callable[[], Any],
        config: dict[str, Any],
        fitted: Any,
        data: FitData,
        tmp_path: Path,
    ) -> None:
        """Interrupted where it says how far it is; one that never says so is only fitted again."""
        kept = replace(data, folder=tmp_path)
        with suppress(KeyboardInterrupt):
            make().fit(
                replace(kept, progress=interrupting()), target=_TARGET, config=config, seed=0
            )
        again = make()
        again.fit(kept, target=_TARGET, config=config, seed=0)
        assert (_said(again, data.validation) == _said(fitted, data.validation)).all()

    def test_targets_that_are_not_finite_are_refused(
        self, make: Callable[[], Any], config: dict[str, Any], data: FitData,
        families: tuple[str, ...],
    ) -> None:  # fmt: skip
        lacking = _networks(families, "lacking")
        assert np.isnan(lacking.targets).any()
        for wrong in (replace(data, train=lacking), replace(data, validation=lacking)):
            with pytest.raises(ConfigError):
                make().fit(wrong, target=_TARGET, config=config, seed=0)

    def test_an_unknown_setting_is_refused(
        self, make: Callable[[], Any], config: dict[str, Any], data: FitData
    ) -> None:
        with pytest.raises(ConfigError, match="no_such_setting"):
            make().fit(data, target=_TARGET, config={**config, "no_such_setting": 1}, seed=0)

    # --- asking -------------------------------------------------------------------------------------------------------

    def test_a_prediction_does_not_depend_on_the_batch(self, fitted: Any, data: FitData) -> None:
        for _, batch in network_batches(data.validation):
            before = batch.weights.clone()
            whole = fitted.predict(batch)
            assert whole.shape == (len(batch.weights),)
            assert whole.dtype == torch.float64
            assert torch.equal(batch.weights, before), "the weights were changed"
            one_by_one = torch.cat(
                [fitted.predict(_rows(batch, [row])) for row in range(len(batch.weights))]
            )
            order = list(reversed(range(len(batch.weights))))
            backwards = fitted.predict(_rows(batch, order)).flip(0)
            nameless = fitted.predict(batch._replace(ids=()))
            for other in (one_by_one, backwards, nameless):
                torch.testing.assert_close(other, whole, rtol=self.tolerance, atol=self.tolerance)

    def test_embeddings_are_vectors_of_one_size(self, fitted: Any, data: FitData) -> None:
        sizes = set()
        for _, batch in network_batches(data.validation):
            vectors = fitted.embed(batch)
            assert vectors.dtype == torch.float32
            assert vectors.ndim == 2
            assert len(vectors) == len(batch.weights)
            assert vectors.isfinite().all()
            assert not vectors.requires_grad
            sizes.add(vectors.shape[1])
        assert len(sizes) == 1
        assert sizes.pop() > 0

    def test_what_is_not_fitted_says_so(
        self, make: Callable[[], Any], data: FitData, tmp_path: Path
    ) -> None:
        _, batch = next(network_batches(data.validation))
        for ask in ("predict", "embed", "save"):
            with pytest.raises(ConfigError):
                getattr(make(), ask)(tmp_path if ask == "save" else batch)

    # --- storing ------------------------------------------------------------------------------------------------------

    def test_a_saved_predictor_says_the_same(
        self, make: Callable[[], Any], fitted: Any, data: FitData, tmp_path: Path
    ) -> None:
        folder = tmp_path / "saved"
        folder.mkdir()
        fitted.save(folder)
        check_data_files(folder)
        loaded = make()
        loaded.load(folder)
        for _, batch in network_batches(data.validation):
            assert torch.equal(loaded.predict(batch), fitted.predict(batch))
            assert torch.equal(loaded.embed(batch), fitted.embed(batch))


def _rows(batch: NetworkBatch, rows: list[int]) -> NetworkBatch:
    ids = tuple(batch.ids[row] for row in rows) if batch.ids else ()
    return batch._replace(weights=batch.weights[rows], ids=ids)


def _said(predictor: Any, data: WeightDataset) -> npt.NDArray[np.float64]:
    """(N,) predictions in the order of the networks."""
    values = np.empty(len(data))
    for indices, batch in network_batches(data):
        values[indices] = predictor.predict(batch).numpy()
    return values


# --- networks ---------------------------------------------------------------------------------------------------------


@cache
def _networks(families: tuple[str, ...], role: str) -> WeightDataset:
    with open_catalog(_folder()) as catalog:
        names = ", ".join(f"'{family}-{role}'" for family in families)
        query = f"select checkpoint_id from wide where zoo in ({names})"
        return catalog.dataset(query, target=_TARGET, missing="keep")


@lru_cache(maxsize=1)
def _folder() -> Path:
    """A catalog with a zoo for every family and role, made once in a process."""
    parent = Path(tempfile.mkdtemp(prefix="zoo-predictors-"))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    with open_catalog(parent / "zoo", create=True) as catalog:
        for at, family in enumerate(("mlp", "cnn")):
            for seed, (role, count) in enumerate(
                {"train": _TRAIN, "val": _VALIDATION, "lacking": _VALIDATION}.items()
            ):
                _append(catalog, family, role, count, seed=10 * seed + at)
    return parent / "zoo"


def _append(catalog: Any, family: str, role: str, count: int, *, seed: int) -> None:
    """Networks whose weights are 0.5 to 1.5 in the mean and spread by as much, which decides how accurate they are."""
    batch = sample_population(family, num_models=count, num_checkpoints=1, seed=seed)
    spread = np.random.RandomState(seed).uniform(0.5, 1.5, count)
    values = 0.2 + 0.4 * spread
    if role == "lacking":
        values[0] = np.nan
    rows = [
        replace(row, metrics=(MetricRecord(name=_TARGET, value=float(value)),))
        for row, value in zip(batch.rows, values, strict=True)
    ]
    weights = np.ascontiguousarray((batch.weights + 1) * spread[:, None], dtype=np.float32)
    catalog.append(replace(batch, weights=weights, rows=rows), zoo=f"{family}-{role}")
