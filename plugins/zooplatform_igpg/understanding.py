"""What an instruction says, learnt from many wordings: a small network over the vectors of a text encoder.

It has a hidden layer, which the transformer reads too, and a head for every facet (`instructions.FACETS`). A head gives
probabilities of the values that a text leaves possible: all alike where it says nothing of the facet.

Legend for shapes: N texts, D size of a text vector, U size of the hidden layer, V values of a facet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from zooplatform_igpg.instructions import FACETS, Captioner, Subject

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zooplatform_igpg.text import TextEncoder

__all__ = ["HIDDEN", "Understanding", "learn_to_understand"]

HIDDEN = 64
_BATCH = 128


class Understanding(nn.Module):
    """Texts to what they say.

    Args:
        dim: D.
        sizes: V by facet.
    """

    def __init__(self, dim: int, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.sizes = dict(sizes)
        self.trunk = nn.Sequential(
            nn.Linear(dim, HIDDEN), nn.GELU(), nn.LayerNorm(HIDDEN), nn.Dropout(0.2),
            nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.LayerNorm(HIDDEN),
        )  # fmt: skip
        heads = {facet: nn.Linear(HIDDEN, size) for facet, size in sizes.items()}
        for head in heads.values():
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.heads = nn.ModuleDict(heads)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """(N, U)."""
        hidden: torch.Tensor = self.trunk(vectors)
        return hidden

    def said(self, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
        """By facet the logarithms (N, V) of the probabilities of its values."""
        return {facet: head(hidden).log_softmax(dim=1) for facet, head in self.heads.items()}


def learn_to_understand(
    encoder: TextEncoder,
    captioner: Captioner,
    subjects: Sequence[Subject],
    *,
    count: int,
    steps: int,
    seed: int,
) -> tuple[Understanding, dict[str, float]]:
    """A fitted network, and by facet the share of unseen texts that it takes for what they say.

    Args:
        encoder: of the texts.
        captioner: writes them.
        subjects: the kinds of networks there are.
        count: texts.
        steps: of fitting.
        seed: of texts and fitting.
    """
    draw = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 11])))
    captions = [
        captioner.caption(subjects[int(draw.integers(len(subjects)))], draw) for _ in range(count)
    ]
    vectors = encoder.encode([caption.text for caption in captions])
    targets = {
        facet: torch.from_numpy(np.stack([caption.said[facet] for caption in captions])).float()
        for facet in FACETS
    }
    kept = max(1, count // 10)  # texts that are only looked at
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Understanding(encoder.dim, captioner.sizes())
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
        generator = torch.Generator().manual_seed(seed)
        model.train()
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * (1 - step / steps)
            rows = kept + torch.randint(max(1, count - kept), (_BATCH,), generator=generator)
            rows = rows.clamp_max(count - 1)
            given = vectors[rows]
            # Some of what stands in the text is hidden, so that no single word is relied on.
            given = given * (torch.rand(given.shape, generator=generator) > 0.15)
            said = model.said(model(given))
            losses = [-(targets[f][rows] * said[f]).sum(dim=1).mean() for f in FACETS]
            loss = torch.stack(losses).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
            optimizer.step()
    model.eval()
    return model, _shares(model, vectors[:kept], {f: t[:kept] for f, t in targets.items()})


@torch.no_grad()
def _shares(
    model: Understanding, vectors: torch.Tensor, targets: Mapping[str, torch.Tensor]
) -> dict[str, float]:
    """By facet, how often the likeliest value is one that the text leaves, among texts that leave not all."""
    said = model.said(model(vectors))
    found = {}
    for facet, wanted in targets.items():
        speaks = wanted.min(dim=1).values < wanted.max(dim=1).values
        if speaks.any():
            best = said[facet][speaks].argmax(dim=1, keepdim=True)
            found[facet] = float((wanted[speaks].gather(1, best) > 0).float().mean())
    return found
