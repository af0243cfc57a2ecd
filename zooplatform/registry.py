"""The registry: everything that the loaded plugins provide, by kind."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zooplatform.backends import (
    Backends,
    Contribution,
    PluginInfo,
    missing_requirements,
    not_provided,
)
from zooplatform.descriptors import KINDS
from zooplatform.errors import PluginConflictError, UnknownBackendError
from zooplatform.interfaces import BackendSpec, SqlView

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pluggy

    from zooplatform.catalog import Catalog
    from zooplatform.ingest import IngestReport
    from zooplatform.interfaces import (
        ArchitectureAdapter,
        ArchitectureSpec,
        CommandSpec,
        Generator,
        GeneratorSpec,
        PopulationSource,
        Predictor,
        PredictorSpec,
        PropertySpec,
        Source,
        SourceSpec,
        SqlFunction,
        Tokenizer,
        TokenizerSpec,
    )

__all__ = ["Registry"]

log = logging.getLogger(__name__)


class Registry:
    """Everything that the plugins of one `load_plugins` call provide.

    Attributes:
        plugins: one `PluginInfo` per plugin that was found, loaded or not, sorted by name.
        sources, architectures, tokenizers, predictors, generators: backends by name.
        properties, sql, commands: (owner, descriptor) pairs, sorted by name. A SQL name that two
            plugins claim appears as `plugin_name`, and the bare name as one that says so when it
            is used; of commands that clash, each appears as `plugin-name`.
    """

    def __init__(
        self,
        plugins: Sequence[PluginInfo],
        contributions: Sequence[Contribution],
        manager: pluggy.PluginManager,
    ) -> None:
        self.plugins: tuple[PluginInfo, ...] = tuple(plugins)
        self._contributions = contributions
        self._manager = manager
        self.sources: Backends[SourceSpec, Source | PopulationSource] = self._backends("source")
        self.architectures: Backends[ArchitectureSpec, ArchitectureAdapter] = self._backends(
            "architecture"
        )
        self.tokenizers: Backends[TokenizerSpec, Tokenizer] = self._backends("tokenizer")
        self.predictors: Backends[PredictorSpec, Predictor] = self._backends("predictor")
        self.generators: Backends[GeneratorSpec, Generator] = self._backends("generator")
        self._properties: Backends[PropertySpec, Callable[..., float | None]] = self._backends(
            "property"
        )
        self.properties: tuple[tuple[str, PropertySpec], ...] = tuple(
            (self._properties.owner(name).name, self._properties.spec(name))
            for name in self._properties
        )
        self.sql: tuple[tuple[str, SqlFunction | SqlView], ...] = _sql(self._given("sql"))
        self.commands: tuple[tuple[str, CommandSpec], ...] = _commands(self._given("command"))

    def plugin(self, name: str) -> PluginInfo:
        """The plugin called `name`, whatever its status.

        Raises:
            UnknownBackendError: there is none.
        """
        for plugin in self.plugins:
            if plugin.name == name:
                return plugin
        raise UnknownBackendError(
            "plugin", name, [item.name for item in self.plugins], hint="Run `zoo plugins`."
        )

    def defects(self, plugin: str) -> tuple[str, ...]:
        """What a loaded plugin provides that cannot be used as it is, each with the repair."""
        found: list[str] = []
        for item in self._contributions:
            if item.owner != plugin or not isinstance(item.spec, BackendSpec):
                continue
            kind, name = item.kind.name, item.spec.name
            missing = missing_requirements(item.spec)
            if missing:
                install = item.spec.install or f"pip install {' '.join(missing)}"
                found.append(f"{kind} {name!r} needs {', '.join(missing)}. Run `{install}`.")
            others = sorted(
                other.owner
                for other in self._contributions
                if other.owner != plugin and (other.kind, other.spec.name) == (item.kind, name)
            )
            if others:
                # References name a scheme, not a source, so for these there is nothing else to write.
                instead = "Turn" if kind == "source" else f"Write {f'{plugin}/{name}'!r}, or turn"
                found.append(
                    f"{kind} {name!r} is given by {', '.join(map(repr, others))} too. "
                    f"{instead} one off with ZOO_DISABLE_PLUGINS."
                )
        return tuple(found)

    def provided_by(self, plugin: str) -> tuple[tuple[str, Any], ...]:
        """(kind, descriptor) of everything that `plugin` registered, in the order given."""
        given = self._contributions
        return tuple((item.kind.name, item.spec) for item in given if item.owner == plugin)

    def source_for_scheme(self, scheme: str) -> tuple[SourceSpec, Source | PopulationSource]:
        """The source behind `scheme:` and a new instance of it.

        Raises:
            PluginConflictError: several sources claim the scheme.
            UnknownBackendError, PluginError, NotInstalledError: as for `Backends.create`.
        """
        specs = [spec for spec in self.sources.specs() if spec.scheme == scheme]
        if len(specs) > 1:
            owners = ", ".join(f"{self.sources.owner(s.name).name} ({s.name})" for s in specs)
            names = ", ".join(self.sources.owner(s.name).name for s in specs)
            raise PluginConflictError(
                f"Scheme {scheme!r} is claimed by several sources: {owners}. Turn all but one of "
                f"these plugins off: ZOO_DISABLE_PLUGINS, of {names}."
            )
        if not specs:
            known = [spec.scheme for spec in self.sources.specs()]
            raise not_provided("source scheme", scheme, known, self.plugins)
        return specs[0], self.sources.create(specs[0].name)

    def property_function(self, name: str) -> Callable[..., float | None]:
        """The function `compute(state, layers)` of property `name`.

        Raises:
            As `Backends.create`.
        """
        return self._properties.create(name)

    @property
    def hears_of_models(self) -> bool:
        """Whether any plugin implements `zoo_model_ingested`."""
        return bool(self._manager.hook.zoo_model_ingested.get_hookimpls())

    def notify_model_ingested(self, catalog: Catalog, model_id: str, report: IngestReport) -> None:
        """Tell every plugin of a model; what a plugin raises is logged with its name."""
        plugins = self._manager.get_plugins()
        for owner, plugin in self._manager.list_name_plugin():
            hook = self._manager.subset_hook_caller("zoo_model_ingested", plugins - {plugin})
            try:
                hook(catalog=catalog, model_id=model_id, report=report)
            except Exception:  # a plugin's failure must not undo a durable commit
                log.warning(
                    "plugin %r failed in zoo_model_ingested for model %s; the model is stored. "
                    "Go on without the plugin: ZOO_DISABLE_PLUGINS=%s",
                    owner,
                    model_id,
                    owner,
                    exc_info=True,
                )

    def _given(self, kind: str) -> list[tuple[str, Any]]:
        return [(item.owner, item.spec) for item in self._contributions if item.kind.name == kind]

    def _backends(self, kind: str) -> Backends[Any, Any]:
        found = next(item for item in KINDS if item.name == kind)
        return Backends(found, self._given(kind), self.plugins)


def _clashing(given: list[tuple[str, Any]]) -> dict[str, list[str]]:
    owners: dict[str, list[str]] = defaultdict(list)
    for owner, spec in given:
        owners[spec.name].append(owner)
    return {name: sorted(both) for name, both in owners.items() if len(both) > 1}


def _sql(given: list[tuple[str, Any]]) -> tuple[tuple[str, SqlFunction | SqlView], ...]:
    """SQL descriptors with clashing names qualified, and the bare names made to explain that."""
    clashes = _clashing(given)
    found: list[tuple[str, SqlFunction | SqlView]] = []
    for owner, spec in sorted(given, key=lambda item: (item[1].name, item[0])):
        if spec.name not in clashes:
            found.append((owner, spec))
            continue
        found.append((owner, replace(spec, name=_sql_name(owner, spec.name))))
        owners = clashes[spec.name]
        if owner == owners[-1]:
            instead = ", ".join(_sql_name(item, spec.name) for item in owners)
            text = f"{spec.name} is provided by several plugins. Write one of: {instead}."
            call = f"error('{text}')"
            if isinstance(spec, SqlView):
                call = f"SELECT {call} AS {spec.name}"
            stub = replace(spec, sql=call, summary=text)
            found.append((owner, stub))
    return tuple(found)


def _sql_name(owner: str, name: str) -> str:
    return f"{owner.lower().replace('-', '_').replace('.', '_')}_{name}"


def _commands(given: list[tuple[str, Any]]) -> tuple[tuple[str, CommandSpec], ...]:
    clashes = _clashing(given)
    return tuple(
        (owner, replace(spec, name=f"{owner}-{spec.name}") if spec.name in clashes else spec)
        for owner, spec in sorted(given, key=lambda item: (item[1].name, item[0]))
    )
