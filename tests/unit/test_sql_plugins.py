"""SQL of plugins: macros and views, their dependencies, and what happens when they are wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from zooplatform.catalog import open_catalog
from zooplatform.errors import QueryError
from zooplatform.plugins import load_plugins

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zooplatform.catalog import Catalog
    from zooplatform.interfaces import PopulationBatch
    from zooplatform.testing.installs import PluginInstaller

SOURCE = """
from zooplatform import hookimpl
from zooplatform.interfaces import SqlFunction, SqlView

ZOO_API = "1"

def function(name, parameters, sql, returns="DOUBLE", **more):
    return SqlFunction(name=name, parameters=parameters, sql=sql, returns=returns, summary=name, **more)

@hookimpl
def zoo_register_sql():
    return [
        function("mb", ("n",), "n / 1e6"),
        function("gb", ("n",), "mb(n) / 1000", null_handling="NULL gives NULL"),
        function("whole", ("n",), "n", returns="BIGINT"),
        function("num_models", (), "(SELECT count(*) FROM models)", returns="BIGINT"),
        function("left_over", ("left", "order"), '"left" - "order"'),
        SqlView(name="sizes", sql="SELECT checkpoint_id, mb(size_bytes) AS mb FROM checkpoints", summary="Sizes."),
        SqlView(name="large", sql="SELECT * FROM sizes WHERE mb > 1e-5", summary="Large."),
        function("bad_syntax", ("n",), "n +"),
        function("bad_type", ("n",), "n", returns="NOTYPE"),
        function("bad_name", ("n",), "nofunction(n)"),
        function("reads_files", (), "(SELECT content FROM read_text('/etc/passwd'))", returns="VARCHAR"),
        function("sqrt", ("n",), "n"),
        function("uses_bad", ("n",), "bad_syntax(n)"),
        function("ring_a", ("n",), "ring_b(n)"),
        function("ring_b", ("n",), "ring_a(n)"),
        SqlView(name="models", sql="SELECT 1 AS x", summary="Takes a name of the catalog."),
        SqlView(name="broken_view", sql="SELECT nothing FROM models", summary="Broken."),
    ]
"""


@pytest.fixture
def extended(
    tmp_path: Path, zoo_site: PluginInstaller, tiny_zoo: tuple[PopulationBatch, ...]
) -> Iterator[Catalog]:
    zoo_site.install("extra", SOURCE)
    registry = load_plugins()
    assert registry.plugin("extra").status == "loaded", registry.plugin("extra").error
    with open_catalog(tmp_path / "catalog", create=True, registry=registry) as catalog:
        catalog.append(tiny_zoo[0], zoo="tiny")
        yield catalog


def test_macros_and_views_work_with_what_they_build_on(extended: Catalog) -> None:
    assert extended.sql("SELECT gb(5e9) AS x, MB(NULL) AS y")[0].to_pylist() == [5.0]
    assert extended.sql("SELECT num_models() AS n")["n"].to_pylist() == [4]
    assert extended.sql("SELECT left_over(5, 2) AS n")["n"].to_pylist() == [3.0]
    assert extended.sql("FROM large").num_rows == 8
    total = extended.sql("SELECT sum(size_bytes) / 1e6 AS s FROM checkpoints")["s"][0].as_py()
    assert extended.sql("SELECT sum(mb) AS s FROM sizes")["s"][0].as_py() == pytest.approx(total)


def test_the_declared_type_holds(extended: Catalog) -> None:
    assert str(extended.sql("SELECT whole(2.0) AS n").schema.field("n").type) == "int64"


def test_a_broken_one_says_whose_it_is_and_the_others_go_on(extended: Catalog) -> None:
    for query, name in (
        ("SELECT bad_syntax(1)", "bad_syntax"),
        ("SELECT bad_type(1)", "bad_type"),
        ("FROM broken_view", "broken_view"),
    ):
        with pytest.raises(QueryError, match=f"SQL name '{name}' of plugin 'extra' cannot be used"):
            extended.sql(query)
    with pytest.raises(QueryError, match="nofunction"):
        extended.sql("SELECT bad_name(1)")
    with pytest.raises(QueryError, match=r"plugin 'extra'.*'read_text' is refused"):
        extended.sql("SELECT reads_files()")
    with pytest.raises(QueryError, match="bad_syntax"):
        extended.sql("SELECT uses_bad(1)")
    with pytest.raises(QueryError):
        extended.sql("SELECT ring_a(1)")
    assert extended.sql("SELECT mb(1e6) AS x")["x"].to_pylist() == [1.0]
    notes = extended.engine().notes
    assert any("'bad_syntax' of plugin 'extra'" in note for note in notes)
    assert len(notes) == len(set(notes))


def test_names_of_the_catalog_and_of_duckdb_cannot_be_taken(extended: Catalog) -> None:
    assert extended.sql("SELECT sqrt(4) AS x")["x"].to_pylist() == [2.0]
    assert "name" in extended.sql("FROM models").schema.names
    rows = {row["name"]: row for row in extended.sql("FROM zoo_functions()").to_pylist()}
    assert "DuckDB has a function 'sqrt' itself" in rows["sqrt"]["error"]
    assert "the catalog has a view 'models' itself" in rows["models"]["error"]


def test_zoo_functions_lists_them_with_their_owner(extended: Catalog) -> None:
    table = extended.sql("SELECT * FROM zoo_functions() WHERE plugin = 'extra' ORDER BY name")
    rows = {row["name"]: row for row in table.to_pylist()}
    assert rows["gb"] == {
        "name": "gb", "kind": "function", "plugin": "extra", "parameters": ["n"], "returns": "DOUBLE",
        "null_handling": "NULL gives NULL", "summary": "gb", "error": None,
    }  # fmt: skip
    assert (rows["sizes"]["kind"], rows["sizes"]["parameters"]) == ("view", None)
    assert {name for name, row in rows.items() if row["error"]} >= {
        "bad_syntax", "bad_type", "reads_files", "sqrt", "models", "broken_view"
    }  # fmt: skip
    assert len(rows) == 17
    assert extended.sql("SELECT count(*) AS n FROM ZOO_FUNCTIONS()")["n"][0].as_py() >= 17


def test_views_of_plugins_are_shown(extended: Catalog) -> None:
    shown = extended.sql("SHOW TABLES")["name"].to_pylist()
    assert {"sizes", "large", "models", "population_weights"} <= set(shown)
    assert not {"broken_view", "committed", "_rows"} & set(shown)


def test_a_name_of_two_plugins_is_an_error_on_use(
    tmp_path: Path, zoo_site: PluginInstaller
) -> None:
    for owner in ("one", "two"):
        zoo_site.install(
            owner,
            "from zooplatform import hookimpl\n"
            "from zooplatform.interfaces import SqlFunction\n"
            'ZOO_API = "1"\n'
            "@hookimpl\n"
            "def zoo_register_sql():\n"
            f'    return [SqlFunction(name="twice", parameters=("n",), sql="n * 2 + {len(owner)}", '
            'returns="BIGINT", summary="Twice.")]\n',
        )
    with open_catalog(tmp_path / "c", create=True, registry=load_plugins()) as catalog:
        with pytest.raises(QueryError, match=r"several plugins.*one_twice, two_twice"):
            catalog.sql("SELECT twice(1)")
        assert catalog.sql("SELECT two_twice(1) AS n")["n"].to_pylist() == [5]
