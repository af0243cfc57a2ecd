"""What every tokenizer must do, as tests to inherit from.

class TestMyTokenizer(TokenizerContract):
    @pytest.fixture
    def tokenizer(self):
        return MyTokenizer()

Networks are drawn by hypothesis: any number of layers, shapes without axes and without elements, values of every bit
pattern, tensors that share memory and tensors with strides.

Tokenizers whose tokens are indices into codebooks (`token_kind` index) keep `IndexTokenizerContract` in
`zooplatform.testing.index_tokenizers`: everything here but that values come back exactly.
"""

from __future__ import annotations

import json
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zooplatform.errors import TokenizerError
from zooplatform.interfaces import POSITION_COLUMNS, LayerSpec, TokenBatch
from zooplatform.layout import VectorLayout, layout_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zooplatform.interfaces import Layout, StateDict

__all__ = ["TokenizerContract", "contract_settings", "sample_state", "state_dicts"]

_FLOATING = (
    *("float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz"),
    *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"),
)
_OTHER = ("int64", "int32", "int16", "int8", "uint8", "uint16", "bool", "complex64", "complex128")
_KINDS: dict[str, tuple[tuple[str, int], ...]] = {
    # kind: (last part of the name, axes)
    "linear": (("weight", 2), ("bias", 1)),
    "conv": (("weight", 4), ("bias", 1)),
    "norm": (("weight", 1), ("bias", 1), ("running_mean", 1)),
    "other": (("scale", 0),),
    "table": (("table", 3),),
}

# A contract's tests run in many classes, with fixtures that are made once per test.
contract_settings = settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[
        HealthCheck.differing_executors,
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
    ],
)


@st.composite
def state_dicts(
    draw: Any, *, dtypes: tuple[str, ...] = (*_FLOATING, *_OTHER), any_bits: bool = True
) -> StateDict:
    """State dicts of random layouts.

    Args:
        draw: hypothesis' own.
        dtypes: of the tensors.
        any_bits: also values that are infinite, not numbers or far too large or small for a weight.
    """
    state: StateDict = {}
    # Most networks have one dtype.
    choices = draw(st.sampled_from([dtypes[:1], dtypes]))
    for index in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(sorted(_KINDS)))
        sizes = draw(st.lists(st.integers(0, 5), min_size=4, max_size=4))
        for last, axes in _KINDS[kind]:
            dtype = getattr(torch, draw(st.sampled_from(choices)))
            tensor = _tensor(draw, tuple(sizes[:axes]), dtype, any_bits)
            state[f"layers.{index}.{last}"] = tensor
    if state and draw(st.booleans()):
        state["tied.weight"] = state[next(iter(state))]
    return state


def _tensor(draw: Any, shape: tuple[int, ...], dtype: torch.dtype, any_bits: bool) -> torch.Tensor:
    """Values of `dtype`, sometimes as every other column of a larger tensor."""
    strided = draw(st.booleans()) and bool(shape)
    held = (*shape[:-1], 2 * shape[-1]) if strided else shape
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    if any_bits and dtype is not torch.bool:
        count = torch.Size(held).numel() * dtype.itemsize
        raw = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=generator)
        tensor = raw.view(dtype).reshape(held) if count else torch.empty(held, dtype=dtype)
    else:
        tensor = torch.randn(held, generator=generator).to(dtype)
    return tensor[..., ::2] if strided else tensor


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether dtype, shape and every bit agree."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return torch.equal(_bytes(first), _bytes(second))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, (b,)."""
    if not tensor.numel():
        return torch.empty(0, dtype=torch.uint8)
    # `contiguous` would leave the strides of a single element as they are.
    return tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)


class TokenizerContract:
    """Tests of a `Tokenizer`; inherit and give the fixture `tokenizer`, fitted if it needs to be.

    Attributes:
        dtypes: of tensors that it takes, the usual one first.
        any_bits: whether it takes values that are infinite, not numbers or out of all proportion.
        population: whether it is a `PopulationTokenizer`.
    """

    dtypes: ClassVar[tuple[str, ...]] = (*_FLOATING, *_OTHER)
    any_bits: ClassVar[bool] = True
    population: ClassVar[bool] = False

    @pytest.fixture
    def tokenizer(self) -> Any:
        """The tokenizer under test."""
        raise NotImplementedError("override the fixture `tokenizer`")

    def check_values(self, name: str, decoded: torch.Tensor, given: torch.Tensor) -> None:
        """Compare a floating tensor with what was encoded; a lossy tokenizer overrides it with its stated bound."""
        assert same_bits(decoded, given), f"{name}: {given} came back as {decoded}"

    def check(self, decoded: StateDict, state: StateDict) -> None:
        """Compare a decoded state dict with the one that was encoded."""
        assert list(decoded) == list(state)
        for name, value in state.items():
            assert decoded[name].dtype == value.dtype, name
            assert decoded[name].shape == value.shape, name
            if value.is_floating_point():
                self.check_values(name, decoded[name], value)
            else:
                assert same_bits(decoded[name], value), name

    @given(data=st.data())
    @contract_settings
    def test_decode_undoes_encode(self, tokenizer: Any, data: Any) -> None:
        state = self.draw(data)
        before = {name: value.clone() for name, value in state.items()}
        layout = layout_of(state)
        batch = tokenizer.encode(state, layout=layout)
        decoded = tokenizer.decode(batch, layout=layout)
        self.check(decoded, before)
        assert all(same_bits(state[name], before[name]) for name in state), "the input was changed"
        for value in decoded.values():
            value.zero_()
        self.check(tokenizer.decode(batch, layout=layout), before)

    @given(data=st.data())
    @contract_settings
    def test_layers_may_be_given(self, tokenizer: Any, data: Any) -> None:
        state = self.draw(data)
        layout, layers = layout_of(state), layers_of(state)
        batch = tokenizer.encode(state, layout=layout, layers=layers)
        self.check(tokenizer.decode(batch, layout=layout, layers=layers), state)
        assert set(batch.positions[0, :, 1].tolist()) <= {layer.index for layer in layers}

    @given(data=st.data())
    @contract_settings
    def test_the_batch_is_well_formed(self, tokenizer: Any, data: Any) -> None:
        state = self.draw(data)
        tokens, mask, positions, scales = tokenizer.encode(state, layout=layout_of(state))
        number = tokens.shape[1]
        assert tokens.shape[0] == 1
        assert tokens.ndim in (2, 3)
        assert mask.shape == tokens.shape
        assert mask.dtype == torch.bool
        assert (mask.any(-1) if mask.ndim == 3 else mask).all(), "a token without a value"
        assert positions.shape[:2] == (1, number)
        assert 3 <= positions.shape[2] <= len(POSITION_COLUMNS)
        assert positions.dtype == torch.int64
        assert positions[0, :, 0].tolist() == list(range(number))
        assert len({tuple(place) for place in positions[0, :, 1:3].tolist()}) == number
        assert all(len(value) == 1 for value in scales.values())

    @given(data=st.data())
    @contract_settings
    def test_padding_does_not_matter(self, tokenizer: Any, data: Any) -> None:
        state = self.draw(data)
        layout = layout_of(state)
        batch = tokenizer.encode(state, layout=layout)
        junk = torch.full_like(batch.tokens, 77)
        tokens = torch.where(batch.mask, batch.tokens, junk)
        # More tokens that are all padding, as when networks of several sizes are put together.
        more = batch._replace(
            tokens=torch.cat([tokens, junk[:, :1]], dim=1),
            mask=torch.cat([batch.mask, torch.zeros_like(batch.mask[:, :1])], dim=1),
            positions=torch.cat([batch.positions, batch.positions[:, :1]], dim=1),
        )
        for padded in (batch._replace(tokens=tokens), more):
            self.check(tokenizer.decode(padded, layout=layout), state)

    def test_a_saved_tokenizer_gives_the_same_tokens(
        self, tokenizer: Any, tmp_path: Path, make: Callable[[], Any]
    ) -> None:
        tokenizer.save(tmp_path)
        for file in tmp_path.rglob("*"):
            assert file.suffix in (".json", ".safetensors"), f"{file.name} is neither data format"
            if file.suffix == ".json":
                json.loads(file.read_text())
        loaded = make()
        loaded.load(tmp_path)
        state = sample_state()
        first, second = (t.encode(state, layout=layout_of(state)) for t in (tokenizer, loaded))
        _assert_same(first, second)

    @pytest.fixture
    def make(self, tokenizer: Any) -> Callable[[], Any]:
        """Makes an instance that was not fitted, as the registry does."""
        return type(tokenizer)

    def test_a_state_dict_of_another_layout_is_refused(self, tokenizer: Any) -> None:
        state = sample_state()
        layout = layout_of(state)
        wrong = {
            "fc.bias": {name: value for name, value in state.items() if name != "fc.bias"},
            "more": state | {"more": torch.zeros(2)},
            "conv.weight": state | {"conv.weight": torch.zeros(3, 4)},
        }
        for name, other in wrong.items():
            with pytest.raises(TokenizerError, match=name):
                tokenizer.encode(other, layout=layout)

    def test_tokens_of_another_layout_are_refused(self, tokenizer: Any) -> None:
        state = sample_state()
        batch = tokenizer.encode(state, layout=layout_of(state))
        other = layout_of({"fc.weight": torch.zeros(900, 3)})
        with pytest.raises(TokenizerError):
            tokenizer.decode(batch, layout=other)
        two = _each(batch, lambda part: torch.cat([part, part]))
        with pytest.raises(TokenizerError, match="2 networks"):
            tokenizer.decode(two, layout=layout_of(state))

    @given(data=st.data())
    @contract_settings
    def test_a_population_is_encoded_as_its_networks_are(self, tokenizer: Any, data: Any) -> None:
        if not self.population:
            assert not hasattr(tokenizer, "encode_population"), "set `population = True`"
            return
        first = self.draw(data)
        states = [first, *({n: _shuffled(v, k) for n, v in first.items()} for k in range(2))]
        layout, layers = layout_of(first), layers_of(first)
        weights, aside = _matrices(states, layout)
        batch = tokenizer.encode_population(weights, layout=layout, layers=layers, aside=aside)
        for row, state in enumerate(states):
            one = tokenizer.encode(state, layout=layout, layers=layers)
            mine = _each(batch, itemgetter(slice(row, row + 1)))
            # What is kept beside the tokens may be there for another network of the batch.
            _assert_same(one, mine._replace(scales={n: mine.scales[n] for n in one.scales}))
            self.check(tokenizer.decode(mine, layout=layout, layers=layers), state)
        back, beside = tokenizer.decode_population(batch, layout=layout, layers=layers)
        assert back.shape == weights.shape
        assert back.dtype == weights.dtype
        assert (beside is None) == (aside is None)
        for row, state in enumerate(states):
            found = None if beside is None else beside[row]
            self.check(_split(back[row], found, layout), state)

    def draw(self, data: Any) -> StateDict:
        """A state dict that the tokenizer says it takes."""
        state: StateDict = data.draw(state_dicts(dtypes=self.dtypes, any_bits=self.any_bits))
        return state


def sample_state() -> StateDict:
    """A convolution and a linear layer in float32."""
    draw = torch.Generator().manual_seed(0)
    shapes = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "fc.weight": (5, 16), "fc.bias": (5,)}
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def layers_of(state: StateDict) -> tuple[LayerSpec, ...]:
    """Layers backwards and numbered with gaps, which no tokenizer could have guessed."""
    groups: dict[str, list[str]] = {}
    for name in state:
        groups.setdefault(name.rpartition(".")[0], []).append(name)
    kinds = {4: "conv", 2: "linear", 1: "norm"}
    return tuple(
        LayerSpec(3 * index, name, kinds.get(state[members[0]].ndim, "other"), tuple(members))
        for index, (name, members) in enumerate(reversed(groups.items()))
    )


def _each(batch: TokenBatch, change: Callable[[torch.Tensor], torch.Tensor]) -> TokenBatch:
    """The same change made to every array of a batch."""
    return TokenBatch(
        tokens=change(batch.tokens),
        mask=change(batch.mask),
        positions=change(batch.positions),
        scales={name: change(value) for name, value in batch.scales.items()},
    )


def _shuffled(value: torch.Tensor, seed: int) -> torch.Tensor:
    """The same values in another order."""
    if not value.numel():
        return value.clone()
    order = torch.randperm(value.numel(), generator=torch.Generator().manual_seed(seed))
    # Indexing is not there for every dtype; whole elements are moved as bytes.
    elements = _bytes(value).view(value.numel(), -1)[order]
    return elements.reshape(-1).view(value.dtype).reshape(value.shape)


def _matrices(states: list[StateDict], layout: Layout) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The arrays of a `PopulationBatch`."""
    vector = VectorLayout(layout)
    dtype = getattr(torch, vector.dtype)

    def rows(aside: bool) -> torch.Tensor:
        names = [field.spec.name for field in vector.fields if field.aside == aside]
        none = torch.empty(0, dtype=torch.uint8)
        return torch.stack([torch.cat([none, *(_bytes(s[n]) for n in names)]) for s in states])

    main = rows(aside=False)
    weights = main.view(dtype) if main.numel() else torch.empty((len(states), 0), dtype=dtype)
    return weights, rows(aside=True) if vector.aside_bytes else None


def _split(weights: torch.Tensor, aside: torch.Tensor | None, layout: Layout) -> StateDict:
    """One row of a population as a state dict."""
    state: StateDict = {}
    for field in VectorLayout(layout).fields:
        spec = field.spec
        if not field.aside:
            flat = weights[field.offset : field.offset + spec.num_elements]
        elif aside is None or not spec.size_bytes:
            flat = torch.empty(0, dtype=getattr(torch, spec.dtype))
        else:
            raw = aside[field.offset : field.offset + spec.size_bytes].clone()
            flat = raw.view(getattr(torch, spec.dtype))
        state[spec.name] = flat.reshape(spec.shape)
    return state


def _assert_same(first: TokenBatch, second: TokenBatch) -> None:
    """All arrays agree bit for bit, but for the payload of a NaN among the tokens, which casts do not keep."""
    nan = first.tokens.isnan()
    assert torch.equal(nan, second.tokens.isnan()), "tokens"
    assert same_bits(first.tokens.masked_fill(nan, 0), second.tokens.masked_fill(nan, 0)), "tokens"
    assert same_bits(first.mask, second.mask), "mask"
    assert same_bits(first.positions, second.positions), "positions"
    assert first.scales.keys() == second.scales.keys()
    for name, value in first.scales.items():
        assert same_bits(value, second.scales[name]), name
