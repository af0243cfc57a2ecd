"""Convolutions of many networks at once, with the gradient that is faster on this processor.

Legend for shapes: A networks, B images, I and O channels of one network, H and W height and width of an input, h and w
those of an output, k the size of a kernel.

oneDNN computes the gradient of an input of a grouped convolution well where there is AVX-512. With AVX2 alone it
takes several times as long as the other two passes together; there the gradient is one batched product, of the
outputs' gradients with the kernels, of which every position is added to the pixels that it came from. With
32 networks of 16 channels, kernels of 3x3 and stride 2 that is 1.2 ms for 5.1 (7x7 pixels) and 0.2 ms for
1.5 (3x3); with AVX-512 oneDNN needs 0.6 and 0.2 ms.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["grouped_convolution"]

# The product holds every pixel this many times at most: with more, moving them costs more than it saves
# (11 times, 5x5 on 12x12 pixels: 33 ms for 10).
_MOST_COPIES = 3.0


def grouped_convolution(
    x: Tensor, weight: Tensor, *, stride: int, padding: int, networks: int
) -> Tensor:
    """Outputs (B, A*O, h, w) of images (B, A*I, H, W) and kernels (A*O, I, k, k), in channels-last memory."""
    if x.requires_grad and _prefers_product(x, weight, stride, padding):
        found: Tensor = _ProductGradient.apply(x, weight, stride, padding, networks)
        return found
    return F.conv2d(x, weight, None, stride, padding, groups=networks)


def _prefers_product(x: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    if x.is_cuda or not _lacks_avx512():
        return False
    copies = 1.0
    for size, kernel in zip(x.shape[2:], weight.shape[2:], strict=True):
        copies *= kernel * ((size + 2 * padding - kernel) // stride + 1) / size
    return copies <= _MOST_COPIES


@cache
def _lacks_avx512() -> bool:
    """Whether the kernels of this process are those of a processor with AVX2 only."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


class _ProductGradient(torch.autograd.Function):
    """oneDNN's convolution and gradient of the kernels, with the gradient of the input by `_input_gradient`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int, networks: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding, networks
        return F.conv2d(x, weight, None, stride, padding, groups=networks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding, networks = ctx.geometry
        (gradient,) = gradients
        of_input = of_weight = None
        if ctx.needs_input_grad[0]:
            of_input = _input_gradient(gradient, weight, x.shape, stride, padding, networks)
        if ctx.needs_input_grad[1]:
            of_weight = torch.ops.aten.convolution_backward(
                gradient,
                x,
                weight,
                None,
                [stride, stride],
                [padding, padding],
                [1, 1],
                False,
                [0, 0],
                networks,
                [False, True, False],
            )[1]
        return of_input, of_weight, None, None, None


def _input_gradient(
    gradient: Tensor, weight: Tensor, shape: torch.Size, stride: int, padding: int, networks: int
) -> Tensor:
    """Gradient (B, A*I, H, W) from that of the outputs (B, A*O, h, w)."""
    images, channels, height, width = shape
    rows, columns = gradient.shape[2:]
    inputs, k1, k2 = weight.shape[1:]
    each = gradient.permute(0, 2, 3, 1).reshape(images * rows * columns, networks, -1)
    kernels = weight.permute(0, 2, 3, 1).reshape(networks, -1, k1 * k2 * inputs)
    product = torch.bmm(each.transpose(0, 1), kernels)
    parts = product.view(networks, images, rows, columns, k1, k2, inputs).permute(
        4, 5, 1, 2, 3, 0, 6
    )
    whole = gradient.new_zeros(images, height + 2 * padding, width + 2 * padding, networks, inputs)
    for top in range(k1):
        for left in range(k2):
            bottom, right = top + stride * (rows - 1) + 1, left + stride * (columns - 1) + 1
            whole[:, top:bottom:stride, left:right:stride].add_(parts[top, left])
    own = whole[:, padding : padding + height, padding : padding + width]
    return own.reshape(images, height, width, channels).permute(0, 3, 1, 2)
