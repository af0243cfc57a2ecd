"""Networks asked together answer as they do alone, and are fine-tuned as they would be alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from card_side import Setting, setting

from zooplatform.catalog import open_catalog
from zooplatform.errors import ConfigError
from zooplatform.growing.initialise import initialise
from zooplatform.growing.optimizers import Rule
from zooplatform.growing.runs import Run, Stack
from zooplatform.growing.train import StackTrainer
from zooplatform.layout import VectorLayout
from zooplatform.scorecard.cost import measured
from zooplatform.scorecard.finetune import GRIDS, FineTuner, Schooling, usual_schooling
from zooplatform.scorecard.networks import Bench, Networks
from zooplatform.scorecard.sides import random_networks, usual_of
from zooplatform.testing.scorecards import card_folder

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def card() -> Iterator[Setting]:
    with open_catalog(card_folder() / "zoo") as catalog:
        yield setting(catalog)


@pytest.fixture
def mixed(card: Setting) -> Networks:
    """Seven training networks of both activations."""
    networks = card.training.networks.take(card.training.drawn(7, seed=0))
    assert len(networks.parts) == 2
    return networks


def one_by_one(networks: Networks) -> list[tuple[torch.Tensor, object]]:
    found: dict[int, tuple[torch.Tensor, object]] = {}
    for part in networks.parts:
        for place, weights in zip(part.places.tolist(), part.weights, strict=True):
            found[place] = weights, part.blueprint
    return [found[place] for place in range(len(networks))]


def test_networks_answer_together_as_they_do_alone(card: Setting, mixed: Networks) -> None:
    x, y = card.task.test
    answers = card.bench.answers(mixed, x)
    mean = torch.zeros(len(x), 3, dtype=torch.float64)
    for place, (weights, blueprint) in enumerate(one_by_one(mixed)):
        with torch.no_grad():
            logits = card.builder.load(blueprint, weights)(x)  # type: ignore[arg-type]
        assert torch.equal(answers.classes[place].long(), logits.argmax(1))
        accuracy = float((logits.argmax(1) == y).double().mean())
        assert answers.accuracy(y)[place] == pytest.approx(accuracy)
        mean += logits.double().softmax(1) / len(mixed)
    torch.testing.assert_close(answers.mean_probability, mean, atol=1e-6, rtol=0)
    assert answers.ensemble(y) == pytest.approx(float((mean.argmax(1) == y).double().mean()))


def test_accuracies_are_those_of_the_catalog(card: Setting) -> None:
    places = card.training.last()
    answers = card.bench.answers(card.training.networks.take(places), card.task.test.x)
    known = [card.training.facts[place].metrics["test_accuracy"] for place in places]
    np.testing.assert_allclose(answers.accuracy(card.task.test.y), known, atol=1e-6)
    assert len(set(known)) > 2


def test_places_are_kept(card: Setting, mixed: Networks) -> None:
    taken = mixed.take([5, 0, 5, 3])
    rows = one_by_one(mixed)
    for (weights, blueprint), place in zip(one_by_one(taken), [5, 0, 5, 3], strict=True):
        assert torch.equal(weights, rows[place][0])
        assert blueprint is rows[place][1]
    joined = Networks.joined([mixed.take([6]), mixed.take([1, 2])])
    for (weights, _), place in zip(one_by_one(joined), [6, 1, 2], strict=True):
        assert torch.equal(weights, rows[place][0])
    assert [b.config["activation"] for b in joined.blueprints()] == [
        rows[place][1].config["activation"]  # type: ignore[attr-defined]
        for place in (6, 1, 2)
    ]
    assert (len(taken), taken.distinct()) == (4, 3)


def test_tensors_may_be_stored_in_another_order(card: Setting, mixed: Networks) -> None:
    part = mixed.parts[0]
    vector = part.blueprint.vector
    turned = VectorLayout(tuple(reversed(vector.layout)))
    weights = torch.empty_like(part.weights)
    for field in turned.fields:
        if not field.aside:
            old = vector.by_name[field.spec.name].offset
            size = field.spec.num_elements
            weights[:, field.offset : field.offset + size] = part.weights[:, old : old + size]
    aside = part.blueprint.aside
    other = Networks.of(weights, replace(part.blueprint, vector=turned, aside=aside))
    plain = Networks.of(part.weights, part.blueprint)
    x = card.task.test.x
    bench = Bench(card.builder, card.bench.data)
    mine = bench.answers(plain, x).classes
    # A bench knows a blueprint by what it builds and its layout.
    assert torch.equal(mine, bench.answers(other, x).classes)
    ready = bench.ready(other.parts[0].blueprint)
    assert torch.equal(ready.stored(ready.built(weights)), weights)


def test_a_broken_network_spoils_no_other(card: Setting, mixed: Networks) -> None:
    broken = mixed.take([0, 1]).with_weights(
        [part.weights.clone() for part in mixed.take([0, 1]).parts]
    )
    x = card.task.test.x
    before = card.bench.answers(broken, x)
    broken.parts[0].weights[0] = torch.nan
    assert broken.finite().sum() == 1
    after = card.bench.answers(broken, x)
    other = int(broken.finite().nonzero()[0])
    assert torch.equal(before.classes[other], after.classes[other])
    assert after.mean_probability.isfinite().all()


def test_networks_that_do_not_fit_the_images_are_refused(card: Setting, mixed: Networks) -> None:
    data = card.bench.data
    large = replace(
        data,
        train=data.train._replace(x=data.train.x.repeat(1, 1, 2, 2)),
        test=data.test._replace(x=data.test.x.repeat(1, 1, 2, 2)),
    )
    with pytest.raises(ConfigError, match="do not take the images of rows"):
        Bench(card.builder, large).answers(mixed, large.test.x)
    with pytest.raises(ConfigError, match="has 7 classes"):
        Bench(card.builder, replace(data, num_classes=7)).answers(mixed, data.test.x)


# --- training from given weights --------------------------------------------------------------------------------------


def run(index: int, rate: float = 0.01) -> Run:
    return Run(
        index=index,
        seed=11 + index,
        init_seed=5 + index,
        activation=None,
        init="default",
        init_std=0.05,
        rule=Rule("adam", rate),
        dropout=0.0,
        fraction=1.0 - 0.3 * (index % 2),
        batch_size=8,
    )


@pytest.mark.parametrize("engine", ["grouped", "loop"])
def test_training_begins_where_it_is_told(card: Setting, engine: str) -> None:
    """Given the weights that it would have drawn, a stack trains to the same bits, whatever the order of its rows."""
    blueprint = card.training.networks.parts[0].blueprint
    plan = card.bench.ready(blueprint).plan
    stack = Stack("0", tuple(run(index) for index in (1, 0, 2)))
    asked = {"device": torch.device("cpu"), "train_metrics": 0}
    drawn = StackTrainer(stack, plan, engine, card.bench.data, **asked)  # type: ignore[arg-type]
    rows = [
        plan.row(initialise(plan.build, "default", seed=one.init_seed, std=1.0))[0]
        for one in stack.runs
    ]
    start = torch.from_numpy(plan.stored(torch.stack(rows)))
    assert torch.equal(plan.rows(start), torch.stack(rows))
    given = StackTrainer(stack, plan, engine, card.bench.data, start=start, **asked)  # type: ignore[arg-type]
    assert np.array_equal(given.stored(), start.numpy())
    for _ in range(2):
        drawn.train_epoch()
        given.train_epoch()
    one, other = drawn.moment(), given.moment()
    assert np.array_equal(one.weights, other.weights)
    assert one.aside is not None
    assert other.aside is not None
    assert np.array_equal(one.aside, other.aside)
    assert np.array_equal(given.stored(), other.weights)
    assert not np.array_equal(given.stored(), start.numpy())


def tuner(card: Setting, **changes: object) -> FineTuner:
    return FineTuner(
        card.bench,
        Schooling("adam", 8),
        [1, 4],
        **{"seed": 0, "tried": 2, **changes},  # type: ignore[arg-type]
    )


def test_fine_tuning_learns_and_depends_on_no_other_network(card: Setting) -> None:
    begun = random_networks(card.training, 5, seed=0, build=card.builder)
    tuned = tuner(card)(begun)
    x, y = card.task.train
    scores = [card.bench.answers(begun, x).accuracy(y).mean()]
    scores += [card.bench.answers(tuned.networks[e], x).accuracy(y).mean() for e in (1, 4)]
    assert scores[2] > scores[0] + 0.2
    # The chosen rate is the best on validation images, and belongs to the grid of the optimiser.
    for epochs in (1, 4):
        tried = tuned.validation[epochs]
        assert tuple(tried) == GRIDS["adam"]
        assert tried[tuned.learning_rate[epochs]] == max(tried.values())
    # The first networks alone: the same rates were tried on them, and they end where they ended.
    alone = tuner(card)(begun.take([0, 1]))
    assert alone.learning_rate == tuned.learning_rate
    for (mine, _), (theirs, _) in zip(
        one_by_one(alone.networks[4]), one_by_one(tuned.networks[4].take([0, 1])), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)


def test_the_rate_is_chosen_on_validation_images(card: Setting) -> None:
    """With other classes on validation images the choice is another one, though test images are the same."""
    begun = random_networks(card.training, 2, seed=0, build=card.builder)
    data = card.bench.data
    turned = replace(data, test=data.train._replace(y=(data.train.y + 1) % 3))
    chosen = [
        FineTuner(Bench(card.builder, one), Schooling("adam", 8), [6], tried=2)(begun)
        for one in (replace(data, test=data.train), turned)
    ]
    right, wrong = (one.learning_rate[6] for one in chosen)
    assert right > wrong


def test_time_may_end_in_the_middle(card: Setting) -> None:
    class Over(Exception):
        pass

    left = iter(range(3))

    def check() -> None:
        if next(left, None) is None:
            raise Over

    with pytest.raises(Over):
        tuner(card, check=check)(random_networks(card.training, 2, seed=0, build=card.builder))


def test_schooling_is_what_most_runs_have(card: Setting) -> None:
    assert usual_of(card.training) == Schooling("adam", 8, 0.0, 0.0)
    sgd = {"optimizer": "sgd", "batch_size": 64, "momentum": 0.9, "weight_decay": 1e-4}
    assert usual_schooling([sgd, {}, sgd]) == Schooling("sgd", 64, 1e-4, 0.9)
    assert usual_schooling([]) == Schooling()
    assert usual_schooling([{"optimizer": "lion"}]).optimizer == "adam"


def test_random_networks_begin_as_the_zoo_does(card: Setting) -> None:
    begun = random_networks(card.training, 40, seed=0, build=card.builder)
    assert begun.distinct() == 40
    assert {b.config["activation"] for b in begun.blueprints()} == {"tanh", "relu"}
    again = random_networks(card.training, 3, seed=0, build=card.builder)
    for (mine, _), (theirs, _) in zip(one_by_one(again), one_by_one(begun), strict=False):
        assert torch.equal(mine, theirs)
    x, y = card.task.test
    assert card.bench.answers(begun, x).accuracy(y).mean() < 0.5


def test_cost_sees_memory_that_was_freed_again() -> None:
    size = 64 * 2**20

    def work() -> list[int]:
        return [len(bytearray(b"x" * size)) for _ in range(2)]

    found, cost = measured(work, len)
    assert found == [size, size]
    assert cost.n == 2
    assert cost.seconds > 0
    told = cost.to_json()
    assert told["networks_per_second"] == pytest.approx(2 / cost.seconds)
    assert told["seconds_per_network"] == pytest.approx(cost.seconds / 2)
    if cost.peak_of == "VmHWM":
        assert size < cost.peak_bytes < 8 * size
