"""Values that plugins compute from the weights of every checkpoint that comes in."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from zooplatform.errors import PluginError
from zooplatform.interfaces import MetricRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zooplatform.interfaces import LayerSpec, StateDict
    from zooplatform.registry import Registry

__all__ = ["LIMIT_BYTES", "Properties"]

log = logging.getLogger(__name__)

# A property sees the whole network at once, so for larger checkpoints ingest would no longer run in bounded memory.
LIMIT_BYTES = 1 << 30


class Properties:
    """The properties of the loaded plugins; one that fails is logged and left out, the checkpoint is stored."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._functions: list[tuple[str, str, Callable[..., object]]] | None = None

    def __bool__(self) -> bool:
        return bool(self._registry.properties)

    def measure(self, state: StateDict, layers: Sequence[LayerSpec]) -> list[MetricRecord]:
        """Every property of one network, as `measured` metrics; those that do not exist for it are left out."""
        found = []
        for owner, name, function in self._load():
            try:
                given = function(state, tuple(layers))
                # What is no number is the plugin's bug as much as what it raises.
                value = None if given is None else float(given)  # type: ignore[arg-type]
            except Exception as exc:  # noqa: BLE001 - a plugin's bug must not keep a checkpoint out
                log.warning(
                    "property %r of plugin %r failed and is left out: %s: %s",
                    name,
                    owner,
                    type(exc).__name__,
                    exc,
                )
                continue
            if value is not None and not math.isnan(value):
                found.append(MetricRecord(name=name, value=value, origin="measured"))
        return found

    def _load(self) -> list[tuple[str, str, Callable[..., object]]]:
        if self._functions is None:
            self._functions = []
            for owner, spec in self._registry.properties:
                try:
                    function = self._registry.property_function(spec.name)
                    self._functions.append((owner, spec.name, function))
                except (PluginError, ImportError) as exc:
                    log.warning("property %r of plugin %r is left out: %s", spec.name, owner, exc)
        return self._functions
