"""Networks built from a configuration: sizes, names, outputs, refusals."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zooplatform.errors import ArchitectureError
from zooplatform_cnn.adapter import CnnAdapter
from zooplatform_cnn.presets import PRESETS

TINY = {"preset": "tiny_zoo", "activation": "tanh"}


PARAMETERS = [
    ({"preset": "unterthiner"}, 4970),
    ({"preset": "unterthiner", "size": 16}, 4970),
    ({"preset": "unterthiner", "padding": 1}, 4970),
    ({"preset": "tiny_zoo"}, 2464),
    ({"preset": "tiny_zoo", "channels": 3}, 2864),
    ({"preset": "tiny_zoo", "dropout": 0.5}, 2464),
    ({"preset": "cnn3"}, 10853),
    ({"preset": "sne_arch2"}, 8538),
    ({"preset": "mlp", "widths": [784, 32, 10]}, 25450),
    ({"preset": "siren"}, 1185),
    ({"preset": "resnet_small", "size": 16, "channels": 1}, 272186),
    ({"preset": "resnet_small"}, 272474),
]


@pytest.mark.parametrize(("config", "parameters"), PARAMETERS, ids=str)
def test_parameter_counts(config, parameters):
    network = CnnAdapter().build({"activation": "relu", **config})
    assert sum(p.numel() for p in network.parameters()) == parameters
    shape = network.config["input"]
    assert network(torch.randn(3, *shape)).shape == (3, 1 if config["preset"] == "siren" else 10)


def test_every_preset_is_counted_above():
    assert {config["preset"] for config, _ in PARAMETERS} == set(PRESETS)


@pytest.mark.parametrize(
    ("config", "indices"),
    [
        (TINY, [0, 3, 6, 9, 11]),
        ({**TINY, "dropout": 0.1}, [0, 4, 8, 11, 14]),
        ({"preset": "cnn3", "activation": "tanh"}, [0, 4, 8, 13, 16]),
    ],
    ids=["tiny_zoo", "tiny_zoo with dropout", "cnn3"],
)
def test_published_names(config, indices):
    expected = [f"module_list.{i}.{t}" for i in indices for t in ("weight", "bias")]
    assert list(CnnAdapter().build(config).state_dict()) == expected


def test_tiny_zoo_equals_its_definition_in_torch():
    reference = nn.Module()
    reference.module_list = nn.ModuleList(
        [
            nn.Conv2d(1, 8, 5), nn.MaxPool2d(2, 2), nn.Tanh(),
            nn.Conv2d(8, 6, 5), nn.MaxPool2d(2, 2), nn.Tanh(),
            nn.Conv2d(6, 4, 2), nn.Tanh(), nn.Flatten(),
            nn.Linear(36, 20), nn.Tanh(), nn.Linear(20, 10),
        ]
    )  # fmt: skip
    network = CnnAdapter().build(TINY)
    network.load_state_dict(reference.state_dict(), strict=True)
    x = torch.randn(5, 1, 28, 28)
    y = x
    for module in reference.module_list:
        y = module(y)
    assert torch.equal(network(x), y)


def test_residual_network_equals_its_definition_in_torch():
    class Block(nn.Module):
        def __init__(self, before: int, out: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(before, out, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(out)
            self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(out)
            if stride != 1:
                self.downsample = nn.Sequential(
                    nn.Conv2d(before, out, 1, stride, bias=False), nn.BatchNorm2d(out)
                )

        def forward(self, x):
            y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
            return F.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))

    class Reference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 4, 3, 1, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(4)
            self.layer1 = nn.Sequential(Block(4, 4, 1), Block(4, 4, 1))
            self.layer2 = nn.Sequential(Block(4, 8, 2), Block(8, 8, 1))
            self.fc = nn.Linear(8, 10)

        def forward(self, x):
            x = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))
            return self.fc(x.mean((2, 3)))

    reference = Reference()
    reference(torch.randn(8, 3, 16, 16))  # running statistics that are not the initial ones
    config = {"preset": "resnet_small", "size": 16, "blocks": [2, 2], "widths": [4, 8]}
    network = CnnAdapter().build(config)
    network.load_state_dict(reference.state_dict(), strict=True)
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(network.eval()(x), reference.eval()(x))


@pytest.mark.parametrize(
    ("text", "function"),
    [
        ("tanh", torch.tanh),
        ("relu", torch.relu),
        ("sigmoid", torch.sigmoid),
        ("gelu", F.gelu),
        ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")),
        ("silu", F.silu),
        ("elu", F.elu),
        ("softplus", F.softplus),
        ("identity", lambda x: x),
        ("leaky_relu", lambda x: F.leaky_relu(x, 0.01)),
        ("leaky_relu(0.1)", lambda x: F.leaky_relu(x, 0.1)),
        ("sine", torch.sin),
        ("sine(30)", lambda x: torch.sin(30.0 * x)),
    ],
)
def test_activations(text, function):
    network = CnnAdapter().build(
        {"input": [7], "layers": [{"type": "activation"}], "activation": text}
    )
    x = torch.randn(4, 7)
    assert torch.equal(network(x), function(x))


@pytest.mark.parametrize("key", ["activation", "config.activation", "model::nlin"])
def test_unknown_activation_comes_from_the_hyperparameters(key):
    config = {"preset": "tiny_zoo"}
    with pytest.raises(ArchitectureError, match="activation of this network is not known"):
        CnnAdapter().build(config)
    network = CnnAdapter().build({**config, "hyperparameters": {key: "gelu", "lr": 0.1}})
    assert network.config["activation"] == "gelu"


@pytest.mark.parametrize(
    ("layer", "module"),
    [
        ({"type": "pool", "kind": "max", "size": 3, "stride": 2}, nn.MaxPool2d(3, 2)),
        ({"type": "pool", "kind": "avg"}, nn.AvgPool2d(2)),
        ({"type": "global_pool"}, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())),
        ({"type": "global_pool", "kind": "max"}, nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten())),
        ({"type": "flatten"}, nn.Flatten()),
    ],
    ids=str,
)  # fmt: skip
def test_layers_without_parameters(layer, module):
    network = CnnAdapter().build({"input": [3, 9, 9], "layers": [layer]})
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(network(x), module(x))


def test_config_written_out_builds_the_same_network():
    network = CnnAdapter().build({**TINY, "dropout": 0.2})
    full = json.loads(json.dumps(network.config))
    again = CnnAdapter().build(full)
    again.load_state_dict(network.state_dict(), strict=True)
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(network.eval()(x), again.eval()(x))
    assert again.config == full


def test_names_by_type_and_own_names():
    config = {
        "input": [1, 8, 8],
        "names": {"conv": "conv{k}", "linear": "fc{k}"},
        "layers": [
            {"type": "conv", "out": 2, "kernel": 3},
            {"type": "batchnorm"},
            {"type": "conv", "out": 3, "kernel": 3, "bias": False},
            {"type": "flatten"},
            {"type": "linear", "out": 5},
            {"type": "linear", "out": 4, "name": "head.out"},
        ],
    }
    state = CnnAdapter().build(config).state_dict()
    layers = {name.rpartition(".")[0]: None for name in state}
    assert list(layers) == ["conv1", "layers.1", "conv2", "fc1", "head.out"]
    assert "conv2.bias" not in state


def test_a_copy_has_its_own_weights():
    network = CnnAdapter().build({"preset": "resnet_small", "blocks": [1], "widths": [4]}).eval()
    x = torch.randn(2, 3, 32, 32)
    before = network(x)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(twin(x), torch.zeros(2, 10))
    assert torch.equal(network(x), before)


def test_train_and_eval_reach_dropout():
    network = CnnAdapter().build({**TINY, "dropout": 0.5})
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(network.eval()(x), network(x))
    assert not torch.equal(network.train()(x), network(x))


CONV = {"type": "conv", "out": 2, "kernel": 3}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "not known: names and shapes"),
        ({"layers": []}, "needs 'input'"),
        ({"input": [1, 8], "layers": []}, r"must be \[channels, height, width\]"),
        ({"input": [True], "layers": []}, r"must be \[channels"),
        ({"input": [1, 8, 8], "layers": "conv"}, "must be a list of layers"),
        ({"input": [1, 8, 8], "layers": [], "layer": 1}, "Unknown keys layer"),
        ({"input": [1, 8, 8], "layers": [{"type": ["conv"]}]}, r"layers\[0\].*whose `type` is"),
        ({"input": [1, 8, 8], "layers": [{"type": "conv", "out": 2}]}, "needs the key 'kernel'"),
        ({"input": [1, 8, 8], "layers": [{**CONV, "groups": 2}]}, "unknown keys groups"),
        ({"input": [1, 8, 8], "layers": [{**CONV, "out": 2.5}]}, "must be a whole number"),
        ({"input": [1, 8, 8], "layers": [{**CONV, "out": 0}]}, "must be at least 1"),
        ({"input": [1, 8, 8], "layers": [CONV] * 4}, r"layers\[3\].*does not fit its input of 2x2"),
        ({"input": [1, 8, 8], "layers": [{"type": "linear", "out": 2}]}, "put a flatten"),
        ({"input": [8], "layers": [CONV]}, "needs .channels, height, width."),
        ({"input": [1, 8, 8], "layers": [{**CONV, "name": "a"}] * 2}, "Two layers are named 'a'"),
        ({"input": [1, 8, 8], "layers": [CONV], "names": "x{y}"}, "not usable"),
        ({"input": [1, 8, 8], "layers": [CONV], "names": "forward"}, "cannot be named 'forward'"),
        ({"input": [8], "layers": [], "activation": "swish"}, "Unknown activation 'swish'"),
        ({"input": [8], "layers": [], "activation": "relu(2)"}, "takes no argument"),
        ({"input": [8], "layers": [], "activation": "sine(inf)"}, "is no number"),
        ({"preset": "tiny"}, "Unknown preset 'tiny'. Known: unterthiner"),
        ({"preset": "tiny_zoo", "width": 3}, "does not take width"),
        ({"preset": "mlp"}, "needs widths"),
        ({"preset": "mlp", "widths": [9, 2], "input": [1, 2, 2]}, "hold 4 values"),
        ({"preset": "resnet_small", "blocks": [10**12], "widths": [4]}, "must lie between"),
        ({"preset": "unterthiner", "depth": "3"}, "wrong kind"),
        (
            {
                "input": [1, 8, 8],
                "layers": [{"type": "residual", "name": "r", "layers": [CONV]}],
            },
            "branches of residual block 'r' end in",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:30],
)
def test_refusals_say_what_is_wrong(config, message):
    with pytest.raises(ArchitectureError, match=message):
        CnnAdapter().build(config)
