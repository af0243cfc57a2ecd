"""Fitting one model: the best epoch, interruptions, time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from zooplatform.errors import ArtifactError, ConfigError
from zooplatform.fit_state import read_state, write_state
from zooplatform_sne.config import MemberConfig, build_encoder
from zooplatform_sne.data import Networks, PreparedData
from zooplatform_sne.losses import TargetScale, kendall_tau
from zooplatform_sne.training import Head, Job, SneModel, fit_model, scores_of

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.datasets import WeightDataset

    Parts = tuple[WeightDataset, WeightDataset, WeightDataset]

STATISTICS: dict[str, Any] = {
    "encoder": "statistics", "statistics": "plain", "dim": 16, "epochs": 5, "noise": 0.1,
    "batch_size": 32,
}  # fmt: skip


class _Interrupted(Exception):
    pass


def _job(
    parts: Parts, given: dict[str, Any], *, seed: int = 3, **more: Any
) -> tuple[SneModel, Job]:
    member = MemberConfig.parse(given)
    torch.manual_seed(seed)
    encoder = build_encoder(member.encoder, member.options)
    model = SneModel(encoder, Head(encoder.dim, 16, 0.1))
    device = torch.device("cpu")
    weights = bool(member.options.get("invariance", 0))
    train = PreparedData(Networks(parts[0]), encoder, device=device, training=True, weights=weights)
    validation = PreparedData(Networks(parts[1]), encoder, device=device, training=False)
    encoder.calibrate(train.calibration())
    job = Job(
        train=train, validation=validation, scale=TargetScale(bounded=True),
        settings=member.training, seed=seed, **more,
    )  # fmt: skip
    return model, job


def _stop_after(epochs: int) -> Any:
    def progress(what: str, done: int, total: int | None) -> None:
        if done == epochs + 1:  # the next epoch was made, and its state is not yet kept
            raise _Interrupted(what)

    return progress


@pytest.mark.parametrize(
    "given",
    [
        STATISTICS,
        STATISTICS | {"ema": 0.9, "schedule": "cosine", "patience": 3},
        {"encoder": "propagation", "units": 8, "dim": 16, "epochs": 3, "dropout": 0.2},
        {
            "encoder": "chunk", "dim": 8, "heads": 2, "depth": 1, "chunk_size": 512, "chunk_map": "linear", "epochs": 3,
            "augment": True, "invariance": 0.1, "loss": "bce",
        },
    ],
    ids=["statistics", "average", "propagation", "augmented"],
)  # fmt: skip
def test_an_interrupted_fit_ends_like_one_that_was_not(
    digit_parts: Parts, tmp_path: Path, given: dict[str, Any]
) -> None:
    whole, job = _job(digit_parts, given)
    report = fit_model(whole, job)
    state = tmp_path / "model.safetensors"
    for epochs in (1, 2):  # twice interrupted
        model, job = _job(digit_parts, given, state=state, progress=_stop_after(epochs))
        with pytest.raises(_Interrupted):
            fit_model(model, job)
        assert read_state(state)[1]["epochs"] == epochs
    model, job = _job(digit_parts, given, state=state)
    resumed = fit_model(model, job)
    assert resumed.history == report.history
    assert (resumed.tau, resumed.best_epoch) == (report.tau, report.best_epoch)
    _assert_same(model, whole)
    # A finished fit is not made again.
    again, job = _job(digit_parts, given, state=state, progress=_stop_after(-1))
    assert fit_model(again, job).history == report.history
    _assert_same(again, whole)


def _assert_same(first: SneModel, second: SneModel) -> None:
    others = second.state_dict()
    for name, value in first.state_dict().items():
        assert torch.equal(value, others[name]), name


def test_the_same_seed_gives_the_same_model_and_another_another(digit_parts: Parts) -> None:
    models = []
    for seed in (3, 3, 4):
        model, job = _job(digit_parts, STATISTICS, seed=seed)
        torch.rand(seed)  # the state of torch's own generator has no influence
        fit_model(model, job)
        models.append(model)
    _assert_same(models[0], models[1])
    assert not torch.equal(models[0].head.layers[1].weight, models[2].head.layers[1].weight)


def test_fitting_leaves_torch_generator_alone(digit_parts: Parts) -> None:
    model, job = _job(digit_parts, STATISTICS)
    before = torch.get_rng_state()
    fit_model(model, job)
    assert torch.equal(before, torch.get_rng_state())


def test_the_best_epoch_is_kept(digit_parts: Parts) -> None:
    # A rate far too high: epochs differ much, and the last is not the best.
    given = STATISTICS | {"epochs": 8, "learning_rate": 0.2, "schedule": "constant"}
    model, job = _job(digit_parts, given)
    report = fit_model(model, job)
    taus = [epoch["validation_tau"] for epoch in report.history]
    assert report.tau == max(taus) == taus[report.best_epoch - 1]
    assert len(set(taus)) > 1
    scores = scores_of(model, job.validation, 64)
    assert kendall_tau(scores, job.validation.targets) == report.tau


def test_it_learns(digit_parts: Parts) -> None:
    model, job = _job(digit_parts, STATISTICS | {"epochs": 20})
    report = fit_model(model, job)
    assert report.history[-1]["loss"] < 0.7 * report.history[0]["loss"]
    assert report.tau > 0.5


def test_it_stops_early_where_patience_is_set(digit_parts: Parts) -> None:
    given = STATISTICS | {"epochs": 100, "patience": 2, "learning_rate": 0.5}
    report = fit_model(*_job(digit_parts, given))
    assert report.epochs == report.best_epoch + 2 < 100
    assert report.notes == [f"stopped early after epoch {report.epochs}"]


def test_epochs_are_cut_to_the_time_there_is(digit_parts: Parts) -> None:
    report = fit_model(*_job(digit_parts, STATISTICS | {"epochs": 100_000}, seconds=1.0))
    assert 1 <= report.epochs < 100_000
    assert report.seconds < 10
    assert any("fit into the time" in note for note in report.notes)
    # Without any time one epoch is still made: there is no predictor without one.
    assert fit_model(*_job(digit_parts, STATISTICS, seconds=0.0)).epochs == 1


def test_the_state_of_another_fit_is_refused(digit_parts: Parts, tmp_path: Path) -> None:
    state = tmp_path / "model.safetensors"
    fit_model(*_job(digit_parts, STATISTICS, state=state))
    for given, seed in ((STATISTICS | {"epochs": 6}, 3), (STATISTICS, 4)):
        with pytest.raises(ConfigError, match="is the state of another fit"):
            fit_model(*_job(digit_parts, given, seed=seed, state=state))
    swapped = (digit_parts[1], digit_parts[0], digit_parts[2])
    with pytest.raises(ConfigError, match="Give another folder, or remove the file"):
        fit_model(*_job(swapped, STATISTICS, state=state))


def test_a_damaged_state_is_refused(digit_parts: Parts, tmp_path: Path) -> None:
    state = tmp_path / "model.safetensors"
    fit_model(*_job(digit_parts, STATISTICS, state=state))
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="it is damaged, or not the state of a fit"):
        fit_model(*_job(digit_parts, STATISTICS, state=state))


def test_a_loss_that_is_no_number_says_what_to_change(digit_parts: Parts) -> None:
    given = STATISTICS | {"learning_rate": 1e30, "schedule": "constant"}
    with pytest.raises(
        ConfigError, match=r"The loss of sne is .* Give a learning_rate below 1e\+30"
    ):
        fit_model(*_job(digit_parts, given))


def test_state_files_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    write_state(path, {"a": torch.arange(3)}, {"epoch": 1})
    write_state(path, {"a": torch.arange(4), "b": torch.zeros(())}, {"epoch": 2, "tau": -math.inf})
    tensors, values = read_state(path)
    assert tensors["a"].tolist() == [0, 1, 2, 3]
    assert values == {"epoch": 2, "tau": -math.inf}
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]
    with pytest.raises(ArtifactError, match=r"none.safetensors is missing"):
        read_state(tmp_path / "none.safetensors")


# --- prepared data ----------------------------------------------------------------------------------------------------


def test_networks_beyond_the_cache_are_prepared_when_asked_for(digit_parts: Parts) -> None:
    member = MemberConfig.parse({"encoder": "propagation", "statistics": True})
    encoder = build_encoder(member.encoder, member.options)
    networks, device = Networks(digit_parts[0]), torch.device("cpu")
    kept = PreparedData(networks, encoder, device=device, training=True)
    read = PreparedData(networks, encoder, device=device, training=True, cache_bytes=0)
    first, second = kept.order(32, seed=1, epoch=2), read.order(32, seed=1, epoch=2)
    assert sum(map(len, first)) == 99
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
        a, b = kept.take(one), read.take(other)
        assert torch.equal(a.targets, b.targets)
        assert all(torch.equal(a.prepared[name], b.prepared[name]) for name in b.prepared)
        assert torch.equal(a.prepared["weights"], digit_parts[0].read(one).weights)


def test_training_networks_are_augmented_and_others_not(digit_parts: Parts) -> None:
    given = {"encoder": "chunk", "dim": 16, "heads": 2, "scaling": "none", "augment": True}
    _, job = _job(digit_parts, given)
    rows = np.arange(8)
    draw = torch.Generator().manual_seed(0)
    plain = job.train.take(rows).prepared["chunks"]
    moved = job.train.take(rows, draw).prepared["chunks"]
    assert not torch.equal(plain, moved)
    torch.testing.assert_close(
        plain.flatten(1).sort(dim=1).values, moved.flatten(1).sort(dim=1).values
    )
    still = job.validation.take(rows, draw).prepared["chunks"]
    assert torch.equal(still, job.validation.take(rows).prepared["chunks"])
