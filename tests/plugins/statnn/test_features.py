"""Statistics of layers: invariant, finite, the same for any batch, and what they are said to be."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch

import zooplatform as zoo
from zooplatform.errors import ConfigError
from zooplatform.interfaces import LAYER_TYPES, LayerSpec, NetworkBatch, TensorSpec
from zooplatform.layout import VectorLayout
from zooplatform_statnn.features import describe, layer_statistics
from zooplatform_statnn.nfn import chain_of
from zooplatform_statnn.views import MOST_UNITS, quantiles

ROOT = Path(__file__).parents[3]


def vector_of(
    layers: list[tuple[str, str, list[tuple[str, tuple[int, ...]]]]], dtype: str = "float32"
) -> VectorLayout:
    """A layout from (layer, type, [(tensor, shape)])."""
    size = torch.empty(0, dtype=getattr(torch, dtype)).element_size()
    specs = [
        TensorSpec(f"{layer}.{name}", dtype, shape, size * prod(shape))
        for layer, _, tensors in layers
        for name, shape in tensors
    ]
    described = [
        LayerSpec(at, layer, kind, tuple(f"{layer}.{name}" for name, _ in tensors))
        for at, (layer, kind, tensors) in enumerate(layers)
    ]
    return VectorLayout(tuple(specs), described)


def weights_and_bias(shape: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    return [("weight", shape), ("bias", shape[:1])]


# A convolution of colour images, one behind it, a flattened linear layer behind that, and classes.
CNN = vector_of(
    [
        ("a", "conv", weights_and_bias((6, 3, 3, 3))),
        ("n", "norm", weights_and_bias((6,))),
        ("b", "conv", weights_and_bias((8, 6, 3, 3))),
        ("c", "linear", weights_and_bias((12, 8 * 4))),
        ("d", "linear", weights_and_bias((10, 12))),
    ]
)


def random_batch(vector: VectorLayout, count: int, seed: int = 0) -> NetworkBatch:
    draw = torch.Generator().manual_seed(seed)
    weights = 0.3 * torch.randn(count, vector.width, generator=draw)
    return NetworkBatch(weights.to(getattr(torch, vector.dtype)), vector)


def permuted(batch: NetworkBatch, seed: int = 1) -> NetworkBatch:
    """The networks of `CNN` with the units of every hidden layer in another order."""
    draw = torch.Generator().manual_seed(seed)
    state = {
        f.spec.name: batch.weights[:, f.offset : f.offset + f.spec.num_elements].reshape(
            -1, *f.spec.shape
        )
        for f in batch.vector.fields
    }
    orders = {
        name: torch.randperm(n, generator=draw) for name, n in (("a", 6), ("b", 8), ("c", 12))
    }
    for layer, own in (("a", "a"), ("n", "a"), ("b", "b"), ("c", "c")):
        for name in ("weight", "bias"):
            state[f"{layer}.{name}"] = state[f"{layer}.{name}"][:, orders[own]]
    state["b.weight"] = state["b.weight"][:, :, orders["a"]]
    flat = state["c.weight"].reshape(-1, 12, 8, 4)[:, :, orders["b"]]
    state["c.weight"] = flat.reshape(-1, 12, 32)
    state["d.weight"] = state["d.weight"][:, :, orders["c"]]
    weights = torch.cat([value.flatten(1) for value in state.values()], dim=1)
    return batch._replace(weights=weights)


@pytest.mark.parametrize("kind", ["plain", "rich"])
def test_no_order_of_hidden_units_changes_anything(kind: str) -> None:
    batch = random_batch(CNN, 5)
    other = permuted(batch)
    assert not torch.equal(batch.weights, other.weights)
    before, after = layer_statistics(batch, kind), layer_statistics(other, kind)
    torch.testing.assert_close(before.values, after.values, atol=1e-5, rtol=1e-5)


def test_trained_networks_are_invariant_too() -> None:
    data = zoo.open_catalog(ROOT / "catalogs" / "digits").dataset(
        "SELECT checkpoint_id FROM checkpoints LIMIT 40"
    )
    batch = data.read(range(len(data)))
    vector = next(iter(data.architectures.values()))
    weights = batch.weights.clone()
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    parts = {
        f.spec.name: weights[:, f.offset : f.offset + f.spec.num_elements].reshape(
            -1, *f.spec.shape
        )
        for f in vector.fields
    }
    for own, following in (("0", "1"), ("1", "2"), ("2", "3")):
        for name in ("weight", "bias"):
            part = parts[f"layers.{own}.{name}"]
            part.copy_(part[:, order].clone())
        part = parts[f"layers.{following}.weight"]
        part.copy_(part[:, :, order].clone())
    assert not torch.equal(weights, batch.weights)
    before = layer_statistics(NetworkBatch(batch.weights, vector), "rich")
    after = layer_statistics(NetworkBatch(weights, vector), "rich")
    torch.testing.assert_close(before.values, after.values, atol=1e-5, rtol=1e-5)


def test_an_inconsistent_order_is_seen() -> None:
    """Permuting a layer without the one behind it changes the function, and the statistics of the chain."""
    batch = random_batch(CNN, 3)
    weights = batch.weights.clone()
    field = CNN.by_name["b.weight"]
    part = weights[:, field.offset : field.offset + field.spec.num_elements].reshape(-1, 8, 54)
    part.copy_(part.flip(1).clone())
    before = layer_statistics(batch, "rich")
    after = layer_statistics(batch._replace(weights=weights), "rich")
    at = before.names.index("product_log")
    assert not torch.allclose(before.values[:, 2, at], after.values[:, 2, at], atol=1e-3)
    plain = slice(0, len(describe("plain")))
    torch.testing.assert_close(before.values[..., plain], after.values[..., plain])


def test_values_against_numpy() -> None:
    batch = random_batch(CNN, 2)
    found = layer_statistics(batch, "rich")
    row = dict(zip(found.names, found.values[1, 4].tolist(), strict=True))
    field, bias = CNN.by_name["d.weight"], CNN.by_name["d.bias"]
    matrix = batch.weights[1, field.offset : field.offset + 120].reshape(10, 12).double().numpy()
    values = batch.weights[1, bias.offset : bias.offset + 10].double().numpy()
    singular = np.linalg.svd(matrix, compute_uv=False)
    rms = np.sqrt((matrix**2).mean())
    norms = np.linalg.norm(matrix, axis=1)
    cosines = (matrix @ matrix.T / np.outer(norms, norms))[np.triu_indices(10, 1)]
    expected = {
        "weight_mean": matrix.mean(),
        "weight_var": matrix.var(),
        "weight_q25": np.quantile(matrix, 0.25),
        "weight_q100": matrix.max(),
        "bias_q50": np.median(values),
        "log_rms": np.log(rms),
        "unit_q90": np.quantile(matrix / rms, 0.9),
        "in_norm_q10": np.quantile(norms / norms.mean(), 0.1),
        "bias_ratio_q90": np.quantile(values / norms, 0.9),
        "log_spectral": np.log(singular[0]),
        "sv_top2": singular[1] / np.linalg.norm(singular),
        "sv_q50": np.median(singular) / singular[0],
        "unit_cos_mean": cosines.mean(),
        "unit_cos_q90": np.quantile(cosines, 0.9),
        "common_units": (matrix.mean(axis=0) ** 2).mean() / rms**2,
    }
    for name, value in expected.items():
        # Norms are kept off zero by a hundredth or a thousandth of what is usual.
        loose = name.startswith(("bias_ratio", "unit_cos"))
        assert row[name] == pytest.approx(value, rel=2e-2 if loose else 1e-4, abs=1e-5), name


def test_chains_against_numpy() -> None:
    batch = random_batch(CNN, 2)
    found = layer_statistics(batch, "rich")
    part = {
        f.spec.name: batch.weights[0, f.offset : f.offset + f.spec.num_elements]
        .reshape(f.spec.shape)
        .double()
        .numpy()
        for f in CNN.fields
    }
    squares = [
        (part["a.weight"] ** 2).sum(axis=(2, 3)),
        (part["b.weight"] ** 2).sum(axis=(2, 3)),
        (part["c.weight"].reshape(12, 8, 4) ** 2).sum(axis=2),
        part["d.weight"] ** 2,
    ]
    energy = np.ones(3)
    for square in squares:
        energy = square @ energy
    layer = dict(zip(found.names, found.values[0, 4].tolist(), strict=True))
    assert layer["path_log"] == pytest.approx(np.log(energy.mean()), abs=1e-4)
    sums = [part["b.weight"].sum(axis=(2, 3)), part["c.weight"].reshape(12, 8, 4).sum(axis=2)]
    product = sums[1] @ sums[0]
    layer = dict(zip(found.names, found.values[0, 2].tolist(), strict=True))
    ratio = np.linalg.norm(product) / np.linalg.norm(sums[0]) / np.linalg.norm(sums[1])
    assert layer["product_log"] == pytest.approx(np.log(ratio), abs=1e-4)
    back = (squares[3].T @ np.ones(10)).mean()
    layer = dict(zip(found.names, found.values[0, 3].tolist(), strict=True))
    assert layer["backward_log"] == pytest.approx(np.log(back), abs=1e-4)


def test_what_layers_are_and_what_they_lack() -> None:
    found = layer_statistics(random_batch(CNN, 1), "rich")
    kinds = [LAYER_TYPES[at] for at in found.layer_types.tolist()]
    assert kinds == ["conv", "norm", "conv", "linear", "linear"]
    assert found.depth.tolist() == [0, 0.25, 0.5, 0.75, 1]
    flags = {name: found.values[0, :, found.names.index(name)].tolist() for name in found.names}
    assert flags["follows"] == [0, 0, 1, 1, 1]
    assert flags["linked"] == [1, 0, 1, 1, 0]
    assert flags["has_kernel"] == [1, 0, 1, 0, 0]
    assert flags["log_spectral"][1] == 0
    assert len(set(found.names)) == len(found.names) == found.values.shape[2]
    assert found.names[: len(describe("plain"))] == tuple(describe("plain"))


def test_a_linear_layer_of_one_input_is_a_matrix() -> None:
    """Networks for functions of one number, such as sine waves."""
    sizes = {"a": (6, 1), "b": (5, 6), "c": (1, 5)}
    vector = vector_of([(k, "linear", weights_and_bias(size)) for k, size in sizes.items()])
    batch = random_batch(vector, 4)
    found = layer_statistics(batch, "rich")
    assert found.values.isfinite().all()
    flags = {name: found.values[0, :, found.names.index(name)].tolist() for name in found.names}
    assert flags["follows"] == [0, 1, 1]
    assert flags["linked"] == [1, 1, 0]
    norms = batch.weights[0, :6].norm().log().item()
    assert flags["log_spectral"][0] == pytest.approx(norms, abs=1e-4)
    assert [plan.name for plan in chain_of(vector)] == ["a.weight", "b.weight", "c.weight"]
    moved = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    state = [batch.weights[:, at:end] for at, end in ((0, 6), (6, 12), (12, 42), (42, 53))]
    columns = state[2].reshape(-1, 5, 6)[:, :, moved].flatten(1)
    other = torch.cat([state[0][:, moved], state[1][:, moved], columns, state[3]], dim=1)
    again = layer_statistics(batch._replace(weights=other), "rich").values
    torch.testing.assert_close(again, found.values, atol=1e-4, rtol=1e-4)


def test_networks_do_not_depend_on_their_batch() -> None:
    batch = random_batch(CNN, 40)
    together = layer_statistics(batch, "rich").values
    # Other content, so that nothing is remembered: the rows between are new, the looked-at ones are the same.
    one = random_batch(CNN, 40, seed=7)
    one.weights[3] = batch.weights[3] * (1 + 1e-7)
    torch.testing.assert_close(layer_statistics(one, "rich").values[3], together[3])


def test_remembered_by_content_not_by_id() -> None:
    batch = random_batch(CNN, 2)._replace(ids=("x", "y"))
    first = layer_statistics(batch, "plain").values
    again = layer_statistics(batch, "plain").values
    assert torch.equal(first, again)
    first.zero_()
    assert torch.equal(layer_statistics(batch, "plain").values, again)
    changed = layer_statistics(batch._replace(weights=2 * batch.weights), "plain").values
    assert not torch.allclose(changed, again)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_dtypes_are_cast(dtype: str) -> None:
    layers = [("a", "linear", weights_and_bias((4, 6))), ("b", "linear", weights_and_bias((3, 4)))]
    vector = vector_of(layers, dtype)
    batch = random_batch(vector, 3)
    same = NetworkBatch(batch.weights.float(), vector_of(layers))
    torch.testing.assert_close(
        layer_statistics(batch, "rich").values, layer_statistics(same, "rich").values
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.filterwarnings("error")
def test_weights_that_are_no_numbers_give_numbers_and_a_flag(value: float) -> None:
    batch = random_batch(CNN, 3)
    batch.weights[1, CNN.by_name["b.weight"].offset] = value
    found = layer_statistics(batch, "rich")
    assert found.values.isfinite().all()
    flag = found.values[..., found.names.index("bad_share")]
    assert flag[1, 2] == pytest.approx(1 / (8 * 54 + 8))
    assert flag.count_nonzero() == 1
    clean = layer_statistics(random_batch(CNN, 3), "rich").values
    torch.testing.assert_close(found.values[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("fill", [0.0, 1.0, 1e-30, 1e8])
def test_constant_weights_give_numbers(fill: float) -> None:
    weights = torch.full((2, CNN.width), fill)
    assert layer_statistics(NetworkBatch(weights, CNN), "rich").values.isfinite().all()


def test_every_kind_of_layer() -> None:
    """An embedding, attention, norms with running statistics, a recurrent layer, scalars, one-dimensional kernels."""
    vector = vector_of(
        [
            ("embed", "embedding", [("weight", (50, 12))]),
            (
                "attention",
                "attention",
                [("in_proj_weight", (36, 12)), ("in_proj_bias", (36,)), ("out", (12, 12))],
            ),
            (
                "norm",
                "norm",
                [
                    ("weight", (12,)),
                    ("bias", (12,)),
                    ("running_mean", (12,)),
                    ("running_var", (12,)),
                ],
            ),
            ("lstm", "recurrent", [("weight_ih_l0", (16, 12)), ("weight_hh_l0", (16, 4))]),
            ("conv", "conv", [("weight", (5, 4, 7))]),
            ("depthwise", "conv", [("weight", (5, 1, 3, 3))]),
            ("scale", "other", [("weight", ())]),
            ("head", "linear", [("weight", (1, 5))]),
        ]
    )
    found = layer_statistics(random_batch(vector, 3), "rich")
    assert found.values.isfinite().all()
    assert found.values.shape[:2] == (3, 8)
    flags = dict(zip(found.names, found.values[0].T.tolist(), strict=True))
    # The embedding's units are its columns, which attention reads.
    assert flags["linked"][0] == flags["follows"][1] == 1


def test_large_matrices_are_looked_at_in_their_strongest_units() -> None:
    wide = MOST_UNITS + 40
    vector = vector_of([("a", "linear", [("weight", (wide, wide))])])
    batch = random_batch(vector, 1)
    found = layer_statistics(batch, "rich")
    row = dict(zip(found.names, found.values[0, 0].tolist(), strict=True))
    exact = np.linalg.svd(batch.weights[0].reshape(wide, wide).numpy(), compute_uv=False)
    assert row["log_spectral"] == pytest.approx(np.log(exact[0]), abs=0.05)
    order = torch.randperm(wide, generator=torch.Generator().manual_seed(0))
    other = batch.weights.reshape(1, wide, wide)[:, order].reshape(1, -1)
    after = layer_statistics(batch._replace(weights=other), "rich").values
    torch.testing.assert_close(found.values, after, atol=1e-4, rtol=1e-4)


def test_quantiles_are_those_of_numpy() -> None:
    values = torch.randn(4, 17, generator=torch.Generator().manual_seed(0))
    at = (0.0, 0.1, 0.5, 0.93, 1.0)
    expected = np.quantile(values.numpy(), at, axis=1).T
    np.testing.assert_allclose(quantiles(values, at), expected, rtol=1e-6)
    assert quantiles(values[:, :1], at).shape == (4, 5)


def test_refusals() -> None:
    bare = VectorLayout((TensorSpec("w", "float32", (3, 2), 24),))
    with pytest.raises(ConfigError, match="No layer is known"):
        layer_statistics(NetworkBatch(torch.zeros(1, 6), bare), "rich")
    with pytest.raises(ConfigError, match="Choose plain or rich"):
        layer_statistics(random_batch(CNN, 1), "other")  # type: ignore[arg-type]
