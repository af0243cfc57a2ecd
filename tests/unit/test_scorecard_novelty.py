"""How new networks are: known answers for copies, permuted copies, noise and held-out runs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from card_side import Setting, setting

from zooplatform.catalog import open_catalog
from zooplatform.errors import ConfigError
from zooplatform.scorecard.networks import Networks
from zooplatform.scorecard.novelty import (
    TrainingSide,
    disagreements,
    diversity,
    error_overlaps,
    pairwise_distance,
    trained_values,
)
from zooplatform.scorecard.sides import read_side
from zooplatform.symmetry import permute
from zooplatform.testing.scorecards import ALL, SPLIT, card_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zooplatform.scorecard.rows import Novelty


@pytest.fixture(scope="module")
def card() -> Iterator[Setting]:
    with open_catalog(card_folder() / "zoo") as catalog:
        yield setting(catalog)


def copies(card: Setting, n: int = 6) -> Networks:
    return card.training.networks.take(card.training.drawn(n, seed=0))


def novelty(card: Setting, networks: Networks) -> Novelty:
    classes = card.bench.answers(networks, card.task.test.x).classes
    return card.reference.novelty(networks, classes)


def changed(networks: Networks, amount: float) -> Networks:
    draw = torch.Generator().manual_seed(1)
    return networks.with_weights(
        [
            part.weights + amount * torch.randn(part.weights.shape, generator=draw)
            for part in networks.parts
        ]
    )


def held_out(card: Setting, *, twin: bool) -> Networks:
    """Networks of one role that nothing was learnt from, the initialisation of which was learnt from on the other
    data set, or not: of eight runs, four of them in each role, some are one way and some the other."""
    trained = {f.config["init_seed"] for f in card.training.facts if f.dataset == "columns"}
    for role in ("test", "val"):
        side = read_side(card.catalog, ALL, SPLIT, role, "rows")
        places = [
            at
            for at, fact in enumerate(side.facts)
            if fact.epoch == 2.0 and (fact.config["init_seed"] in trained) == twin
        ]
        if places:
            return side.networks.take(places)
    raise AssertionError(f"no held-out run of which it is {twin} that it has a twin")


def test_copies_are_not_new(card: Setting) -> None:
    found = novelty(card, copies(card))
    assert found.relative == found.relative_q90 == found.distance == 0.0
    assert found.disagreement == found.least_disagreement == 0.0
    assert found.error_overlap == found.most_error_overlap == 1.0


def test_earlier_checkpoints_are_copies_too(card: Setting) -> None:
    """Every training network counts, not only the last of a run."""
    last = set(card.training.last())
    earlier = [place for place in card.training.own if place not in last]
    assert len(earlier) >= 5
    assert novelty(card, card.training.networks.take(earlier)).relative == 0.0


def test_copies_with_units_in_another_order_are_not_new(card: Setting) -> None:
    own = copies(card, 8)
    draw = torch.Generator().manual_seed(3)
    moved = own.with_weights(
        [permute(part.weights, part.blueprint.vector, draw) for part in own.parts]
    )
    plain = [
        float((new.weights - old.weights).norm())
        for new, old in zip(moved.parts, own.parts, strict=True)
    ]
    assert max(plain) > 0.5  # as they lie they are far away
    found = novelty(card, moved)
    assert found.relative == pytest.approx(0, abs=1e-6)
    assert found.disagreement == 0.0


def test_noise_makes_networks_newer(card: Setting) -> None:
    values = [novelty(card, changed(copies(card), amount)) for amount in (0.0, 0.02, 0.1, 0.5)]
    relative = [value.relative for value in values]
    assert relative == sorted(relative)
    assert relative[1] > 0
    assert relative[3] > 1
    assert values[3].disagreement > values[1].disagreement
    assert values[3].error_overlap < 1


def test_held_out_runs_are_as_new_as_training_runs(card: Setting) -> None:
    zoo = card.reference.zoo
    assert 0.8 < zoo.relative < 1.2  # its median is 1
    assert zoo.relative_q10 < 1 < zoo.relative_q90
    assert 0.7 < novelty(card, held_out(card, twin=False)).relative < 1.4


def test_what_the_zoo_has_leaves_out_the_whole_run(card: Setting) -> None:
    """By plain distances: the checkpoints of a run are nearer to each other than to any other run."""
    own = card.training.networks.take(card.training.on_dataset())
    ((name, blueprint, places, weights),) = own.by_architecture()
    values = trained_values(weights, blueprint.vector)
    facts = [card.training.facts[place] for place in card.training.on_dataset()]
    runs = np.array([facts[place].model_id for place in places.tolist()], dtype=object)
    plain = torch.cdist(values, values)
    same = torch.from_numpy(runs[:, None] == runs[None])
    within = plain.masked_fill(~same, torch.inf).fill_diagonal_(torch.inf).amin(1)
    across = plain.masked_fill(same, torch.inf).amin(1)
    last = [facts[place].epoch == 2.0 for place in places.tolist()]
    found = card.reference.zoo_distance[name]
    # Other orders of hidden units only bring networks nearer.
    assert float(np.median(within[last])) < 0.7 * found
    assert 0.7 * float(np.median(across[last])) < found <= float(np.median(across[last])) + 1e-4


def test_twins_on_another_data_set_make_nothing_look_new(card: Setting) -> None:
    """Runs of one recipe begin alike on every data set, so that they lie near each other."""
    ids = [card.training.facts[place].config["init_seed"] for place in card.training.last()]
    others = [fact.config["init_seed"] for fact in card.training.facts if fact.dataset == "columns"]
    assert set(ids) & set(others)
    with_twin = [
        place
        for place in card.training.last()
        if card.training.facts[place].config["init_seed"] in others
    ]
    assert with_twin
    # A held-out run whose twin was trained on is that near to it; the measure is what runs have without twins.
    assert novelty(card, held_out(card, twin=True)).relative < 0.7
    assert 0.8 < card.reference.zoo.relative < 1.2


def test_running_statistics_do_not_count(card: Setting) -> None:
    own = copies(card)
    vector = own.parts[0].blueprint.vector
    moved = []
    for part in own.parts:
        weights = part.weights.clone()
        for name in ("running_mean", "running_var"):
            (field,) = [f for f in vector.fields if f.spec.name.endswith(name)]
            weights[:, field.offset : field.offset + field.spec.num_elements] += 5
        moved.append(weights)
    found = novelty(card, own.with_weights(moved))
    assert found.relative == 0.0
    assert found.disagreement > 0


def test_broken_networks_are_counted_apart(card: Setting) -> None:
    own = copies(card, 4)
    broken = own.with_weights([part.weights.clone() for part in own.parts])
    broken.parts[0].weights[0, 0] = torch.nan
    found = novelty(card, broken)
    assert found.broken == 1
    assert found.relative == 0.0
    everything = own.with_weights([torch.full_like(p.weights, torch.nan) for p in own.parts])
    with pytest.raises(ConfigError, match="not finite"):
        novelty(card, everything)


def test_an_architecture_nobody_trained_has_no_novelty(card: Setting) -> None:
    blueprint = card.training.networks.parts[0].blueprint
    config = {
        "input": [1, 6, 6],
        "activation": "tanh",
        "layers": [{"type": "flatten"}, {"type": "linear", "out": 3}],
    }
    module = card.builder(replace(blueprint, config=config))
    from zooplatform.layout import VectorLayout, layout_of

    vector = VectorLayout(layout_of(module.state_dict()))
    other = Networks.of(
        torch.zeros(2, vector.width), replace(blueprint, vector=vector, config=config)
    )
    with pytest.raises(ConfigError, match="no two training runs"):
        novelty(card, other)


def test_one_run_is_no_measure(card: Setting) -> None:
    run = card.training.runs[card.training.own[0]]
    places = [at for at, name in enumerate(card.training.runs) if name == run]
    alone = replace(
        card.training,
        networks=card.training.networks.take(places),
        facts=tuple(card.training.facts[place] for place in places),
        own=tuple(range(len(places))),
    )
    with pytest.raises(ConfigError, match="of one run"):
        TrainingSide(alone, bench=card.bench, x=card.task.test.x, y=card.task.test.y)


def test_overlaps_and_disagreements_by_hand() -> None:
    first = torch.tensor([[0, 1, 2, 0], [0, 0, 0, 0]])
    second = torch.tensor([[0, 1, 2, 1], [1, 1, 1, 1], [0, 1, 2, 0]])
    assert disagreements(first, second).tolist() == [[0.25, 0.75, 0.0], [0.75, 1.0, 0.5]]
    y = torch.tensor([0, 1, 1, 1])
    wrong, others = first != y, second != y
    # Wrong: {2, 3} and {1, 2, 3}; {2}, {0} and {2, 3}.
    assert error_overlaps(wrong, others).tolist() == [[0.5, 0.0, 1.0], [1 / 3, 0.0, 2 / 3]]
    pairs = error_overlaps(wrong[:, None], others[:2, None])
    assert pairs.tolist() == [[0.5], [0.0]]
    never = torch.zeros(1, 4, dtype=torch.bool)
    assert error_overlaps(never, never).tolist() == [[1.0]]
    assert error_overlaps(never, wrong).tolist() == [[0.0, 0.0]]


def test_one_network_many_times_has_no_diversity(card: Setting) -> None:
    own = copies(card)
    zoo = diversity(own, card.bench.answers(own, card.task.test.x).classes)
    assert zoo.distance is not None
    assert zoo.disagreement is not None
    assert zoo.disagreement > 0
    same = own.take([2] * 5)
    found = diversity(same, card.bench.answers(same, card.task.test.x).classes, zoo)
    assert (found.distinct, found.distance, found.disagreement, found.agreement) == (1, 0, 0, 1)
    assert (found.relative_distance, found.relative_disagreement) == (0, 0)
    again = diversity(own, card.bench.answers(own, card.task.test.x).classes, zoo)
    assert (again.relative_distance, again.relative_disagreement) == (1, 1)
    assert again.distinct == 6
    one = own.take([0])
    alone = diversity(one, card.bench.answers(one, card.task.test.x).classes, zoo)
    assert (alone.distinct, alone.distance, alone.agreement) == (1, None, None)


def test_permuted_copies_of_one_network_have_no_diversity(card: Setting) -> None:
    one = copies(card).take([0] * 8)
    draw = torch.Generator().manual_seed(3)
    moved = one.with_weights([permute(p.weights, p.blueprint.vector, draw) for p in one.parts])
    assert moved.distinct() == 2  # there are two units
    assert pairwise_distance(moved) == pytest.approx(0, abs=1e-6)


def test_pairs_by_hand(card: Setting) -> None:
    """Of two networks that differ in an output's bias alone, which no order of hidden units changes."""
    pair = copies(card).take([0, 0])
    vector = pair.parts[0].blueprint.vector
    pair.parts[0].weights[1, vector.width - 1] += 2.0
    assert pairwise_distance(pair) == pytest.approx(2.0)
