"""Finding and loading plugins: one broken plugin is a status, never the end of the program.

A plugin is an entry point of the group `zooplatform`; its module (or an object of it) carries the
hook implementations of `zooplatform.hookspecs`. It may say which version of the interface it was
written for, `ZOO_API = "1"`; one that does not say is taken to be written for version 1.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

import pluggy

from zooplatform import hookspecs
from zooplatform.backends import Backends, Contribution, PluginInfo, Status
from zooplatform.config import Settings, load_settings
from zooplatform.descriptors import KINDS, check_descriptor
from zooplatform.errors import PluginIncompatibleError
from zooplatform.hookspecs import HOST, ZOO_API
from zooplatform.registry import Registry

__all__ = ["Backends", "PluginInfo", "Registry", "Status", "load_plugins"]

log = logging.getLogger(__name__)


class _Refused(Exception):
    """Why a plugin is not loaded, in words for the user."""


class _Found(NamedTuple):
    """One entry point and the distribution that declares it."""

    point: EntryPoint
    distribution: str
    version: str


def load_plugins(
    allow: Iterable[str] | None = None,
    deny: Iterable[str] | None = None,
    strict: bool | None = None,
) -> Registry:
    """Find every installed plugin and load those that are wanted.

    What is not given comes from the settings (`ZOO_PLUGINS`, `ZOO_DISABLE_PLUGINS`,
    `ZOO_STRICT_PLUGINS`). Each call makes a registry of its own.

    Args:
        allow: names of the only plugins to load; empty loads none.
        deny: names of plugins that are not even imported.
        strict: raise for the first plugin that does not load.

    Raises:
        PluginError: with `strict`, one of its kinds, by the status that the plugin would have.
        ConfigError: a setting has an unusable value.
    """
    settings = load_settings(plugins=allow, disable_plugins=deny, strict_plugins=strict)
    manager = pluggy.PluginManager(HOST)
    manager.add_hookspecs(hookspecs)
    trace = _tracing(manager) if settings.trace_plugins else _silent

    plugins: list[PluginInfo] = []
    contributions: list[Contribution] = []
    for name, found in _installed(settings).items():
        start = time.perf_counter()
        info, given = _load(manager, settings, name, found)
        plugins.append(info)
        contributions.extend(given)
        trace(f"plugin {name}: {info.status} in {(time.perf_counter() - start) * 1e3:.1f} ms\n")
        if info.status in ("failed", "incompatible", "conflict"):
            if settings.strict_plugins:
                raise info.exception()
            log.warning("%s", info.exception())
    return Registry(plugins, contributions, manager)


def _installed(settings: Settings) -> dict[str, list[_Found]]:
    """Entry points by plugin name, sorted; a name that is only asked for has an empty list."""
    names: dict[str, list[_Found]] = defaultdict(list)
    for point in entry_points(group=HOST):
        distribution, version = (point.dist.name, point.dist.version) if point.dist else ("", "")
        # An editable install and its build folder can both list one distribution.
        if not any(
            (f.distribution, f.point.value) == (distribution, point.value)
            for f in names[point.name]
        ):
            names[point.name].append(_Found(point, distribution, version))
    for found in names.values():
        found.sort(key=lambda item: item.distribution)
    for name in settings.plugins or ():
        names.setdefault(name, [])
    return dict(sorted(names.items()))


def _load(
    manager: pluggy.PluginManager, settings: Settings, name: str, found: list[_Found]
) -> tuple[PluginInfo, list[Contribution]]:
    """What becomes of plugin `name`; nothing of it stays registered unless all of it is well."""
    info = PluginInfo(
        name=name,
        distribution=", ".join(item.distribution for item in found),
        version=", ".join(item.version for item in found),
        entry_point=found[0].point.value if found else "",
        status="failed",
    )

    def ended(
        status: Status, error: str, cause: BaseException | None = None, **more: Any
    ) -> PluginInfo:
        values = {
            item: getattr(info, item) for item in ("name", "distribution", "version", "entry_point")
        }
        return PluginInfo(
            **(values | more), status=status, error=" ".join(error.split()), cause=cause
        )

    if name in settings.disable_plugins:
        return ended(
            "disabled", f"It is turned off (ZOO_DISABLE_PLUGINS); take {name!r} out to load it."
        ), []
    if settings.plugins is not None and name not in settings.plugins:
        if not settings.plugins:
            return ended(
                "disabled",
                "No plugin was to be loaded: leave out --no-plugins and an empty ZOO_PLUGINS to load it.",
            ), []
        return ended(
            "disabled", f"It is not in the allow-list (ZOO_PLUGINS); add {name!r} to load it."
        ), []
    if not found:
        return ended("failed", _not_installed(name)), []
    if len(found) > 1:
        both = " and ".join(f"{item.distribution} {item.version}" for item in found)
        # Whoever takes the name of a built-in plugin goes, not the host itself.
        guests = [item for item in found if item.distribution != HOST] or found
        remove = " or ".join(
            f"`pip uninstall {item}`" for item in dict.fromkeys(f.distribution for f in guests)
        )
        return ended("conflict", f"{both} both claim the plugin name {name!r}. Run {remove}."), []

    point, distribution, _ = found[0]
    repair = _repair(name, distribution)
    plugin: Any = None
    api = ""
    try:
        plugin = point.load()
        if inspect.isclass(plugin):
            raise _Refused(
                f"its entry point {point.value!r} is the class {plugin.__name__}; "
                "it must name a module or an instance"
            )
        api = str(getattr(plugin, "ZOO_API", "1"))
        if api != ZOO_API:
            raise PluginIncompatibleError(
                f"it was written for version {api} of the plugin interface; "
                f"this is version {ZOO_API}"
            )
        manager.register(plugin, name)
        hooks = _known_hooks(manager, plugin)
        given = _contributions(manager, name, plugin)
    # SystemExit too: a script that is declared as a plugin by mistake ends in sys.exit().
    except (Exception, SystemExit) as error:
        if manager.has_plugin(name):
            manager.unregister(name=name)
        log.debug("plugin %r", name, exc_info=True)
        if isinstance(error, PluginIncompatibleError):
            return ended("incompatible", f"{_sentence(str(error))} {repair}", error, api=api), []
        return ended("failed", f"{_sentence(_words(error))} {repair}", error, api=api), []
    provides = tuple(
        f"{item.kind.name}:{getattr(item.spec, 'scheme', item.spec.name)}" for item in given
    )
    return ended("loaded", "", api=api, hooks=hooks, provides=provides), given


def _known_hooks(manager: pluggy.PluginManager, plugin: object) -> tuple[str, ...]:
    """Names of the hooks that `plugin` implements; refuses those that nobody would ever call."""
    known = [name for name in dir(hookspecs) if name.startswith("zoo_")]
    callers = manager.get_hookcallers(plugin) or []
    for caller in callers:
        if not caller.has_spec():
            close = difflib.get_close_matches(caller.name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise _Refused(f"it implements {caller.name!r}, which is not a hook{hint}")
    hooks = tuple(sorted(caller.name for caller in callers))
    for name in known:
        if name not in hooks and callable(getattr(plugin, name, None)):
            raise _Refused(f"its {name} is not marked with @hookimpl, so it would never be called")
    return hooks


def _contributions(manager: pluggy.PluginManager, name: str, plugin: object) -> list[Contribution]:
    """Ask this plugin alone for its descriptors and check each."""
    given: list[Contribution] = []
    others = manager.get_plugins() - {plugin}
    for kind in KINDS:
        caller = manager.subset_hook_caller(kind.hook, others)
        implementations = caller.get_hookimpls()
        if any(item.wrapper or item.hookwrapper for item in implementations):
            raise _Refused(f"its {kind.hook} is a wrapper; return descriptors")
        results = caller()
        # pluggy leaves None out of the results, so one that is missing was a None.
        if len(results) < len(implementations):
            raise _Refused(f"its {kind.hook} returned None; return a list of descriptors")
        names: set[str] = set()
        for result in results:
            if not isinstance(result, Iterable):
                raise _Refused(
                    f"its {kind.hook} returned {result!r:.60} ({type(result).__name__}); "
                    "return a list of descriptors"
                )
            for spec in result:
                try:
                    check_descriptor(kind, spec)
                except ValueError as error:
                    raise _Refused(str(error)) from error
                if spec.name in names:
                    raise _Refused(f"its {kind.hook} gave the name {spec.name!r} twice")
                names.add(spec.name)
                given.append(Contribution(name, kind, spec))
    return given


def _words(error: BaseException) -> str:
    """An exception with the place in the plugin where it arose."""
    if isinstance(error, _Refused):
        return str(error)
    if isinstance(error, pluggy.PluginValidationError):
        # pluggy raises it with its own place and names arguments in the order of a set.
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith("<frozen")]
    place = own[-1] if own else None
    # The last frame is ours or importlib's when the plugin's own module was not found.
    outside = place is None or place.filename == __file__ or "importlib" in place.filename
    where = "" if outside or place is None else f" ({place.filename}:{place.lineno})"
    return f"{type(error).__name__}: {str(error).rstrip('.') or 'no message'}{where}"


def _sentence(text: str) -> str:
    return text if text.endswith(("?", "!", ".")) else f"{text}."


def _repair(name: str, distribution: str) -> str:
    again = (
        f"Run `pip install --force-reinstall {HOST}` (in a checkout: `pip install -e .`)"
        if distribution == HOST
        else f"Run `pip install --upgrade {distribution or name}`"
    )
    return f"{again}, or go on without it: ZOO_DISABLE_PLUGINS={name}"


def _not_installed(name: str) -> str:
    known = sorted(point.name for point in entry_points(group=HOST))
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"Run `pip install {HOST}-{name}`."
    return (
        f"ZOO_PLUGINS asks for it, but no installed distribution has a plugin of this name. {hint}"
    )


def _tracing(manager: pluggy.PluginManager) -> Callable[[str], object]:
    """Write pluggy's own trace and ours to stderr."""
    manager.trace.root.setwriter(sys.stderr.write)
    manager.enable_tracing()
    return sys.stderr.write


def _silent(text: str) -> None:
    """Trace nothing."""
