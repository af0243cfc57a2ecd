"""Loading plugins: whatever is wrong with one ends as its status, and everything else works."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import pytest

from zooplatform.errors import (
    ConfigError,
    PluginConflictError,
    PluginIncompatibleError,
    PluginLoadError,
    UnknownBackendError,
)
from zooplatform.plugins import PluginInfo, load_plugins

if TYPE_CHECKING:
    from zooplatform.testing import PluginInstaller

HEAD = "from zooplatform import hookimpl\nfrom zooplatform.interfaces import *\n"
GOOD = (
    HEAD
    + """
ZOO_API = "1"

@hookimpl
def zoo_register_tokenizers():
    return [TokenizerSpec(name="rows", factory="nowhere:Rows", summary="One token a row.")]
"""
)


def status(name: str) -> PluginInfo:
    """Load every plugin and give what became of `name`; the good neighbour must stay loaded."""
    registry = load_plugins()
    assert registry.plugin("local").status == "loaded"
    return registry.plugin(name)


def test_a_plugin_is_found_loaded_and_described(zoo_site: PluginInstaller) -> None:
    zoo_site.install("alpha", GOOD, version="2.5")
    info = status("alpha")
    assert info == PluginInfo(
        name="alpha",
        distribution="zooplatform-alpha",
        version="2.5",
        api="1",
        status="loaded",
        entry_point="zoo_test_alpha",
        hooks=("zoo_register_tokenizers",),
        provides=("tokenizer:rows",),
    )


def test_plugins_are_sorted_by_name_whatever_the_order_on_disk(zoo_site: PluginInstaller) -> None:
    zoo_site.install("zeta", GOOD)
    zoo_site.install("alpha", "")
    names = [plugin.name for plugin in load_plugins().plugins]
    assert names == sorted(names)


def test_an_instance_can_be_a_plugin(zoo_site: PluginInstaller) -> None:
    text = HEAD + (
        "class Plugin:\n"
        "    @hookimpl\n"
        "    def zoo_register_commands(self):\n"
        "        yield CommandSpec(name='hello', target='m:hello', summary='Say hello.')\n"
        "plugin = Plugin()\n"
    )
    module = zoo_site.install("alpha", text, target="zoo_test_alpha:plugin")
    info = status("alpha")
    assert (info.status, info.entry_point) == ("loaded", f"{module}:plugin")
    assert info.provides == ("command:hello",)


def test_a_plugin_that_names_no_interface_version_is_taken_for_version_1(
    zoo_site: PluginInstaller,
) -> None:
    zoo_site.install("alpha", GOOD.replace('ZOO_API = "1"', ""))
    assert (status("alpha").status, status("alpha").api) == ("loaded", "1")


def spec(**changes: object) -> str:
    fields = {"name": "ok", "factory": "m:F", "summary": "Words."} | changes
    return f"TokenizerSpec({', '.join(f'{key}={value!r}' for key, value in fields.items())})"


def gives(*specs: str) -> str:
    return hook(f"return [{', '.join(specs)}]")


def hook(body: str, name: str = "zoo_register_tokenizers", parameters: str = "") -> str:
    return f"{HEAD}@hookimpl\ndef {name}({parameters}):\n    {body}\n"


BROKEN = {
    "broken import": ("import no_such_library_at_all", "No module named 'no_such_library_at_all'"),
    "syntax error": ("def broken(:\n", "SyntaxError"),
    "raises when imported": ("raise RuntimeError('boom')", "RuntimeError: boom"),
    "ends the program": ("raise SystemExit(3)", "SystemExit: 3"),
    "module is gone": (None, "ModuleNotFoundError: No module named 'zoo_test_bad'"),
    "wrong signature": (hook("return []", parameters="registry"), "registry"),
    "unknown hook": (
        hook("return []", name="zoo_register_tokenizer"),
        "'zoo_register_tokenizer', which is not a hook; did you mean 'zoo_register_tokenizers'?",
    ),
    "not marked": (hook("return []").replace("@hookimpl\n", ""), "not marked with @hookimpl"),
    "hook raises": (hook("raise KeyError('lost')"), "KeyError: 'lost'"),
    "hook's generator raises": (hook("yield 1 / 0"), "ZeroDivisionError"),
    "returns None": (hook("pass"), "returned None; return a list of descriptors"),
    "returns a number": (hook("return 7"), "returned 7 (int); return a list of descriptors"),
    "returns a lone descriptor": (hook(f"return {spec()}"), "return a list of descriptors"),
    "returns text": (hook("return 'abc'"), "gave a str ('a'); it must give TokenizerSpec"),
    "returns a class": (hook("return [TokenizerSpec]"), "gave the class TokenizerSpec"),
    "wrong descriptor": (
        hook("return [SqlView(name='v', sql='select 1', summary='s')]"),
        "gave a SqlView",
    ),
    "bad name": (gives(spec(name="Bad Name")), "name is 'Bad Name'"),
    "bad path": (gives(spec(factory="m.F")), "factory is 'm.F'"),
    "no summary": (gives(spec(summary="")), "summary is ''"),
    "requires is text": (gives(spec(requires="torch")), "requires is 'torch'"),
    "same name twice": (gives(spec(), spec()), "gave the name 'ok' twice"),
    "a wrapper": (
        hook("return (yield)").replace("@hookimpl", "@hookimpl(wrapper=True)"),
        "is a wrapper",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_a_status_with_cause_and_repair(
    case: str, zoo_site: PluginInstaller, caplog: pytest.LogCaptureFixture
) -> None:
    source, cause = BROKEN[case]
    zoo_site.install("bad", source, version="0.3")
    zoo_site.install("alpha", GOOD)
    info = status("bad")
    assert (info.status, info.distribution, info.version) == ("failed", "zooplatform-bad", "0.3")
    assert cause in info.error
    assert "pip install --upgrade zooplatform-bad" in info.error
    assert "ZOO_DISABLE_PLUGINS=bad" in info.error
    assert "\n" not in info.error
    assert "?." not in info.error
    assert "pluggy" not in info.error
    assert info.provides == ()
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        f"Plugin 'bad' (zooplatform-bad) did not load: {info.error}"
    ]
    assert "rows" in load_plugins().tokenizers


def test_the_error_names_the_line_of_the_plugin(zoo_site: PluginInstaller) -> None:
    zoo_site.install("bad", "import json\n\njson.loads('{')\n")
    assert "json/decoder.py" in status("bad").error or "zoo_test_bad.py:3" in status("bad").error


def test_nothing_of_a_half_broken_plugin_is_registered(zoo_site: PluginInstaller) -> None:
    broken = "\n@hookimpl\ndef zoo_register_sql():\n    return 1\n"
    zoo_site.install("bad", GOOD + broken)
    registry = load_plugins()
    assert registry.plugin("bad").status == "failed"
    assert "rows" not in registry.tokenizers


def test_a_class_in_place_of_an_instance_is_refused(zoo_site: PluginInstaller) -> None:
    text = (
        HEAD + "class Plugin:\n    @hookimpl\n    def zoo_register_sql(self):\n        return []\n"
    )
    zoo_site.install("bad", text, target="zoo_test_bad:Plugin")
    assert "is the class Plugin; it must name a module or an instance" in status("bad").error


@pytest.mark.parametrize("api", ['"2"', '"0"', "2", "None"])
def test_another_interface_version_is_incompatible(api: str, zoo_site: PluginInstaller) -> None:
    zoo_site.install("bad", GOOD.replace('"1"', api))
    info = status("bad")
    assert info.status == "incompatible"
    assert f"version {api.strip(chr(34))} of the plugin interface" in info.error
    assert "this is version 1" in info.error
    assert "pip install --upgrade zooplatform-bad" in info.error


def test_two_distributions_with_one_plugin_name_are_a_conflict(zoo_site: PluginInstaller) -> None:
    zoo_site.install("twin", GOOD, module="zoo_test_one", distribution="one")
    zoo_site.install("twin", GOOD, module="zoo_test_two", distribution="two", version="2.0")
    registry = load_plugins()
    info = registry.plugin("twin")
    assert info.status == "conflict"
    assert "one 1.0 and two 2.0 both claim the plugin name 'twin'" in info.error
    assert "`pip uninstall one` or `pip uninstall two`" in info.error
    assert not {"zoo_test_one", "zoo_test_two"} & set(sys.modules)
    assert "rows" not in registry.tokenizers


def test_who_takes_a_built_in_name_is_the_one_to_remove(zoo_site: PluginInstaller) -> None:
    zoo_site.install("stats", GOOD, distribution="one")
    info = load_plugins().plugin("stats")
    assert info.status == "conflict"
    assert info.error.endswith("both claim the plugin name 'stats'. Run `pip uninstall one`.")


def test_one_distribution_seen_twice_is_one_plugin(
    zoo_site: PluginInstaller, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo_site.install("alpha", GOOD)
    copy = zoo_site.folder.parent / "again"
    copy.mkdir()
    for item in zoo_site.folder.rglob("*"):
        target = copy / item.relative_to(zoo_site.folder)
        target.mkdir() if item.is_dir() else target.write_bytes(item.read_bytes())
    monkeypatch.syspath_prepend(copy)
    info = status("alpha")
    assert (info.status, info.distribution) == ("loaded", "zooplatform-alpha")


def test_one_entry_point_listed_twice_is_one_plugin(zoo_site: PluginInstaller) -> None:
    zoo_site.install("alpha", GOOD)
    zoo_site.install("alpha", GOOD)
    assert status("alpha").status == "loaded"


def test_the_same_module_under_two_names_is_refused(zoo_site: PluginInstaller) -> None:
    zoo_site.install("first", GOOD, module="zoo_test_shared")
    zoo_site.install("second", GOOD, module="zoo_test_shared")
    registry = load_plugins()
    assert registry.plugin("first").status == "loaded"
    assert registry.plugin("second").status == "failed"
    assert "rows" in registry.tokenizers


# --- switches --------------------------------------------------------------------------------------------------------


def test_a_disabled_plugin_is_not_imported(
    zoo_site: PluginInstaller, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = zoo_site.install("alpha", GOOD)
    monkeypatch.setenv("ZOO_DISABLE_PLUGINS", "alpha, other")
    info = status("alpha")
    assert (info.status, info.provides) == ("disabled", ())
    assert "ZOO_DISABLE_PLUGINS" in info.error
    assert module not in sys.modules


def test_only_allowed_plugins_are_imported(
    zoo_site: PluginInstaller, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = zoo_site.install("alpha", GOOD)
    monkeypatch.setenv("ZOO_PLUGINS", "local,hf")
    registry = load_plugins()
    loaded = {plugin.name for plugin in registry.plugins if plugin.status == "loaded"}
    assert loaded == {"local", "hf"}
    assert registry.plugin("alpha").status == "disabled"
    assert module not in sys.modules


@pytest.mark.parametrize("given", ["", " ", ","])
def test_an_empty_allow_list_loads_nothing(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_PLUGINS", given)
    registry = load_plugins()
    assert {plugin.status for plugin in registry.plugins} == {"disabled"}
    assert (len(registry.sources), registry.sql, registry.commands) == (0, (), ())
    assert "leave out --no-plugins and an empty ZOO_PLUGINS" in registry.plugin("local").error


def test_arguments_win_over_the_environment(
    zoo_site: PluginInstaller, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo_site.install("alpha", GOOD)
    monkeypatch.setenv("ZOO_DISABLE_PLUGINS", "alpha")
    assert load_plugins(deny=()).plugin("alpha").status == "loaded"
    assert load_plugins(deny=["local"]).plugin("local").status == "disabled"
    monkeypatch.setenv("ZOO_PLUGINS", "alpha")
    assert load_plugins(allow=["local"], deny=()).plugin("alpha").status == "disabled"


def test_an_allowed_plugin_that_is_not_installed_is_reported() -> None:
    registry = load_plugins(allow=["locl"])
    info = registry.plugin("locl")
    assert info.status == "failed"
    assert (
        "no installed distribution has a plugin of this name. Did you mean 'local'?" in info.error
    )
    assert "pip install zooplatform-qqq" in load_plugins(allow=["qqq"]).plugin("qqq").error


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("import no_such_library_at_all", PluginLoadError),
        ("ZOO_API = '9'", PluginIncompatibleError),
        (GOOD, PluginConflictError),
    ],
)
def test_strict_raises_what_would_be_a_status(
    source: str, kind: type[Exception], zoo_site: PluginInstaller, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo_site.install("bad", source)
    if kind is PluginConflictError:
        zoo_site.install("bad", source, module="zoo_test_other", distribution="other")
    monkeypatch.setenv("ZOO_STRICT_PLUGINS", "1")
    with pytest.raises(kind, match=r"Plugin 'bad' \(.*zooplatform-bad.*\) ") as caught:
        load_plugins()
    if kind is PluginLoadError:
        assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert load_plugins(strict=False).plugin("bad").status != "loaded"


def test_a_disabled_plugin_is_no_failure_for_strict() -> None:
    assert load_plugins(allow=(), strict=True).plugin("local").status == "disabled"


def test_a_switch_that_is_neither_on_nor_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_STRICT_PLUGINS", "maybe")
    with pytest.raises(ConfigError, match="ZOO_STRICT_PLUGINS is 'maybe'"):
        load_plugins()


def test_tracing_shows_every_step_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZOO_TRACE_PLUGINS", "1")
    load_plugins(allow=["local"])
    shown = capsys.readouterr()
    assert "plugin local: loaded in " in shown.err
    assert "zoo_register_sources" in shown.err
    assert shown.out == ""
    monkeypatch.setenv("ZOO_TRACE_PLUGINS", "0")
    load_plugins(allow=["local"])
    assert capsys.readouterr().err == ""


def test_an_unknown_plugin_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownBackendError, match=r"Unknown plugin 'locl'.*Did you mean 'local'"):
        load_plugins().plugin("locl")
