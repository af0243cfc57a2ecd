"""Networks of one linear layer called `sketch`."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from zooplatform.errors import ArchitectureError
from zooplatform.interfaces import LayerSpec

NAMES = ["sketch.weight", "sketch.bias"]


class SketchAdapter:
    def matches(self, header):
        return [tensor.name for tensor in header.tensors] == NAMES

    def describe(self, header):
        outputs, inputs = header.tensors[0].shape
        return {
            "family": "sketch",
            "name": f"sketch-{inputs}-{outputs}",
            "config": {"inputs": inputs, "outputs": outputs},
        }

    def layers(self, header):
        return (LayerSpec(0, "sketch", "linear", tuple(NAMES)),)

    def to_canonical(self, state):
        unknown = sorted(set(state) - set(NAMES))
        if unknown:
            raise ArchitectureError(f"A sketch has no tensors {', '.join(unknown)}.")
        return dict(state)

    def from_canonical(self, state, *, layout):
        return {tensor.name: state[tensor.name] for tensor in layout}

    def build(self, config):
        if set(config) != {"inputs", "outputs"}:
            raise ArchitectureError(f"A sketch needs `inputs` and `outputs`; given: {config}.")
        layer = nn.Linear(config["inputs"], config["outputs"])
        return nn.Sequential(OrderedDict(sketch=layer))
