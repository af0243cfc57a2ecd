"""docs/sql.md names every view, column and function, and its queries run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from fitted_linear import PLUGIN, fit_linear, learnable_population

from zooplatform.catalog import open_catalog
from zooplatform.catalog.connection import VIEW_NAMES
from zooplatform.catalog.predicting import store_embeddings
from zooplatform.interfaces import SqlFunction
from zooplatform.plugins import load_plugins

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.catalog import Catalog
    from zooplatform.interfaces import PopulationBatch
    from zooplatform.testing import PluginInstaller


@pytest.fixture(scope="module")
def page(checkout: Path) -> str:
    return (checkout / "docs" / "sql.md").read_text(encoding="utf-8")


def _rows(text: str) -> dict[str, list[str]]:
    """Rows of the tables in a text by their first cell, without the backticks."""
    rows = re.findall(r"^\| (.+) \|$", text, re.MULTILINE)
    cells = [[cell.strip(" `") for cell in row.split(" | ")] for row in rows]
    return {row[0]: row[1:] for row in cells if row[0] not in ("column", "function or view", "---")}


def _section(page: str, heading: str) -> str:
    return page.split(f"\n{heading}\n")[1].split("\n## ")[0].split("\n### ")[0]


def test_every_view_and_no_other_has_a_section(page: str) -> None:
    assert re.findall(r"^### `(\w+)`$", page, re.MULTILINE) == sorted(VIEW_NAMES)


@pytest.mark.parametrize("name", VIEW_NAMES)
def test_every_column_is_documented_with_its_type(name: str, page: str, catalog: Catalog) -> None:
    described = catalog.sql(f"DESCRIBE {name}").to_pylist()
    documented = {row: cells[0] for row, cells in _rows(_section(page, f"### `{name}`")).items()}
    assert documented == {row["column_name"]: row["column_type"] for row in described}
    assert all(cells[-1] for cells in _rows(_section(page, f"### `{name}`")).values())


def test_every_function_and_view_of_the_built_in_plugins_is_documented(
    page: str, catalog: Catalog
) -> None:
    expected = {
        f"{spec.name}({', '.join(spec.parameters)})"
        if isinstance(spec, SqlFunction)
        else spec.name: [
            spec.returns if isinstance(spec, SqlFunction) else "view",
            owner,
            f"{spec.summary} {spec.null_handling}."
            if isinstance(spec, SqlFunction)
            else spec.summary,
        ]
        for owner, spec in catalog.registry.sql
    }
    assert _rows(_section(page, "## Functions")) == expected
    columns = catalog.sql("DESCRIBE FROM zoo_functions()")["column_name"].to_pylist()
    assert [c for c in columns if f"`{c}`" not in _section(page, "## Functions")] == []
    broken = catalog.sql("SELECT name, error FROM zoo_functions() WHERE error IS NOT NULL")
    assert broken.to_pylist() == []


def test_the_functions_of_the_catalog_are_on_the_page(page: str, catalog: Catalog) -> None:
    own = catalog.sql("SELECT * FROM zoo_functions() WHERE plugin IS NULL").to_pylist()
    assert [row["name"] for row in own] == ["zoo_predict", "nearest"]
    section = _section(page, "## Predictions")
    for row in own:
        assert f"`{row['name']}({', '.join(row['parameters'])})`" in section


def test_every_query_about_predictions_runs_and_finds_something(
    page: str, tmp_path: Path, zoo_site: PluginInstaller
) -> None:
    zoo_site.install("linear", PLUGIN)
    queries = re.findall(r"```sql predictor\n(.*?)```", page, re.DOTALL)
    assert len(queries) >= 4
    with open_catalog(tmp_path / "catalog", create=True, registry=load_plugins()) as catalog:
        fit_linear(catalog, list(catalog.append(learnable_population(40), zoo="linear")))
        store_embeddings(catalog, "line")
        for query in queries:
            assert catalog.sql(query.replace("'sne:", "'linear:")).num_rows > 0


def test_every_query_on_the_page_runs(
    page: str, catalog: Catalog, tiny_zoo: tuple[PopulationBatch, ...]
) -> None:
    catalog.append(tiny_zoo[0], zoo="tiny")
    queries = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    assert len(queries) >= 7
    found = [catalog.sql(query).num_rows for query in queries]
    assert sum(rows > 0 for rows in found) >= len(queries) - 3
