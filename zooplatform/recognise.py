"""Finds out what a layout is, by asking the architecture adapters."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from zooplatform.errors import ArchitectureError, PluginError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zooplatform.interfaces import ArchitectureAdapter, CheckpointHeader, LayerSpec
    from zooplatform.registry import Registry

__all__ = ["Recogniser"]

log = logging.getLogger(__name__)


class Recogniser:
    """Asks the adapters in order of specificity; keeps the instances it makes."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._made: dict[str, ArchitectureAdapter] = {}

    def adapter(self, name: str) -> ArchitectureAdapter:
        """The adapter called `name`.

        Raises:
            UnknownBackendError, PluginError, NotInstalledError: it is not there.
        """
        if name not in self._made:
            self._made[name] = self._registry.architectures.create(name)
        return self._made[name]

    def describe(
        self, header: CheckpointHeader, adapter: str | None = None
    ) -> tuple[Mapping[str, Any], Sequence[LayerSpec]]:
        """`adapter`, `family`, `name`, `config` of a header and its layers; empty when no adapter knows it.

        Args:
            header: names, shapes and dtypes.
            adapter: ask this one only, because the source says whose the network is.
        """
        if adapter is not None:
            chosen = self.adapter(adapter)
            return {"adapter": adapter, **chosen.describe(header)}, chosen.layers(header)
        specs = sorted(self._registry.architectures.specs(), key=lambda s: (-s.specificity, s.name))
        for spec in specs:
            try:
                candidate = self.adapter(spec.name)
                if candidate.matches(header):
                    return {"adapter": spec.name, **candidate.describe(header)}, candidate.layers(
                        header
                    )
            except (ArchitectureError, PluginError, ImportError) as exc:
                # One adapter that fails must not keep a checkpoint out: the next, more general one is asked.
                log.warning("architecture adapter %r could not be asked: %s", spec.name, exc)
        return {}, ()
