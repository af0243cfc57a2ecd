"""From names and shapes back to the configuration."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zooplatform.errors import ArchitectureError
from zooplatform.interfaces import CheckpointHeader, TensorSpec
from zooplatform_cnn.adapter import CnnAdapter


def header_of(state, config=None) -> CheckpointHeader:
    tensors = tuple(
        TensorSpec(name, str(t.dtype).removeprefix("torch."), tuple(t.shape), t.nbytes)
        for name, t in state.items()
    )
    return CheckpointHeader(tensors=tensors, format="test", config=config or {})


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"preset": "tiny_zoo"}, "tiny_zoo"),
        ({"preset": "tiny_zoo", "channels": 3, "classes": 4}, "tiny_zoo"),
        ({"preset": "tiny_zoo", "dropout": 0.2}, "tiny_zoo"),
        ({"preset": "cnn3"}, "cnn3"),
        ({"preset": "resnet_small"}, "resnet20"),
        ({"preset": "resnet_small", "blocks": [1, 2], "widths": [4, 8], "channels": 1}, "resnet8"),
        ({"preset": "mlp", "widths": [784, 32, 10]}, "mlp-784-32-10"),
        ({"preset": "mlp", "widths": [4, *[5] * 11, 3]}, "mlp-4" + "-5" * 11 + "-3"),
        ({"preset": "siren", "names": "net.{n}.linear"}, "mlp-2-32-32-1"),
    ],
    ids=str,
)
@pytest.mark.parametrize("by_name", [False, True], ids=["network order", "sorted by name"])
def test_recognised_networks_are_rebuilt(config, name, by_name):
    adapter = CnnAdapter()
    original = adapter.build({"activation": "tanh", **config}).eval()
    state = original.state_dict()
    header = header_of(dict(sorted(state.items())) if by_name else state)
    assert adapter.matches(header)
    found = adapter.describe(header)
    assert found["name"] == name
    assert found["family"] == ("mlp" if config["preset"] in {"mlp", "siren"} else "cnn")

    activation = original.config["activation"]
    rebuilt = adapter.build({**found["config"], "activation": activation}).eval()
    rebuilt.load_state_dict(state, strict=True)
    x = torch.randn(2, *original.config["input"])
    assert torch.equal(rebuilt(x), original(x))

    layers = adapter.layers(header)
    assert sorted(t for layer in layers for t in layer.tensors) == sorted(state)
    assert [layer.index for layer in layers] == list(range(len(layers)))
    assert all(layer.tensors[0].endswith(".weight") for layer in layers)


def test_the_activation_of_a_recognised_network_is_marked_unknown():
    header = header_of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).state_dict())
    config = CnnAdapter().describe(header)["config"]
    assert config["activation"] is None
    with pytest.raises(ArchitectureError, match="activation of this network is not known"):
        CnnAdapter().build(config)


def test_the_activation_alone_can_be_told():
    """As the error says; one that is none of this plugin's leaves it unknown."""
    state = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).state_dict()
    told = CnnAdapter().describe(header_of(state, {"activation": "relu"}))
    assert (told["name"], told["config"]["activation"]) == ("mlp-3-4-2", "relu")
    other = CnnAdapter().describe(header_of(state, {"activation": "gelu_new"}))
    assert (other["name"], other["config"]["activation"]) == ("mlp-3-4-2", None)


def test_a_configuration_beside_the_weights_is_used_when_it_fits():
    adapter = CnnAdapter()
    config = {"preset": "unterthiner", "activation": "relu", "names": "c{n}"}
    state = adapter.build(config).state_dict()
    found = adapter.describe(header_of(state, config))
    assert found["config"]["activation"] == "relu"
    assert [layer.type for layer in adapter.layers(header_of(state, config))] == [
        "conv", "conv", "conv", "linear",
    ]  # fmt: skip
    assert not adapter.matches(header_of(state, {**config, "width": 8}))
    assert not adapter.matches(header_of(state))  # stride and padding cannot be known


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(1, 2, 3),
        nn.LSTM(4, 4),
        nn.MultiheadAttention(4, 2),
        nn.Embedding(10, 4),
        nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2)),
        nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
        nn.ModuleDict({"query": nn.Linear(4, 4), "key": nn.Linear(4, 4), "value": nn.Linear(4, 4)}),
        nn.ModuleDict({"q_proj": nn.Linear(4, 4), "k_proj": nn.Linear(4, 4)}),
    ],
    ids=lambda module: type(module).__name__,
)
def test_other_networks_are_left_to_others(module):
    assert not CnnAdapter().matches(header_of(module.state_dict()))


@pytest.mark.parametrize(
    "config",
    [
        {"layers": 12, "input": "x"},
        {"layers": [{"type": {}}], "input": [1]},
        {"preset": ["mlp"]},
        {"preset": "mlp", "widths": 3},
        {"preset": "mlp", "widths": ["a", "b"]},
        {"preset": "resnet_small", "blocks": [10**15], "widths": [1]},
        {"layers": [], "input": [1], "hyperparameters": 3},
    ],
    ids=str,
)
def test_a_foreign_configuration_is_no_failure(config):
    state = {"a.weight": torch.zeros(2, 2, 2)}
    assert not CnnAdapter().matches(header_of(state, config))
    assert not CnnAdapter().matches(header_of({}, config))


def test_canonical_form_and_back():
    adapter = CnnAdapter()
    state = adapter.build({"preset": "tiny_zoo", "activation": "relu"}).state_dict()
    layout = header_of(state).tensors
    canonical = adapter.to_canonical(state)
    back = adapter.from_canonical(dict(reversed(canonical.items())), layout=layout)
    assert list(back) == list(state)
    assert all(torch.equal(back[name], state[name]) for name in state)
    del canonical["module_list.9.bias"]
    with pytest.raises(ArchitectureError, match=r"module_list\.9\.bias"):
        adapter.from_canonical(canonical, layout=layout)
    with pytest.raises(ArchitectureError, match=r"extra, module_list\.0\.weight"):
        adapter.from_canonical(
            {**state, "extra": torch.zeros(1), "module_list.0.weight": torch.zeros(3)},
            layout=layout,
        )
