"""Diffusion in the space of principal components, after p-diff.

Wang et al. (2024, arXiv 2402.13144) diffuse in the codes of an autoencoder of weights; here codes are coordinates on
principal components, each divided by its standard deviation, so that the plain `pca` is the same with a normal
distribution in place of the diffusion model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from zooplatform_kde.baseline import BLOCK, Baseline, Learned
from zooplatform_kde.config import DiffusionSettings
from zooplatform_kde.denoiser import Denoiser, denoised, noise_error, train
from zooplatform_kde.gaussian import principal_of, projected
from zooplatform_kde.principal import principal_components

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zooplatform.fitting import Blueprint, GeneratorData
    from zooplatform_kde.baseline import Group, Request
    from zooplatform_kde.networks import Networks

__all__ = ["LatentDiffusion"]

_MODEL = "model."


class LatentDiffusion(Baseline[DiffusionSettings]):
    """A diffusion model of the coordinates of networks on their principal components."""

    NAME = "diffusion"
    SETTINGS = DiffusionSettings
    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"components": 4, "steps": 30, "width": 16, "depth": 1, "levels": 10},
        "default": {},
    }

    def learn(
        self, networks: Networks, settings: DiffusionSettings, data: GeneratorData, seed: int
    ) -> Learned:
        found = principal_components(networks.weights, settings.components)
        tensors = {"mean": found.mean, "axes": found.axes, "std": found.std}
        if not len(found.std):
            note = "its networks have no spread that could be learnt: their mean is all there is."
            return Learned(tensors, {}, {"components": 0.0}, (note,))
        codes = found.coordinates(networks.weights) / found.std

        def more(step: int) -> bool:
            if data.progress is not None and step % 100 == 0:
                data.progress(f"{self.NAME}: steps of {networks.label}", step, settings.steps)
            return data.seconds_left() > 0

        model, steps = train(codes, settings, seed, more=more)
        metrics = {
            "components": float(len(found.std)),
            "explained_variance": found.explained,
            "steps": float(steps),
            "noise_error": _error(model, codes, settings),
        }
        if len(networks.held_out):
            held_out = found.coordinates(networks.held_out) / found.std
            metrics["validation_noise_error"] = _error(model, held_out, settings)
        notes: tuple[str, ...] = ()
        if steps < settings.steps:
            notes = (f"the time was over after {steps} of {settings.steps} steps.",)
        tensors["bound"] = codes.abs().max(dim=0).values
        tensors |= {_MODEL + name: tensor for name, tensor in model.state_dict().items()}
        return Learned(tensors, {}, metrics, notes)

    def draw(
        self, group: Group, request: Request[DiffusionSettings], random: torch.Generator
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        return self.draw_block(group, request, [random])[0]

    def draw_block(
        self,
        group: Group,
        request: Request[DiffusionSettings],
        randoms: Sequence[torch.Generator],
    ) -> list[tuple[torch.Tensor, dict[str, Any]]]:
        settings = request.settings
        if not len(group.tensors["std"]):
            return [(group.tensors["mean"], {}) for _ in randoms]
        model = group.once("model", lambda: _model(group, settings))
        found = principal_of(group.tensors)
        codes = denoised(
            model, group.tensors["bound"], settings.levels, request.temperature, randoms, BLOCK
        )
        return [(found.networks((one * found.std)[None])[0], {}) for one in codes]

    def reconstruct(self, weights: torch.Tensor, blueprint: Blueprint) -> torch.Tensor:
        """(B, P) networks projected on the mean and the axes, as of `pca`."""
        return projected(weights, [principal_of(g.tensors) for g in self._groups_of(blueprint)])


def _model(group: Group, settings: DiffusionSettings) -> Denoiser:
    model = Denoiser(len(group.tensors["std"]), settings.width, settings.depth)
    model.load_state_dict(
        {n.removeprefix(_MODEL): t for n, t in group.tensors.items() if n.startswith(_MODEL)}
    )
    return model.eval()


@torch.no_grad()
def _error(model: Denoiser, codes: torch.Tensor, settings: DiffusionSettings) -> float:
    """Mean squared error of the noise told, over 16 draws of level and noise for each network."""
    random = torch.Generator()
    random.manual_seed(0)
    return float(noise_error(model, codes.repeat(16, 1), settings.levels, random))
