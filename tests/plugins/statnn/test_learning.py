"""What the backends are made of: scales, ridge regression, set and equivariant encoders."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zooplatform.interfaces import LayerSpec, TensorSpec
from zooplatform.layout import VectorLayout
from zooplatform_statnn.deepsets import SetEncoder
from zooplatform_statnn.learners import Budget, Ridge, Table
from zooplatform_statnn.nfn import EquivariantEncoder
from zooplatform_statnn.scaling import InputScale, TargetScale
from zooplatform_statnn.settings import (
    EquivariantSettings,
    RidgeSettings,
    SetSettings,
    TreeSettings,
    draw,
)

# 3 -> 5 -> 6 -> 4: two convolutions, the second flattened from 2 x 2 positions, and classes.
SHAPES = {
    "a.weight": (5, 3, 3, 3),
    "a.bias": (5,),
    "b.weight": (6, 5, 3, 3),
    "b.bias": (6,),
    "c.weight": (4, 24),
    "c.bias": (4,),
}


def chain() -> VectorLayout:
    specs = tuple(
        TensorSpec(name, "float32", shape, 4 * int(np.prod(shape)))
        for name, shape in SHAPES.items()
    )
    layers = [
        LayerSpec(at, name, kind, (f"{name}.weight", f"{name}.bias"))
        for at, (name, kind) in enumerate((("a", "conv"), ("b", "conv"), ("c", "linear")))
    ]
    return VectorLayout(specs, layers)


def reordered(
    weights: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    ends: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """The networks with their hidden units, and the entries at both ends, in another order."""
    state, at = {}, 0
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        state[name] = weights[:, at : at + size].reshape(-1, *shape)
        at += size
    inputs, outputs = ends
    state["a.weight"] = state["a.weight"][:, first][:, :, inputs]
    state["a.bias"] = state["a.bias"][:, first]
    state["b.weight"] = state["b.weight"][:, second][:, :, first]
    state["b.bias"] = state["b.bias"][:, second]
    last = state["c.weight"].reshape(-1, 4, 6, 4)[:, :, second]
    state["c.weight"] = last[:, outputs].reshape(-1, 4, 24)
    state["c.bias"] = state["c.bias"][:, outputs]
    return torch.cat([value.flatten(1) for value in state.values()], dim=1)


def orders(size: int) -> torch.Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(size))


@pytest.mark.parametrize("variant", ["hnp", "np"])
def test_nfn_layers_commute_with_permutations(variant: str) -> None:
    vector = chain()
    torch.manual_seed(0)
    encoder = EquivariantEncoder(
        EquivariantSettings(width=6, depth=2, variant=variant), vector
    ).eval()
    weights = torch.randn(3, vector.width)
    first, second = orders(5), orders(6)
    ends = (torch.arange(3), torch.arange(4)) if variant == "hnp" else (orders(3), orders(4))
    with torch.no_grad():
        plain = encoder.equivariant(weights)
        moved = encoder.equivariant(reordered(weights, first, second, ends))
    inputs, outputs = ends
    out_rows = torch.arange(1) if variant == "hnp" else outputs
    in_columns = torch.arange(1) if variant == "hnp" else inputs
    rows, columns = (first, second, out_rows), (in_columns, first, second)
    for (weight, bias), (weight2, bias2), row, column in zip(
        plain, moved, rows, columns, strict=True
    ):
        torch.testing.assert_close(weight[:, row][:, :, column], weight2, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(bias[:, row], bias2, atol=1e-5, rtol=1e-5)
    # Units differ in what they get, so that the comparison above says something.
    assert plain[1][0].std(dim=1).min() > 1e-4


@pytest.mark.parametrize("encoder_of", ["nfn", "deepsets"])
def test_encodings_do_not_depend_on_the_order_of_units(encoder_of: str) -> None:
    vector = chain()
    torch.manual_seed(0)
    encoder: torch.nn.Module = (
        EquivariantEncoder(EquivariantSettings(width=6), vector)
        if encoder_of == "nfn"
        else SetEncoder(SetSettings(width=8))
    )
    encoder.eval()
    weights = torch.randn(3, vector.width)
    same = (torch.arange(3), torch.arange(4))
    with torch.no_grad():
        before = encoder(weights, vector)
        after = encoder(reordered(weights, orders(5), orders(6), same), vector)
        other = encoder(reordered(weights, orders(5), orders(6), (orders(3), orders(4))), vector)
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-5)
    # The order of inputs and outputs matters to one of the two.
    assert torch.allclose(before, other, atol=1e-5) == (encoder_of == "deepsets")


def test_set_encoder_reads_large_layers_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    vector = chain()
    torch.manual_seed(0)
    encoder = SetEncoder(SetSettings(width=8)).eval()
    weights = torch.randn(3, vector.width)
    with torch.no_grad():
        whole = encoder(weights, vector)
        monkeypatch.setattr("zooplatform_statnn.deepsets._AT_ONCE", 50)
        torch.testing.assert_close(encoder(weights, vector), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(200, 10), (20, 300)])
def test_ridge_is_the_closed_form(size: tuple[int, int]) -> None:
    draw_from = np.random.default_rng(0)
    x = torch.from_numpy(draw_from.standard_normal(size).astype(np.float32))
    y = x[:, 0] - 2 * x[:, 1]
    table = Table(x, y)
    ridge = Ridge(RidgeSettings(penalty=0.1))
    ridge.fit([table], [table], seed=0, budget=Budget(float("inf")))
    z = ((x - x.mean(0)) / x.std(0, correction=0)).double()
    penalty = 0.1 * len(x) * torch.eye(size[1], dtype=torch.float64)
    solved = torch.linalg.solve(z.T @ z + penalty, z.T @ y.double())
    torch.testing.assert_close(ridge.predict(x, None), z @ solved, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["quantile", "robust"])
def test_inputs_are_comparable_and_bounded(kind: str) -> None:
    draw_from = np.random.default_rng(0)
    columns = np.stack(
        [
            draw_from.standard_normal(4000) * 1e4 + 7e4,
            draw_from.lognormal(0, 3, 4000),
            np.full(4000, 3.0),
            (draw_from.random(4000) < 0.01) * 1.0,
        ],
        axis=1,
    ).astype(np.float32)
    inputs = torch.from_numpy(columns)
    scale = InputScale.of(inputs, kind)
    found = scale(inputs)
    assert found.isfinite().all()
    assert found.abs().max() <= 5
    assert found[:, 0].mean().abs() < 0.05
    assert found[:, 0].std() == pytest.approx(1, abs=0.1)
    assert (found[:, 2] == 0).all()
    assert found[:, 3].std() > 0.01
    order = found[:, 0][inputs[:, 0].argsort()]
    assert (order.diff() >= 0).all()
    far = scale(torch.tensor([[1e12, -1e12, 5.0, 9.0]]))
    assert far.isfinite().all()
    assert far.abs().max() <= 5


@pytest.mark.parametrize("transform", ["auto", "logit", "none"])
def test_targets_come_back(transform: str) -> None:
    targets = np.array([0.05, 0.3, 0.9, 0.97])
    scale = TargetScale.of(targets, transform, "x")
    assert scale.logit == (transform != "none")
    learnt = scale.forward(targets)
    assert learnt.mean().item() == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(scale.inverse(learnt).numpy(), targets, atol=1e-6)
    assert scale.inverse(torch.tensor([99.0, -99.0])).tolist() == pytest.approx([1, 0])
    assert TargetScale.from_json(scale.to_json()) == scale


def test_free_targets_are_not_clipped() -> None:
    scale = TargetScale.of(np.array([-3.0, 40.0]), "auto", "x")
    assert not scale.logit
    assert scale.inverse(torch.tensor([2.0])).item() > 40


def test_a_search_begins_with_what_is_given_and_repeats() -> None:
    space = {"leaves": (7, 15, 31), "rows": (0.5, 1.0)}
    base = TreeSettings(leaves=9, trials=6)
    found = draw(base, space, seed=4)
    assert found[0] == base
    assert len(found) == 6
    assert found == draw(base, space, seed=4)
    assert {item.leaves for item in found[1:]} <= {7, 15, 31}
    assert found != draw(base, space, seed=5)
