"""The root command: lists without importing, names what it does not know, ends with the right code."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from typing import TYPE_CHECKING

import click
import pytest

from zooplatform import __version__
from zooplatform.cli import COMMANDS, main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from zooplatform.testing.installs import PluginInstaller

    Cli = Callable[..., Result]

HEAVY = {"torch", "timm", "pyarrow", "duckdb", "numpy", "safetensors", "huggingface_hub"}

# Runs the command line in this process and prints what it imported, whatever it ended with.
IMPORTS = """
import atexit, json, sys
atexit.register(lambda: print("\\n" + json.dumps(sorted({m.split(".")[0] for m in sys.modules}))))
from zooplatform.cli import main
main(prog_name="zoo")
"""


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("words", [["--help"], ["plugins"], ["plugins", "--json"], ["ls", "-h"]])
def test_listing_imports_nothing_heavy(words: list[str]) -> None:
    done = run("-c", IMPORTS, *words)
    assert done.returncode == 0, done.stderr
    imported = set(json.loads(done.stdout.splitlines()[-1]))
    assert "click" in imported
    assert not imported & HEAVY


@pytest.mark.parametrize("words", [["--help"], ["plugins"]])
def test_listing_costs_little_processor_time(words: list[str]) -> None:
    run("-m", "zooplatform", *words)  # The first run may have to write bytecode files.
    costs = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run("-m", "zooplatform", *words).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        costs.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(costs) < 0.6


def test_help_lists_every_command_with_its_summary(cli: Cli) -> None:
    result = cli("--help")
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    for name, command in COMMANDS.items():
        assert f"{name} {command.summary}" in lines


@pytest.mark.parametrize("name", COMMANDS)
def test_summary_is_the_first_line_of_the_commands_help(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    assert (command.help or "").splitlines()[0] == COMMANDS[name].summary
    assert len(COMMANDS[name].summary) < 70


def test_no_arguments_is_a_usage_error_that_shows_help(cli: Cli) -> None:
    result = cli()
    assert result.exit_code == 2
    assert "ingest" in result.stderr
    assert result.stdout == ""


def test_version(cli: Cli) -> None:
    assert cli("--version").stdout == f"zoo {__version__}\n"


def test_module_and_script_are_the_same() -> None:
    done = run("-m", "zooplatform", "--version")
    assert (done.returncode, done.stdout) == (0, f"zoo {__version__}\n")
    assert "Usage: zoo " in run("-m", "zooplatform", "--help").stdout


@pytest.mark.parametrize(
    ("typed", "meant"), [("qurey", "query"), ("ingset", "ingest"), ("sow", "show")]
)
def test_a_misspelt_command_names_the_closest(cli: Cli, typed: str, meant: str) -> None:
    result = cli(typed)
    assert result.exit_code == 2
    assert f"No such command '{typed}'. Did you mean '{meant}'?" in result.stderr


def test_nothing_is_suggested_for_what_resembles_nothing(cli: Cli) -> None:
    result = cli("xyzzy")
    assert result.exit_code == 2
    assert "No such command 'xyzzy'.\n" in result.stderr


def test_an_unknown_root_option_is_a_usage_error(cli: Cli) -> None:
    result = cli("--jsno")
    assert result.exit_code == 2
    assert "No such option" in result.stderr


# --- commands of plugins ---------------------------------------------------------------------------

GREETER = """
from zooplatform.hookspecs import hookimpl
from zooplatform.interfaces import CommandSpec

@hookimpl
def zoo_register_commands():
    return [CommandSpec(name="greet", target="zoo_test_greet_cli:greet", summary="Say hello.")]
"""


def install_greeter(site: PluginInstaller, commands: str) -> None:
    site.install("greeter", GREETER)
    site.install("greet-cli", commands, module="zoo_test_greet_cli", target="zoo_test_greeter")
    (site.folder / "zooplatform_greet_cli-1.0.dist-info" / "entry_points.txt").unlink()


def test_a_plugins_command_is_listed_unimported_and_runs(
    cli: Cli, zoo_site: PluginInstaller
) -> None:
    install_greeter(
        zoo_site, "import click\n@click.command()\ndef greet():\n    click.echo('hello')\n"
    )
    listed = cli("--help")
    assert "greet" in listed.stdout
    assert "Say hello. [greeter]" in listed.stdout
    assert "zoo_test_greet_cli" not in sys.modules
    assert cli("greet").stdout == "hello\n"
    assert "Did you mean 'greet'?" in cli("gret").stderr


def test_without_plugins_none_of_their_commands_is_there(
    cli: Cli, zoo_site: PluginInstaller
) -> None:
    install_greeter(zoo_site, "raise RuntimeError('imported')")
    assert "greet" not in cli("--no-plugins", "--help").stdout
    assert cli("--no-plugins", "greet").exit_code == 2


@pytest.mark.parametrize(
    ("commands", "reason"),
    [
        ("import a_module_that_is_not_there", "No module named 'a_module_that_is_not_there'"),
        ("greet = 3", "zoo_test_greet_cli:greet is a int, not a click command"),
        ("hello = 3", "has no attribute 'greet'"),
    ],
)
def test_a_broken_plugin_command_names_the_plugin_and_the_cause(
    cli: Cli, zoo_site: PluginInstaller, commands: str, reason: str
) -> None:
    install_greeter(zoo_site, commands)
    result = cli("greet")
    assert result.exit_code == 1
    assert "`zoo greet` of plugin 'greeter' cannot be loaded" in result.stderr
    assert reason in result.stderr
    assert "`zoo plugins show greeter`" in result.stderr


def test_a_plugin_cannot_replace_a_built_in_command(cli: Cli, zoo_site: PluginInstaller) -> None:
    zoo_site.install("usurper", GREETER.replace("greet", "query"))
    result = cli("query", "--help")
    assert result.exit_code == 0
    assert "Ask the catalog in SQL." in result.stdout
    # It is not lost either: it goes by its plugin's name too.
    assert "usurper-query" in cli("--help").stdout


# --- how a command ends ----------------------------------------------------------------------------

ENDINGS = """
import click
from zooplatform.errors import CatalogError

@click.command()
@click.argument("how")
def greet(how):
    click.echo("data")
    if how == "foreseen":
        raise CatalogError("The catalog is gone. Run `zoo ingest`.")
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "prompt":
        click.confirm("Sure?", abort=True)
    if how == "bug":
        raise RuntimeError("a bug")
"""


@pytest.mark.parametrize(
    ("how", "code", "text"),
    [
        ("well", 0, ""),
        ("foreseen", 1, "Error: The catalog is gone. Run `zoo ingest`.\n"),
        ("interrupt", 130, "Error: interrupted\n"),
    ],
)
def test_exit_codes(cli: Cli, zoo_site: PluginInstaller, how: str, code: int, text: str) -> None:
    install_greeter(zoo_site, ENDINGS)
    result = cli("greet", how)
    assert (result.exit_code, result.stdout, result.stderr) == (code, "data\n", text)


def test_an_interrupt_at_a_question_is_an_interrupt(cli: Cli, zoo_site: PluginInstaller) -> None:
    install_greeter(zoo_site, ENDINGS)
    assert cli("greet", "prompt", input="").exit_code == 130


def test_a_bug_keeps_its_traceback(zoo_site: PluginInstaller) -> None:
    install_greeter(zoo_site, ENDINGS)
    done = run("-m", "zooplatform", "greet", "bug", PYTHONPATH=str(zoo_site.folder))
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "RuntimeError: a bug" in done.stderr


def test_debug_shows_the_traceback_of_a_foreseen_failure(zoo_site: PluginInstaller) -> None:
    install_greeter(zoo_site, ENDINGS)
    path = str(zoo_site.folder)
    plain = run("-m", "zooplatform", "greet", "foreseen", PYTHONPATH=path)
    debug = run("-m", "zooplatform", "greet", "foreseen", PYTHONPATH=path, ZOO_DEBUG="1")
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr
    assert plain.returncode == debug.returncode == 1


def test_a_bad_setting_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_DEBUG", "maybe")
    result = cli("ls")
    assert result.exit_code == 1
    assert "ZOO_DEBUG is 'maybe', which is neither true nor false." in result.stderr


def test_the_settings_file_names_the_catalog(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zooplatform.toml").write_text('catalog = "from-file"\n')
    assert "from-file" in cli("ls").stderr
    monkeypatch.setenv("ZOO_CATALOG", "from-environment")
    assert "from-environment" in cli("ls").stderr
    assert "from-option" in cli("ls", "-c", "from-option").stderr
