"""Every registered SQL name works on a catalog and is listed there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from zooplatform.interfaces import SqlFunction, SqlView
from zooplatform.plugins import load_plugins

if TYPE_CHECKING:
    from zooplatform.catalog import Catalog
    from zooplatform.interfaces import PopulationBatch

SQL = [spec for _, spec in load_plugins().sql]
FUNCTIONS = [spec for spec in SQL if isinstance(spec, SqlFunction)]
VIEWS = [spec for spec in SQL if isinstance(spec, SqlView)]


def test_all_are_listed_with_their_plugin_and_without_error(catalog: Catalog) -> None:
    rows = {row["name"]: row for row in catalog.sql("FROM zoo_functions()").to_pylist()}
    for owner, spec in catalog.registry.sql:
        assert rows[spec.name]["plugin"] == owner
        assert rows[spec.name]["summary"] == spec.summary
        assert not rows[spec.name]["error"], rows[spec.name]


@pytest.mark.parametrize("spec", FUNCTIONS, ids=lambda spec: spec.name)
def test_a_function_gives_null_for_null_in_its_declared_type(
    spec: SqlFunction, catalog: Catalog
) -> None:
    assert spec.null_handling
    if spec.null_handling == "NULL in, NULL out":
        call = f"{spec.name}({', '.join('NULL' for _ in spec.parameters)})"
        row = catalog.sql(f"SELECT {call} AS value, typeof({call}) AS type").to_pylist()[0]
        assert row == {"value": None, "type": spec.returns}


@pytest.mark.parametrize("spec", VIEWS, ids=lambda spec: spec.name)
def test_a_view_can_be_read_on_an_empty_and_on_a_full_catalog(
    spec: SqlView, catalog: Catalog, tiny_zoo: tuple[PopulationBatch, PopulationBatch]
) -> None:
    empty = catalog.sql(f"FROM {spec.name}")
    assert len(empty) == 0
    for batch in tiny_zoo:
        catalog.append(batch, zoo="sample")
    assert catalog.sql(f"FROM {spec.name}").schema == empty.schema
