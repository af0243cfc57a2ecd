"""A condition chooses among groups by names and by words; what cannot be met is refused, with a list of what can."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from zooplatform.errors import ConfigError
from zooplatform.fitting import Blueprint
from zooplatform.interfaces import Condition, TensorSpec
from zooplatform.layout import VectorLayout
from zooplatform_kde.choosing import choose, signature, words_of


@dataclass
class One:
    dataset: str
    activation: str = "relu"
    name: str = "tiny_zoo"
    width: int = 2
    common: dict[str, Any] = field(default_factory=dict)

    @property
    def blueprint(self) -> Blueprint:
        spec = TensorSpec("weight", "float32", (self.width,), 4 * self.width)
        config = {"activation": self.activation, "layers": [self.width]}
        return Blueprint(vector=VectorLayout((spec,)), family="cnn", config=config, name=self.name)


GROUPS = [
    One("mnist"),
    One("mnist", "gelu"),
    One("fashion", common={"optimizer": "adam", "dataset": "fashion"}),
    One("fashion", "gelu", common={"optimizer": "sgd", "dataset": "fashion"}),
    One("fashion", name="resnet_small", width=5),
    One("notmnist"),
]


def chosen(**kwargs: Any) -> list[int]:
    signatures = kwargs.pop("signatures", {})
    return choose(GROUPS, Condition(**kwargs), signatures)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("a small CNN for fashion items, gelu", [3]),
        ("clothing please", [2, 3, 4]),
        ("Classify handwritten digits with a GELU network", [1]),
        ("recognise handwritten numbers", [0, 1]),
        ("MNIST", [0, 1]),
        ("the digits of MNIST", [0, 1]),
        ("notMNIST letters", [5]),
        ("not mnist", [5]),
        ("a network for letters", [5]),
        ("shoes and shirts, resnet", [4]),
        ("a resnet small for garments", [4]),
        ("fashion trained with sgd", [3]),
        ("fashion, relu, adam", [2]),
        ("fashion, relu", [2, 4]),
        ("gelu", [1, 3]),
        ("tiny zoo networks", [0, 1, 2, 3, 5]),
        ("   ", [0, 1, 2, 3, 4, 5]),
    ],
)
def test_words(words: str, expected: list[int]) -> None:
    assert chosen(instruction=words) == expected


@pytest.mark.parametrize(
    "words",
    ["colour photographs", "audio of birds", "onion soup", "a CNN for CIFAR-10", "SVHN, relu"],
)
def test_words_that_name_nothing_known_are_refused(words: str) -> None:
    with pytest.raises(ConfigError, match=r"It knows: fashion with .*; mnist with tiny_zoo"):
        chosen(instruction=words)


def test_without_a_condition_everything_may_be_drawn() -> None:
    assert choose(GROUPS, None, {}) == list(range(6))
    assert chosen() == list(range(6))


def test_names() -> None:
    assert chosen(dataset="Fashion") == [2, 3, 4]
    assert chosen(architecture_id=GROUPS[4].blueprint.architecture_id[:6]) == [4]
    assert chosen(build_config={"activation": "gelu"}) == [1, 3]
    assert chosen(build_config={"optimizer": "adam"}) == [2]
    assert chosen(dataset="fashion", build_config={"activation": "gelu", "optimizer": "sgd"}) == [3]
    # A data set that is named counts for more than what an instruction says of another.
    assert chosen(dataset="mnist", instruction="fashion, gelu") == [1]
    assert chosen(dataset="mnist", instruction="whatever this means") == [0, 1]


@pytest.mark.parametrize(
    ("condition", "problem"),
    [
        ({"dataset": "cifar10"}, "data set 'cifar10'"),
        ({"architecture_id": "zz"}, "architecture 'zz'"),
        ({"build_config": {"activation": "silu"}}, "activation = 'silu'"),
        ({"build_config": {"no_such_key": 3}}, "no_such_key = 3"),
        ({"dataset": "notmnist", "build_config": {"activation": "gelu"}}, "activation = 'gelu'"),
    ],
)
def test_what_cannot_be_met_is_refused(condition: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as refused:
        chosen(**condition)
    assert "notmnist with tiny_zoo (activation relu" in str(refused.value)


def test_images_name_the_data_set_that_looks_like_them() -> None:
    draw = torch.Generator().manual_seed(0)
    dark, bright = torch.rand((50, 1, 4, 4), generator=draw) / 4, torch.ones(50, 1, 4, 4)
    bright = bright - torch.rand(bright.shape, generator=draw) / 4
    signatures = {"mnist": signature(dark), "fashion": signature(bright)}
    examples = 1 - torch.rand((3, 5, 1, 4, 4), generator=draw) / 4
    assert chosen(images=examples, signatures=signatures) == [2, 3, 4]
    assert chosen(images=examples - 0.7, signatures=signatures) == [0, 1]
    assert chosen(images=examples, instruction="digits", signatures=signatures) == [0, 1]
    assert chosen(images=examples, instruction="gelu", signatures=signatures) == [3]
    assert chosen(images=examples, dataset="mnist", signatures=signatures) == [0, 1]
    large = examples.expand(3, 5, 3, 4, 4)
    assert chosen(images=large, instruction="digits", signatures=signatures) == [0, 1]
    with pytest.raises(ConfigError, match=r"shape \(3, 4, 4\)"):
        chosen(images=large, signatures=signatures)
    with pytest.raises(ConfigError, match="no data set with images"):
        chosen(images=examples)


def test_words_of_text() -> None:
    assert words_of("A GELU-CNN for the Fashion-MNIST items.") >= {
        "gelu", "cnn", "fashion", "mnist", "item", "items", "fashionmnist", "gelucnn",
    }  # fmt: skip
    assert not words_of("A GELU-CNN for the items") & {"a", "the", "for"}
