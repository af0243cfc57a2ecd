"""Layers and chunks come whole from training networks; kernels are as wide as the validation networks want them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from zooplatform.errors import ConfigError
from zooplatform.interfaces import LayerSpec, TensorSpec
from zooplatform.layout import VectorLayout
from zooplatform_kde.densities import Densities, likelihoods, spread_within
from zooplatform_kde.layers import chunks, layer_names, layers
from zooplatform_kde.measuring import Judge
from zooplatform_kde.resampling import ChunkKde, LayerBootstrap, Subsample

if TYPE_CHECKING:
    from conftest import Zoo


def batches(generator: object, n: int = 6, **kwargs: object) -> list:
    return list(generator.sample(n, **{"seed": 0, **kwargs}))  # type: ignore[attr-defined]


def drawn(generator: object, n: int = 6, **kwargs: object) -> torch.Tensor:
    return torch.cat([b.weights for b in batches(generator, n, **kwargs)])


def train_weights(shared: Zoo) -> torch.Tensor:
    return torch.stack([shared.weights(one) for one in shared.data.train.ids])


# --- layers -----------------------------------------------------------------------------------------------------------


def layout() -> VectorLayout:
    shapes = {
        "scale": (1,),
        "a.weight": (2, 3),
        "a.bias": (2,),
        "n.weight": (2,),
        "n.count": (),
        "b.weight": (1, 2),
        "b.bias": (1,),
    }
    specs = [
        TensorSpec(name, "int64" if "count" in name else "float32", shape, 4 * math.prod(shape))
        for name, shape in shapes.items()
    ]
    return VectorLayout(
        tuple(specs),
        [
            LayerSpec(0, "a", "linear", ("a.weight", "a.bias")),
            LayerSpec(1, "n", "norm", ("n.weight", "n.count")),
            LayerSpec(2, "b", "linear", ("b.weight", "b.bias")),
        ],
    )


def test_a_layer_has_its_bias_and_its_normalisation() -> None:
    vector = layout()
    assert layers(vector).tolist() == [0] + [1] * (6 + 2 + 2) + [2] * 3
    assert layer_names(vector) == ["scale", "a", "b"]


def test_chunks_stay_inside_layers() -> None:
    vector = layout()
    assert chunks(vector, 4).tolist() == [0] + [1] * 4 + [2] * 4 + [3] * 2 + [4] * 3
    assert chunks(vector, 1).tolist() == list(range(14))
    assert chunks(vector, 0).tolist() == [0] * 14
    assert chunks(vector, 1000).tolist() == layers(vector).tolist()


def test_every_layer_is_that_of_the_network_that_is_named(shared: Zoo) -> None:
    generator = LayerBootstrap()
    report = generator.fit(shared.data, config={}, seed=0)
    assert report.metrics["num_layers"] == 4
    mixed = 0
    for batch in batches(generator, 8):
        own, names = layers(batch.blueprint.vector), layer_names(batch.blueprint.vector)
        for row, details in zip(batch.weights, batch.details, strict=True):
            assert list(details["layers"]) == names
            assert set(details["layers"].values()) == set(details["parents"])
            for at, name in enumerate(names):
                parent = shared.weights(details["layers"][name])
                assert torch.equal(row[own == at], parent[own == at])
            mixed += len(details["parents"]) > 1
    assert mixed > 4
    assert max(shared.accuracy(drawn(generator, 8))) < 0.9


def test_layers_of_one_cluster_work_together(shared: Zoo) -> None:
    generator = LayerBootstrap()
    report = generator.fit(shared.data, config={"clusters": "auto"}, seed=0)
    assert report.metrics["num_clusters"] == 4
    for batch in batches(generator, 8):
        for details in batch.details:
            assert len({shared.initialisation(one) for one in details["parents"]}) == 1
    assert sum(shared.accuracy(drawn(generator, 8))) / 8 > 0.85


def test_the_temperature_is_how_many_layers_are_changed(shared: Zoo) -> None:
    generator = LayerBootstrap()
    generator.fit(shared.data, config={}, seed=0)
    (cold,) = batches(generator, 3, temperature=0.0)
    best = min(shared.data.train.ids, key=lambda one: shared.data.facts[one].metrics["train_loss"])
    assert [details["parents"] for details in cold.details] == [[best]] * 3
    assert torch.equal(cold.weights[0], shared.weights(best))
    (cool,) = batches(generator, 30, temperature=0.3)
    (warm,) = batches(generator, 30, temperature=1.0)
    few, many = (sum(len(d["parents"]) for d in b.details) for b in (cool, warm))
    assert 30 < few < many


# --- densities --------------------------------------------------------------------------------------------------------


def test_a_chunk_lies_near_that_of_one_anchor() -> None:
    anchors = torch.arange(5.0)[:, None].expand(5, 6).clone()
    found = Densities(anchors, torch.full((6,), 0.5), torch.tensor([0, 0, 1, 1, 2, 2]))
    exact, chosen = found.draw(torch.tensor([1, 3, 4]), 0.0, torch.Generator().manual_seed(0))
    assert exact.tolist() == [float(at) for at in chosen for _ in range(2)]
    assert set(chosen.tolist()) <= {1, 3, 4}
    many = torch.stack(
        [
            found.draw(torch.tensor([2]), 0.1, torch.Generator().manual_seed(s))[0]
            for s in range(500)
        ]
    )
    assert float(many.std()) == pytest.approx(0.05, rel=0.1)
    assert float(many.mean()) == pytest.approx(2, abs=0.01)


def test_the_likelihood_is_that_of_the_mixture() -> None:
    draw = torch.Generator().manual_seed(0)
    anchors, others = (torch.randn((n, 5), generator=draw) for n in (4, 3))
    spread = torch.tensor([1.0, 2.0, 0.5, 1.0, 0.0])
    found = Densities(anchors, spread, torch.tensor([0, 0, 1, 1, 1]))
    expected = torch.zeros(3, dtype=torch.float64)
    for columns in ([0, 1], [2, 3]):  # the last value has no spread and does not count
        normal = torch.distributions.Normal(
            anchors[:, columns].double(), 0.3 * spread[columns].double()
        )
        each = normal.log_prob(others[:, None, columns].double()).sum(-1)
        expected += each.logsumexp(1) - math.log(4)
    (score,) = likelihoods(found, others, [0.3])
    assert score == pytest.approx(float(expected.mean()) / 4)
    assert likelihoods(found, others, [0.0]) == [-math.inf]


def test_without_others_each_anchor_is_judged_by_the_rest() -> None:
    draw = torch.Generator().manual_seed(0)
    anchors = torch.randn((40, 3), generator=draw)
    found = Densities(anchors, anchors.std(0), torch.zeros(3, dtype=torch.int64))
    by_itself = likelihoods(found, anchors[:0], [0.01, 0.5])
    assert by_itself[0] < by_itself[1]  # with itself among them, the narrowest would be the best
    each = [
        likelihoods(
            found._replace(anchors=anchors[torch.arange(40) != at]), anchors[at : at + 1], [0.5]
        )
        for at in range(40)
    ]
    assert by_itself[1] == pytest.approx(sum(score for (score,) in each) / 40)
    assert likelihoods(found._replace(anchors=anchors[:1]), anchors[:0], [0.5]) == [-math.inf]


def test_the_spread_is_that_within_clusters() -> None:
    weights = torch.tensor([[0.0, 1.0], [2.0, 1.0], [10.0, 5.0], [14.0, 5.0]])
    spread = spread_within(weights, torch.tensor([0, 0, 1, 1]))
    assert spread.tolist() == pytest.approx([math.sqrt((1 + 1 + 4 + 4) / 2), 0.0])


# --- chunks -----------------------------------------------------------------------------------------------------------


def test_chunks_of_the_best_networks(shared: Zoo) -> None:
    generator = ChunkKde()
    report = generator.fit(shared.data, config={"anchors": 0.25, "chunk_size": 100}, seed=0)
    assert report.metrics["num_anchors"] == 6
    losses = {one: shared.data.facts[one].metrics["train_loss"] for one in shared.data.train.ids}
    best = sorted(losses, key=lambda one: losses[one])[:6]
    assert generator._groups[0].values["ids"] == best
    own = chunks(shared.data.blueprints[0].vector, 100)
    anchors = torch.stack([shared.weights(one) for one in best])
    for row in drawn(generator, 4, temperature=0.0):
        for at in range(int(own.max()) + 1):
            assert (anchors[:, own == at] == row[own == at]).all(dim=1).any()
    (only,) = batches(generator, 2, temperature=0.0, top_k=1)
    assert torch.equal(only.weights[1], anchors[0])
    assert [details["parents"] for details in only.details] == [[best[0]]] * 2


def test_whole_networks_with_kernels_around_them(shared: Zoo) -> None:
    generator = ChunkKde()
    config = {"chunk_size": 0, "anchors": 1.0, "clusters": "auto", "bandwidth": 0.3}
    generator.fit(shared.data, config=config, seed=0)
    spread = generator._groups[0].tensors["spread"]
    (batch,) = batches(generator, 12)
    left = torch.stack(
        [
            row - shared.weights(details["parents"][0])
            for row, details in zip(batch.weights, batch.details, strict=True)
        ]
    )
    used = spread > 1e-3
    assert float((left[:, used] / spread[used]).std()) == pytest.approx(0.3, rel=0.05)
    assert min(shared.accuracy(batch.weights)) > 0.8
    (wide,) = batches(generator, 12, options={"bandwidth": 0.6})
    torch.testing.assert_close(wide.weights - batch.weights, left, rtol=1e-3, atol=1e-4)


def test_the_bandwidth_is_chosen_by_the_validation_networks(shared: Zoo) -> None:
    generator = ChunkKde()
    report = generator.fit(shared.data, config={"anchors": 1.0, "clusters": 4}, seed=0)
    chosen = report.metrics["bandwidth"]
    likely = report.metrics["validation_log_likelihood"]
    for other in (0.01, 0.1, 1.0):
        given = ChunkKde().fit(
            shared.data, config={"anchors": 1.0, "clusters": 4, "bandwidth": other}, seed=0
        )
        assert given.metrics["bandwidth"] == other
        assert given.metrics["validation_log_likelihood"] <= likely
    assert 0.01 <= chosen <= 1


# --- choosing by images -----------------------------------------------------------------------------------------------


def test_candidates_are_chosen_by_their_loss_on_training_images(shared: Zoo) -> None:
    config = {"anchors": 1.0, "bandwidth": 0.5, "images": 200}
    one, best = ChunkKde(), Subsample()
    one.fit(shared.data, config={"anchors": 1.0, "bandwidth": 0.5}, seed=0)
    best.fit(shared.data, config={**config, "candidates": 6}, seed=0)
    images = shared.data.images["digits"]
    judge = Judge.of(shared.data.blueprints[0], images, 200, shared.data.build)
    (batch,) = batches(best, 5)
    losses = judge.losses(batch.weights)
    for loss, details in zip(losses.tolist(), batch.details, strict=True):
        assert details["training_loss"] == pytest.approx(loss, rel=1e-5)
        assert details["candidates"] == 6
    # The first of the candidates is what chunk-kde draws from the same numbers.
    (plain,) = batches(best, 5, options={"candidates": 1})
    assert torch.equal(plain.weights, drawn(one, 5))
    assert bool((losses <= judge.losses(plain.weights) + 1e-5).all())
    assert losses.mean() < judge.losses(plain.weights).mean()


def test_the_best_become_the_anchors_of_the_next_round(shared: Zoo) -> None:
    generator = Subsample()
    config = {"anchors": 1.0, "bandwidth": 0.5, "rounds": 3, "draws": 40, "keep": 8, "images": 100}
    config["clusters"] = 4
    report = generator.fit(shared.data, config=config, seed=0)
    losses = [report.metrics[f"loss_of_round_{number}"] for number in (1, 2, 3)]
    assert losses[2] < losses[0]
    tensors = generator._groups[0].tensors
    assert tensors["anchors"].shape[0] == 8
    train = train_weights(shared)
    assert not (tensors["anchors"][:, None] == train[None]).all(2).any()
    (batch,) = batches(generator, 2, options={"candidates": 1})
    assert all("parents" not in details for details in batch.details)


def test_images_are_needed(shared: Zoo) -> None:
    with pytest.raises(ConfigError, match=r"training images.*'digits'.*chunk-kde"):
        Subsample().fit(replace(shared.data, images={}), config={}, seed=0)


def test_a_loss_is_that_of_the_built_network(normed: Zoo) -> None:
    """Batch normalisation included: its stored statistics are used, and never changed."""
    images = normed.data.images["digits"]
    for number, blueprint in enumerate(normed.data.blueprints):
        own = [one for one, fact in normed.data.facts.items() if fact.blueprint == number]
        weights = torch.stack([normed.weights(one) for one in own])
        judge = Judge.of(blueprint, images, 64, normed.data.build)
        again = Judge.again(blueprint, judge.x, judge.y)
        losses = judge.losses(weights)
        assert torch.equal(losses, judge.losses(weights))
        assert torch.equal(losses, again.losses(weights))
        for one, loss in zip(own, losses.tolist(), strict=True):
            with torch.no_grad():
                outputs = normed.catalog.build(one).eval()(images.x[:64])
            wanted = torch.nn.functional.cross_entropy(outputs, images.y[:64])
            assert loss == pytest.approx(float(wanted), rel=1e-5)
    broken = torch.full((1, weights.shape[1]), torch.nan)
    assert judge.losses(broken).tolist() == [math.inf]
