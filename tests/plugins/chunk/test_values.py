"""What comes back: scaling and its bounds, bytes aside, files, refusals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zooplatform.errors import TokenizerError
from zooplatform.layout import layout_of
from zooplatform.testing.tokenizers import same_bits
from zooplatform_chunk.chunk import ChunkRule, ChunkTokenizer
from zooplatform_chunk.neuron import NeuronTokenizer
from zooplatform_chunk.scaling import asinh_


def there_and_back(state, **config):
    tokenizer = ChunkTokenizer(ChunkRule(chunk_size=8, **config))
    batch = tokenizer.encode(state, layout=layout_of(state))
    return batch, tokenizer.decode(batch, layout=layout_of(state))


NET = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(8, 3))


# --- scaling -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-6, 0.03, 1.0, 1e5])
def test_std_makes_layers_equally_wide_and_loses_nothing(dtype, size) -> None:
    state = {"w": (size * torch.randn(999, generator=torch.Generator().manual_seed(0))).to(dtype)}
    batch, back = there_and_back(state, scaling="std")
    assert same_bits(back["w"], state["w"])
    assert math.sqrt(0.5) * 0.99 <= batch.tokens[batch.mask].std() <= math.sqrt(2) * 1.01
    assert batch.scales["std"].log2().frac().count_nonzero() == 0


def test_std_is_of_a_layer_not_of_the_network() -> None:
    state = {"a.weight": torch.randn(50, 4), "b.weight": 1000 * torch.randn(50, 4)}
    batch, _ = there_and_back(state, scaling="std")
    assert batch.scales["std"].shape == (1, 2)
    assert batch.scales["std"][0, 1] / batch.scales["std"][0, 0] in (512, 1024, 2048)


def test_a_spread_far_below_the_mean_is_found() -> None:
    noise = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    batch, _ = there_and_back({"w": 1 + 1e-4 * noise}, scaling="std")
    assert batch.scales["std"].item() in (2**-13, 2**-14)


@pytest.mark.parametrize(
    "values", [[0.0, 0.0], [3.0], [1.0, math.inf], [math.nan, 1.0], [1e38, -3e38], [1e-44, -1e-44]]
)
@pytest.mark.parametrize("scaling", ["none", "std"])
def test_layers_without_a_usable_spread_come_back(values, scaling) -> None:
    state = {"w": torch.tensor(values)}
    batch, back = there_and_back(state, scaling=scaling)
    assert torch.equal(back["w"].nan_to_num(nan=7), state["w"].nan_to_num(nan=7))
    if scaling == "std":
        assert batch.scales["std"].item() == 1


@given(
    st.lists(st.floats(-(2.0**120), 2.0**120, width=32), min_size=1, max_size=30),
    st.sampled_from([0.1, 5.0]),
)
@settings(deadline=None, max_examples=200)
def test_asinh_keeps_its_bound(values, gain) -> None:
    state = {"w": torch.tensor(values)}
    batch, back = there_and_back(state, scaling="asinh", gain=gain)
    given_, token = state["w"].double(), batch.tokens[batch.mask].double()
    bound = 10 * 2.0**-23 * (1 + token.abs()) * given_.abs() + torch.finfo(torch.float32).tiny
    assert ((back["w"].double() - given_).abs() <= bound).all()
    assert torch.allclose(token, torch.asinh(gain * given_), rtol=1e-5, atol=1e-37)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_asinh_is_that_of_numpy_for_values_of_any_size(dtype) -> None:
    draw = np.random.default_rng(0)
    most = math.log10(torch.finfo(dtype).max) - 2
    sizes = 10 ** draw.uniform(-most, most, 200_000)  # more than one block
    values = torch.tensor(draw.choice([-1, 1], 200_000) * sizes).to(dtype)
    expected = np.arcsinh(2.0 * values.numpy().astype(np.longdouble))
    asinh_(values, 2.0)
    error = np.abs(values.numpy() - expected) / np.abs(expected)
    assert float(error.max()) <= 3 * torch.finfo(dtype).eps


def test_asinh_keeps_what_is_not_finite() -> None:
    state = {"w": torch.tensor([math.inf, -math.inf, math.nan, 1.0])}
    _, back = there_and_back(state, scaling="asinh")
    assert back["w"].tolist()[:2] == [math.inf, -math.inf]
    assert back["w"].isnan().tolist() == [False, False, True, False]


def test_asinh_refuses_what_it_could_not_give_back() -> None:
    state = {"a.weight": torch.ones(3, 3), "b.weight": torch.tensor([[1.0, 3e38]])}
    with pytest.raises(TokenizerError, match=r"Layer 'b' .* asinh .* Use scaling 'none'"):
        there_and_back(state, scaling="asinh")


@pytest.mark.parametrize("scaling", ["none", "std", "asinh"])
def test_the_batch_says_how_it_was_scaled(scaling) -> None:
    state = NET.state_dict()
    batch, back = there_and_back(state, scaling=scaling)
    other = ChunkTokenizer(ChunkRule(chunk_size=8))
    found = other.decode(batch, layout=layout_of(state))
    assert all(same_bits(found[name], back[name]) for name in state)
    with torch.no_grad():
        NET.load_state_dict(found, strict=True)


def test_changed_tokens_are_changed_weights() -> None:
    state = NET.state_dict()
    for scaling in ("none", "std"):
        tokenizer = NeuronTokenizer()
        tokenizer.fit([], seed=0, config={"scaling": scaling})
        batch = tokenizer.encode(state, layout=layout_of(state))
        twice = batch._replace(tokens=2 * batch.tokens)
        back = tokenizer.decode(twice, layout=layout_of(state))
        assert torch.equal(back["0.weight"], 2 * state["0.weight"])
        assert torch.equal(back["1.num_batches_tracked"], state["1.num_batches_tracked"])


# --- dtypes --------------------------------------------------------------------------------------


def test_running_statistics_are_tokens_and_counters_are_aside() -> None:
    state = NET.state_dict()
    batch, back = there_and_back(state)
    weights = sum(v.numel() for v in state.values() if v.is_floating_point())
    assert batch.mask.sum() == weights
    assert batch.scales["aside"].shape == (1, 8)
    assert all(same_bits(back[name], state[name]) for name in state)


def test_mixed_types_are_seen_as_numbers() -> None:
    state = {
        "a": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "b": torch.tensor([0.25], dtype=torch.float8_e4m3fn),
        "c": torch.tensor([1e300], dtype=torch.float64),
    }
    batch, back = there_and_back(state)
    assert batch.tokens.dtype == torch.float64
    assert sorted(batch.tokens[batch.mask].tolist()) == [-2.0, 0.25, 1.5, 1e300]
    assert all(same_bits(back[name], state[name]) for name in state)


def test_the_payload_of_a_narrow_nan_is_kept_only_where_there_is_one() -> None:
    bits = torch.tensor([0x7F81, 0x3F80], dtype=torch.int16)
    state = {"w": bits.view(torch.bfloat16)}
    batch, back = there_and_back(state)
    assert same_bits(back["w"], state["w"])
    assert batch.scales["nan"].shape == (1, 4)
    clean, _ = there_and_back({"w": torch.ones(2, dtype=torch.bfloat16)})
    assert "nan" not in clean.scales
    # A number put in its place is not undone.
    batch.tokens[batch.mask] = torch.tensor([3.0, 4.0])
    tokenizer = ChunkTokenizer(ChunkRule(chunk_size=8))
    assert tokenizer.decode(batch, layout=layout_of(state))["w"].tolist() == [3, 4]


def test_lazily_conjugated_tensors_are_what_they_show() -> None:
    state = {"w": torch.tensor([1 + 2j, 3 - 4j]).conj(), "v": torch.tensor([1j]).conj().imag}
    _, back = there_and_back(state)
    assert back["w"].tolist() == [1 - 2j, 3 + 4j]
    assert back["v"].tolist() == [-1]


def test_tied_tensors_come_back_under_each_name() -> None:
    weight = nn.Parameter(torch.randn(3, 4))
    state = {"embed.weight": weight, "head.weight": weight, "turned": weight.T}
    _, back = there_and_back(state)
    assert all(same_bits(back[name], value.detach()) for name, value in state.items())
    assert not back["head.weight"].requires_grad


def test_types_of_other_formats_stay_bytes() -> None:
    from zooplatform.interfaces import TensorSpec

    layout = (TensorSpec("q", "gguf.q4_k", (256,), 144), TensorSpec("w", "float32", (2,), 8))
    state = {"q": torch.arange(144, dtype=torch.uint8), "w": torch.ones(2)}
    tokenizer = ChunkTokenizer()
    back = tokenizer.decode(tokenizer.encode(state, layout=layout), layout=layout)
    assert all(same_bits(back[name], state[name]) for name in state)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tensor", [torch.empty(2, device="meta"), torch.eye(2).to_sparse()])
def test_tensors_without_plain_values_are_refused(tensor) -> None:
    with pytest.raises(TokenizerError, match="w is not a plain tensor"):
        ChunkTokenizer().encode({"w": tensor}, layout=layout_of({"w": torch.empty(tensor.shape)}))


def test_a_population_of_another_layout_is_refused() -> None:
    layout = layout_of(NET.state_dict())
    width = sum(v.numel() for v in NET.state_dict().values() if v.is_floating_point())
    tokenizer = ChunkTokenizer()
    good = torch.zeros(2, width)
    aside = torch.zeros(2, 8, dtype=torch.uint8)
    assert len(tokenizer.encode_population(good, layout=layout, aside=aside).tokens) == 2
    for weights, beside, text in (
        (good[:, 1:], aside, rf"weights is \(2, {width - 1}\) of float32"),
        (good.double(), aside, "weights is .* of float64"),
        (good, None, r"aside is \(2, 0\) of uint8"),
        (good, aside[:1], r"aside is \(1, 8\)"),
    ):
        with pytest.raises(TokenizerError, match=text):
            tokenizer.encode_population(weights, layout=layout, aside=beside)


def test_tokens_need_what_was_beside_them() -> None:
    state = NET.state_dict()
    batch, _ = there_and_back(state)
    with pytest.raises(TokenizerError, match=r"lacks the 8 bytes of 1.num_batches_tracked"):
        ChunkTokenizer(ChunkRule(chunk_size=8)).decode(
            batch._replace(scales={}), layout=layout_of(state)
        )


def test_tokens_cut_otherwise_are_refused() -> None:
    state = {"fc.weight": torch.randn(4, 4), "fc.bias": torch.randn(4)}
    layout = layout_of(state)
    batch = ChunkTokenizer(ChunkRule(chunk_size=8)).encode(state, layout=layout)
    others = {
        "another size": (ChunkTokenizer(ChunkRule(chunk_size=4)), layout),
        "another rule": (ChunkTokenizer(ChunkRule(chunk_size=8, neuron_rows=True)), layout),
        "fewer weights": (
            ChunkTokenizer(ChunkRule(chunk_size=8)),
            layout_of({"fc.weight": torch.zeros(19, 1)}),
        ),
    }
    for tokenizer, wanted in others.values():
        with pytest.raises(TokenizerError, match="are not those of this layout"):
            tokenizer.decode(batch, layout=wanted)


@pytest.mark.parametrize("part", ["positions", "mask"])
def test_tokens_that_say_they_are_elsewhere_are_refused(part) -> None:
    state = {"fc.weight": torch.randn(4, 4)}
    tokenizer = ChunkTokenizer(ChunkRule(chunk_size=4))
    batch = tokenizer.encode(state, layout=layout_of(state))
    longer = batch._replace(
        tokens=torch.cat([batch.tokens, batch.tokens[:, :1]], dim=1),
        mask=torch.cat([batch.mask, batch.mask[:, :1]], dim=1),
        positions=torch.cat([batch.positions, batch.positions[:, :1]], dim=1),
    )
    moved = {"positions": batch._replace(positions=batch.positions.flip(1)), "mask": longer}
    with pytest.raises(TokenizerError, match="are not those of this layout"):
        tokenizer.decode(moved[part], layout=layout_of(state))


# --- files ---------------------------------------------------------------------------------------


def test_a_saved_tokenizer_is_read_by_its_own_kind_only(tmp_path) -> None:
    ChunkTokenizer(ChunkRule(chunk_size=9, scaling="asinh", gain=2.0)).save(tmp_path)
    loaded = ChunkTokenizer()
    loaded.load(tmp_path)
    assert loaded.rule == ChunkRule(chunk_size=9, scaling="asinh", gain=2.0)
    with pytest.raises(TokenizerError, match=r"holds tokenizer 'chunk' .* not 'neuron'"):
        NeuronTokenizer().load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text("{"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text("{}"),
        lambda path: path.write_text(path.read_text().replace("64", "-1")),
        lambda path: path.write_text(path.read_text().replace("chunk_size", "size")),
    ],
    ids=["missing", "no JSON", "a list", "empty", "unusable", "unknown"],
)
def test_a_damaged_file_is_named(change, tmp_path) -> None:
    ChunkTokenizer().save(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["format"] == 1
    change(tmp_path / "tokenizer.json")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json cannot be read .*Fit the tokenizer"):
        ChunkTokenizer().load(tmp_path)
