"""What every tokenizer of indices must do beside the contract of tokenizers, as tests to inherit from.

class TestMyTokenizer(IndexTokenizerContract):
    @pytest.fixture
    def tokenizer(self):
        return fitted_on(training_states())

    @pytest.fixture
    def finer(self):
        return fitted_on(training_states(), codebook_size=256)

Indices cannot give every value back. What is demanded instead: weights come back in their layout with an error that is
bounded and falls with the rate, everything that is no weight comes back bit for bit, and one network always has the
same indices.

Legend for shapes: T tokens of a network, K codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zooplatform.errors import TokenizerError
from zooplatform.layout import layout_of
from zooplatform.testing.tokenizers import (
    TokenizerContract,
    contract_settings,
    sample_state,
)

if TYPE_CHECKING:
    from zooplatform.interfaces import StateDict

__all__ = ["IndexTokenizerContract", "training_states"]


def training_states(number: int = 24) -> list[StateDict]:
    """Networks to fit on, of two layouts, with standard normal weights as the networks of the contract have."""
    draw = torch.Generator().manual_seed(1)
    states = []
    for at in range(number):
        like = sample_state()
        if at % 2:
            like["norm.weight"] = like["norm.bias"] = like["norm.running_mean"] = torch.zeros(6)
        states.append({n: torch.randn(v.shape, generator=draw) for n, v in like.items()})
    return states


class IndexTokenizerContract(TokenizerContract):
    """Tests of a tokenizer of indices; inherit and give the fixtures `tokenizer` and `finer`, both fitted on networks
    such as `training_states`.

    It says by `codebook_size` how many codes there are, K.

    Attributes:
        dtypes: of tensors that it takes, the usual one first.
        bound: how far a weight may come back from where it was, as a multiple of 1 and its own size.
    """

    dtypes: ClassVar[tuple[str, ...]] = ("float32", "float64", "float16", "int64", "uint8", "bool")
    any_bits: ClassVar[bool] = False
    bound: ClassVar[float] = 4.0

    @pytest.fixture
    def finer(self) -> Any:
        """The same tokenizer, fitted with more codes or levels."""
        raise NotImplementedError("override the fixture `finer`")

    def check_values(self, name: str, decoded: torch.Tensor, given: torch.Tensor) -> None:
        """The error is bounded."""
        error = (decoded.double() - given.double()).abs()
        assert bool((error <= self.bound * (1 + given.double().abs())).all()), (
            f"{name}: {given} came back as {decoded}"
        )

    @given(data=st.data())
    @contract_settings
    def test_tokens_are_indices(self, tokenizer: Any, data: Any) -> None:
        state = self.draw(data)
        batch = tokenizer.encode(state, layout=layout_of(state))
        assert batch.tokens.dtype == torch.int64
        assert batch.tokens.ndim == 2
        assert batch.mask.all()
        assert ((batch.tokens >= 0) & (batch.tokens < tokenizer.codebook_size)).all()

    def test_a_network_always_has_the_same_indices(self, tokenizer: Any) -> None:
        state = sample_state()
        found = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            found.append(tokenizer.encode(state, layout=layout_of(state)).tokens)
        assert torch.equal(*found)

    def test_what_is_no_code_is_refused(self, tokenizer: Any) -> None:
        state = sample_state()
        layout = layout_of(state)
        batch = tokenizer.encode(state, layout=layout)
        for wrong in (-1, tokenizer.codebook_size):
            tokens = batch.tokens.clone()
            tokens[0, -1] = wrong
            with pytest.raises(TokenizerError, match=str(wrong)):
                tokenizer.decode(batch._replace(tokens=tokens), layout=layout)

    def test_more_bits_leave_less_error(self, tokenizer: Any, finer: Any) -> None:
        errors = [_relative_error(one) for one in (tokenizer, finer)]
        assert errors[0] < 1, "zeros would do as well"
        assert errors[1] < 0.95 * errors[0]


def _relative_error(tokenizer: Any) -> float:
    """Squared error over squared size of weights that it was not fitted on."""
    draw = torch.Generator().manual_seed(2)
    error = size = 0.0
    for _ in range(8):
        like = sample_state()
        state = {n: torch.randn(v.shape, generator=draw) for n, v in like.items()}
        layout = layout_of(state)
        back = tokenizer.decode(tokenizer.encode(state, layout=layout), layout=layout)
        error += sum(float((back[n] - v).square().sum()) for n, v in state.items())
        size += sum(float(v.square().sum()) for v in state.values())
    return error / size
