"""Learned vectors sent through the weights: an encoder that no permutation of hidden units changes.

Every unit (channel or neuron) of a chain of layers carries a vector u. A forward sweep goes from the inputs to the
outputs, a backward sweep back, and every layer gives one token from its units:

    forward    u_o = norm(f([s(sum_i W_oi u_i / sqrt I), s(sum_i |W_oi| u_i / I), values of o, layer]))
    backward   u_i = norm(u_i + g([s(sum_o W_oi u_o / sqrt O), s(sum_o |W_oi| u_o / O), values of i, layer]))
    token      = t([mean, std, max of u_o over the units of the layer, scale of its weights, layer])
    s(x)       = x / sqrt(1 + |x|), which keeps sums of large weights in range

W is multiplied by the square root of its fan-in, so that usual initialisations are of one size everywhere. A kernel,
and the positions that a flattened map has for each channel, become a few numbers per pair of units by learned weights
of the positions (`mixes` for W and as many for |W|); positions are no units and are told apart. "Values of o" are bias
and normalisation, "layer" is its type, depth, and whether it is the first or last. All parameters are shared by all
layers and architectures. Since every step treats units alike and sums over those before, an order of hidden units is
seen nowhere; the order of the inputs and of the classes is not either.

Legend for shapes: B networks, P values of one, O outputs, I inputs, K positions, M mixes, C = 2M channels, U units,
h size of a unit's vector, T tokens of a network, d size of the embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from zooplatform.interfaces import LAYER_TYPES
from zooplatform_sne.chains import UNIT_VALUES, plan_of
from zooplatform_sne.encoder import NetworkEncoder
from zooplatform_sne.tokens import StatisticTokens, TokenPooling

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zooplatform.interfaces import NetworkBatch
    from zooplatform.layout import VectorLayout
    from zooplatform_sne.chains import Joint, Loose

__all__ = ["PropagationEncoder"]

_BASIS = 3  # learned weights of positions are 3 x 3, averaged or repeated for other kernels
_DEFAULTS = (0.0, 0.0, 1.0, 0.0, 0.0, 1.0)  # of `UNIT_VALUES`, where a network has none
_CONTEXT = len(LAYER_TYPES) + 6  # type, depth, first, last, flattened, scale of W and of |W|
_SCALES = 2


class PropagationEncoder(NetworkEncoder):
    """Tokens from units, then attention over them.

    Args:
        dim: d.
        units: h.
        mixes: M.
        rounds: how often both sweeps are made, each with parameters of its own.
        heads, blocks, dropout: of the attention over tokens.
        statistics: add the tokens of `StatisticTokens` to the set.
        noise, clip: of those, see there.
    """

    def __init__(
        self,
        *,
        dim: int = 64,
        units: int = 32,
        mixes: int = 3,
        rounds: int = 1,
        heads: int = 4,
        blocks: int = 1,
        dropout: float = 0.1,
        statistics: bool = False,
        noise: float = 0.0,
        clip: float = 5.0,
    ) -> None:
        super().__init__()
        self.dim, self.units = dim, units
        self.start = nn.Parameter(torch.randn(units))
        # [of kernels, of flattened maps] x [of W, of |W|]
        self.basis = nn.Parameter(torch.randn(2, 2, mixes, _BASIS, _BASIS))
        self.forwards = nn.ModuleList(_Update(units, mixes, dropout) for _ in range(rounds))
        self.backwards = nn.ModuleList(_Update(units, mixes, dropout) for _ in range(rounds))
        self.token = nn.Sequential(
            nn.Linear(3 * units + _CONTEXT, 2 * dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * dim, dim),
        )
        self.values = nn.Sequential(nn.Linear(2, units), nn.GELU(), nn.Linear(units, units))
        self.loose = nn.Linear(3 * units + _CONTEXT, dim)
        self.statistics = (
            StatisticTokens(dim=dim, dropout=dropout, noise=noise, clip=clip)
            if statistics
            else None
        )
        self.pool = TokenPooling(dim=dim, heads=heads, blocks=blocks, dropout=dropout)

    def prepare(self, batch: NetworkBatch) -> dict[str, torch.Tensor]:
        plan_of(batch.vector)  # refuses what cannot be read before any time is spent
        prepared = {"weights": batch.weights.to(torch.float32)}
        if self.statistics is not None:
            prepared |= self.statistics.prepare(batch)
        return prepared

    def calibrate(
        self, prepared: Sequence[tuple[Mapping[str, torch.Tensor], VectorLayout]]
    ) -> None:
        if self.statistics is not None:
            self.statistics.calibrate([rows for rows, _ in prepared])

    def forward(self, prepared: Mapping[str, torch.Tensor], vector: VectorLayout) -> torch.Tensor:
        tokens = self.tokens(prepared["weights"], vector)
        if self.statistics is not None:
            tokens = torch.cat([tokens, self.statistics(prepared)], dim=1)
        pooled: torch.Tensor = self.pool(tokens)
        return pooled

    def tokens(self, weights: torch.Tensor, vector: VectorLayout) -> torch.Tensor:
        """(B, T, d) from (B, P): one token per matrix and loose tensor."""
        plan = plan_of(vector)
        found: list[torch.Tensor] = []
        for chain in plan.chains:
            found += self._chain_tokens(weights, chain)
        found += [self._loose_token(weights, loose) for loose in plan.loose]
        return torch.stack(found, dim=1)

    def _chain_tokens(self, weights: torch.Tensor, chain: Sequence[Joint]) -> list[torch.Tensor]:
        number = len(weights)
        links = [_Link(weights, joint, self.basis) for joint in chain]
        inputs = self.start.expand(number, chain[0].inputs, self.units)
        blank = weights.new_tensor(_DEFAULTS).expand(number, chain[0].inputs, -1)
        units = [inputs] + [inputs] * len(links)  # units[l] go into link l, units[l + 1] come out
        for round_, (forth, back) in enumerate(zip(self.forwards, self.backwards, strict=True)):
            for at, link in enumerate(links):
                before = units[at + 1] if round_ else None
                units[at + 1] = forth(link.send(units[at]), link.values, link.context, before)
            for at in range(len(links) - 1, 0 if round_ + 1 == len(self.forwards) else -1, -1):
                values = links[at - 1].values if at else _unit_features(blank)
                sent = links[at].send_back(units[at + 1])
                units[at] = back(sent, values, links[at].context, units[at])
        return [
            self.token(torch.cat([_summary(units[at + 1]), link.context], dim=-1))
            for at, link in enumerate(links)
        ]

    def _loose_token(self, weights: torch.Tensor, loose: Loose) -> torch.Tensor:
        values = weights[:, loose.offset : loose.offset + loose.size]
        each = self.values(torch.stack([_squash(values), values.abs().log1p()], dim=-1))
        context = _context(values, values.abs(), loose, flattened=False)
        token: torch.Tensor = self.loose(torch.cat([_summary(each), context], dim=-1))
        return token


class _Update(nn.Module):
    """Messages, values and layer of units (B, U, ...) to what their vectors become."""

    def __init__(self, units: int, mixes: int, dropout: float) -> None:
        super().__init__()
        self.messages = nn.Linear(2 * mixes * units, 2 * units)
        self.values = nn.Linear(2 * len(UNIT_VALUES), 2 * units, bias=False)
        self.context = nn.Linear(_CONTEXT, 2 * units, bias=False)
        self.out = nn.Sequential(nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * units, units))
        self.norm = nn.LayerNorm(units)

    def forward(
        self,
        messages: torch.Tensor,
        values: torch.Tensor,
        context: torch.Tensor,
        before: torch.Tensor | None,
    ) -> torch.Tensor:
        hidden = self.messages(_squash(messages)) + self.values(values)
        change = self.out(hidden + self.context(context)[:, None])
        updated: torch.Tensor = self.norm(change if before is None else before + change)
        return updated


class _Link:
    """A joint with its weights, ready to send vectors both ways."""

    def __init__(self, weights: torch.Tensor, joint: Joint, basis: torch.Tensor) -> None:
        number = len(weights)
        raw = weights[:, joint.offset : joint.offset + joint.size]
        raw = raw * (joint.inputs * joint.positions) ** 0.5
        self.context = _context(raw, raw.abs(), joint, flattened=joint.flattened)
        mix = functional.adaptive_avg_pool2d(basis[int(joint.flattened)], joint.kernel).flatten(2)
        mix = mix / joint.positions**0.5
        square = (number, joint.outputs, joint.inputs)
        if joint.positions == 1:
            # One value per pair: mixing it is a factor, which is cheaper after the products.
            matrix = raw.view(square)
            self._channels = torch.stack([matrix, matrix.abs()], dim=1)
            self._gains: torch.Tensor | None = mix[..., 0]
        else:
            both = torch.stack([raw, raw.abs()]).view(2, -1, joint.positions)
            mixed = torch.bmm(both, mix.transpose(1, 2)).view(2, *square, -1)
            self._channels = mixed.permute(1, 0, 4, 2, 3).flatten(1, 2)
            self._gains = None
        self.values = _unit_features(_unit_values(weights, joint))

    def send(self, units: torch.Tensor) -> torch.Tensor:
        """(B, O, C h) messages from (B, I, h)."""
        return self._send(self._channels, units)

    def send_back(self, units: torch.Tensor) -> torch.Tensor:
        """(B, I, C h) messages from (B, O, h)."""
        return self._send(self._channels.transpose(2, 3), units)

    def _send(self, channels: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
        number, kinds, receivers, senders = channels.shape
        # (B, C R, S) @ (B, S, h)
        sent = channels.reshape(number, kinds * receivers, senders) @ units
        half = sent.view(number, 2, kinds // 2, receivers, -1)
        # Signed sums grow with the root of the number of senders, sums of absolute values with it.
        size = sent.new_tensor([senders**-0.5, 1 / senders]).view(1, 2, 1, 1, 1)
        half = half * size
        if self._gains is not None:
            half = half * self._gains[None, :, :, None, None]
        return half.permute(0, 3, 1, 2, 4).flatten(2)


def _unit_values(weights: torch.Tensor, joint: Joint) -> torch.Tensor:
    """(B, O, V) values of the output units, with defaults where a network has none."""
    columns = []
    for offset, default in zip(joint.unit_values, _DEFAULTS, strict=True):
        if offset < 0:
            columns.append(weights.new_full((len(weights), joint.outputs), default))
        else:
            columns.append(weights[:, offset : offset + joint.outputs])
    return torch.stack(columns, dim=-1)


def _unit_features(values: torch.Tensor) -> torch.Tensor:
    """(B, U, 2V): with sign, and by size from small to large."""
    return torch.cat([_squash(values), (values.abs() + 1e-4).log() / 4], dim=-1)


def _context(
    raw: torch.Tensor, size: torch.Tensor, what: Joint | Loose, *, flattened: bool
) -> torch.Tensor:
    """(B, _CONTEXT): what a layer is, and the logarithms of the root mean square and mean of its weights."""
    fixed = [float(index == what.layer_type) for index in range(len(LAYER_TYPES))]
    fixed += [what.depth, float(what.first), float(what.last), float(flattened)]
    scales = torch.stack([raw.square().mean(dim=1).sqrt(), size.mean(dim=1)], dim=-1)
    scales = (scales + 1e-6).log()
    return torch.cat([raw.new_tensor(fixed).expand(len(raw), -1), scales], dim=-1)


def _squash(values: torch.Tensor) -> torch.Tensor:
    """s(x), of any shape; asinh would do as well, but takes a third of the time of a step."""
    return values * (1 + values.abs()).rsqrt()


def _summary(units: torch.Tensor) -> torch.Tensor:
    """(B, 3h) mean, standard deviation and maximum of (B, U, h) over the units."""
    spread = (units.var(dim=1, correction=0) + 1e-6).sqrt()
    return torch.cat([units.mean(dim=1), spread, units.amax(dim=1)], dim=-1)
