"""The `zoo` command: a thin skin over the Python API.

Only click is imported here. A command's module is imported when the command runs, so that
`zoo --help` answers in milliseconds from the summaries below.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, NamedTuple

import click

from zooplatform import __version__
from zooplatform.cli._errors import ending_with_exit_codes
from zooplatform.cli._loading import imported_command
from zooplatform.cli._output import survive_any_text
from zooplatform.cli._session import Session, get_session
from zooplatform.errors import PluginLoadError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["COMMANDS", "BuiltinCommand", "main"]


class BuiltinCommand(NamedTuple):
    """Where a command lives and what root help says about it."""

    target: str
    summary: str


# In the order of root help: from a first look to maintenance. A summary is the first line of the
# command's own help.
COMMANDS: Mapping[str, BuiltinCommand] = {
    "demo": BuiltinCommand("zooplatform.cli.demo:demo", "Do the main job, end to end and offline."),
    "ingest": BuiltinCommand("zooplatform.cli.ingest:ingest", "Store checkpoints in the catalog."),
    "grow": BuiltinCommand("zooplatform.cli.grow:grow", "Train a zoo from a recipe."),
    "query": BuiltinCommand("zooplatform.cli.query:query", "Ask the catalog in SQL."),
    "ls": BuiltinCommand("zooplatform.cli.browse:ls", "List zoos, models or checkpoints."),
    "show": BuiltinCommand(
        "zooplatform.cli.browse:show", "Show one zoo, model or checkpoint whole."
    ),
    "split": BuiltinCommand("zooplatform.cli.split:split", "Freeze who is in train, val and test."),
    "tokenizer": BuiltinCommand(
        "zooplatform.cli.tokenizer:tokenizer",
        "Fit tokenizers, which turn weights into tokens and back.",
    ),
    "predictor": BuiltinCommand(
        "zooplatform.cli.predictor:predictor", "Tell from its weights what a network can do."
    ),
    "generator": BuiltinCommand(
        "zooplatform.cli.generator:generator",
        "Write the weights of new networks, from an instruction.",
    ),
    "report": BuiltinCommand(
        "zooplatform.cli.report:report", "Draw a zoo: one HTML page that needs nothing else."
    ),
    "export": BuiltinCommand(
        "zooplatform.cli.export:export", "Write a checkpoint to a safetensors file."
    ),
    "push": BuiltinCommand(
        "zooplatform.cli.push:push", "Put a checkpoint on the Hugging Face Hub."
    ),
    "plugins": BuiltinCommand(
        "zooplatform.cli.plugins:plugins", "List plugins and what they provide."
    ),
    "check": BuiltinCommand(
        "zooplatform.cli.maintain:check",
        "Check that the catalog is whole and that metadata fits the tensors.",
    ),
    "gc": BuiltinCommand("zooplatform.cli.maintain:gc", "Remove files that no commit refers to."),
    "compact": BuiltinCommand(
        "zooplatform.cli.maintain:compact", "Merge small files; every answer stays the same."
    ),
}


class RootGroup(click.Group):
    """Names commands from the table above and from plugins; imports the one that runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS, *sorted(_plugin_commands(ctx))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in COMMANDS:
            return imported_command(COMMANDS[cmd_name].target)
        # Plugins are asked last, so they can never take the place of a built-in command.
        spec = _plugin_commands(ctx).get(cmd_name)
        if spec is None:
            return None
        owner, target, _ = spec
        try:
            return imported_command(target)
        except Exception as error:
            raise PluginLoadError(
                f"`zoo {cmd_name}` of plugin {owner!r} cannot be loaded from {target!r}: "
                f"{type(error).__name__}: {error}. See `zoo plugins show {owner}`."
            ) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-"):
            known = [*COMMANDS]
            if name not in known:
                known += _plugin_commands(ctx)
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                ctx.fail(f"No such command {name!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Print the stored summaries; click's own version would import every command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.summary) for name, command in COMMANDS.items()])
        from_plugins = _plugin_commands(ctx)
        if from_plugins:
            with formatter.section("Commands of plugins"):
                formatter.write_dl(
                    [
                        (name, f"{summary} [{owner}]")
                        for name, (owner, _, summary) in sorted(from_plugins.items())
                    ]
                )

    def invoke(self, ctx: click.Context) -> Any:
        survive_any_text()
        with ending_with_exit_codes(ctx):
            return super().invoke(ctx)


def _plugin_commands(ctx: click.Context) -> dict[str, tuple[str, str, str]]:
    """Command name -> (owner, target, summary).

    One named like a built-in command is `plugin-name`, as commands of two plugins that clash are.
    """
    return {
        f"{owner}-{spec.name}" if spec.name in COMMANDS else spec.name: (
            owner,
            spec.target,
            spec.summary,
        )
        for owner, spec in get_session(ctx).registry.commands
    }


@click.group(
    cls=RootGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="zoo", message="%(prog)s %(version)s")
@click.option(
    "--no-plugins",
    is_flag=True,
    is_eager=True,  # so that it is known when --help, which is eager too, lists the commands
    help="Load no plugin, built-in ones included. [default: off]",
)
@click.pass_context
def main(ctx: click.Context, no_plugins: bool) -> None:
    """A database of trained neural networks.

    Results go to stdout, notes and progress to stderr. Exit codes: 0 done, 1 failed for a reason
    that is printed, 2 wrong usage, 130 interrupted. ZOO_DEBUG=1 shows the traceback of a failure.

    \b
    zoo demo                                    the main job, end to end and offline
    zoo ingest model.safetensors                store a file
    zoo query "select model, num_parameters from wide limit 5"
    zoo COMMAND --help                          what a command does, with examples
    """
    ctx.obj = Session(no_plugins=no_plugins)
