"""`zoo plugins`: what is installed, what became of it, and how to begin one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zooplatform.cli import COMMANDS
from zooplatform.cli._options import json_option, note_options
from zooplatform.cli._output import out
from zooplatform.cli._session import get_session
from zooplatform.interfaces import BackendSpec, SourceSpec
from zooplatform.plugin_scaffold import PROJECT_KINDS, write_project

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zooplatform.plugins import PluginInfo
    from zooplatform.registry import Registry

__all__ = ["plugins"]


@click.group(invoke_without_command=True)
@click.option(
    "--requirements",
    is_flag=True,
    help="Print the distributions of plugins, pinned, as pip reads them. [default: off]",
)
@json_option
@note_options
@click.pass_context
def plugins(ctx: click.Context, requirements: bool, as_json: bool) -> None:
    """List plugins and what they provide.

    Works whatever is wrong with any of them; a plugin that did not load shows why, and the command
    that repairs it.

    \b
    zoo plugins
    zoo plugins --json
    zoo plugins --requirements > plugins.txt
    zoo plugins show local
    zoo plugins new source my-store
    """
    if ctx.invoked_subcommand is not None:
        if requirements or as_json:
            raise click.UsageError("Options go after the sub-command.")
        return
    registry = get_session().registry
    found = registry.plugins
    if requirements:
        for line in _requirements(found):
            out.line(line)
    elif as_json:
        out.data([_as_dict(plugin, registry) for plugin in found])
    else:
        out.table(
            [(p.name, p.status, p.distribution, p.version, ", ".join(p.provides)) for p in found],
            ("name", "status", "distribution", "version", "provides"),
        )
        for plugin in found:
            error = _error(plugin, registry)
            if error and plugin.status != "disabled":
                out.line(f"\n{plugin.name} ({plugin.distribution or 'not installed'}): {error}")


@plugins.command()
@click.argument("name")
@json_option
@note_options
def show(name: str, as_json: bool) -> None:
    """Show one plugin: its hooks and everything that it provides.

    \b
    zoo plugins show local
    zoo plugins show local --json
    """
    registry = get_session().registry
    plugin = registry.plugin(name)
    provided = [_provided(kind, spec) for kind, spec in registry.provided_by(name)]
    for row in provided:
        if row["kind"] == "command":
            row["name"] = f"zoo {_as_typed(name, row['name'], registry)}"
    values = _as_dict(plugin, registry)
    if as_json:
        out.data({**values, "descriptors": provided})
        return
    joined = ((k, ", ".join(v) if isinstance(v, list) else v) for k, v in values.items())
    out.fields({name: value or None for name, value in joined})
    if provided:
        out.heading("provides")
        out.table(provided, ("kind", "name", "summary", "from", "missing"))


@plugins.command()
@click.argument("kind", type=click.Choice(PROJECT_KINDS))
@click.argument("name")
@json_option
@note_options
def new(kind: str, name: str, as_json: bool) -> None:
    """Begin a plugin: write the project folder NAME.

    It is a working plugin of its KIND with tests in NAME/tests that pass. Change it step by step;
    the tests say when something breaks.

    \b
    zoo plugins new source my-store
    zoo plugins new property sparsity --json
    """
    taken = {plugin.name for plugin in get_session().registry.plugins}
    files = write_project(kind, name, Path(name), taken=taken)
    if as_json:
        out.data({"folder": name, "files": [str(file) for file in files]})
        return
    for file in files:
        out.line(str(file))
    out.note(f"Next: pytest {name}/tests, then pip install -e {name}, then zoo plugins show {name}")


def _as_dict(plugin: PluginInfo, registry: Registry) -> dict[str, Any]:
    """`plugin` as plain data, without the exception object."""
    names = ("name", "distribution", "version", "status", "api", "entry_point", "hooks", "provides")
    values = {name: getattr(plugin, name) for name in names}
    values["error"] = _error(plugin, registry)
    return {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}


def _error(plugin: PluginInfo, registry: Registry) -> str:
    """Why it is not loaded, or what of it cannot be used; with the repair."""
    return plugin.error or " ".join(registry.defects(plugin.name))


def _provided(kind: str, spec: Any) -> dict[str, Any]:
    """One row about a descriptor; `missing` lists requirements that are not installed."""
    from zooplatform.backends import missing_requirements

    row = {"kind": kind, **asdict(spec)}
    row["from"] = getattr(spec, "factory", None) or getattr(spec, "target", None) or spec.sql
    if isinstance(spec, SourceSpec):
        row["name"] = f"{spec.name} ({spec.scheme}:)" if spec.scheme != spec.name else spec.name
    row["missing"] = ", ".join(missing_requirements(spec)) if isinstance(spec, BackendSpec) else ""
    return row


def _as_typed(plugin: str, command: str, registry: Registry) -> str:
    """A command's name on the command line: with its plugin's where another command has its own."""
    qualified = f"{plugin}-{command}"
    clashes = any((o, spec.name) == (plugin, qualified) for o, spec in registry.commands)
    return qualified if clashes or command in COMMANDS else command


def _requirements(found: Iterable[PluginInfo]) -> list[str]:
    """`distribution==version`, once each; a conflict names both of its distributions."""
    pins = {
        f"{distribution}=={version}"
        for plugin in found
        for distribution, version in zip(
            plugin.distribution.split(", "), plugin.version.split(", "), strict=True
        )
        if distribution
    }
    return sorted(pins)
