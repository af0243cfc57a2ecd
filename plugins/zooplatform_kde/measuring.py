"""Networks as modules: their weights as a vector, and how well they do on training images.

Legend for shapes: B networks, P values of one, N images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from zooplatform import load_plugins

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from zooplatform.fitting import Blueprint, TaskImages
    from zooplatform.interfaces import StateDict

__all__ = ["Judge", "adapter_of", "quietly", "vector_of"]


def vector_of(module: nn.Module, blueprint: Blueprint) -> torch.Tensor:
    """(P,) float32 the weights of a network that was built from the blueprint."""
    vector = blueprint.vector
    state: StateDict = module.state_dict()
    if list(state) != [spec.name for spec in vector.layout]:
        state = adapter_of(blueprint).from_canonical(state, layout=vector.layout)
    parts = [state[f.spec.name].flatten().float() for f in vector.fields if not f.aside]
    return torch.cat(parts) if parts else torch.zeros(0)


class Judge:
    """Measures the cross-entropy of networks of one blueprint on fixed images.

    Args:
        blueprint: of the networks.
        x, y: N images and their classes.
        module: any network of the blueprint; its own weights are never used.
    """

    def __init__(
        self, blueprint: Blueprint, x: torch.Tensor, y: torch.Tensor, module: nn.Module
    ) -> None:
        self.x, self.y = x, y
        self._module = module.eval()
        self._fields = [field for field in blueprint.vector.fields if not field.aside]
        own = list(module.state_dict())
        same = own == [spec.name for spec in blueprint.vector.layout]
        self._named: Callable[[StateDict], StateDict] = (
            (lambda state: state) if same else adapter_of(blueprint).to_canonical
        )

    @classmethod
    def of(
        cls,
        blueprint: Blueprint,
        images: TaskImages,
        most: int,
        build: Callable[[Blueprint], nn.Module],
    ) -> Judge:
        """On the first `most` of the training images; their order was drawn when they were prepared."""
        return cls(blueprint, images.x[:most], images.y[:most], quietly(build, blueprint))

    @classmethod
    def again(cls, blueprint: Blueprint, x: torch.Tensor, y: torch.Tensor) -> Judge:
        """With a network built by the architecture adapter of the blueprint.

        Raises:
            UnknownBackendError: no plugin provides the adapter.
        """
        adapter = adapter_of(blueprint)
        return cls(blueprint, x, y, quietly(lambda one: adapter.build(one.config), blueprint))

    @torch.no_grad()
    def losses(self, weights: torch.Tensor) -> torch.Tensor:
        """(B,) float32 mean cross-entropy; infinite for networks whose outputs are not finite."""
        found = []
        for row in weights:
            state = {
                f.spec.name: row[f.offset : f.offset + f.spec.num_elements].view(f.spec.shape)
                for f in self._fields
            }
            outputs = torch.func.functional_call(self._module, self._named(state), (self.x,))
            found.append(torch.nn.functional.cross_entropy(outputs.float(), self.y))
        return torch.stack(found).nan_to_num(torch.inf, torch.inf, torch.inf)


def adapter_of(blueprint: Blueprint) -> Any:
    """The architecture adapter of a blueprint."""
    return load_plugins().architectures.create(blueprint.family)


def quietly(build: Callable[[Blueprint], nn.Module], blueprint: Blueprint) -> nn.Module:
    """A network, with the random numbers that its constructor draws given back."""
    with torch.random.fork_rng(devices=[]):
        return build(blueprint)
