"""The contract of tokenizers fails for tokenizers that break it."""

from __future__ import annotations

import pytest

from zooplatform.testing import TokenizerContract

pytest_plugins = ["pytester"]

HEAD = """
import pytest, torch
from zooplatform.testing import TokenizerContract
from zooplatform_chunk.chunk import ChunkTokenizer
"""
SUITE = """
class Broken{number}(ChunkTokenizer):
{body}

class TestBroken{number}(TokenizerContract):
    population = True

    @pytest.fixture
    def tokenizer(self):
        made = Broken{number}()
        made.fit([], seed=0, config={{"chunk_size": 6}})
        return made
"""

MISTAKES = {
    "test_decode_undoes_encode": """
    def decode(self, batch, *, layout, layers=()):
        state = super().decode(batch, layout=layout, layers=layers)
        return {k: v.abs() if v.is_floating_point() and v.element_size() > 2 else v
                for k, v in state.items()}
""",
    "test_layers_may_be_given": """
    def encode(self, state, *, layout, layers=()):
        return super().encode(state, layout=layout)
""",
    "test_the_batch_is_well_formed": """
    def encode(self, state, *, layout, layers=()):
        batch = super().encode(state, layout=layout, layers=layers)
        return batch._replace(positions=batch.positions * 0)
""",
    "test_padding_does_not_matter": """
    def decode(self, batch, *, layout, layers=()):
        if bool((batch.tokens[~batch.mask] != 0).any()):
            layout = layout[:0]
        return super().decode(batch, layout=layout, layers=layers)
""",
    "test_a_saved_tokenizer_gives_the_same_tokens": """
    def load(self, folder):
        pass
""",
    "test_a_state_dict_of_another_layout_is_refused": """
    def encode(self, state, *, layout, layers=()):
        known = {spec.name: torch.zeros(spec.shape) for spec in layout}
        state = {name: state.get(name, known[name]) for name in known}
        return super().encode(state, layout=layout, layers=layers)
""",
    "test_tokens_of_another_layout_are_refused": """
    def decode(self, batch, *, layout, layers=()):
        return {spec.name: torch.zeros(spec.shape) for spec in layout}
""",
    "test_a_population_is_encoded_as_its_networks_are": """
    def encode_population(self, weights, *, layout, layers=(), aside=None):
        return super().encode_population(weights.flip(0), layout=layout, layers=layers, aside=aside)
""",
}


@pytest.mark.slow
def test_every_mistake_is_found(pytester: pytest.Pytester) -> None:
    bodies = enumerate(MISTAKES.values())
    suites = [SUITE.format(number=number, body=body) for number, body in bodies]
    path = pytester.makepyfile(test_broken="".join([HEAD, *suites]))
    cases = [f"{path.name}::TestBroken{n}::{test}" for n, test in enumerate(MISTAKES)]
    pytester.runpytest_subprocess("-q", "-p", "no:randomly", *cases).assert_outcomes(
        failed=len(MISTAKES)
    )


def test_every_test_of_the_contract_has_a_mistake() -> None:
    tests = {name for name in vars(TokenizerContract) if name.startswith("test_")}
    assert tests == set(MISTAKES)
