"""What every generator must do, as tests to inherit from.

class TestMyGenerator(GeneratorContract):
    @pytest.fixture
    def make(self):
        return MyGenerator

It is fitted on small networks of two architectures, two data sets and two activations. Networks of one kind lie around
a centre of their own, so that what follows the condition can be told from what does not.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import torch

from zooplatform.errors import ConfigError
from zooplatform.interfaces import Condition, FitReport, GeneratedBatch
from zooplatform.scorecard.reconstruction import Reconstructs
from zooplatform.testing.fits import FitContract, interrupting
from zooplatform.testing.kinds import sample_generator_data
from zooplatform.testing.saved_files import check_data_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from zooplatform.fitting import Blueprint, GeneratorData

__all__ = ["GeneratorContract"]

_NETWORKS = 6

# With the data that they were fitted on, so that the id of these is not given to others.
_FITTED: dict[tuple[type, str, int], tuple[Any, GeneratorData]] = {}


class GeneratorContract(FitContract):
    """Tests of a `Generator`; inherit and give the fixture `make`.

    Attributes:
        conditions: which fields of a `Condition` it follows; it may ignore the others. One that follows instructions
            refuses those that name nothing that it knows, or answers with what it knows and says in the details of the
            network how little was understood: a `confidence` below one half.
        near: whether what it draws at temperature 0 lies nearest to the training networks of the data set asked for.
        random: whether another seed gives other networks.
        seconds: of this process within which a fit ends whose time is over from the start.
    """

    conditions: ClassVar[tuple[str, ...]] = ("dataset", "architecture_id", "build_config")
    near: ClassVar[bool] = True
    random: ClassVar[bool] = True

    @pytest.fixture
    def data(self) -> GeneratorData:
        return sample_generator_data()

    @pytest.fixture
    def fitted(self, make: Callable[[], Any], config: dict[str, Any], data: GeneratorData) -> Any:
        """Fitted once in a process, since drawing from it is to leave it as it is."""
        generator = make()
        key = (type(generator), json.dumps(config, sort_keys=True), id(data))
        if key not in _FITTED:
            generator.fit(data, config=config, seed=0)
            _FITTED[key] = generator, data
        return _FITTED[key][0]

    # --- fitting ------------------------------------------------------------------------------------------------------

    def test_a_fit_reports(
        self, make: Callable[[], Any], config: dict[str, Any], data: GeneratorData
    ) -> None:
        report = make().fit(data, config=config, seed=0)
        assert isinstance(report, FitReport)
        assert report.seconds >= 0
        assert all(isinstance(value, int | float) for value in report.metrics.values())

    def test_the_same_seed_gives_the_same_generator(
        self, make: Callable[[], Any], config: dict[str, Any], fitted: Any, data: GeneratorData
    ) -> None:
        torch.manual_seed(99)  # the state of the process is not to matter
        np.random.seed(99)
        again = make()
        again.fit(data, config=config, seed=0)
        assert _same(_drawn(again), _drawn(fitted))

    def test_a_fit_whose_time_is_over_ends(
        self, make: Callable[[], Any], config: dict[str, Any], data: GeneratorData
    ) -> None:
        generator = make()
        start = time.process_time()  # other processes may be busy
        generator.fit(replace(data, max_minutes=1e-6), config=config, seed=0)
        assert time.process_time() - start < self.seconds
        assert len(_rows(_drawn(generator))) == _NETWORKS

    def test_an_interrupted_fit_goes_on(
        self,
        make: Callable[[], Any],
        config: dict[str, Any],
        fitted: Any,
        data: GeneratorData,
        tmp_path: Path,
    ) -> None:
        """Interrupted where it says how far it is; one that never says so is only fitted again."""
        kept = replace(data, folder=tmp_path)
        with suppress(KeyboardInterrupt):
            make().fit(replace(kept, progress=interrupting()), config=config, seed=0)
        again = make()
        again.fit(kept, config=config, seed=0)
        assert _same(_drawn(again), _drawn(fitted))

    def test_images_that_cannot_be_had_are_no_obstacle_or_are_asked_for(
        self, make: Callable[[], Any], config: dict[str, Any], data: GeneratorData
    ) -> None:
        generator = make()
        refused = ""
        try:
            generator.fit(replace(data, images={}), config=config, seed=0)
        except ConfigError as error:
            refused = str(error)
        assert "image" in refused if refused else len(_rows(_drawn(generator))) == _NETWORKS

    def test_an_unknown_setting_is_refused(
        self, make: Callable[[], Any], config: dict[str, Any], data: GeneratorData
    ) -> None:
        with pytest.raises(ConfigError, match="no_such_setting"):
            make().fit(data, config={**config, "no_such_setting": 1}, seed=0)

    # --- drawing ------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("n", [1, 7])
    def test_networks_are_those_of_a_blueprint_and_can_be_built(
        self, fitted: Any, data: GeneratorData, n: int
    ) -> None:
        known = {_said(blueprint): blueprint for blueprint in data.blueprints}
        batches = list(fitted.sample(n, seed=0))
        assert sum(len(batch.weights) for batch in batches) == n
        for batch in batches:
            assert isinstance(batch, GeneratedBatch)
            weights, blueprint = batch.weights, batch.blueprint
            assert weights.dtype == torch.float32
            assert weights.shape == (len(weights), blueprint.vector.width)
            assert weights.isfinite().all()
            assert not weights.requires_grad
            assert len(batch.details) in (0, len(weights))
            json.dumps([dict(one) for one in batch.details])
            assert batch.dataset in ("", *data.images)
            assert blueprint.aside == known[_said(blueprint)].aside, (
                "the bytes aside of a training network"
            )
            module = data.build(blueprint)
            module.load_state_dict(_state(blueprint, weights[0]), strict=True)
            assert module.eval()(torch.zeros(2, 1, 6, 6)).shape == (2, 3)

    def test_a_seed_decides_the_networks(self, fitted: Any) -> None:
        first = _drawn(fitted)
        torch.manual_seed(7)
        np.random.seed(7)
        assert _same(_drawn(fitted), first)
        if self.random:
            assert not _same(_drawn(fitted, seed=1), first)

    def test_the_first_networks_do_not_depend_on_how_many_follow(self, fitted: Any) -> None:
        few, many = _rows(_drawn(fitted, n=3)), _rows(_drawn(fitted, n=8))
        for one, other in zip(few, many[:3], strict=True):
            assert one[0] == other[0]
            assert torch.equal(one[1], other[1])

    def test_what_is_done_to_a_network_does_not_reach_the_next(self, fitted: Any) -> None:
        expected = [weights.clone() for _, weights in _rows(_drawn(fitted))]
        for batch in fitted.sample(_NETWORKS, seed=0):
            batch.weights.fill_(float("nan"))
        assert all(
            torch.equal(weights, before)
            for (_, weights), before in zip(_rows(_drawn(fitted)), expected, strict=True)
        )

    def test_a_low_temperature_is_less_random(self, fitted: Any) -> None:
        condition = self._one_kind()
        cold, warm = (
            _spread(_drawn(fitted, n=12, condition=condition, temperature=temperature))
            for temperature in (0.0, 1.0)
        )
        assert cold <= warm + 1e-6
        assert len(_rows(_drawn(fitted, temperature=0.5, top_k=2))) == _NETWORKS

    def test_networks_that_are_reconstructed_stay_as_they_were(
        self, fitted: Any, data: GeneratorData
    ) -> None:
        """One that has no `reconstruct` has nothing to show."""
        if not isinstance(fitted, Reconstructs):
            return
        for number, blueprint in enumerate(data.blueprints):
            names = [one for one in data.train.ids if data.facts[one].blueprint == number][:3]
            rows = [data.train.ids.index(one) for one in names]
            weights = data.train.read(rows).weights.to(torch.float32).clone()
            before = weights.clone()
            made = fitted.reconstruct(weights, blueprint)
            assert torch.equal(weights, before)
            assert made.shape == weights.shape
            assert made.isfinite().all()
            alone = torch.cat([fitted.reconstruct(row[None], blueprint) for row in before])
            torch.testing.assert_close(made, alone, rtol=1e-3, atol=1e-3)

    def test_an_unknown_option_is_refused(self, fitted: Any) -> None:
        with pytest.raises(ConfigError, match="no_such_option"):
            _drawn(fitted, options={"no_such_option": 1})

    def test_what_is_not_fitted_says_so(self, make: Callable[[], Any], tmp_path: Path) -> None:
        with pytest.raises(ConfigError):
            _drawn(make())
        with pytest.raises(ConfigError):
            make().save(tmp_path)

    # --- conditions ---------------------------------------------------------------------------------------------------

    def _one_kind(self) -> Condition | None:
        """As much of a condition as it follows, so that networks are of one kind."""
        told: dict[str, Any] = {"dataset": "rows", "build_config": {"activation": "tanh"}}
        return Condition(**{key: value for key, value in told.items() if key in self.conditions})

    def test_it_follows_the_conditions_that_it_knows(
        self, fitted: Any, data: GeneratorData
    ) -> None:
        for dataset in data.images:
            for batch in _drawn(fitted, condition=Condition(dataset=dataset)):
                if "dataset" in self.conditions:
                    assert batch.dataset == dataset
        for blueprint in data.blueprints:
            asked = blueprint.architecture_id[:12]
            for batch in _drawn(fitted, condition=Condition(architecture_id=asked)):
                if "architecture_id" in self.conditions:
                    assert batch.blueprint.architecture_id == blueprint.architecture_id
        for activation in ("tanh", "relu"):
            wanted = Condition(build_config={"activation": activation})
            for batch in _drawn(fitted, condition=wanted):
                if "build_config" in self.conditions:
                    assert batch.blueprint.config["activation"] == activation

    def test_networks_are_nearest_to_those_of_the_data_set_that_was_asked_for(
        self, fitted: Any, data: GeneratorData
    ) -> None:
        """At the lowest temperature."""
        assert not self.near or {"dataset", "build_config"} <= set(self.conditions)
        for dataset in data.images:
            condition = Condition(dataset=dataset, build_config={"activation": "tanh"})
            for batch in _drawn(fitted, condition=condition, temperature=0.0):
                means = _means(data, batch.blueprint)
                distances = {
                    name: float((batch.weights - mean).norm(dim=1).mean())
                    for name, mean in means.items()
                }
                assert not self.near or min(distances, key=lambda n: distances[n]) == dataset

    def test_what_it_does_not_know_is_answered_by_what_it_knows(self, fitted: Any) -> None:
        unknown = {
            "dataset": Condition(dataset="no-such-data"),
            "architecture_id": Condition(architecture_id="no-such-architecture"),
            "instruction": Condition(instruction="a recipe for onion soup"),
        }
        for field, condition in unknown.items():
            if field not in self.conditions:
                _drawn(fitted, condition=condition)  # ignored
                continue
            refused = ""
            try:
                batches = _drawn(fitted, condition=condition)
            except ConfigError as error:
                refused = str(error)
            if not refused:
                assert field == "instruction", f"it takes an unknown {field} for one that it knows"
                for batch in batches:
                    assert all(one["confidence"] < 0.5 for one in batch.details)
                    assert len(batch.details) == len(batch.weights)
                continue
            known = ("rows",) if field != "architecture_id" else ("kinds-cnn", "kinds-mlp")
            assert any(word in refused for word in known), refused

    # --- storing ------------------------------------------------------------------------------------------------------

    def test_a_saved_generator_draws_the_same(
        self, make: Callable[[], Any], fitted: Any, tmp_path: Path
    ) -> None:
        folder = tmp_path / "saved"
        folder.mkdir()
        fitted.save(folder)
        check_data_files(folder)
        loaded = make()
        loaded.load(folder)
        assert _same(_drawn(loaded), _drawn(fitted))
        asked = Condition(dataset="columns")
        assert _same(_drawn(loaded, condition=asked), _drawn(fitted, condition=asked))


# --- what was drawn ---------------------------------------------------------------------------------------------------


def _drawn(
    generator: Any,
    *,
    n: int = _NETWORKS,
    seed: int = 0,
    condition: Condition | None = None,
    **more: Any,
) -> list[GeneratedBatch]:
    batches = list(generator.sample(n, condition=condition, seed=seed, **more))
    for batch in batches:
        assert batch.weights.isfinite().all()
    return batches


def _rows(batches: Sequence[GeneratedBatch]) -> list[tuple[str, torch.Tensor]]:
    """Every network: what it is, and its weights (P,)."""
    return [
        (f"{batch.dataset} {_said(batch.blueprint)}", weights)
        for batch in batches
        for weights in batch.weights
    ]


def _same(batches: Sequence[GeneratedBatch], others: Sequence[GeneratedBatch]) -> bool:
    one, other = _rows(batches), _rows(others)
    return len(one) == len(other) and all(
        a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(one, other, strict=True)
    )


def _said(blueprint: Blueprint) -> str:
    config = json.dumps(dict(blueprint.config), sort_keys=True)
    return f"{blueprint.architecture_id} {blueprint.family} {config}"


def _state(blueprint: Blueprint, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """A vector (P,) and the bytes aside as a state dict."""
    state = {}
    for field in blueprint.vector.fields:
        spec = field.spec
        if field.aside:
            raw = blueprint.aside[field.offset : field.offset + spec.size_bytes]
            values = np.frombuffer(raw, spec.dtype).copy()
            state[spec.name] = torch.from_numpy(values).reshape(spec.shape)
        else:
            part = weights[field.offset : field.offset + spec.num_elements]
            state[spec.name] = part.reshape(spec.shape)
    return state


def _spread(batches: Sequence[GeneratedBatch]) -> float:
    """Mean standard deviation of a weight among networks of one kind."""
    kinds: dict[str, list[torch.Tensor]] = {}
    for kind, weights in _rows(batches):
        kinds.setdefault(kind, []).append(weights)
    spreads = [torch.stack(rows).std(0).mean().item() for rows in kinds.values() if len(rows) > 1]
    assert spreads, "no two networks of one kind"
    return sum(spreads) / len(spreads)


def _means(data: GeneratorData, blueprint: Blueprint) -> dict[str, torch.Tensor]:
    """The mean (P,) of the training networks of a blueprint, by data set."""
    rows: dict[str, list[torch.Tensor]] = {}
    for index, one in enumerate(data.train.ids):
        fact = data.facts[one]
        if _said(data.blueprints[fact.blueprint]) == _said(blueprint):
            rows.setdefault(fact.dataset, []).append(data.train[index].weights)
    return {name: torch.stack(weights).mean(0) for name, weights in rows.items()}
