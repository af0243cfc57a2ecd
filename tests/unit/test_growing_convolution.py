"""Both ways to the gradient of a grouped convolution are the same gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional as F

from zooplatform.growing import convolution
from zooplatform.growing.convolution import grouped_convolution

if TYPE_CHECKING:
    from collections.abc import Sequence

NETWORKS = 3


@pytest.fixture
def without_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "_lacks_avx512", lambda: True)


def made(shape: Sequence[int], kernel: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of 2 channels a network and kernels to 4 channels, in channels-last memory."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(5, *shape, 2 * NETWORKS, generator=draw, dtype=torch.float64)
    weight = torch.randn(4 * NETWORKS, *kernel, 2, generator=draw, dtype=torch.float64)
    return x.permute(0, 3, 1, 2).requires_grad_(), weight.permute(0, 3, 1, 2).requires_grad_()


@pytest.mark.usefixtures("without_avx512")
@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "padding"),
    [
        ((7, 7), (3, 3), 2, 0),
        ((8, 8), (3, 3), 2, 0),  # the last row and column are seen by no kernel
        ((8, 6), (3, 3), 2, 1),
        ((3, 3), (3, 3), 1, 0),
        ((6, 5), (1, 1), 1, 0),
        ((7, 6), (2, 3), 2, 1),
        ((4, 4), (2, 2), 1, 0),
    ],
)
def test_gradients_are_those_of_a_plain_convolution(
    shape: tuple[int, int], kernel: tuple[int, int], stride: int, padding: int
) -> None:
    x, weight = made(shape, kernel)
    found = grouped_convolution(x, weight, stride=stride, padding=padding, networks=NETWORKS)
    assert type(found.grad_fn).__name__ == "_ProductGradientBackward"
    wanted = F.conv2d(x, weight, None, stride, padding, groups=NETWORKS)
    torch.testing.assert_close(found, wanted)
    outer = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).double()
    # The second is what global pooling hands back: one value for all positions, held once.
    for upper in (outer, outer[:, :, :1, :1].expand_as(outer)):
        ours = torch.autograd.grad(found, (x, weight), upper, retain_graph=True)
        plain = torch.autograd.grad(wanted, (x, weight), upper, retain_graph=True)
        torch.testing.assert_close(ours, plain)


@pytest.mark.usefixtures("without_avx512")
def test_large_kernels_with_small_steps_are_left_to_the_library() -> None:
    x, weight = made((12, 12), (5, 5))
    found = grouped_convolution(x, weight, stride=1, padding=0, networks=NETWORKS)
    assert type(found.grad_fn).__name__ == "ConvolutionBackward0"


def test_images_need_no_gradient() -> None:
    x, weight = made((7, 7), (3, 3))
    found = grouped_convolution(x.detach(), weight, stride=2, padding=0, networks=NETWORKS)
    assert type(found.grad_fn).__name__ == "ConvolutionBackward0"
