"""Where every value of a network goes, checked value by value."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zooplatform.errors import ConfigError, TokenizerError
from zooplatform.interfaces import LAYER_TYPES, POSITION_COLUMNS, LayerSpec
from zooplatform.layout import layout_of
from zooplatform_chunk.chunk import ChunkRule, ChunkTokenizer
from zooplatform_chunk.neuron import NeuronRule, NeuronTokenizer

NONE = -99.0


def shown(tokenizer, state, layers=()) -> list[list[float]]:
    """Tokens as lists, padding as NONE."""
    batch = tokenizer.encode(state, layout=layout_of(state), layers=layers)
    assert not batch.tokens[~batch.mask].any(), "padding is zero"
    return torch.where(batch.mask, batch.tokens, NONE)[0].tolist()


def column(tokenizer, state, name, layers=()) -> list[int]:
    batch = tokenizer.encode(state, layout=layout_of(state), layers=layers)
    return batch.positions[0, :, POSITION_COLUMNS.index(name)].tolist()


def count(*shape: int, start: float = 1) -> torch.Tensor:
    size = torch.Size(shape).numel()
    return torch.arange(start, start + size).float().reshape(shape)


LINEAR = {"fc.weight": count(2, 3), "fc.bias": count(2, start=11)}
TWO = {"a.weight": count(2, 2), "a.bias": count(2, start=5), "b.weight": count(1, 2, start=7)}
CONV = {"conv.weight": count(2, 2, 1, 3), "conv.bias": count(2, start=21)}
NORM = {
    "bn.weight": count(2),
    "bn.bias": count(2, start=3),
    "bn.running_mean": count(2, start=5),
    "bn.num_batches_tracked": torch.tensor(7),
}


def chunk(**config) -> ChunkTokenizer:
    return ChunkTokenizer(ChunkRule(**config))


def neuron(**config) -> NeuronTokenizer:
    return NeuronTokenizer(NeuronRule(**config))


def test_a_layer_is_flattened_padded_and_cut() -> None:
    assert shown(chunk(chunk_size=3), LINEAR) == [[1, 2, 3], [4, 5, 6], [11, 12, NONE]]
    assert shown(chunk(chunk_size=5), LINEAR) == [[1, 2, 3, 4, 5], [6, 11, 12, NONE, NONE]]


def test_a_layer_begins_a_new_chunk() -> None:
    assert shown(chunk(chunk_size=4), TWO) == [
        [1, 2, 3, 4],
        [5, 6, NONE, NONE],
        [7, 8, NONE, NONE],
    ]
    assert column(chunk(chunk_size=4), TWO, "layer") == [0, 0, 1]
    assert column(chunk(chunk_size=4), TWO, "index") == [0, 1, 0]
    assert column(chunk(chunk_size=4), TWO, "token") == [0, 1, 2]
    assert column(chunk(chunk_size=4), TWO, "unit") == [-1, -1, -1]


def test_rows_are_aligned_with_neurons() -> None:
    tokenizer = chunk(chunk_size=2, neuron_rows=True)
    assert shown(tokenizer, LINEAR) == [[1, 2], [3, NONE], [4, 5], [6, NONE], [11, 12]]
    assert column(tokenizer, LINEAR, "unit") == [0, 0, 1, 1, -1]
    assert column(tokenizer, LINEAR, "chunk") == [0, 1, 0, 1, 0]
    assert column(tokenizer, LINEAR, "index") == [0, 1, 2, 3, 4]
    # Convolutions are not rows.
    assert shown(tokenizer, CONV) == shown(chunk(chunk_size=2), CONV)


def test_kernels_are_kept_whole() -> None:
    tokenizer = chunk(chunk_size=4, kernels=True)
    assert shown(tokenizer, CONV) == [
        [1, 2, 3, NONE],
        [4, 5, 6, NONE],
        [7, 8, 9, NONE],
        [10, 11, 12, NONE],
        [21, 22, NONE, NONE],
    ]
    assert column(tokenizer, CONV, "unit") == [0, 0, 1, 1, -1]
    assert column(tokenizer, CONV, "chunk") == [0, 1, 0, 1, 0]
    assert shown(tokenizer, LINEAR) == shown(chunk(chunk_size=4), LINEAR)


def test_a_neuron_is_its_weights_and_its_bias() -> None:
    assert shown(neuron(), LINEAR) == [[1, 2, 3, 11], [4, 5, 6, 12]]
    assert shown(neuron(), CONV) == [
        [1, 2, 3, 4, 5, 6, 21],
        [7, 8, 9, 10, 11, 12, 22],
    ]
    assert column(neuron(), LINEAR, "unit") == [0, 1]


def test_a_channel_of_a_norm_is_one_token() -> None:
    assert shown(neuron(), NORM) == [[1, 3, 5], [2, 4, 6]]


def test_a_unit_wider_than_the_tokens_takes_several() -> None:
    assert shown(neuron(width=3), LINEAR) == [
        [1, 2, 3],
        [11, NONE, NONE],
        [4, 5, 6],
        [12, NONE, NONE],
    ]
    assert column(neuron(width=3), LINEAR, "unit") == [0, 0, 1, 1]
    assert column(neuron(width=3), LINEAR, "chunk") == [0, 1, 0, 1]


def test_a_table_does_not_widen_the_neurons() -> None:
    state = {**LINEAR, "positions": count(1, 3, 3, start=31)}
    layers = (
        LayerSpec(0, "fc", "linear", ("fc.weight", "fc.bias")),
        LayerSpec(1, "positions", "other", ("positions",)),
    )
    tokens = shown(neuron(), state, layers)
    assert tokens[2:] == [[31, 32, 33, 34], [35, 36, 37, 38], [39, NONE, NONE, NONE]]


def test_fit_finds_the_width_of_all_networks() -> None:
    tokenizer = neuron()
    tokenizer.fit([LINEAR, CONV], seed=0)
    assert tokenizer.rule.width == 7
    assert shown(tokenizer, LINEAR)[0] == [1, 2, 3, 11, NONE, NONE, NONE]
    tokenizer.fit([LINEAR], seed=0, config={"width": 2})
    assert tokenizer.rule.width == 2


def test_layers_decide_the_order_and_the_types() -> None:
    layers = (
        LayerSpec(5, "a", "linear", ("a.weight", "a.bias")),
        LayerSpec(2, "b", "attention", ("b.weight",)),
    )
    tokenizer = chunk(chunk_size=8)
    assert shown(tokenizer, TWO, layers)[0][:2] == [7, 8]
    assert column(tokenizer, TWO, "layer", layers) == [2, 5]
    types = [LAYER_TYPES[code] for code in column(tokenizer, TWO, "layer_type", layers)]
    assert types == ["attention", "linear"]


def test_tensors_without_a_layer_come_last() -> None:
    layers = (LayerSpec(4, "b", "linear", ("b.weight",)),)
    tokenizer = chunk(chunk_size=8)
    assert column(tokenizer, TWO, "layer", layers) == [4, 5]
    assert shown(tokenizer, TWO, layers)[1][:6] == [1, 2, 3, 4, 5, 6]


def test_types_are_guessed_from_shapes() -> None:
    net = nn.ModuleDict(
        {"c": nn.Conv2d(1, 2, 3), "n": nn.BatchNorm2d(2), "f": nn.Linear(2, 2), "r": nn.PReLU()}
    )
    state = net.state_dict()
    types = dict(
        zip(column(neuron(), state, "layer"), column(neuron(), state, "layer_type"), strict=True)
    )
    assert [LAYER_TYPES[types[layer]] for layer in range(4)] == ["conv", "norm", "linear", "other"]


def test_bias_before_weight_makes_no_difference() -> None:
    backwards = dict(reversed(LINEAR.items()))
    assert shown(neuron(), backwards) == shown(neuron(), LINEAR)
    decoded = neuron().decode(
        neuron().encode(backwards, layout=layout_of(backwards)), layout=layout_of(backwards)
    )
    assert list(decoded) == ["fc.bias", "fc.weight"]


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ((LayerSpec(0, "x", "linear", ("x.weight",)),), "names 'x.weight'"),
        ((LayerSpec(0, "a", "dense", ("a.weight",)),), "has type 'dense'"),
        (
            (
                LayerSpec(0, "a", "linear", ("a.weight",)),
                LayerSpec(1, "b", "linear", ("a.weight",)),
            ),
            "another layer",
        ),
        (
            (
                LayerSpec(0, "a", "linear", ("a.weight",)),
                LayerSpec(0, "b", "linear", ("b.weight",)),
            ),
            "one index",
        ),
    ],
)
def test_layers_of_another_network_are_refused(layers, text) -> None:
    with pytest.raises(TokenizerError, match=text):
        chunk().encode(TWO, layout=layout_of(TWO), layers=layers)


@pytest.mark.parametrize(
    ("tokenizer", "config", "text"),
    [
        (chunk(), {"chunk_size": 0}, "chunk_size is 0"),
        (chunk(), {"chunk_size": 2.5}, "chunk_size is 2.5"),
        (chunk(), {"kernels": "yes"}, "kernels is 'yes'"),
        (chunk(), {"size": 3}, "no setting size. It has scaling, gain, chunk_size"),
        (neuron(), {"width": 0}, "width is 0"),
        (neuron(), {"scaling": "max"}, "scaling is 'max'; use one of none, std, asinh"),
        (neuron(), {"gain": 0}, "gain is 0"),
        (neuron(), {"gain": "5"}, "gain is '5'"),
    ],
)
def test_settings_that_cannot_be_are_refused(tokenizer, config, text) -> None:
    before = tokenizer.rule
    with pytest.raises(ConfigError, match=text):
        tokenizer.fit([], seed=0, config=config)
    assert tokenizer.rule == before
