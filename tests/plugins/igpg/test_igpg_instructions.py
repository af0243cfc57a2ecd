"""What instructions say: captions of networks, and reading unseen wordings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from zooplatform_igpg.instructions import (
    FACETS,
    Captioner,
    Look,
    Subject,
    describe_layers,
    look_of,
)
from zooplatform_igpg.text import HashText
from zooplatform_igpg.understanding import Understanding, learn_to_understand
from zooplatform_igpg.wording import DATASETS, known_name

if TYPE_CHECKING:
    from zooplatform.fitting import GeneratorData

NAMES = ("mnist", "fashion", "usps", "cifar10")
LOOKS = (
    Look("cnn", "tiny-zoo", 3, 2, 2464, norm=False),
    Look("resnet", "resnet-small", 20, 1, 272_186, norm=True),
)
ACTIVATIONS = ("gelu", "relu", "tanh")
LEVELS = 4


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return Captioner(NAMES, LOOKS, ACTIVATIONS, LEVELS)


@pytest.fixture(scope="module")
def reader(captioner: Captioner) -> tuple[HashText, Understanding]:
    subjects = [
        Subject(dataset, architecture, activation, level)
        for dataset in range(4)
        for architecture in range(2)
        for activation in range(3)
        for level in range(-1, LEVELS)
    ]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    encoder = HashText()
    model, shares = learn_to_understand(encoder, captioner, subjects, count=2500, steps=300, seed=0)
    torch.set_num_threads(before)
    assert set(shares) == set(FACETS)
    assert min(shares["dataset"], shares["activation"]) > 0.9
    return encoder, model


def _said(reader: tuple[HashText, Understanding], text: str) -> dict[str, torch.Tensor]:
    encoder, model = reader
    with torch.no_grad():
        said = model.said(model(encoder.encode([text])))
    return {facet: values[0].exp() for facet, values in said.items()}


def test_captions_are_many_and_say_what_their_network_is(captioner: Captioner) -> None:
    draw = np.random.default_rng(0)
    subject = Subject(1, 0, 0, LEVELS - 1)
    captions = [captioner.caption(subject, draw) for _ in range(400)]
    assert len({caption.text for caption in captions}) > 390
    for caption in captions:
        for facet, size in captioner.sizes().items():
            weights = caption.said[facet]
            assert weights.shape == (size,)
            assert weights.sum() == pytest.approx(1)
        for facet, number in zip(FACETS[:3], subject[:3], strict=True):
            assert caption.said[facet][number] > 0  # never something that the network is not
        named = caption.said["speaks"][1] > 0
        assert named == (caption.said["dataset"].max() > 1 / len(NAMES))
    shares = {f: np.mean([c.said[f].max() > 0.9 for c in captions]) for f in FACETS}
    assert shares["dataset"] > 0.5
    assert 0.2 < shares["activation"] < 0.8
    assert shares["architecture"] > 0.3


def test_a_word_for_several_data_sets_leaves_them_all(captioner: Captioner) -> None:
    draw = np.random.default_rng(1)
    captions = [captioner.caption(Subject(2, -1, -1, -1), draw) for _ in range(400)]
    groups = [c for c in captions if (c.said["dataset"] > 0).sum() == 2]
    assert groups
    for caption in groups:
        mnist, fashion, usps, cifar = caption.said["dataset"]
        assert fashion == cifar == 0
        assert mnist > usps > 0  # who says no more than digits means MNIST more often


def test_the_same_draw_gives_the_same_caption(captioner: Captioner) -> None:
    subject = Subject(0, 1, 2, 0)
    texts = [
        [captioner.caption(subject, draw).text for _ in range(20)]
        for draw in (np.random.default_rng(5), np.random.default_rng(5))
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("text", "dataset"),
    [
        ("a small CNN for fashion items, gelu, robust to small images", "fashion"),
        ("can anybody tell my jackets from my sneakers?", "fashion"),
        ("network for sorting garments by type", "fashion"),
        ("zip-code reading convnet, tanh", "usps"),
        ("something for the post office's mail", "usps"),
        ("résnet with tanh for MNIST", "mnist"),
        ("numerals written by hand", "mnist"),
        ("tell cats from trucks", "cifar10"),
    ],
)
def test_unseen_wordings_of_known_data_sets_are_understood(
    reader: tuple[HashText, Understanding], text: str, dataset: str
) -> None:
    assert all(text != phrase for phrases in DATASETS.values() for phrase in phrases)
    said = _said(reader, text)
    assert NAMES[int(said["dataset"].argmax())] == dataset
    assert said["speaks"][1] > 0.5


def test_architectures_activations_and_levels_are_understood(
    reader: tuple[HashText, Understanding],
) -> None:
    said = _said(reader, "the most accurate residual network on usps with swish or rather gelu")
    assert said["architecture"].argmax() == 1
    assert said["activation"].argmax() == 0
    said = _said(reader, "I'd like a tiny convnet using hyperbolic tangent, barely trained")
    assert said["architecture"].argmax() == 0
    assert said["activation"].argmax() == 2
    assert said["level"].argmax() == 0


def test_what_is_said_of_nothing_known_is_not_taken_for_something(
    reader: tuple[HashText, Understanding],
) -> None:
    for text in ("a recipe for onion soup", "summarise this contract in French"):
        assert _said(reader, text)["speaks"][1] < 0.5
    silent = _said(reader, "give me a network")
    assert silent["dataset"].max() < 0.6
    assert silent["activation"].max() < 0.7


def test_names_of_data_sets_are_recognised_as_zoos_write_them() -> None:
    for name, key in (
        ("Fashion-MNIST", "fashion"), ("fashion_mnist16", "fashion"), ("MNIST", "mnist"),
        ("mnist16", "mnist"), ("cifar-10", "cifar10"), ("usps", "usps"), ("pendigits", "pendigits"),
        ("bugs", "bugs"),
    ):  # fmt: skip
        assert known_name(name) == key


def test_an_architecture_is_described_layer_by_layer(kinds: GeneratorData) -> None:
    cnn = next(b for b in kinds.blueprints if b.name == "kinds-cnn" and "relu" in str(b.config))
    text = describe_layers(cnn)
    assert text.startswith("cnn kinds-cnn: conv 2x1x3x3, norm 2, linear 3x32")
    assert text.endswith("activation relu")
    look = look_of(cnn)
    assert (look.kind, look.convolutions, look.linears, look.norm) == ("cnn", 1, 1, True)
    mlp = next(b for b in kinds.blueprints if b.name == "kinds-mlp")
    assert look_of(mlp).kind == "mlp"
