"""The network of a checkpoint as a torch module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zooplatform.errors import ArchitectureError
from zooplatform.interfaces import CheckpointHeader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from zooplatform.catalog.catalog import Catalog

__all__ = ["build_network"]


def build_network(catalog: Catalog, checkpoint: str, config: Mapping[str, Any] | None) -> nn.Module:
    """As `Catalog.build`; `checkpoint` is the full id."""
    reader = catalog.reader
    architecture, name, known = reader.description(checkpoint)
    if config is not None:
        layout = reader.vector(architecture).layout
        header = CheckpointHeader(tensors=layout, format="", config=config)
        described, _ = catalog.recogniser.describe(header)
        name, known = described.get("adapter"), described.get("config") or {}
    if name is None:
        raise ArchitectureError(
            f"Checkpoint {checkpoint}: no architecture adapter recognised it, so it cannot be built. Its tensors "
            "are in `Catalog.state_dict`; a plugin with zoo_register_architectures can teach the catalog to build "
            "it."
        )
    adapter = catalog.recogniser.adapter(name)
    try:
        module = adapter.build(known)
    except ArchitectureError as exc:
        fits = "" if config is None else f" No adapter knows it by {dict(config)} either."
        raise ArchitectureError(f"Checkpoint {checkpoint}: {exc}{fits}") from exc
    try:
        module.load_state_dict(adapter.to_canonical(reader.state_dict(checkpoint)), strict=True)
    except RuntimeError as exc:
        raise ArchitectureError(
            f"Checkpoint {checkpoint}: the weights do not fit the network that adapter {name!r} built: {exc}"
        ) from exc
    return module.eval()
