"""The predictor as users have it: fitted on networks of the built catalog, asked, stored."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from zooplatform.errors import ArtifactError, ConfigError
from zooplatform.fitting import FitData, network_batches
from zooplatform.plugins import load_plugins
from zooplatform.testing import sample_population
from zooplatform_sne.losses import kendall_tau
from zooplatform_sne.predictor import SnePredictor

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zooplatform.catalog import Catalog
    from zooplatform.datasets import WeightDataset
    from zooplatform.interfaces import NetworkBatch

    Parts = tuple[WeightDataset, WeightDataset, WeightDataset]

MIXED: dict[str, Any] = {
    "members": [
        {"encoder": "statistics", "count": 2, "dim": 16, "epochs": 3, "weight": 3.0},
        {"encoder": "propagation", "dim": 8, "units": 8, "heads": 2, "epochs": 2},
    ]
}


def _fitted(parts: Parts, config: dict[str, Any], seed: int = 0, **more: Any) -> SnePredictor:
    predictor = SnePredictor()
    data = FitData(train=parts[0], validation=parts[1], **more)
    predictor.fit(data, target="test_accuracy", config=config, seed=seed)
    return predictor


def _all(predictor: SnePredictor, data: WeightDataset, size: int = 4096) -> np.ndarray:
    found = np.empty(len(data))
    for indices, batch in network_batches(data, size):
        found[indices] = predictor.predict(batch).numpy()
    return found


@pytest.fixture(scope="module")
def mixed(digit_parts: Parts) -> SnePredictor:
    return _fitted(digit_parts, MIXED)


def test_debug_fits_in_seconds_and_ranks_networks_it_never_saw(digit_parts: Parts) -> None:
    predictor = SnePredictor()
    began = time.process_time()
    report = predictor.fit(
        FitData(train=digit_parts[0], validation=digit_parts[1]),
        target="test_accuracy",
        config=SnePredictor.CONFIGS["debug"],
        seed=0,
    )
    assert time.process_time() - began < 5
    predicted = _all(predictor, digit_parts[2])
    assert kendall_tau(predicted, digit_parts[2].targets) > 0.4
    assert ((predicted > 0) & (predicted < 1)).all()
    assert report.metrics["num_train"] == 99
    assert report.metrics["validation_tau"] == report.metrics["validation_tau/0-statistics-0"]
    assert report.metrics["validation_mae"] < digit_parts[1].targets.std()


def test_the_registry_knows_it() -> None:
    assert isinstance(load_plugins().predictors.create("sne"), SnePredictor)


def test_predictions_do_not_depend_on_the_batch(mixed: SnePredictor, digit_parts: Parts) -> None:
    together, alone = _all(mixed, digit_parts[2]), _all(mixed, digit_parts[2], 1)
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)


def test_scores_are_averaged_by_the_weights_of_members(
    mixed: SnePredictor, digit_parts: Parts
) -> None:
    _, batch = next(network_batches(digit_parts[2]))
    scores = mixed._ask(batch)[1]
    # Two models share 3 of 4 parts; the mean is of logits, not of accuracies.
    expected = torch.sigmoid(scores @ torch.tensor([0.375, 0.375, 0.25], dtype=torch.float64))
    predicted = mixed.predict(batch)
    assert predicted.dtype == torch.float64
    torch.testing.assert_close(predicted, expected)
    assert (predicted - torch.sigmoid(scores).mean(dim=1)).abs().max() > 1e-6


def test_embeddings_are_those_of_all_models(mixed: SnePredictor, digit_parts: Parts) -> None:
    _, batch = next(network_batches(digit_parts[2]))
    embedded = mixed.embed(batch)
    assert (embedded.shape, embedded.dtype) == ((24, 16 + 16 + 8), torch.float32)
    assert embedded.std(dim=0).min() > 0
    assert not torch.allclose(embedded[:, :16], embedded[:, 16:32])


def test_it_is_stored_without_code_and_comes_back_the_same(
    mixed: SnePredictor, digit_parts: Parts, tmp_path: Path
) -> None:
    mixed.save(tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} == {".safetensors", ".json"}
    described = json.loads((tmp_path / "predictor.json").read_text())
    assert described["target"] == "test_accuracy"
    assert described["config"]["members"][0]["learning_rate"] > 0  # written out, though not given
    loaded = SnePredictor()
    loaded.load(tmp_path)
    np.testing.assert_array_equal(_all(loaded, digit_parts[2]), _all(mixed, digit_parts[2]))
    _, batch = next(network_batches(digit_parts[2]))
    assert torch.equal(loaded.embed(batch), mixed.embed(batch))


def test_artifacts_that_are_damaged_are_refused(mixed: SnePredictor, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"predictor.json is missing. Fit the predictor again"):
        SnePredictor().load(tmp_path)
    mixed.save(tmp_path)
    description, weights = tmp_path / "predictor.json", tmp_path / "models.safetensors"
    whole = description.read_text()
    for text, reason in (
        (whole[:50], "is damaged"),
        (whole.replace('"format": 1', '"format": 9'), "has format 9, this version reads 1"),
        (whole.replace('"dim": 8', '"dim": 16'), "models.safetensors does not fit"),
        (whole.replace('"units"', '"unit"'), "Unknown key 'unit'"),
    ):
        assert text != whole
        description.write_text(text)
        with pytest.raises(ArtifactError, match=reason):
            SnePredictor().load(tmp_path)
    description.write_text(whole)
    tensors = load_file(weights)
    del tensors["base"]
    save_file(tensors, weights, metadata={"values": "{}"})
    with pytest.raises(ArtifactError, match=r"models.safetensors does not fit"):
        SnePredictor().load(tmp_path)
    weights.unlink()
    with pytest.raises(ArtifactError, match=r"models.safetensors is missing"):
        SnePredictor().load(tmp_path)


def test_the_same_seed_gives_the_same_predictions(digit_parts: Parts) -> None:
    config = {"base": "debug", "epochs": 2}
    first, second, other = (_fitted(digit_parts, config, seed) for seed in (1, 1, 2))
    same = _all(first, digit_parts[2])
    np.testing.assert_array_equal(same, _all(second, digit_parts[2]))
    assert not np.array_equal(same, _all(other, digit_parts[2]))


def test_an_interrupted_ensemble_goes_on(digit_parts: Parts, tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def stop(what: str, done: int, total: int | None) -> None:
        if what.startswith("0-statistics-1") and done == 2:
            raise Interrupted

    whole = _fitted(digit_parts, MIXED)
    with pytest.raises(Interrupted):
        _fitted(digit_parts, MIXED, folder=tmp_path, progress=stop)
    seen: list[str] = []
    resumed = _fitted(
        digit_parts, MIXED, folder=tmp_path, progress=lambda what, done, total: seen.append(what)
    )
    assert not any(what.startswith("0-statistics-0") for what in seen)
    np.testing.assert_array_equal(_all(resumed, digit_parts[2]), _all(whole, digit_parts[2]))


def test_free_targets_are_predicted_in_their_unit(digits: Catalog, digit_parts: Parts) -> None:
    query = "select checkpoint_id, 100 * epoch + 1000 as moment from wide where zoo = 'digits'"
    every = digits.dataset(query, target="moment")
    of = dict(zip(every.ids, every.targets, strict=True))
    parts = [digits.dataset(query, target="moment") for _ in digit_parts]
    assert len(of) == len(parts[0]) == 144
    predictor = SnePredictor()
    predictor.fit(
        FitData(train=every, validation=every),
        target="moment",
        config={"base": "debug", "epochs": 40},
        seed=0,
    )
    predicted = _all(predictor, every)
    assert np.corrcoef(predicted, every.targets)[0, 1] > 0.5
    assert abs(predicted.mean() - every.targets.mean()) < every.targets.std()
    with pytest.raises(ConfigError, match=r"bounded ones lie in \[0, 1\]"):
        predictor.fit(
            FitData(train=every, validation=every), target="moment",
            config={"target_kind": "bounded"}, seed=0,
        )  # fmt: skip


def test_architectures_may_be_mixed(zoo_catalog: Catalog) -> None:
    for family in ("mlp", "cnn"):
        zoo_catalog.append(sample_population(family, num_models=6), zoo=family)
    data = zoo_catalog.dataset()
    assert len(data.architectures) == 2
    predictor = SnePredictor()
    predictor.fit(
        FitData(train=data, validation=data), target="test_accuracy", config=MIXED, seed=0
    )
    predicted = _all(predictor, data)
    assert np.isfinite(predicted).all()
    assert len(np.unique(predicted)) == len(data)


def test_networks_that_are_no_numbers_are_left_out_and_predicted_as_nan(
    mixed: SnePredictor, digit_parts: Parts
) -> None:
    _, batch = next(network_batches(digit_parts[2]))
    weights = batch.weights.clone()
    weights[1, 5], weights[3, 7] = torch.nan, -torch.inf
    predicted = mixed.predict(batch._replace(weights=weights))
    assert predicted.isnan().nonzero().flatten().tolist() == [1, 3]
    assert mixed.embed(batch._replace(weights=weights))[1].isnan().all()
    usual = mixed.predict(batch)
    torch.testing.assert_close(predicted[4:], usual[4:], atol=1e-5, rtol=0)
    assert mixed.predict(batch._replace(weights=weights[1:2])).isnan().all()


def test_targets_that_are_no_numbers_are_refused(digits: Catalog) -> None:
    data = digits.dataset(
        "select checkpoint_id, null::double as x from wide where zoo = 'digits'",
        target="x",
        missing="keep",
    )
    with pytest.raises(ConfigError, match="144 of 144 targets are not finite"):
        SnePredictor().fit(FitData(train=data, validation=data), target="x", config={}, seed=0)


def test_it_cannot_be_asked_before_it_is_fitted(tmp_path: Path, digit_parts: Parts) -> None:
    _, batch = next(network_batches(digit_parts[2]))
    for ask in (SnePredictor().predict, SnePredictor().embed):
        with pytest.raises(ConfigError, match=r"not fitted. Call fit, or load one"):
            ask(batch)
    with pytest.raises(ConfigError, match="not fitted"):
        SnePredictor().save(tmp_path)


def test_a_transformer_is_read_in_slices(
    mixed: SnePredictor, as_batch: Callable[..., NetworkBatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    nets = [torch.nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0) for _ in range(5)]
    batch = as_batch(*nets)
    whole = mixed.predict(batch)
    assert whole.isfinite().all()
    monkeypatch.setattr("zooplatform_sne.predictor._SLICE_VALUES", 2 * batch.weights.shape[1])
    torch.testing.assert_close(mixed.predict(batch), whole, atol=1e-5, rtol=0)


def test_members_can_be_stacked(digit_parts: Parts, tmp_path: Path) -> None:
    predictor = SnePredictor()
    report = predictor.fit(
        FitData(train=digit_parts[0], validation=digit_parts[1]),
        target="test_accuracy",
        config=MIXED | {"combine": "stack"},
        seed=0,
    )
    shares = [value for name, value in report.metrics.items() if name.startswith("share/")]
    assert sum(shares) == pytest.approx(1)
    assert min(shares) >= 0
    assert max(shares) > 0.4  # found on the validation networks, not the third of a mean
    predictor.save(tmp_path)
    loaded = SnePredictor()
    loaded.load(tmp_path)
    np.testing.assert_array_equal(_all(loaded, digit_parts[2]), _all(predictor, digit_parts[2]))


def test_guarded_members_and_companions_come_back_the_same(
    digit_parts: Parts, tmp_path: Path
) -> None:
    probes = {"encoder": "probes", "probes": 4, "side": 8, "dim": 8, "epochs": 2, "guarded": True}
    config = {
        "members": [MIXED["members"][0] | {"count": 1}, probes],
        "trees": 1.0,
        "perceptron": 1.0,
    }
    whole = _fitted(digit_parts, config)
    whole.save(tmp_path)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} <= {
        ".json",
        ".safetensors",
        ".txt",
    }
    loaded = SnePredictor()
    loaded.load(tmp_path)
    test = digit_parts[2]
    np.testing.assert_array_equal(_all(loaded, test), _all(whole, test))
    # Each part has its say: without it the predictions are others.
    without_trees = _fitted(digit_parts, config | {"trees": 0.0})
    without_probes = _fitted(digit_parts, config | {"guard_share": 0.0})
    without_perceptron = _fitted(digit_parts, config | {"perceptron": 0.0})
    for less in (without_trees, without_probes, without_perceptron):
        assert np.abs(_all(less, test) - _all(whole, test)).max() > 1e-4


def test_a_guard_needs_something_that_it_guards(digit_parts: Parts) -> None:
    with pytest.raises(ConfigError, match="Every member is guarded"):
        _fitted(digit_parts, {"members": [{"encoder": "probes", "guarded": True}]})
