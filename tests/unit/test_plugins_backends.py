"""Getting a backend by name: the instance, or an error that says what to do."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

import duckdb
import pytest

from zooplatform.errors import (
    NotInstalledError,
    PluginConflictError,
    PluginError,
    PluginIncompatibleError,
    PluginLoadError,
    UnknownBackendError,
    ZooError,
)
from zooplatform.interfaces import SqlView
from zooplatform.plugins import load_plugins

if TYPE_CHECKING:
    from zooplatform.plugins import Registry
    from zooplatform.testing import PluginInstaller

HEAD = "from zooplatform import hookimpl\nfrom zooplatform.interfaces import *\n"
TOKENIZER = """
class Rows:
    def fit(self, states, *, seed): ...
    def encode(self, state, *, layout): ...
    def decode(self, batch, *, layout): ...
    def save(self, folder): ...
    def load(self, folder): ...
"""


def registering(kind: str, *specs: str) -> str:
    return f"{HEAD}@hookimpl\ndef zoo_register_{kind}():\n    return [{', '.join(specs)}]\n"


def tokenizer(factory: str, name: str = "rows", more: str = "") -> str:
    one = f"TokenizerSpec(name={name!r}, factory={factory!r}, summary='One token a row.', {more})"
    return registering("tokenizers", one)


def with_tokenizer(site: PluginInstaller, code: str, target: str = "Rows", **more: Any) -> Registry:
    site.install("alpha", tokenizer(f"zoo_test_alpha:{target}", **more) + code)
    return load_plugins()


def test_create_gives_a_new_instance_each_time(zoo_site: PluginInstaller) -> None:
    registry = with_tokenizer(zoo_site, TOKENIZER)
    first, second = registry.tokenizers.create("rows"), registry.tokenizers.create("alpha/rows")
    assert type(first).__name__ == type(second).__name__ == "Rows"
    assert first is not second
    assert registry.tokenizers.owner("rows").distribution == "zooplatform-alpha"


def test_backends_read_like_a_mapping(zoo_site: PluginInstaller) -> None:
    tokenizers = with_tokenizer(zoo_site, TOKENIZER).tokenizers
    assert "rows" in tokenizers
    assert "alpha/rows" in tokenizers
    assert "none" not in tokenizers
    assert [*tokenizers] == list(tokenizers.names())
    assert len(tokenizers) == len(tokenizers.specs())
    assert tokenizers.spec("rows").summary == "One token a row."


def test_an_unknown_name_lists_the_known_and_the_closest(zoo_site: PluginInstaller) -> None:
    registry = with_tokenizer(zoo_site, TOKENIZER)
    with pytest.raises(UnknownBackendError, match=r"'rosw'\. Known: .*Did you mean 'rows'\?"):
        registry.tokenizers.create("rosw")


def test_a_missing_requirement_shows_the_pip_line(zoo_site: PluginInstaller) -> None:
    registry = with_tokenizer(zoo_site, TOKENIZER, more="requires=('numpy', 'no_such', 'none.x')")
    assert registry.plugin("alpha").status == "loaded"
    with pytest.raises(NotInstalledError) as caught:
        registry.tokenizers.create("rows")
    assert str(caught.value) == (
        "Tokenizer 'rows' of plugin 'alpha' needs no_such, none.x, which is not installed. "
        "Run: pip install no_such none.x"
    )
    assert caught.value.missing == ("no_such", "none.x")


def test_a_plugin_can_say_how_its_requirement_is_installed(zoo_site: PluginInstaller) -> None:
    more = "requires=('no_such',), install='pip install zooplatform-alpha[all]'"
    registry = with_tokenizer(zoo_site, TOKENIZER, more=more)
    with pytest.raises(NotInstalledError, match=r"Run: pip install zooplatform-alpha\[all\]"):
        registry.tokenizers.create("rows")


WRONG = {
    "no such module": ("no_such_module:Rows", "", "ModuleNotFoundError"),
    "no such name": ("zoo_test_alpha:Cols", "", "AttributeError"),
    "module is broken": ("zoo_test_other:Rows", "", "RuntimeError: boom"),
    "needs arguments": (
        "zoo_test_alpha:Rows",
        "class Rows:\n    def __init__(self, size): ...",
        "TypeError",
    ),
    "raises": (
        "zoo_test_alpha:Rows",
        "def Rows():\n    raise ValueError('no luck')",
        "ValueError: no luck",
    ),
    "gives a class": (
        "zoo_test_alpha:make",
        TOKENIZER + "\ndef make():\n    return Rows\n",
        "gave the class Rows in place of an instance",
    ),
    "is an instance": ("zoo_test_alpha:rows", TOKENIZER + "\nrows = Rows()\n", "TypeError"),
    "lacks methods": (
        "zoo_test_alpha:Rows",
        "class Rows:\n    def fit(self): ...\n    save = 3",
        "Rows from 'zoo_test_alpha:Rows' is no Tokenizer; it lacks encode, decode, save, load",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_factory_that_is_wrong_names_plugin_and_cause(
    case: str, zoo_site: PluginInstaller
) -> None:
    factory, code, cause = WRONG[case]
    zoo_site.install("other", HEAD, module="zoo_test_helper")
    (zoo_site.folder / "zoo_test_other.py").write_text("raise RuntimeError('boom')")
    zoo_site.install("alpha", tokenizer(factory) + code)
    with pytest.raises(PluginLoadError) as caught:
        load_plugins().tokenizers.create("rows")
    assert cause in str(caught.value)
    assert str(caught.value).startswith("Tokenizer 'rows' of plugin 'alpha'")
    assert "zoo plugins show alpha" in str(caught.value)


def test_an_error_of_the_platform_passes_through_a_factory(zoo_site: PluginInstaller) -> None:
    code = "\ndef Rows():\n    from zooplatform.errors import SourceError\n    raise SourceError('x', 'bad', 'Try.')\n"
    with pytest.raises(ZooError, match=r"^x: bad Try\.$"):
        with_tokenizer(zoo_site, code).tokenizers.create("rows")


# --- one name, several plugins ---------------------------------------------------------------------------------------


@pytest.fixture
def clash(zoo_site: PluginInstaller) -> Registry:
    for name in ("alpha", "beta"):
        zoo_site.install(name, tokenizer(f"zoo_test_{name}:Rows") + TOKENIZER)
    zoo_site.install("gamma", tokenizer("m:F", name="cols"))
    return load_plugins()


def test_clashing_names_work_qualified(clash: Registry) -> None:
    assert type(clash.tokenizers.create("alpha/rows")).__module__ == "zoo_test_alpha"
    assert type(clash.tokenizers.create("beta/rows")).__module__ == "zoo_test_beta"
    assert {"alpha/rows", "beta/rows", "cols"} <= set(clash.tokenizers.names())
    assert "rows" not in clash.tokenizers


def test_the_bare_clashing_name_is_an_error_that_names_both(clash: Registry) -> None:
    with pytest.raises(PluginConflictError, match="Write one of: alpha/rows, beta/rows"):
        clash.tokenizers.create("rows")


def test_every_listed_descriptor_can_be_created_by_its_name(clash: Registry) -> None:
    for spec in clash.tokenizers.specs():
        assert clash.tokenizers.spec(spec.name) == spec


def test_clashing_sql_names_are_qualified_and_the_bare_one_explains(
    zoo_site: PluginInstaller,
) -> None:
    for name, factor in (("alpha", 2), ("be-ta", 3)):
        macro = (
            f"SqlFunction(name='times', parameters=('x',), sql='x * {factor}', returns='INTEGER', "
            "summary='Times.')"
        )
        view = f"SqlView(name='facts', sql='SELECT {factor} AS f', summary='Facts.')"
        zoo_site.install(name, registering("sql", macro, view))
    sql = load_plugins(allow=["alpha", "be-ta"]).sql
    assert [owner for owner, _ in sql] == ["alpha", "be-ta", "be-ta"] * 2
    with duckdb.connect() as connection:
        for _, item in sql:
            if isinstance(item, SqlView):
                connection.execute(f"CREATE VIEW {item.name} AS {item.sql}")
            else:
                arguments = ", ".join(item.parameters)
                connection.execute(f"CREATE MACRO {item.name}({arguments}) AS {item.sql}")
        query = "SELECT alpha_times(5), be_ta_times(5), (FROM alpha_facts), (FROM be_ta_facts)"
        assert connection.execute(query).fetchall() == [(10, 15, 2, 3)]
        for bare in ("SELECT times(1)", "FROM facts"):
            with pytest.raises(duckdb.Error, match=r"Write one of: alpha_\w+, be_ta_\w+"):
                connection.execute(bare).fetchall()


def test_clashing_commands_carry_their_plugin(zoo_site: PluginInstaller) -> None:
    for name in ("alpha", "beta"):
        one = "CommandSpec(name='hello', target='m:hello', summary='Say hello.')"
        zoo_site.install(name, registering("commands", one))
    names = [(owner, item.name) for owner, item in load_plugins(["alpha", "beta"]).commands]
    assert names == [("alpha", "alpha-hello"), ("beta", "beta-hello")]


# --- sources by scheme -----------------------------------------------------------------------------------------------


def source(name: str, scheme: str, module: str) -> str:
    one = (
        f"SourceSpec(name={name!r}, scheme={scheme!r}, factory='{module}:Bucket', summary='Files.')"
    )
    code = "class Bucket:\n    def list(self, ref): ...\n    def open(self, ref): ...\n"
    return registering("sources", one) + code


def test_a_source_is_found_by_its_scheme(zoo_site: PluginInstaller) -> None:
    zoo_site.install("alpha", source("bucket", "s9", "zoo_test_alpha"))
    spec, instance = load_plugins().source_for_scheme("s9")
    assert (spec.name, type(instance).__name__) == ("bucket", "Bucket")


def test_a_scheme_that_two_sources_claim_is_a_conflict(zoo_site: PluginInstaller) -> None:
    for name in ("alpha", "beta"):
        zoo_site.install(name, source(f"bucket-{name}", "s9", f"zoo_test_{name}"))
    with pytest.raises(PluginConflictError, match=r"alpha \(bucket-alpha\), beta \(bucket-beta\)"):
        load_plugins().source_for_scheme("s9")


def test_an_unknown_scheme_lists_the_known() -> None:
    with pytest.raises(UnknownBackendError, match=r"Unknown source scheme 'locl'"):
        load_plugins().source_for_scheme("locl")


# --- the plugin that would provide it is not there -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source_text", "kind", "cause"),
    [
        ("import no_such_library\n" + source("bucket", "s9", "m"), PluginLoadError, "no_such_lib"),
        ("ZOO_API = '7'\n" + source("bucket", "s9", "m"), PluginIncompatibleError, "version 7"),
    ],
)
def test_a_name_of_a_plugin_that_did_not_load_answers_with_that(
    source_text: str, kind: type[Exception], cause: str, zoo_site: PluginInstaller
) -> None:
    zoo_site.install("alpha", source_text)
    registry = load_plugins()
    for ask in (
        lambda: registry.source_for_scheme("s9"),
        lambda: registry.sources.create("bucket"),
        lambda: registry.sources.create("alpha/bucket"),
        lambda: registry.generators.create("alpha"),
    ):
        with pytest.raises(
            kind, match=r"is not available: plugin 'alpha' \(zooplatform-alpha\)"
        ) as e:
            ask()
        assert cause in str(e.value)
        assert "pip install --upgrade zooplatform-alpha" in str(e.value)


def test_a_name_of_a_disabled_plugin_says_how_to_turn_it_on(zoo_site: PluginInstaller) -> None:
    zoo_site.install("alpha", source("bucket", "s9", "m"))
    registry = load_plugins(deny=["alpha"])
    with pytest.raises(PluginError, match="ZOO_DISABLE_PLUGINS") as caught:
        registry.source_for_scheme("s9")
    assert "'alpha' (zooplatform-alpha) is disabled" in str(caught.value)
    assert "zoo_test_alpha" not in sys.modules


def test_a_module_in_a_package_is_looked_into_without_importing_it(
    zoo_site: PluginInstaller,
) -> None:
    package = zoo_site.folder / "zoo_test_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (package / "hooks.py").write_text(source("bucket", "s9", "m"))
    zoo_site.install("alpha", None, target="zoo_test_package.hooks")
    with pytest.raises(PluginError, match="plugin 'alpha'"):
        load_plugins(deny=["alpha"]).source_for_scheme("s9")


def test_a_name_that_no_plugin_speaks_of_mentions_the_broken_ones(
    zoo_site: PluginInstaller,
) -> None:
    zoo_site.install("alpha", "raise RuntimeError('boom')")
    with pytest.raises(UnknownBackendError, match=r"may provide it: 'alpha' \(RuntimeError: boom"):
        load_plugins().generators.create("other")


# --- properties and notifications ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "def count(state, layers):\n    return 3.0\n",
        "class count:\n    def __call__(self, state, layers):\n        return 3.0\n",
    ],
)
def test_a_property_is_a_function_or_a_class_of_callables(
    code: str, zoo_site: PluginInstaller
) -> None:
    one = "PropertySpec(name='num_three', factory='zoo_test_alpha:count', summary='Three.')"
    zoo_site.install("alpha", registering("properties", one) + code)
    registry = load_plugins()
    assert ("alpha", "num_three") in [(owner, item.name) for owner, item in registry.properties]
    assert registry.property_function("num_three")({}, ()) == 3.0


def test_every_plugin_hears_of_a_model_whatever_another_does(
    zoo_site: PluginInstaller, caplog: pytest.LogCaptureFixture
) -> None:
    listen = HEAD + (
        "heard = []\n@hookimpl\ndef zoo_model_ingested(model_id, report):\n"
        "    heard.append((model_id, report))\n"
    )
    zoo_site.install("alpha", listen)
    zoo_site.install(
        "beta", HEAD + "@hookimpl\ndef zoo_model_ingested():\n    raise OSError('full')\n"
    )
    zoo_site.install("gamma", listen)
    catalog: Any = object()
    report: Any = "report"
    load_plugins().notify_model_ingested(catalog, "m1", report)
    for name in ("alpha", "gamma"):
        assert sys.modules[f"zoo_test_{name}"].heard == [("m1", "report")]
    failures = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(failures) == 1
    assert "plugin 'beta' failed in zoo_model_ingested for model m1" in failures[0].getMessage()
    assert "ZOO_DISABLE_PLUGINS=beta" in failures[0].getMessage()


def test_a_plugin_that_failed_hears_of_nothing(zoo_site: PluginInstaller) -> None:
    text = HEAD + (
        "heard = []\n@hookimpl\ndef zoo_model_ingested(model_id):\n    heard.append(model_id)\n"
        "@hookimpl\ndef zoo_register_sql():\n    return 7\n"
    )
    zoo_site.install("bad", text)
    nothing: Any = None
    load_plugins().notify_model_ingested(nothing, "m1", nothing)
    assert sys.modules["zoo_test_bad"].heard == []
