"""`zoo plugins` answers whatever is wrong, and imports nothing heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points, version
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from zooplatform.testing import PluginInstaller

    Cli = Callable[..., Result]

BROKEN = "import no_such_library_at_all"
COMMAND = """
from zooplatform import hookimpl
from zooplatform.interfaces import CommandSpec

@hookimpl
def zoo_register_commands():
    return [CommandSpec(name="hello", target="no_such_module:hello", summary="Say hello.")]
"""


def test_the_json_has_one_object_per_plugin(cli: Cli, zoo_site: PluginInstaller) -> None:
    zoo_site.install("alpha", COMMAND, version="3.1")
    zoo_site.install("bad", BROKEN)
    result = cli("plugins", "--json")
    assert result.exit_code == 0
    plugins = {item["name"]: item for item in json.loads(result.stdout)}
    assert plugins["alpha"] == {
        "name": "alpha",
        "distribution": "zooplatform-alpha",
        "version": "3.1",
        "status": "loaded",
        "api": "1",
        "entry_point": "zoo_test_alpha",
        "hooks": ["zoo_register_commands"],
        "provides": ["command:hello"],
        "error": "",
    }
    assert plugins["bad"]["status"] == "failed"
    assert "no_such_library_at_all" in plugins["bad"]["error"]
    assert plugins["local"]["provides"] == ["source:local"]


def test_the_table_shows_causes_and_repairs_below(cli: Cli, zoo_site: PluginInstaller) -> None:
    zoo_site.install("bad", BROKEN)
    result = cli("plugins")
    assert result.exit_code == 0
    assert "bad      failed  zooplatform-bad  1.0" in result.stdout
    assert (
        "\nbad (zooplatform-bad): ModuleNotFoundError: No module named 'no_such_library_at_all'"
        in result.stdout
    )
    assert "pip install --upgrade zooplatform-bad" in result.stdout


def test_what_of_a_loaded_plugin_cannot_be_used_is_said(
    cli: Cli, zoo_site: PluginInstaller
) -> None:
    """A missing library and a name that two plugins give: both plugins are loaded, and still not all is well."""
    text = COMMAND.replace("CommandSpec", "TokenizerSpec").replace("commands", "tokenizers")
    lacks = text.replace('target="no_such_module:hello"', 'factory="m:F", requires=("no_such",)')
    zoo_site.install("alpha", lacks.replace('"hello"', '"other"'))
    zoo_site.install("beta", text.replace('target="no_such_module:hello"', 'factory="m:F"'))
    zoo_site.install("gamma", text.replace('target="no_such_module:hello"', 'factory="m:F"'))
    result = cli("plugins", "--json")
    assert result.stderr == ""
    errors = {plugin["name"]: plugin["error"] for plugin in json.loads(result.stdout)}
    assert errors["local"] == ""
    assert errors["alpha"] == "tokenizer 'other' needs no_such. Run `pip install no_such`."
    assert "'hello' is given by 'gamma' too. Write 'beta/hello'" in errors["beta"]
    assert "'hello' is given by 'beta' too. Write 'gamma/hello'" in errors["gamma"]
    assert "\nalpha (zooplatform-alpha): tokenizer 'other' needs" in cli("plugins").stdout


def test_two_sources_of_one_name_have_no_other_name_in_references(
    cli: Cli, zoo_site: PluginInstaller
) -> None:
    text = COMMAND.replace("CommandSpec", "SourceSpec").replace("commands", "sources")
    text = text.replace('target="no_such_module:hello"', 'factory="m:F", scheme="hello"')
    for name in ("beta", "gamma"):
        zoo_site.install(name, text)
    errors = {p["name"]: p["error"] for p in json.loads(cli("plugins", "--json").stdout)}
    assert errors["beta"] == (
        "source 'hello' is given by 'gamma' too. Turn one off with ZOO_DISABLE_PLUGINS."
    )


def test_requirements_pin_every_distribution_once(cli: Cli, zoo_site: PluginInstaller) -> None:
    zoo_site.install("alpha", COMMAND, version="3.1")
    zoo_site.install("bad", BROKEN, version="0.2")
    zoo_site.install("twin", COMMAND, module="zoo_test_one", distribution="one")
    zoo_site.install("twin", COMMAND, module="zoo_test_two", distribution="two")
    result = cli("plugins", "--requirements")
    assert result.stdout.splitlines() == [
        "one==1.0",
        "two==1.0",
        "zooplatform-alpha==3.1",
        "zooplatform-bad==0.2",
        f"zooplatform=={version('zooplatform')}",
    ]


def test_show_names_a_command_as_it_is_typed(cli: Cli, zoo_site: PluginInstaller) -> None:
    """One that bears the name of a built-in command, or of another plugin's, goes by its plugin's name too."""
    zoo_site.install("alpha", COMMAND)
    zoo_site.install("usurper", COMMAND.replace("hello", "query"))
    assert "command  zoo hello" in cli("plugins", "show", "alpha").stdout
    assert "command  zoo usurper-query" in cli("plugins", "show", "usurper").stdout
    zoo_site.install("beta", COMMAND)
    assert "command  zoo alpha-hello" in cli("plugins", "show", "alpha").stdout


def test_show_tells_everything_about_one(cli: Cli, zoo_site: PluginInstaller) -> None:
    text = COMMAND.replace("CommandSpec", "TokenizerSpec").replace("commands", "tokenizers")
    text = text.replace('target="no_such_module:hello"', 'factory="m:F", requires=("no_such",)')
    zoo_site.install("alpha", text)
    shown = cli("plugins", "show", "alpha").stdout
    assert "zoo_register_tokenizers" in shown
    assert "Say hello." in shown
    data = json.loads(cli("plugins", "show", "alpha", "--json").stdout)
    assert data["status"] == "loaded"
    assert [(d["kind"], d["name"], d["missing"]) for d in data["descriptors"]] == [
        ("tokenizer", "hello", "no_such")
    ]


def test_show_works_for_a_plugin_that_did_not_load(cli: Cli, zoo_site: PluginInstaller) -> None:
    zoo_site.install("bad", BROKEN)
    result = cli("plugins", "show", "bad")
    assert result.exit_code == 0
    assert "failed" in result.stdout
    assert "ZOO_DISABLE_PLUGINS=bad" in result.stdout


def test_show_of_an_unknown_plugin_names_the_close_one(cli: Cli) -> None:
    result = cli("plugins", "show", "locl")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Unknown plugin 'locl'" in result.stderr
    assert "Did you mean 'local'?" in result.stderr


def test_new_writes_the_folder_and_says_what_is_next(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli("plugins", "new", "property", "my-norm", "--json")
    assert result.exit_code == 0
    files = json.loads(result.stdout)["files"]
    assert all((tmp_path / file).is_file() for file in files)
    assert cli("plugins", "new", "property", "local").exit_code == 1
    assert cli("plugins", "new", "nonsense", "x").exit_code == 2
    assert "pytest other/tests" in cli("plugins", "new", "sql", "other").stderr


def test_without_plugins_all_are_disabled_and_the_command_works(cli: Cli) -> None:
    result = cli("--no-plugins", "plugins", "--json")
    assert {item["status"] for item in json.loads(result.stdout)} == {"disabled"}
    assert len(json.loads(result.stdout)) == len(entry_points(group="zooplatform"))


def test_a_command_of_a_plugin_that_cannot_be_imported_names_the_plugin(
    cli: Cli, zoo_site: PluginInstaller
) -> None:
    zoo_site.install("alpha", COMMAND)
    assert "hello" in cli("--help").stdout
    result = cli("hello")
    assert result.exit_code == 1
    assert "plugin 'alpha'" in result.stderr
    assert "zoo plugins show alpha" in result.stderr


def test_options_before_a_sub_command_are_a_usage_error(cli: Cli) -> None:
    assert cli("plugins", "--json", "show", "local").exit_code == 2


# --- in a process of its own -----------------------------------------------------------------------------------------

HEAVY = ("torch", "timm", "pyarrow", "duckdb", "deltalake", "numpy", "huggingface_hub")
PROBE = f"""
import sys
from zooplatform.cli import main
try:
    main(sys.argv[1:])
finally:
    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


def zoo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "arguments", [("--help",), ("plugins",), ("plugins", "--json"), ("plugins", "show", "zoos")]
)
def test_listing_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    result = zoo(*arguments)
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines()[-1] == "[]"


def test_it_works_when_every_plugin_is_broken(zoo_site: PluginInstaller, tmp_path: Path) -> None:
    """Every built-in plugin is replaced by one that cannot be imported."""
    names = {point.name: point.module for point in entry_points(group="zooplatform")}
    for module in names.values():
        (zoo_site.folder / f"{module}.py").write_text("raise RuntimeError('broken on purpose')")
    path = os.pathsep.join([str(zoo_site.folder), os.environ.get("PYTHONPATH", "")])
    result = zoo("plugins", "--json", PYTHONPATH=path)
    assert result.returncode == 0
    plugins = json.loads(result.stdout)
    assert {item["name"] for item in plugins} == set(names)
    assert {item["status"] for item in plugins} == {"failed"}
    assert all("broken on purpose" in item["error"] for item in plugins)
    for arguments in (("--help",), ("plugins", "show", "local"), ("plugins", "--requirements")):
        assert zoo(*arguments, PYTHONPATH=path).returncode == 0
    strict = zoo("plugins", PYTHONPATH=path, ZOO_STRICT_PLUGINS="1")
    assert strict.returncode == 1
    assert "broken on purpose" in strict.stderr


def test_a_failed_plugin_is_one_line_on_stderr(zoo_site: PluginInstaller) -> None:
    zoo_site.install("bad", BROKEN)
    result = zoo("plugins", "--json", PYTHONPATH=str(zoo_site.folder))
    lines = [line for line in result.stderr.splitlines() if "bad" in line]
    assert len(lines) == 1
    assert "ZOO_DISABLE_PLUGINS=bad" in lines[0]
    json.loads(result.stdout)
