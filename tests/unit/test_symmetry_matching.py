"""Networks are aligned exactly where that can be, and distances know nothing of the order of hidden units."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import zooplatform as zoo
from zooplatform.errors import ConfigError, NotInstalledError
from zooplatform.layout import VectorLayout, layout_of
from zooplatform.symmetry import leave_one_out, match, nearest, permute
from zooplatform.symmetry.matching import sorted_weights
from zooplatform.testing import header_of

if TYPE_CHECKING:
    from collections.abc import Mapping

DIGITS = Path(__file__).parents[2] / "catalogs" / "digits"
CONFIGS: dict[str, Mapping[str, Any]] = {
    "unterthiner": {"preset": "unterthiner", "activation": "relu"},
    "tiny_zoo": {"preset": "tiny_zoo", "activation": "gelu"},
    "mlp": {"preset": "mlp", "widths": [6, 9, 7, 5, 3], "activation": "silu"},
    "deep": {"preset": "mlp", "widths": [4, 12, 12, 12, 12, 12, 3], "activation": "relu"},
    "resnet_small": {
        "preset": "resnet_small",
        "size": 8,
        "blocks": [2, 1, 1],
        "widths": [4, 6, 8],
        "activation": "relu",
    },
}


def networks(name: str, count: int, seed: int = 0) -> tuple[torch.Tensor, VectorLayout]:
    """(count, P) networks whose every value is random, running statistics included."""
    network = zoo.load_plugins().architectures.create("cnn").build(CONFIGS[name])
    header = header_of(network.state_dict())
    layers = zoo.load_plugins().architectures.create("generic").layers(header)
    vector = VectorLayout(header.tensors, layers)
    draw = torch.Generator().manual_seed(seed)
    return torch.randn((count, vector.width), generator=draw), vector


def shuffled(weights: torch.Tensor, vector: VectorLayout, seed: int = 9) -> torch.Tensor:
    return permute(weights, vector, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_permuted_copy_is_brought_back_exactly(name: str) -> None:
    weights, vector = networks(name, 6)
    moved = shuffled(weights, vector)
    assert not bool((moved == weights).all(dim=1).any())
    assert torch.equal(match(moved, weights, vector), weights)
    for row in range(2):
        assert torch.equal(match(moved[row][None], weights[row], vector)[0], weights[row])


def test_the_function_stays_and_the_distance_falls() -> None:
    """Trained networks of a catalog, put into the order of another one."""
    catalog = zoo.open_catalog(DIGITS)
    population = catalog.population("select checkpoint_id from checkpoints order by 1 limit 4")
    weights, vector = torch.as_tensor(population.weights).clone(), population.vector
    before = weights.clone()
    aligned = match(weights, weights[0], vector)
    assert torch.equal(weights, before), "the arguments are not changed"
    assert torch.equal(aligned[0], weights[0])
    plain = (weights - weights[0]).norm(dim=1)
    now = (aligned - weights[0]).norm(dim=1)
    assert bool((now[1:] < plain[1:]).all())
    for row, name in enumerate(population.ids):
        network = catalog.build(name).eval()
        inputs = torch.randn(4, *network.config["input"])  # type: ignore[index]
        with torch.no_grad():
            outputs = network(inputs)
            state = network.state_dict()
            for f in vector.fields:
                part = aligned[row, f.offset : f.offset + f.spec.num_elements]
                state[f.spec.name] = part.reshape(f.spec.shape)
            network.load_state_dict(state, strict=True)
            torch.testing.assert_close(network(inputs), outputs, atol=1e-5, rtol=1e-5)


def test_it_is_the_best_order_where_that_can_be_counted() -> None:
    """One group of 4 units: all 24 orders are tried."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
    header = header_of(network.state_dict())
    layers = zoo.load_plugins().architectures.create("generic").layers(header)
    vector = VectorLayout(header.tensors, layers)
    draw = torch.Generator().manual_seed(3)
    weights = torch.randn((20, vector.width), generator=draw)
    reference = torch.randn(vector.width, generator=draw)
    found = (match(weights, reference, vector) - reference).norm(dim=1)
    many = torch.stack([shuffled(weights, vector, seed) for seed in range(400)])
    best = (many - reference).norm(dim=2).min(dim=0).values
    torch.testing.assert_close(found, best)


def test_it_is_never_farther_than_before() -> None:
    """Networks so noisy that the order found from the input on often is worse than the one that they have."""
    weights, vector = networks("deep", 20)
    reference = networks("deep", 1, seed=5)[0][0]
    near = reference + 1.3 * weights
    found = (match(near, reference, vector) - reference).norm(dim=1)
    assert bool((found <= (near - reference).norm(dim=1) + 1e-4).all())


def test_a_network_is_matched_the_same_in_any_batch() -> None:
    weights, vector = networks("tiny_zoo", 9)
    reference = networks("tiny_zoo", 1, seed=5)[0][0]
    together = match(weights, reference, vector)
    for row in range(len(weights)):
        assert torch.equal(match(weights[row : row + 1], reference, vector)[0], together[row])


def test_equal_units_end() -> None:
    """All units alike: no order is better than another, and the search stops with the one there is."""
    _, vector = networks("mlp", 1)
    weights = torch.ones(2, vector.width)
    assert torch.equal(match(weights, weights[0], vector, sweeps=10**9), weights)


def test_what_is_not_finite_is_left_alone_and_infinitely_far() -> None:
    weights, vector = networks("mlp", 3)
    others = networks("mlp", 4, seed=1)[0]
    weights[1, 5] = torch.nan
    others[2, 0] = torch.inf
    aligned = match(weights, others[0], vector)
    assert torch.equal(aligned[1].nan_to_num(7), weights[1].nan_to_num(7))
    distances, indices = nearest(weights, others, vector)
    assert distances.isfinite().tolist() == [True, False, True]
    assert indices[1] == -1
    assert 2 not in indices.tolist()
    assert nearest(weights, others[2:3], vector)[1].tolist() == [-1] * 3


def test_half_precision_values_stay_what_they_are() -> None:
    weights, vector = networks("mlp", 2)
    half = shuffled(weights.half(), vector)
    assert torch.equal(match(half, weights[0], vector)[0], weights[0].half())


# --- nearest ----------------------------------------------------------------------------------------------------------


def test_nearest_finds_the_permuted_original() -> None:
    """Among many others the plain distance points elsewhere; the bound finds the candidate."""
    others, vector = networks("tiny_zoo", 60)
    asked = shuffled(others[[40, 3, 17]], vector)
    distances, indices = nearest(asked, others, vector, candidates=2)
    assert indices.tolist() == [40, 3, 17]
    assert torch.equal(distances, torch.zeros(3))
    plain, elsewhere = nearest(asked, others, vector, align=False)
    assert bool((plain > 1).all())
    assert elsewhere.tolist() != [40, 3, 17]
    every = torch.cdist(asked.double(), others.double()).min(dim=1)
    assert elsewhere.tolist() == every.indices.tolist()
    torch.testing.assert_close(plain.double(), every.values, rtol=1e-5, atol=0)


def test_nearest_is_no_farther_than_the_plain_distance() -> None:
    others, vector = networks("mlp", 12)
    asked = networks("mlp", 7, seed=2)[0]
    aligned, indices = nearest(asked, others, vector)
    plain, _ = nearest(asked, others, vector, align=False)
    assert bool((aligned < plain).all())
    for row, at in enumerate(indices.tolist()):
        again = (match(asked[row][None], others[at], vector) - others[at]).norm()
        assert again == aligned[row]


def test_the_bound_is_one() -> None:
    for name in CONFIGS:
        weights, vector = networks(name, 4)
        reference = networks(name, 1, seed=8)[0]
        bound = (sorted_weights(weights, vector) - sorted_weights(reference, vector)).norm(dim=1)
        reached = (match(weights, reference[0], vector) - reference).norm(dim=1)
        assert bool((bound <= reached).all())
        moved = sorted_weights(shuffled(weights, vector), vector)
        assert torch.equal(moved, sorted_weights(weights, vector))
        # Values that no permutation moves stay where they are, so that they count in full.
        last = vector.fields[-1]
        assert torch.equal(
            sorted_weights(weights, vector)[:, last.offset :], weights[:, last.offset :]
        )


def test_nearest_of_none() -> None:
    weights, vector = networks("mlp", 2)
    with pytest.raises(ConfigError, match="at least one"):
        nearest(weights, weights[:0], vector)
    with pytest.raises(ConfigError, match="at least one"):
        nearest(weights, weights, vector, candidates=0)


# --- leaving one out --------------------------------------------------------------------------------------------------


def test_leave_one_out_looks_at_other_runs_only() -> None:
    base, vector = networks("mlp", 4)
    later = base + 0.01
    weights = torch.cat([base, shuffled(later, vector)])
    runs = ["a", "b", "c", "d"] * 2
    found = leave_one_out(weights, runs, vector)
    assert bool((found > 1).all()), "checkpoints of the same run do not count"
    alone = leave_one_out(weights, np.arange(8), vector)
    assert bool((alone < 0.01 * vector.width).all())
    expected = [
        nearest(
            weights[row][None],
            weights[[other for other in range(8) if other % 4 != row % 4]],
            vector,
        )[0][0]
        for row in range(8)
    ]
    torch.testing.assert_close(found, torch.stack(expected))
    # However few candidates there are, none of them is of the same run.
    assert bool(leave_one_out(weights, runs, vector, candidates=1).isfinite().all())
    some = leave_one_out(weights, runs, vector, rows=[5, 2])
    assert torch.equal(some, found[[5, 2]])


def test_leave_one_out_of_one_run() -> None:
    weights, vector = networks("mlp", 3)
    assert leave_one_out(weights, [1, 1, 1], vector).tolist() == [torch.inf] * 3
    with pytest.raises(ConfigError, match="2 runs for 3 networks"):
        leave_one_out(weights, [1, 2], vector)


# --- what it needs ----------------------------------------------------------------------------------------------------


def test_importing_symmetry_imports_neither_scipy_nor_torch() -> None:
    code = (
        "import sys, zooplatform.symmetry as s; dir(s); print('torch' in sys.modules); "
        "s.permute, s.match; print('scipy' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zooplatform.symmetry.matching.find_spec", lambda name: None)
    weights, vector = networks("mlp", 2)
    with pytest.raises(NotInstalledError, match=r"zooplatform\[generate\]"):
        match(weights, weights[0], vector)
    assert nearest(weights, weights, vector, align=False)[0].tolist() == [0, 0]


def test_nothing_to_permute_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zooplatform.symmetry.matching.find_spec", lambda name: None)
    vector = VectorLayout(layout_of(torch.nn.Linear(3, 2).state_dict()))
    weights = torch.randn(3, 8)
    assert torch.equal(match(weights, weights[0], vector), weights)
    assert nearest(weights, weights, vector)[1].tolist() == [0, 1, 2]
