"""Backends by name: what plugins provide, an instance of it, or the reason why there is none."""

from __future__ import annotations

import importlib
import inspect
from collections import defaultdict
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from zooplatform.descriptors import Kind, missing_methods
from zooplatform.errors import (
    NotInstalledError,
    PluginConflictError,
    PluginError,
    PluginIncompatibleError,
    PluginLoadError,
    UnknownBackendError,
    ZooError,
)
from zooplatform.interfaces import BackendSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = [
    "Backends",
    "Contribution",
    "PluginInfo",
    "Status",
    "missing_requirements",
    "not_provided",
]

Status: TypeAlias = Literal["loaded", "disabled", "failed", "incompatible", "conflict"]

_OUTCOMES: dict[Status, tuple[type[PluginError], str]] = {
    "loaded": (PluginError, "is loaded"),
    "disabled": (PluginError, "is disabled"),
    "failed": (PluginLoadError, "did not load"),
    "incompatible": (PluginIncompatibleError, "is incompatible"),
    "conflict": (PluginConflictError, "is in conflict"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginInfo:
    """What became of one plugin.

    Attributes:
        name: the key of its entry point.
        distribution: what pip calls the package that brings it; several, joined by commas, when
            they claim one name; empty when no installed distribution has it.
        api: the version of the plugin interface that it was written for.
        entry_point: what the entry point names, `module` or `module:object`.
        hooks: the hooks that it implements.
        provides: what it registered, as `kind:name`; a source by its scheme.
        error: why it is not loaded and the command that repairs it, on one line; else empty.
        cause: the exception behind `error`, where there is one.
    """

    name: str
    distribution: str
    version: str
    status: Status
    api: str = ""
    entry_point: str = ""
    hooks: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()
    error: str = ""
    cause: BaseException | None = field(default=None, repr=False, compare=False)

    def exception(self, prefix: str = "") -> PluginError:
        """The error that stands for this plugin when something of it is wanted."""
        kind, outcome = _OUTCOMES[self.status]
        label = f"{'plugin' if prefix else 'Plugin'} {self.name!r}"
        by = self.distribution or "not installed"
        error = kind(f"{prefix}{label} ({by}) {outcome}: {self.error}")
        error.__cause__ = self.cause
        return error


class Contribution(NamedTuple):
    """One descriptor and the plugin that gave it."""

    owner: str
    kind: Kind
    spec: Any


S = TypeVar("S", bound=BackendSpec)
T = TypeVar("T")


class Backends(Generic[S, T]):
    """The backends of one kind, by name.

    A name that one plugin provides is used as it is. A name that several provide has to be
    qualified, `plugin/name`; qualified names work for every backend.
    """

    def __init__(
        self, kind: Kind, given: Iterable[tuple[str, S]], plugins: Sequence[PluginInfo]
    ) -> None:
        self._kind = kind
        self._plugins = plugins
        by_name: dict[str, list[tuple[str, S]]] = defaultdict(list)
        for owner, spec in given:
            by_name[spec.name].append((owner, spec))
        self._usable: dict[str, tuple[str, S]] = {}
        self._qualified: dict[str, tuple[str, S]] = {}
        self._clashes: dict[str, list[str]] = {}
        for name, entries in sorted(by_name.items()):
            for owner, spec in entries:
                qualified = f"{owner}/{name}"
                if len(entries) > 1:
                    # The spec carries the name that works, so that create(spec.name) always does.
                    self._usable[qualified] = (owner, replace(spec, name=qualified))
                    self._clashes.setdefault(name, []).append(qualified)
                else:
                    self._usable[name] = (owner, spec)
                self._qualified[qualified] = self._usable.get(qualified, (owner, spec))

    def names(self) -> tuple[str, ...]:
        """The names that work, sorted; clashing ones qualified."""
        return tuple(self._usable)

    def specs(self) -> tuple[S, ...]:
        """One descriptor per name of `names()`, with that name."""
        return tuple(spec for _, spec in self._usable.values())

    def owner(self, name: str) -> PluginInfo:
        """The plugin that provides `name`."""
        owner, _ = self._entry(name)
        return next(plugin for plugin in self._plugins if plugin.name == owner)

    def spec(self, name: str) -> S:
        """The descriptor of `name`.

        Raises:
            PluginConflictError: several plugins provide the bare name.
            PluginError: the plugin that provides it is disabled or did not load.
            UnknownBackendError: no plugin provides it.
        """
        return self._entry(name)[1]

    def create(self, name: str) -> T:
        """A new instance of backend `name`.

        Raises:
            NotInstalledError: a library that it requires is missing; holds the pip line.
            PluginLoadError: its factory cannot be imported, fails, or gives something else.
            PluginError: as for `spec`.
        """
        owner, spec = self._entry(name)
        label = f"{self._kind.name.capitalize()} {spec.name!r} of plugin {owner!r}"
        instance: T = instantiate(label, owner, spec, self._kind.interface(spec))
        return instance

    def __contains__(self, name: object) -> bool:
        return name in self._usable or name in self._qualified

    def __iter__(self) -> Iterator[str]:
        return iter(self._usable)

    def __len__(self) -> int:
        return len(self._usable)

    def __repr__(self) -> str:
        return f"Backends({self._kind.name}: {', '.join(self._usable) or 'none'})"

    def _entry(self, name: str) -> tuple[str, S]:
        found = self._usable.get(name) or self._qualified.get(name)
        if found is not None:
            return found
        if name in self._clashes:
            raise PluginConflictError(
                f"{self._kind.name.capitalize()} {name!r} is provided by several plugins. "
                f"Write one of: {', '.join(self._clashes[name])}."
            )
        raise not_provided(self._kind.name, name, self._usable, self._plugins)


def instantiate(label: str, owner: str, spec: BackendSpec, interface: type | None) -> Any:
    """Import the factory of `spec` and call it without arguments.

    A property's factory may be the plain function itself: only classes are called for it.
    """
    missing = missing_requirements(spec)
    if missing:
        install = spec.install or f"pip install {' '.join(missing)}"
        raise NotInstalledError(label, missing, install)
    remedy = f"Run `zoo plugins show {owner}`."
    try:
        module, _, path = spec.factory.partition(":")
        factory: Any = importlib.import_module(module)
        for part in path.split("."):
            factory = getattr(factory, part)
        is_function = interface is None and not inspect.isclass(factory)
        instance = factory if is_function else factory()
    except ZooError:
        raise
    except Exception as error:
        raise PluginLoadError(
            f"{label} cannot be made from {spec.factory!r}: {type(error).__name__}: {error}. "
            f"{remedy}"
        ) from error
    if inspect.isclass(instance) or not (interface or callable(instance)):
        wrong = "the class" if inspect.isclass(instance) else "a"
        name = instance.__name__ if inspect.isclass(instance) else type(instance).__name__
        raise PluginLoadError(
            f"{label}: {spec.factory!r} gave {wrong} {name} in place of "
            f"{'an instance' if interface else 'a function'}. {remedy}"
        )
    lacking = missing_methods(interface, instance) if interface else []
    if interface and lacking:
        raise PluginLoadError(
            f"{label}: {type(instance).__name__} from {spec.factory!r} is no "
            f"{interface.__name__}; it lacks {', '.join(lacking)}. {remedy}"
        )
    return instance


def missing_requirements(spec: BackendSpec) -> tuple[str, ...]:
    """The import names in `spec.requires` that are not installed; nothing is imported."""
    return tuple(name for name in spec.requires if not _importable(name))


def not_provided(
    kind: str, name: str, known: Iterable[str], plugins: Sequence[PluginInfo]
) -> PluginError:
    """The error for a name that no loaded plugin provides.

    Where a plugin that is not loaded would provide it, the error is about that plugin.
    """
    absent = [plugin for plugin in plugins if plugin.status != "loaded"]
    owner, _, bare = name.rpartition("/")
    for plugin in absent:
        if plugin.name == owner or (not owner and _speaks_of(plugin, bare)):
            return plugin.exception(f"{kind.capitalize()} {name!r} is not available: ")
    broken = [f"{plugin.name!r} ({plugin.error})" for plugin in absent if plugin.cause]
    hint = f"Plugins that did not load may provide it: {'; '.join(broken)}" if broken else ""
    return UnknownBackendError(kind, name, known, hint=hint)


def _speaks_of(plugin: PluginInfo, name: str) -> bool:
    """Whether the source text of a plugin that is not loaded names `name` as a string.

    The only way to know without running code that is disabled or broken.
    """
    if plugin.name == name:
        return True
    top, *rest = plugin.entry_point.partition(":")[0].split(".")
    try:
        found = find_spec(top) if top else None
    except (ImportError, ValueError):
        found = None
    if found is None:
        return False
    if not rest:
        files = [Path(found.origin)] if found.origin else []
    else:
        bases = [Path(base, *rest) for base in found.submodule_search_locations or ()]
        files = [path for b in bases for path in (b.with_suffix(".py"), b / "__init__.py")]
    for file in files:
        if file.is_file() and file.suffix == ".py":
            text = file.read_text(encoding="utf-8", errors="replace")
            if f'"{name}"' in text or f"'{name}'" in text:
                return True
    return False


def _importable(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False
