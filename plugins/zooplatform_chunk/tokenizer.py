"""What the tokenizers share: networks through a plan into tokens, and back.

Legend for shapes: N networks, P values of one, E bytes of one aside, T tokens, C values of a token, L layers.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

import torch

from zooplatform.errors import ConfigError, TokenizerError
from zooplatform.interfaces import TokenBatch
from zooplatform.layout import VectorLayout
from zooplatform_chunk.columns import columns_of_population, columns_of_state
from zooplatform_chunk.plan import make_plan
from zooplatform_chunk.scaling import (
    SCALINGS,
    Scaling,
    asinh_,
    asinh_limit,
    divide_by_spread_,
    sinh_,
)
from zooplatform_chunk.values import from_bytes, restore_nan, to_bytes, torch_dtype

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from zooplatform.interfaces import Config, LayerSpec, Layout, StateDict, TensorSpec
    from zooplatform_chunk.plan import Cut, Plan

__all__ = ["BlockTokenizer", "ScaledRule"]

_FILE = "tokenizer.json"
# Values that are copied, then scaled while the cache still holds them.
_SLAB = 1 << 19


@dataclass(frozen=True, kw_only=True)
class ScaledRule(ABC):
    """How a tokenizer cuts (a `Rule`) and scales: the settings of every tokenizer here.

    Attributes:
        scaling: `none`, `std` or `asinh`, see `zooplatform_chunk.scaling`.
        gain: factor inside `asinh`.
    """

    scaling: Scaling = "none"
    gain: float = 5.0

    def __post_init__(self) -> None:
        if self.scaling not in SCALINGS:
            raise ConfigError(f"scaling is {self.scaling!r}; use one of {', '.join(SCALINGS)}.")
        if not isinstance(self.gain, int | float) or not 1e-6 <= self.gain <= 1e6:
            raise ConfigError(f"gain is {self.gain!r}; use a number from 1e-6 to 1e6.")

    @abstractmethod
    def cut(self, layer_type: str, tensors: Sequence[TensorSpec]) -> list[Cut]: ...

    @abstractmethod
    def token_width(self, cuts: Sequence[tuple[str, Cut]]) -> int: ...


R = TypeVar("R", bound=ScaledRule)


class BlockTokenizer(Generic[R]):
    """A tokenizer whose tokens are the weights, cut by a rule.

    Attributes:
        name: under which plugins know it; a saved tokenizer is loaded by the same one only.
        rule: the settings.
    """

    name: ClassVar[str]

    def __init__(self, rule: R) -> None:
        self.rule = rule

    # --- settings ------------------------------------------------------------------------------

    def fit(self, states: Iterable[StateDict], *, seed: int, config: Config | None = None) -> None:
        """Take the settings in `config`; nothing is random.

        Raises:
            ConfigError: a setting is unknown or not usable.
        """
        self.rule = self._with(config or {})

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`."""
        kept = {"format": 1, "tokenizer": self.name, "config": asdict(self.rule)}
        (folder / _FILE).write_text(json.dumps(kept, indent=2) + "\n")

    def load(self, folder: Path) -> None:
        """Read `tokenizer.json`.

        Raises:
            TokenizerError: it is missing, not of this tokenizer or not usable.
        """
        path = folder / _FILE
        try:
            kept = json.loads(path.read_text())
            if (kept["format"], kept["tokenizer"]) != (1, self.name):
                raise TokenizerError(
                    f"{path} holds tokenizer {kept['tokenizer']!r} in format {kept['format']!r}, "
                    f"not {self.name!r} in format 1. Load it with the tokenizer that saved it."
                )
            self.rule = self._with(kept["config"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, TokenizerError):
                raise
            raise TokenizerError(
                f"{path} cannot be read ({type(error).__name__}: {error}). "
                "Fit the tokenizer again and save it."
            ) from error

    def _with(self, config: Config) -> R:
        known = [field.name for field in fields(self.rule)]
        unknown = sorted(set(config) - set(known))
        if unknown:
            raise ConfigError(
                f"Tokenizer {self.name!r} has no setting {', '.join(unknown)}. "
                f"It has {', '.join(known)}."
            )
        return replace(self.rule, **config)

    # --- encoding ------------------------------------------------------------------------------

    def encode(
        self, state: StateDict, *, layout: Layout, layers: Sequence[LayerSpec] = ()
    ) -> TokenBatch:
        """One network as tokens (1, T, C).

        Raises:
            TokenizerError: the state dict is not of this layout, or a value is too large for asinh.
        """
        plan = make_plan(layout, tuple(layers), self.rule)
        columns = columns_of_state(state, layout)
        device = next((column.device for column in columns.values()), torch.device("cpu"))
        return self._encode(plan, columns, 1, device)

    def encode_population(
        self,
        weights: torch.Tensor,
        *,
        layout: Layout,
        layers: Sequence[LayerSpec] = (),
        aside: torch.Tensor | None = None,
    ) -> TokenBatch:
        """N networks as tokens (N, T, C), without a loop over networks.

        Args:
            weights: (N, P), `Population.weights`.
            layout: of one network.
            layers: `Population.vector.layers()`.
            aside: (N, E) uint8, for layouts of several dtypes: `Population.read_aside(rows)`.

        Raises:
            TokenizerError: the arrays are not of this layout, or a value is too large for asinh.
        """
        plan = make_plan(layout, tuple(layers), self.rule)
        columns = columns_of_population(weights, aside, layout)
        return self._encode(plan, columns, len(weights), weights.device)

    def _encode(
        self, plan: Plan, columns: Mapping[str, torch.Tensor], number: int, device: torch.device
    ) -> TokenBatch:
        shape = (number, plan.num_tokens, plan.width)
        tokens = torch.zeros(shape, dtype=plan.dtype, device=device)
        scales: dict[str, torch.Tensor] = {}
        if self.rule.scaling == "none":
            _copy(plan, columns, tokens)
        elif self.rule.scaling == "std":
            scales["std"] = torch.empty((number, len(plan.layers)), dtype=plan.dtype, device=device)
            for rows, _, layers in _slabs(plan, columns, tokens):
                divide_by_spread_(layers, scales["std"][rows])
        else:
            scales["gain"] = torch.full(
                (number, 1), self.rule.gain, dtype=plan.dtype, device=device
            )
            for _, values, layers in _slabs(plan, columns, tokens):
                _check_range(plan, layers, values, asinh_limit(plan.dtype, self.rule.gain))
                asinh_(values, self.rule.gain)
        narrow = [columns[spec.name] for spec in plan.narrow]
        if any(bool(column.to(plan.dtype).isnan().any()) for column in narrow):
            scales["nan"] = torch.cat([to_bytes(column) for column in narrow], dim=1)
        if plan.aside_bytes:
            scales["aside"] = torch.cat([to_bytes(columns[s.name]) for s in plan.aside], dim=1)
        mask, positions = plan.mask().to(device), plan.positions().to(device)
        return TokenBatch(
            tokens, mask.expand(number, -1, -1), positions.expand(number, -1, -1), scales
        )

    # --- decoding ------------------------------------------------------------------------------

    def decode(
        self, batch: TokenBatch, *, layout: Layout, layers: Sequence[LayerSpec] = ()
    ) -> StateDict:
        """The network of a batch of one, in fresh memory; padding and what is in it is dropped.

        Raises:
            TokenizerError: the batch holds another number of networks, or was cut for another layout.
        """
        if len(batch.tokens) != 1:
            raise TokenizerError(
                f"The batch holds {len(batch.tokens)} networks and decode gives one. "
                "Slice it, or use decode_population."
            )
        plan = make_plan(layout, tuple(layers), self.rule)
        values = self._decode(plan, batch)
        # Types of other formats have no shape in torch: their bytes stay as they are.
        return {
            s.name: values[s.name][0].reshape(s.shape if torch_dtype(s) else (-1,)) for s in layout
        }

    def decode_population(
        self, batch: TokenBatch, *, layout: Layout, layers: Sequence[LayerSpec] = ()
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The weights (N, P), and the bytes aside (N, E) or None where the layout has none.

        Raises:
            TokenizerError: the batch was cut for another layout.
        """
        values = self._decode(make_plan(layout, tuple(layers), self.rule), batch)
        vector = VectorLayout(layout)
        number, device = len(batch.tokens), batch.tokens.device
        main = [values[f.spec.name] for f in vector.fields if not f.aside]
        rest = [to_bytes(values[f.spec.name]) for f in vector.fields if f.aside]
        weights = torch.cat(main, dim=1) if main else torch.empty((number, 0), device=device)
        return weights, torch.cat(rest, dim=1) if vector.aside_bytes else None

    def _decode(self, plan: Plan, batch: TokenBatch) -> dict[str, torch.Tensor]:
        """Every tensor as (N, numbers), in its dtype."""
        _check_batch(plan, batch)
        scales, number, device = batch.scales, len(batch.tokens), batch.tokens.device
        values = {
            spec.name: torch.empty(
                (number, 0), dtype=torch_dtype(spec) or torch.uint8, device=device
            )
            for spec in plan.layout
        }
        stream = batch.tokens[:, : plan.num_tokens].flatten(1)
        for run in plan.runs:
            for piece in run.pieces:
                value = run.view(stream, piece, plan.width)
                if "gain" in scales:
                    value = sinh_(value.clone(), scales["gain"])
                elif "std" in scales:
                    value = value * scales["std"][:, run.layer, None, None]
                fresh = torch.empty(value.shape, dtype=torch_dtype(piece.spec), device=device)
                values[piece.spec.name] = fresh.copy_(value).flatten(1)
        for key, specs in (("aside", plan.aside), ("nan", plan.narrow)):
            if key not in scales:
                continue
            parts = torch.split(scales[key], [spec.size_bytes for spec in specs], dim=1)
            for spec, raw in zip(specs, parts, strict=True):
                original = from_bytes(raw, torch_dtype(spec) or torch.uint8)
                value = values[spec.name]
                values[spec.name] = original if key == "aside" else restore_nan(value, original)
        return values


# --- into tokens ---------------------------------------------------------------------------------


def _copy(plan: Plan, columns: Mapping[str, torch.Tensor], tokens: torch.Tensor) -> None:
    """Every value to its place."""
    stream = tokens.flatten(1)
    for run in plan.runs:
        for piece in run.pieces:
            source = columns[piece.spec.name].view(-1, run.number, piece.length)
            run.view(stream, piece, plan.width).copy_(source)


def _slabs(
    plan: Plan, columns: Mapping[str, torch.Tensor], tokens: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor, list[torch.Tensor]]]:
    """Bring all values to their places by way of a slab: some networks at a time, while the cache holds them.

    Yields which networks they are, their values (rows, numbers) and the same layer by layer, to be changed in place.
    """
    specs = [[piece.spec for _, piece in pieces] for pieces in plan.pieces_by_layer()]
    sizes = [spec.num_elements for layer in specs for spec in layer]
    widths = [sum(spec.num_elements for spec in layer) for layer in specs]
    step = max(1, _SLAB // max(1, sum(sizes)))
    slab = tokens.new_empty((min(step, len(tokens)), sum(sizes)))
    for start in range(0, len(tokens), step):
        rows = slice(start, min(start + step, len(tokens)))
        values = slab[: rows.stop - start]
        names = (spec.name for layer in specs for spec in layer)
        parts = dict(zip(names, torch.split(values, sizes, dim=1) if sizes else (), strict=True))
        for name, part in parts.items():
            part.copy_(columns[name][rows])
        yield rows, values, list(torch.split(values, widths, dim=1)) if widths else []
        _copy(plan, parts, tokens[rows])


def _check_range(
    plan: Plan, layers: list[torch.Tensor], values: torch.Tensor, limit: float
) -> None:
    """Refuse numbers beyond `limit`; infinity and NaN are let through, since they come back as they are."""
    if values.numel() == 0:
        return
    least, most = torch.aminmax(values)
    if -limit <= least and most <= limit:
        return
    for layer, part in zip(plan.layers, layers, strict=True):
        if bool((part.isfinite() & (part.abs() > limit)).any()):
            raise TokenizerError(
                f"Layer {layer.name!r} holds values beyond {limit:.3g}, which asinh scaling cannot "
                "give back. Use scaling 'none' or 'std'."
            )


# --- what comes back -----------------------------------------------------------------------------


def _check_batch(plan: Plan, batch: TokenBatch) -> None:
    """Refuse tokens that were cut for another layout, other layers or by another rule."""
    shape, needed = tuple(batch.tokens.shape), (plan.num_tokens, plan.width)
    fits = len(shape) == 3 and shape[1] >= needed[0] and shape[2] == needed[1]
    if fits:
        mask, positions = _distinct(batch.mask), _distinct(batch.positions)
        known = plan.positions()[:, : positions.shape[2]].to(positions.device)
        fits = (
            bool((mask[:, : needed[0]] == plan.mask().to(mask.device)).all())
            and not bool(mask[:, needed[0] :].any())
            and bool((positions[:, : needed[0]] == known).all())
        )
    if not fits:
        raise TokenizerError(
            f"Tokens {shape} are not those of this layout, which is cut into {needed[0]} tokens of "
            f"{needed[1]}. Decode with the tokenizer, layout and layers that encoded them."
        )
    if plan.aside_bytes and "aside" not in batch.scales:
        names = [spec.name for spec in plan.aside]
        raise TokenizerError(
            f"The batch lacks the {plan.aside_bytes} bytes of {', '.join(names[:10])}. Put them into "
            "scales['aside'], for example those of a training network."
        )


def _distinct(shared: torch.Tensor) -> torch.Tensor:
    """One row where all rows are the same memory."""
    return shared[:1] if shared.stride(0) == 0 else shared
