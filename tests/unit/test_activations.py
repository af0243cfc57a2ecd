"""Networks as what they do: read, matched, and found again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

import zooplatform as zoo
from zooplatform.activations import ActivationSpace, _inputs
from zooplatform.errors import ConfigError
from zooplatform.layout import VectorLayout
from zooplatform.symmetry import permute
from zooplatform.testing import header_of

if TYPE_CHECKING:
    from collections.abc import Callable


def _cnn(norm: bool = False) -> nn.Sequential:
    layers = [
        nn.Conv2d(1, 5, 3, 2, 1), *([nn.BatchNorm2d(5)] if norm else []), nn.Tanh(),
        nn.Conv2d(5, 4, 3, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 3),
    ]  # fmt: skip
    return nn.Sequential(*layers)


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 2))


def _resnet() -> nn.Module:
    """Units of sums have one order for all layers that feed them."""
    config = {"preset": "resnet_small", "size": 8, "blocks": [2, 1], "widths": [4, 6]}
    module: nn.Module = zoo.load_plugins().architectures.create("cnn").build(config)
    return module


def _vector(module: nn.Module) -> VectorLayout:
    header = header_of(module.state_dict())
    layers = zoo.load_plugins().architectures.create("generic").layers(header)
    return VectorLayout(header.tensors, layers)


def _weights(make: Callable[[], nn.Module], number: int) -> tuple[torch.Tensor, VectorLayout]:
    rows = []
    for seed in range(number):
        torch.manual_seed(seed)
        module = make()
        vector = _vector(module)
        for name, value in module.state_dict().items():
            if "running_var" in name:
                value.uniform_(0.5, 2)
            elif value.is_floating_point():
                value.normal_(0, 1.5 * max(1, value[0].numel()) ** -0.5)
        state = module.state_dict()
        rows.append(torch.cat([state[f.spec.name].flatten() for f in vector.fields if not f.aside]))
    return torch.stack(rows), vector


def _images(make: Callable[[], nn.Module], number: int = 200) -> torch.Tensor:
    draw = torch.Generator().manual_seed(5)
    shape = {_mlp: (9,), _resnet: (3, 8, 8)}.get(make, (1, 8, 8))
    return torch.randn((number, *shape), generator=draw)


def _outputs(make: Callable[[], nn.Module], weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(N, m, k) of networks (N, P)."""
    module = make().eval()
    vector = _vector(module)
    found = []
    for row in weights:
        state = module.state_dict()
        for field in vector.fields:
            if not field.aside:
                part = row[field.offset : field.offset + field.spec.num_elements]
                state[field.spec.name].copy_(part.view(field.spec.shape))
        with torch.no_grad():
            found.append(module(x))
    return torch.stack(found)


def _normed() -> nn.Sequential:
    return _cnn(norm=True)


MAKES = [_cnn, _normed, _mlp]


@pytest.mark.parametrize("make", MAKES)
def test_a_network_is_found_again_from_what_it_does(make: Callable[[], nn.Module]) -> None:
    weights, vector = _weights(make, 3)
    images = _images(make)
    space = ActivationSpace(make(), vector, images)
    found = space.solve(space.record(weights), 1e-9)
    others = _images(make, 50) * 0.8
    torch.testing.assert_close(
        _outputs(make, found, others), _outputs(make, weights, others), atol=2e-3, rtol=1e-2
    )
    # Networks that are normalised are the same function with other weights; all others are the same networks.
    assert torch.allclose(found, weights, atol=2e-3) == (make is not _normed)


@pytest.mark.parametrize("make", MAKES)
def test_an_order_of_hidden_units_is_undone(make: Callable[[], nn.Module]) -> None:
    weights, vector = _weights(make, 4)
    moved = permute(weights, vector, torch.Generator().manual_seed(1))
    space = ActivationSpace(make(), vector, _images(make))
    found, again = space.record(weights), space.record(moved)
    assert not torch.allclose(found, again, atol=0.1)
    for row in range(4):
        matched = space.match(again[row][None], found[row])[0]
        torch.testing.assert_close(matched, found[row], atol=1e-4, rtol=0)
    assert torch.equal(space.match(found[:1], found[0]), found[:1])


def test_the_mean_of_permuted_copies_works_where_that_of_their_weights_does_not() -> None:
    weights, vector = _weights(_cnn, 1)
    moved = permute(weights.repeat(12, 1), vector, torch.Generator().manual_seed(1))
    images = _images(_cnn)
    space = ActivationSpace(_cnn(), vector, images)
    _, middle = space.align(space.record(moved))
    wanted = _outputs(_cnn, weights, images)
    by_activations = _outputs(_cnn, space.solve(middle[None], 1e-9), images)
    by_weights = _outputs(_cnn, moved.mean(dim=0, keepdim=True), images)
    torch.testing.assert_close(by_activations, wanted, atol=1e-2, rtol=1e-2)
    assert (by_weights - wanted).abs().mean() > 0.1


def test_units_that_are_added_up_keep_their_order() -> None:
    weights, vector = _weights(_resnet, 3)
    space = ActivationSpace(_resnet(), vector, _images(_resnet), positions=64)
    found = space.record(weights)
    matched = space.match(found, found[2])
    assert not torch.equal(matched, found)
    again = _outputs(_resnet, space.solve(matched, 1e-9), space.images)
    torch.testing.assert_close(again, _outputs(_resnet, weights, space.images), atol=1e-2, rtol=0)


def test_what_is_normalised_has_the_usual_size_and_the_same_function_in_training() -> None:
    weights, vector = _weights(_normed, 3)
    images = _images(_normed)
    space = ActivationSpace(_normed(), vector, images, positions=16)
    typical = weights.mean(dim=0)
    wanted = space.record(weights)
    plain, sized = space.solve(wanted), space.solve(wanted, typical=typical)
    variance = vector.by_name["1.running_var"]
    at = slice(variance.offset, variance.offset + 5)
    torch.testing.assert_close(sized[:, at], typical[at].mean().expand(3, 5))
    outputs = _outputs(_normed, sized, images)
    torch.testing.assert_close(_outputs(_normed, plain, images), outputs, atol=1e-3, rtol=1e-3)
    module = _normed()
    state = module.state_dict()
    for field in vector.fields:
        if not field.aside:
            part = sized[0, field.offset : field.offset + field.spec.num_elements]
            state[field.spec.name].copy_(part.view(field.spec.shape))
    with torch.no_grad():  # statistics of the batch are those that were found
        torch.testing.assert_close(module.train()(images), outputs[0], atol=2e-2, rtol=2e-2)


def test_fewer_positions_are_a_part_of_all() -> None:
    weights, vector = _weights(_cnn, 2)
    images = _images(_cnn, 7)
    every = ActivationSpace(_cnn(), vector, images, positions=99)
    few = ActivationSpace(_cnn(), vector, images, positions=2)
    assert every.width == 7 * (16 * 5 + 4 * 4 + 6 + 3)
    assert few.width == 7 * (2 * 5 + 2 * 4 + 6 + 3)
    first = every.record(weights)[:, : 7 * 80].view(2, 7, 16, 5)
    assert torch.equal(few.record(weights)[:, :70].view(2, 7, 2, 5), first[:, :, [0, 15]])
    # Layers vary alike afterwards, whatever their width is.
    scale = every.scale(every.record(weights))
    varied = ((every.record(weights) * scale).var(dim=0, correction=0))[: 7 * 80].sum()
    assert varied.item() == pytest.approx(1, rel=1e-4)


def test_what_cannot_be_read_is_refused() -> None:
    def space(module: nn.Module, shape: tuple[int, ...] = (9,)) -> ActivationSpace:
        return ActivationSpace(module, _vector(module), torch.zeros(3, *shape))

    with pytest.raises(ConfigError, match=r"1 \(LayerNorm\) holds weight, bias"):
        space(nn.Sequential(nn.Linear(9, 4), nn.LayerNorm(4), nn.Linear(4, 2)))
    with pytest.raises(ConfigError, match=r"0 \(BatchNorm1d\) holds"):
        space(nn.Sequential(nn.BatchNorm1d(9), nn.Linear(9, 2)))
    with pytest.raises(ConfigError, match=r"0 \(Conv2d\) holds"):
        space(nn.Sequential(nn.Conv2d(2, 4, 3, groups=2)), (2, 8, 8))
    with pytest.raises(ConfigError, match="does not take images of shape"):
        space(_mlp(), (4,))
    twice = nn.Linear(9, 9)
    with pytest.raises(ConfigError, match="every layer once"):
        space(nn.Sequential(twice, nn.ReLU(), twice))
    with pytest.raises(ConfigError, match=r"layout has no 2\.weight|layout has no"):
        ActivationSpace(_mlp(), _vector(_cnn()), torch.zeros(3, 9))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(2, 3, 3, padding=1),
        nn.Conv2d(2, 3, (3, 2), stride=(2, 3), padding=(0, 2)),
        nn.Conv2d(2, 3, 3, padding=2, dilation=(2, 1)),
    ],
)
def test_what_a_convolution_is_given_at_some_places(conv: nn.Conv2d) -> None:
    x = torch.randn(4, 2, 9, 8, generator=torch.Generator().manual_seed(0))
    out = conv(x).flatten(2).transpose(1, 2)  # (m, positions, O)
    places = torch.tensor([0, 3, out.shape[1] // 2, out.shape[1] - 1])
    given = _inputs(conv, x, places)
    assert conv.bias is not None
    torch.testing.assert_close(given @ conv.weight.flatten(1).T + conv.bias, out[:, places])
