"""How many codes the chunks of each layer may have, when all layers together have so many bits.

Errors of some layers change what a network puts out more than those of others: of the last one, nothing comes after
that could make up for them, and of a wide one, most are made up for by the weights beside them. So each layer is coded
alone in a few training networks, which says how far outputs move, and bits go one by one to where they take away most.
With another bit for a chunk of d values the squared error of weights, and so of outputs, falls by a factor of about
4^(1/d). A layer with b bits has the first 2^b codes of a table that is made so that these are a good table by
themselves (`kmeans.nested_table`).

Legend for shapes: N networks, V values of one, n chunks of one, d values of a chunk, L layers.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch

from zooplatform.errors import ConfigError
from zooplatform.fitting import GeneratorData
from zooplatform_igpg.feedback import Run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zooplatform.fitting import FitData
    from zooplatform_igpg.normalise import Normaliser
    from zooplatform_igpg.quantizers import TableCoder
    from zooplatform_igpg.vectors import VectorPlan
    from zooplatform_igpg.vq_config import VqConfig

__all__ = ["even_bits", "limits_of", "measured_bits", "share_out", "total_bits"]

_NETWORKS = 16  # of an architecture that layers are tried on
_BITS_OF_A_VALUE = 6  # more say nothing of chunks with padding


def even_bits(config: VqConfig) -> int:
    """Bits of a chunk where all layers are alike."""
    most = config.codebook_size.bit_length() - 1
    return max(1, min(most, int(config.bits * config.chunk_size)))


def limits_of(plan: VectorPlan, bits: Sequence[int]) -> torch.Tensor:
    """(n,) how many codes each chunk may have, from the bits of each layer (L)."""
    return 2 ** _bits_of_chunks(plan, bits)


def total_bits(plan: VectorPlan, bits: Sequence[int]) -> int:
    """Of a whole network."""
    return int(_bits_of_chunks(plan, bits).sum())


def _bits_of_chunks(plan: VectorPlan, bits: Sequence[int]) -> torch.Tensor:
    of_layer = torch.tensor(list(bits), dtype=torch.int64)[_layers(plan)]
    return torch.minimum(of_layer, _BITS_OF_A_VALUE * plan.mask.sum(dim=1))


def _layers(plan: VectorPlan) -> torch.Tensor:
    """(n,) the place of each chunk's layer among those of the plan."""
    place = {layer.index: at for at, layer in enumerate(plan.layers)}
    return torch.tensor([place[index] for index in plan.positions[:, 1].tolist()])


def share_out(
    plan: VectorPlan, harm: Sequence[float], at: int, budget: float, most: int
) -> list[int]:
    """Bits of the chunks of each layer (L), at least 1 and at most `most`, together within a budget of bits.

    Args:
        plan: how networks are cut.
        harm: by how much outputs move when a layer alone is coded with `at` bits.
        at: see there.
        budget: of a network; layers have one bit each even where that is more.
        most: of a chunk.
    """
    bits = [1] * len(harm)
    falls = 4 ** (-1 / plan.size)
    while True:
        now = total_bits(plan, bits)
        best, gain = -1, 0.0
        for layer, own in enumerate(bits):
            more = [*bits[:layer], own + 1, *bits[layer + 1 :]]
            cost = total_bits(plan, more) - now
            if own >= most or cost == 0 or now + cost > budget:
                continue
            worth = harm[layer] * falls ** (own - at) * (1 - falls) / cost
            if worth > gain:
                best, gain = layer, worth
        if best < 0:
            return bits
        bits[best] += 1


def measured_bits(
    config: VqConfig,
    coder: TableCoder,
    normaliser: Normaliser,
    plans: Sequence[VectorPlan],
    data: FitData | None,
) -> dict[str, list[int]]:
    """Bits of the layers of every architecture that training networks and images are there of.

    Raises:
        ConfigError: there are none.
        TokenizerError: a network has layers that cannot be coded with feedback.
    """
    found = {}
    if isinstance(data, GeneratorData):
        for plan in plans:
            if (rows := _tried(data, plan)) is not None:
                harm = _harm(config, coder, normaliser, plan, data, rows)
                most = config.codebook_size.bit_length() - 1
                budget = config.bits * plan.num_values
                found[plan.architecture] = share_out(plan, harm, even_bits(config), budget, most)
    if not found:
        raise ConfigError(
            f"bits = {config.bits} are shared out by what coding a layer changes, which takes images that networks of "
            "the catalog were trained on. Say where they are (--data-folder), or leave bits out."
        )
    return found


def _tried(data: GeneratorData, plan: VectorPlan) -> list[int] | None:
    """Training networks of an architecture that layers are tried on: of one blueprint and data set."""
    kinds: list[tuple[int, str] | None] = []
    for name, architecture in zip(data.train.ids, data.train.architecture_ids, strict=True):
        fact = data.facts[name]
        own = architecture == plan.architecture and fact.dataset in data.images
        kinds.append((fact.blueprint, fact.dataset) if own else None)
    counted = Counter(kind for kind in kinds if kind is not None)
    if not counted:
        return None
    usual = min(counted, key=lambda kind: (-counted[kind], kind))
    rows = [row for row, kind in enumerate(kinds) if kind == usual]
    return rows[:: -(-len(rows) // _NETWORKS)]  # from all over the zoo


def _harm(
    config: VqConfig,
    coder: TableCoder,
    normaliser: Normaliser,
    plan: VectorPlan,
    data: GeneratorData,
    rows: list[int],
) -> list[float]:
    """Squared change of outputs when a layer alone is coded, and those behind it are fitted anew."""
    fact = data.facts[data.train.ids[rows[0]]]
    weights = data.train.read(rows).weights
    columns = {
        f.spec.name: weights[:, f.offset : f.offset + f.spec.num_elements]
        for f in data.train.architectures[plan.architecture].fields
        if not f.aside
    }
    values = plan.values(columns, len(rows))
    module = data.build(data.blueprints[fact.blueprint])
    images = data.images[fact.dataset].x[: config.feedback_images]
    even = limits_of(plan, [even_bits(config)] * len(plan.layers))
    pair = normaliser.pair(plan)
    return [
        Run(coder, plan, pair, values, module, images, config, even, only=at).moved()
        for at in range(len(plan.layers))
    ]
