"""Codes for the function: quantisation errors pushed into the weights still to be coded.

The networks run on unlabelled images, layer by layer. Where a layer is reached, its inputs come from layers that are
coded already, and its weights are coded for those inputs: first fitted anew to what the original layer put out
(`refit`), then chunk by chunk along the inputs of all units at once, each chunk's error carried over to the later
chunks in the way that changes the outputs least (GPTQ, arXiv 2210.17323; for vectors GPTVQ, arXiv 2402.15319). The
networks of a group run stacked in one pass; their convolutions and matrices are taken over by functions that know
every network's weights, all other modules run as they are. Decoding stays a table lookup.

With several `tries`, other rows and another order of the chunks give other codes, and those are kept whose network is
nearest to the original in its outputs.

Legend for shapes: B networks of a group, V values of one, m images, r rows (inputs of one output), I inputs of a unit
and 1 for its bias, O units, k outputs of a network, d values of a chunk, S tokens of a chunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from zooplatform.errors import TokenizerError
from zooplatform_igpg.columnwise import code_columns

if TYPE_CHECKING:
    from collections.abc import Callable

    from zooplatform_igpg.normalise import Pair
    from zooplatform_igpg.quantizers import TableCoder
    from zooplatform_igpg.vectors import VectorPlan
    from zooplatform_igpg.vq_config import VqConfig

__all__ = ["Run", "encode_for_function"]

_POSITIONS = 64  # places of the kernel that rows are taken from, at most
# Values of activations that a group may hold in one layer.
_AT_ONCE = 1 << 25
_MOST_NETWORKS = 32


class _Place(NamedTuple):
    """A layer that is coded with feedback: its values (O, I) and its chunks, `each` for every unit from `first` on."""

    values: torch.Tensor
    first: int
    each: int
    bias: bool


@torch.no_grad()
def encode_for_function(
    coder: TableCoder,
    plan: VectorPlan,
    pair: Pair,
    values: torch.Tensor,
    module: nn.Module,
    images: torch.Tensor,
    config: VqConfig,
    limits: torch.Tensor | None = None,
    say: Callable[[int, int], None] | None = None,
) -> torch.Tensor:
    """(N, n, S) codes of networks (N, V).

    Args:
        coder: the tables.
        plan: of mode `unit`.
        pair: the normalisation of the layout.
        values: the networks.
        module: a network of their blueprint; its weights do not matter, its functions are replaced.
        images: (m, C, H, W) or (m, F), unlabelled.
        config: `refit`, `metric`, `beam`, `sweeps`, `tries` and the dampings are read.
        limits: (n,) how many of the first codes each chunk may have; all by default.
        say: called with networks done and all networks.

    Raises:
        TokenizerError: the module has parameters that are not of convolutions, matrices or batch norms, or does not
            fit the layout.
    """
    codes = torch.empty(
        (len(values), plan.num_chunks, coder.tokens_per_chunk),
        dtype=torch.int64,
        device=values.device,
    )
    module.eval()
    step = _MOST_NETWORKS
    at = 0
    while at < len(values):
        part = slice(at, min(at + step, len(values)))
        run = Run(coder, plan, pair, values[part], module, images, config, limits)
        codes[part] = run.best(config.tries)
        # The first group says how large activations are; those that follow keep to the limit.
        step = max(1, min(_MOST_NETWORKS, step * _AT_ONCE // max(1, run.largest)))
        at = part.stop
        if say is not None:
            say(at, len(values))
    return codes


class Run:
    """One group of networks, coded in one pass through the module.

    With `only`, the number of a layer of the plan, no other layer is coded, and those behind it are fitted anew to
    what the originals put out.

    Attributes:
        largest: values of the largest activations met.
    """

    def __init__(
        self,
        coder: TableCoder,
        plan: VectorPlan,
        pair: Pair,
        values: torch.Tensor,
        module: nn.Module,
        images: torch.Tensor,
        config: VqConfig,
        limits: torch.Tensor | None = None,
        *,
        only: int | None = None,
    ) -> None:
        self.coder, self.plan, self.pair, self.config = coder, plan, pair, config
        self.limits, self._only = limits, None if only is None else plan.layers[only]
        self.module, self.images = module, images
        self.number, self.rows = len(values), len(images)
        self.largest = 1
        self._original = values
        # Originals run beside what is coded where something is compared with them.
        self._beside = config.refit or config.tries > 1 or only is not None
        self._places = _places(plan)
        chunks = plan.chunks(pair.normalise(values))
        self._plain = coder.encode(chunks, plan.mask, plan.positions, limits)
        self._decoded = pair.undo(plan.from_chunks(coder.decode(self._plain, plan.positions)))
        if self._only is not None:
            self._decoded = torch.where(self._plainly_coded(), self._decoded, values)
        self._tensors: dict[str, torch.Tensor] = {}
        self._begin(0)

    def best(self, tries: int) -> torch.Tensor:
        """(B, n, S), each network's codes those of the try that changes its outputs least."""
        kept = self._plain
        least = torch.full((self.number,), torch.inf)
        for number in range(tries):
            self._begin(number)
            outputs = self.outputs()
            if tries == 1:
                return self._codes
            differ = _difference(outputs[: self.number], outputs[self.number :])
            better = differ < least.to(differ.device)
            kept = torch.where(better.view(-1, 1, 1), self._codes, kept)
            least = torch.where(better, differ, least)
        return kept

    def moved(self) -> float:
        """Squared change of outputs, the mean of all networks and images."""
        self._begin(0)
        outputs = self.outputs()
        return float(_difference(outputs[: self.number], outputs[self.number :]).mean())

    def _plainly_coded(self) -> torch.Tensor:
        """(V,) whether a value is of the only layer that is coded, and that without feedback."""
        found = torch.zeros(self.plan.num_values, dtype=torch.bool)
        assert self._only is not None
        for spec, start in zip(self.plan.coded, self.plan.starts, strict=True):
            known = spec.name.rpartition(".")[0] in self._places
            found[start : start + spec.num_elements] = spec.name in self._only.tensors and not known
        return found

    def _begin(self, number: int) -> None:
        """Forget what was coded: tensors that will be are those of the plain codes until their layer is reached."""
        self._try = number
        self._codes = self._plain.clone()
        beside = [self._original] if self._beside else []
        self._values = torch.cat([*beside, self._decoded])
        self._set(self._values)
        self._done: set[str] = set()

    def outputs(self) -> torch.Tensor:
        """(stacks, m, k) of the networks, coded on the way."""
        taken: list[nn.Module] = []
        try:
            for path, leaf in self.module.named_modules():
                own = dict(leaf.named_parameters(recurse=False))
                if isinstance(leaf, nn.Conv2d):
                    self._take(leaf, path, self._conv, taken)
                elif isinstance(leaf, nn.Linear):
                    self._take(leaf, path, self._linear, taken)
                elif isinstance(leaf, nn.BatchNorm1d | nn.BatchNorm2d):
                    self._take(leaf, path, self._norm, taken)
                elif own:
                    raise TokenizerError(
                        f"{path or 'The network'} ({type(leaf).__name__}) holds {', '.join(own)}; encoding for the "
                        "function knows convolutions, linear layers and batch norms. Encode without it."
                    )
            return self._stacked(self.module(self.images))
        finally:
            for leaf in taken:
                del leaf.forward

    def _take(
        self,
        leaf: nn.Module,
        path: str,
        function: Callable[[str, nn.Module, torch.Tensor], torch.Tensor],
        taken: list[nn.Module],
    ) -> None:
        for name in (*leaf._parameters, *leaf._buffers):
            key = f"{path}.{name}"
            if getattr(leaf, name) is not None and name != "num_batches_tracked":
                shape = tuple(getattr(leaf, name).shape)
                found = self._tensors.get(key)
                if found is None or tuple(found.shape[1:]) != shape:
                    raise TokenizerError(
                        f"{key} is {shape} in the module, which the layout does not have so. Give the blueprint of "
                        "these networks."
                    )
        leaf.forward = lambda x: function(path, leaf, x)
        taken.append(leaf)

    # --- layers ---------------------------------------------------------------------------------------------------

    def _conv(self, path: str, leaf: nn.Module, x: torch.Tensor) -> torch.Tensor:
        assert isinstance(leaf, nn.Conv2d)
        padding = leaf.padding
        if isinstance(padding, tuple) and leaf.groups == 1 and leaf.dilation == (1, 1):
            padded = F.pad(x, (padding[1],) * 2 + (padding[0],) * 2)
            self._code(path, lambda: self._patches(padded, leaf))
        weight, bias = self._tensors[f"{path}.weight"], self._tensors.get(f"{path}.bias")
        stacks, units = len(weight), weight.shape[1]
        more: Any = (leaf.stride, padding, leaf.dilation, leaf.groups)
        if len(x) == self.rows and leaf.groups == 1:  # the images themselves: all networks at once
            joined = None if bias is None else bias.flatten()
            out = F.conv2d(x, weight.flatten(0, 1), joined, *more)
            out = out.view(self.rows, stacks, units, *out.shape[2:]).transpose(0, 1).flatten(0, 1)
        else:
            parts = self._stacked(x)
            out = torch.cat(
                [
                    F.conv2d(part, own, None if bias is None else bias[at], *more)
                    for at, (part, own) in enumerate(zip(parts, weight, strict=True))
                ]
            )
        self.largest = max(self.largest, out.numel(), x.numel())
        return out

    def _linear(self, path: str, leaf: nn.Module, x: torch.Tensor) -> torch.Tensor:
        self._code(path, lambda: self._stacked(x).flatten(1, -2))
        weight, bias = self._tensors[f"{path}.weight"], self._tensors.get(f"{path}.bias")
        stacked = self._stacked(x)
        flat = stacked.flatten(1, -2).expand(len(weight), -1, -1)
        out = torch.bmm(flat, weight.transpose(1, 2))
        if bias is not None:
            out = out + bias.unsqueeze(1)
        return out.view(len(weight) * self.rows, *x.shape[1:-1], weight.shape[1])

    def _norm(self, path: str, leaf: nn.Module, x: torch.Tensor) -> torch.Tensor:
        assert isinstance(leaf, nn.BatchNorm1d | nn.BatchNorm2d)
        stacked = self._stacked(x)
        shape = (-1, 1, stacked.shape[2], *[1] * (stacked.ndim - 3))
        names = ("running_mean", "running_var", "weight", "bias")
        mean, variance, weight, bias = (
            None if found is None else found.view(shape)
            for found in (self._tensors.get(f"{path}.{name}") for name in names)
        )
        if mean is None or variance is None:
            raise TokenizerError(
                f"{path} keeps no running statistics, so that a network's outputs depend on its batch. Encode without "
                "feedback."
            )
        out = (stacked - mean) / (variance + leaf.eps).sqrt()
        if weight is not None and bias is not None:
            out = out * weight + bias
        return out.flatten(0, 1)

    def _stacked(self, x: torch.Tensor) -> torch.Tensor:
        """(stacks, m, ...); one stack where all networks see the same, which are the images."""
        return x.view(-1, self.rows, *x.shape[1:])

    def _patches(self, padded: torch.Tensor, leaf: nn.Conv2d) -> torch.Tensor:
        """(stacks, r, I - 1): what the kernel sees at places spread over images and positions, the same in every
        network."""
        stacked = self._stacked(padded)
        (tall, wide), (down, right) = leaf.kernel_size, leaf.stride
        high = (stacked.shape[-2] - tall) // down + 1
        long = (stacked.shape[-1] - wide) // right + 1
        draw = torch.Generator().manual_seed(self._try)
        places = torch.randperm(high * long, generator=draw)[:_POSITIONS].tolist()
        each = min(self.rows, max(1, self.config.feedback_rows // len(places)))
        parts = []
        for place in places:
            top, left = place // long * down, place % long * right
            chosen = torch.randperm(self.rows, generator=draw)[:each].to(padded.device)
            seen = stacked[:, :, :, top : top + tall, left : left + wide]
            parts.append(seen.index_select(1, chosen).flatten(2))
        return torch.cat(parts, dim=1)

    # --- coding ---------------------------------------------------------------------------------------------------

    def _code(self, path: str, inputs: Callable[[], torch.Tensor]) -> None:
        """Code the weights of a layer for the rows (stacks, r, I - 1) that `inputs` gives."""
        place = self._places.get(path)
        if place is None or path in self._done:  # coded plainly; or used again
            return
        self._done.add(path)
        rows = inputs()
        if place.bias:
            rows = torch.cat([rows, rows.new_ones((*rows.shape[:2], 1))], dim=2)
        rows = rows[:, : self.config.feedback_rows]
        seen = rows[-self.number :]
        moments = seen.transpose(1, 2) @ seen / seen.shape[1]
        weights = self._original[:, place.values]  # (B, O, I)
        if self.config.refit and len(rows) > 1:  # the first layer sees the same as its original
            crossed = rows[: self.number].transpose(1, 2) @ seen / seen.shape[1]
            weights = _refitted(weights, moments, crossed, self.config.refit_damping)
        if self._only is not None and f"{path}.weight" not in self._only.tensors:
            self._values[-self.number :, place.values.flatten()] = weights.flatten(1)
            self._set(self._values, path)
            return
        mean, spread = self.pair.mean[place.values], self.pair.spread[place.values]
        each = slice(place.first, place.first + place.each)  # units are cut alike
        found, codes = code_columns(
            self.coder.tables, weights, moments, mean, spread,
            damping=self.config.damping, metric=self.config.metric, sweeps=self.config.sweeps,
            beam=self.config.beam, order=_order(place.each, self._try),
            limits=None if self.limits is None else self.limits[each].tolist(),
        )  # fmt: skip
        units = weights.shape[1]
        own = slice(place.first, place.first + units * place.each)
        self._codes[:, own] = codes.reshape(self.number, units * place.each, -1)
        self._values[-self.number :, place.values.flatten()] = found.flatten(1)
        self._set(self._values, path)

    def _set(self, values: torch.Tensor, path: str | None = None) -> None:
        """Tensors as the module has them, (stacks, *shape), from values: all, or those of one layer."""
        for spec, start in zip(self.plan.coded, self.plan.starts, strict=True):
            if path is None or spec.name.rpartition(".")[0] == path:
                raw = values[:, start : start + spec.num_elements]
                if self.plan.logarithms is not None and bool(self.plan.logarithms[start]):
                    raw = self.plan.variances(raw)
                self._tensors[spec.name] = raw.reshape(-1, *spec.shape)


def _places(plan: VectorPlan) -> dict[str, _Place]:
    """The layers whose units are rows of chunks: a weight, and a bias if there is one."""
    starts = {spec.name: start for spec, start in zip(plan.coded, plan.starts, strict=True)}
    specs = {spec.name: spec for spec in plan.coded}
    found = {}
    for layer in plan.layers:
        names = [name for name in layer.tensors if name in specs and specs[name].num_elements]
        path = names[0].rpartition(".")[0] if names else ""
        bias = names[1:] == [f"{path}.bias"]
        if names[:1] != [f"{path}.weight"] or (names[1:] and not bias):
            continue
        weight = specs[names[0]]
        if len(weight.shape) < 2:
            continue
        units = weight.shape[0]
        start = starts[weight.name]
        values = torch.arange(start, start + weight.num_elements).view(units, -1)
        if bias:
            begin = starts[names[1]]
            values = torch.cat([values, torch.arange(begin, begin + units).unsqueeze(1)], dim=1)
        each = -(-values.shape[1] // plan.size)
        found[path] = _Place(values, int(plan.places[start]) // plan.size, each, bias)
    return found


def _order(chunks: int, number: int) -> list[int] | None:
    """In which order the chunks of a unit are coded: as they lie, or drawn."""
    if not number:
        return None
    found: list[int] = torch.randperm(
        chunks, generator=torch.Generator().manual_seed(number)
    ).tolist()
    return found


def _difference(original: torch.Tensor, coded: torch.Tensor) -> torch.Tensor:
    """(B,) squared distance of outputs (B, m, k), their mean over the classes taken out: a softmax does not see it."""
    apart = coded - original
    return (apart - apart.mean(-1, keepdim=True)).square().flatten(1).mean(1)


def _refitted(
    weights: torch.Tensor, moments: torch.Tensor, crossed: torch.Tensor, damping: float
) -> torch.Tensor:
    """(B, O, I) weights whose outputs on the inputs at hand are nearest to those of the original layer on its own.

    Args:
        weights: of the original layer.
        moments: (B, I, I) of the inputs at hand.
        crossed: (B, I, I) of the original inputs (rows) with those at hand.
        damping: share of the mean moment by which it holds to the original weights.
    """
    size = moments.shape[-1]
    hold = damping * moments.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-12).view(-1, 1, 1)
    identity = torch.eye(size, device=moments.device)
    wanted = weights @ crossed + hold * weights
    solved: torch.Tensor = torch.linalg.solve(moments + hold * identity, wanted.transpose(1, 2))
    return solved.transpose(1, 2)
