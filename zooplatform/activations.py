"""Networks as what their layers put out on a few images, and back.

    space = ActivationSpace(module, vector, images)
    found = space.record(weights)                 # (N, D) of networks (N, P)
    found, middle = space.align(found)            # hidden units in one order
    weights = space.solve(found.mean(0)[None])    # (1, P): a network that does this

Independently trained networks are far from each other in their weights, whatever the order of their hidden units is,
and the mean of their weights does nothing. Once units are matched by what they answer (activation matching: Ainsworth
et al., Git Re-Basin, 2023, arXiv 2209.04836, section 3.1; Li et al., Convergent Learning, 2016, arXiv 1511.07543),
their activations are alike, and means and principal components of activations are activations of working networks.

The way back goes from the first layer to the last: the inputs of a layer are what the layers before it, which are found
already, put out, and its weights are those of a ridge regression from these inputs to the activations that are wanted.
What one layer misses is input to the next, which can make up for it. No label is used. Activations are those before the
nonlinearity and after a batch normalisation, at some positions of a map.

Legend for shapes: N networks, P values of one, m images, L layers, p positions, O units and I inputs of a layer, D
activations of a network, layer by layer (m, p, O).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from zooplatform.errors import ConfigError
from zooplatform.symmetry import hidden_groups
from zooplatform.symmetry.matching import assignment

if TYPE_CHECKING:
    from collections.abc import Callable

    from zooplatform.layout import VectorLayout

__all__ = ["ActivationSpace"]

_ROUNDS = 3
_RIDGE = 1e-4


class _Layer(NamedTuple):
    """A layer of the module: its name, the batch normalisation of its outputs if there is one, O, the positions that
    count, where its activations begin, and whether its units may be put into another order."""

    name: str
    module: nn.Conv2d | nn.Linear
    norm: nn.BatchNorm1d | nn.BatchNorm2d | None
    units: int
    positions: torch.Tensor
    start: int
    hidden: bool

    @property
    def size(self) -> int:
        """Activations of one image."""
        return len(self.positions) * self.units

    @property
    def free(self) -> bool:
        """Whether all outputs may be moved together."""
        return self.module.bias is not None or self.norm is not None

    @property
    def last(self) -> nn.Module:
        """What puts out the activations."""
        return self.module if self.norm is None else self.norm


class ActivationSpace:
    """The activations of networks of one blueprint on fixed images.

    Args:
        module: a network of the blueprint; it is changed by everything that is asked.
        vector: where its tensors lie in (P,) values; its tensors are called as those of the module.
        images: (m, ...) inputs, unlabelled.
        positions: of a map that count, at most.

    Raises:
        ConfigError: the module has parameters that are not of plain convolutions, linear layers and batch
            normalisations of what these put out, or uses a layer twice; or it does not take the images.
    """

    def __init__(
        self, module: nn.Module, vector: VectorLayout, images: torch.Tensor, *, positions: int = 16
    ) -> None:
        self._module = module.eval().requires_grad_(requires_grad=False)
        self.vector, self.images = vector, images
        self._values = [
            (value, vector.by_name[name].offset)
            for name, value in (*module.named_parameters(), *module.named_buffers())
            if name in vector.by_name and not vector.by_name[name].aside
        ]
        self._layers = self._look(positions)
        self._of_images: dict[str, _Given] = {}

    @property
    def width(self) -> int:
        """D."""
        last = self._layers[-1]
        return last.start + last.size * len(self.images)

    @torch.no_grad()
    def record(self, weights: torch.Tensor) -> torch.Tensor:
        """(N, D) float32 of networks (N, P), their hidden units as they are."""
        found = torch.empty((len(weights), self.width))
        seen: dict[str, torch.Tensor] = {}
        hooks = [
            layer.last.register_forward_hook(partial(_keep, layer.name, seen))
            for layer in self._layers
        ]
        try:
            for row, values in enumerate(weights.float()):
                self._load(values)
                self._module(self.images)
                for layer in self._layers:
                    own = _by_position(seen[layer.name], layer.module)[:, layer.positions]
                    found[row, layer.start : layer.start + own.numel()] = own.flatten()
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def match(self, found: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """(N, D) with the hidden units of every layer in the order in which they correlate most with those of a
        reference (D,).

        Raises:
            NotInstalledError: scipy is missing.
        """
        solve = assignment()
        found = found.clone()
        for layer in self._layers:
            if layer.hidden:
                own, wanted = self._units(found, layer), self._units(reference[None], layer)
                alike = torch.einsum("nro,rw->nwo", _standard(own), _standard(wanted)[0])
                order = solve(alike.double())
                own.copy_(own.gather(2, order[:, None].expand_as(own)))
        return found

    def align(
        self, found: torch.Tensor, first: int = 0, rounds: int = _ROUNDS
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, D) matched to network `first`, then again to the mean of all; and their mean (D,)."""
        reference = found[first]
        for _ in range(rounds):
            found = self.match(found, reference)
            reference = found.mean(dim=0)
        return found, reference

    def scale(self, found: torch.Tensor) -> torch.Tensor:
        """(D,) factors with which every layer varies alike over networks (N, D)."""
        factors = torch.ones(self.width)
        for layer in self._layers:
            own = self._units(found, layer)
            spread = float((own - own.mean(dim=0)).square().sum(dim=(1, 2)).mean().sqrt())
            factors[layer.start : layer.start + own[0].numel()] = 1 / max(spread, 1e-12)
        return factors

    @torch.no_grad()
    def solve(
        self, wanted: torch.Tensor, ridge: float = _RIDGE, *, typical: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(N, P) float32 networks whose activations are near (N, D).

        Args:
            wanted: the activations.
            ridge: penalty on the weights of a layer, in units of the mean square of its inputs.
            typical: (P,) mean of networks, whose running variances are taken over: outputs of a layer that is
                normalised may have any size. By default they have that of the activations.
        """
        found = torch.zeros((len(wanted), self.vector.width))
        taken = [layer.module for layer in self._layers]
        try:
            for row, values in zip(found, wanted.float(), strict=True):
                for layer in self._layers:
                    own = self._units(values[None], layer)[0]
                    size = None if typical is None else self._variance(layer, typical)
                    layer.module.forward = partial(  # type: ignore[method-assign]
                        _solved, layer, own, ridge, size, self._given
                    )
                self._module(self.images)
                for value, offset in self._values:
                    row[offset : offset + value.numel()] = value.flatten()
        finally:
            for module in taken:
                module.__dict__.pop("forward", None)
        return found

    def _given(self, layer: _Layer, x: torch.Tensor) -> _Given:
        if x is not self.images:
            return _Given.of(layer, x)
        if (
            layer.name not in self._of_images
        ):  # what sees the images is given the same by every network
            self._of_images[layer.name] = _Given.of(layer, x)
        return self._of_images[layer.name]

    # --- the module ---------------------------------------------------------------------------------------------------

    def _load(self, values: torch.Tensor) -> None:
        for value, offset in self._values:
            value.copy_(values[offset : offset + value.numel()].view_as(value))

    def _units(self, found: torch.Tensor, layer: _Layer) -> torch.Tensor:
        """(N, m p, O): the activations of a layer, a view."""
        end = layer.start + layer.size * len(self.images)
        return found[:, layer.start : end].view(len(found), -1, layer.units)

    def _variance(self, layer: _Layer, typical: torch.Tensor) -> float | None:
        """The usual running variance of a layer's outputs."""
        found = self.vector.by_name.get(f"{self._names.get(layer.norm)}.running_var")
        if found is None:
            return None
        return float(typical[found.offset : found.offset + found.spec.num_elements].mean())

    @torch.no_grad()
    def _look(self, most: int) -> list[_Layer]:
        leaves = dict(self._module.named_modules())
        self._names = {leaf: name for name, leaf in leaves.items()}
        called: list[tuple[str, torch.Tensor]] = []
        norms: dict[str, nn.BatchNorm1d | nn.BatchNorm2d] = {}

        def note(leaf: nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
            if _is_plain(leaf):
                called.append((self._names[leaf], out))
            elif called and given[0] is called[-1][1]:
                assert isinstance(leaf, nn.BatchNorm1d | nn.BatchNorm2d)
                norms[called[-1][0]] = leaf

        watched = [leaf for leaf in leaves.values() if _is_plain(leaf) or _is_norm(leaf)]
        hooks = [leaf.register_forward_hook(note) for leaf in watched]
        try:
            self._module(self.images)
        except (RuntimeError, ValueError) as exc:
            raise ConfigError(
                f"The network does not take images of shape {tuple(self.images.shape[1:])}: {exc}"
            ) from exc
        finally:
            for hook in hooks:
                hook.remove()
        self._refuse(leaves, [name for name, _ in called], {*norms.values()})
        moved = _movable(self.vector)
        layers: list[_Layer] = []
        start = 0
        for name, out in called:
            leaf = leaves[name]
            assert isinstance(leaf, nn.Conv2d | nn.Linear)
            norm = norms.get(name)
            rows = _by_position(out, leaf)
            places = torch.linspace(0, rows.shape[1] - 1, min(most, rows.shape[1])).round().long()
            own = {name} | ({self._names[norm]} if norm is not None else set())
            hidden = any(own == group for group in moved)
            layers.append(_Layer(name, leaf, norm, rows.shape[2], places, start, hidden))
            start += layers[-1].size * len(self.images)
        return layers

    def _refuse(
        self, leaves: dict[str, nn.Module], called: list[str], norms: set[nn.Module]
    ) -> None:
        """Raise where the module is no network that can be read."""
        for name, leaf in leaves.items():
            own = [
                key for key in (*leaf._parameters, *leaf._buffers) if getattr(leaf, key) is not None
            ]
            if own and not _is_plain(leaf) and leaf not in norms:
                raise ConfigError(
                    f"{name or 'The network'} ({type(leaf).__name__}) holds {', '.join(own)}. Activations are read "
                    "and solved for in plain convolutions, linear layers and batch normalisations right behind them; "
                    "leave this architecture out."
                )
            if lacking := [key for key in own if f"{name}.{key}" not in self.vector.by_name]:
                raise ConfigError(
                    f"The layout has no {name}.{lacking[0]}. Give that of the module."
                )
        if len(set(called)) < len(called) or not called:
            raise ConfigError("Activations are read of networks that use every layer once.")


def _is_plain(leaf: nn.Module) -> bool:
    if isinstance(leaf, nn.Conv2d):
        return (
            leaf.groups == 1 and leaf.padding_mode == "zeros" and not isinstance(leaf.padding, str)
        )
    return isinstance(leaf, nn.Linear)


def _is_norm(leaf: nn.Module) -> bool:
    return (
        isinstance(leaf, nn.BatchNorm1d | nn.BatchNorm2d)
        and leaf.affine
        and leaf.track_running_stats
    )


def _movable(vector: VectorLayout) -> list[set[str]]:
    """Names of the layers whose units may be put into another order, for each group together."""
    return [
        {field.spec.name.rpartition(".")[0] for field in group.rows}
        for group in hidden_groups(vector)
    ]


def _keep(
    name: str, seen: dict[str, torch.Tensor], _: nn.Module, __: object, out: torch.Tensor
) -> None:
    seen[name] = out


def _by_position(out: torch.Tensor, leaf: nn.Module) -> torch.Tensor:
    """(m, positions, O) of what a layer puts out."""
    rows: torch.Tensor = out.flatten(2).transpose(1, 2) if isinstance(leaf, nn.Conv2d) else out
    return rows.reshape(len(out), -1, rows.shape[-1])


def _standard(units: torch.Tensor) -> torch.Tensor:
    """(N, r, O) of mean zero and length one, unit by unit; units that never vary are zero."""
    centred = units - units.mean(dim=1, keepdim=True)
    length: torch.Tensor = centred.norm(dim=1, keepdim=True)
    return centred / length.clamp_min(1e-12)


class _Given(NamedTuple):
    """What a layer is given at its positions, r rows of I inputs: their mean (I,), the rows without it (r, I), the
    mean products of these (I, I) float64, and the mean square of the inputs."""

    middle: torch.Tensor
    centred: torch.Tensor
    moments: torch.Tensor
    size: torch.Tensor

    @classmethod
    def of(cls, layer: _Layer, x: torch.Tensor) -> _Given:
        rows = _inputs(layer.module, x, layer.positions).flatten(0, 1)
        # What is common to all outputs is for the bias, or for the normalisation.
        middle = rows.mean(dim=0) if layer.free else torch.zeros_like(rows[0])
        centred = rows - middle
        moments = (centred.T @ centred).double() / len(rows)
        size = moments.diagonal().mean() + middle.double().square().mean()
        return cls(middle, centred, moments, size.clamp_min(1e-12))


def _solved(
    layer: _Layer,
    wanted: torch.Tensor,
    ridge: float,
    variance: float | None,
    given: Callable[[_Layer, torch.Tensor], _Given],
    x: torch.Tensor,
) -> torch.Tensor:
    """What the layer puts out for inputs x, after its weights were found for them."""
    module, norm = layer.module, layer.norm
    middle, centred, moments, size = given(layer, x)
    level = wanted.mean(dim=0) if layer.free else torch.zeros_like(wanted[0])
    # Sums are large and the ridge is small, but it is larger than what float32 rounds them by.
    held = moments + ridge * size * torch.eye(len(moments), dtype=moments.dtype)
    crossed = (centred.T @ (wanted - level)).double() / len(centred)
    slope = torch.linalg.solve(held, crossed).T.to(centred.dtype)
    if norm is None:
        if module.bias is not None:
            module.bias.copy_(level - slope @ middle)
    else:
        slope = _normalised(norm, slope, centred, level, variance)
        if module.bias is not None:
            module.bias.zero_()
        assert norm.running_mean is not None
        norm.running_mean.copy_(slope @ middle)
    module.weight.copy_(slope.reshape(module.weight.shape))
    out: torch.Tensor = type(module).forward(module, x)  # type: ignore[arg-type]
    return out


def _normalised(
    norm: nn.BatchNorm1d | nn.BatchNorm2d,
    slope: torch.Tensor,
    centred: torch.Tensor,
    level: torch.Tensor,
    variance: float | None,
) -> torch.Tensor:
    """The weights before a normalisation that put out what `slope` does behind it, with batch statistics or without."""
    assert norm.running_var is not None
    found = (centred @ slope.T).square().mean(dim=0)
    size = found if variance is None else torch.full_like(found, variance)
    # Outputs of any size are normalised to the same; those that never vary stay as they are.
    factor = torch.where(found > 1e-12, (size / found.clamp_min(1e-12)).sqrt(), 1.0)
    norm.running_var.copy_(torch.where(found > 1e-12, size, 1.0))
    norm.weight.copy_((norm.running_var + norm.eps).sqrt() / factor)
    norm.bias.copy_(level)
    return slope * factor[:, None]


def _inputs(module: nn.Conv2d | nn.Linear, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(m, p, I) what each unit is given at some positions, flattened as the weights are."""
    if isinstance(module, nn.Linear):
        return x.reshape(len(x), -1, x.shape[-1])[:, places]
    assert not isinstance(module.padding, str)
    (tall, wide), (down, right) = module.kernel_size, module.dilation
    padded = F.pad(x, (module.padding[1],) * 2 + (module.padding[0],) * 2)
    long = (padded.shape[3] - (wide - 1) * right - 1) // module.stride[1] + 1
    seen = []
    # Patches at the places alone: unfolding the whole map takes several times as long.
    for place in places.tolist():
        top, left = place // long * module.stride[0], place % long * module.stride[1]
        rows = slice(top, top + (tall - 1) * down + 1, down)
        seen.append(padded[:, :, rows, left : left + (wide - 1) * right + 1 : right])
    return torch.stack(seen, dim=1).flatten(2)
