"""User SQL reads the catalog and nothing else."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zooplatform.catalog import open_catalog
from zooplatform.errors import QueryError
from zooplatform.plugins import load_plugins

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zooplatform.catalog import Catalog
    from zooplatform.interfaces import PopulationBatch

outside = pa.table({"secret": [42]})  # what a replacement scan would find

# Each with a word of the message that the refusal must hold.
WRITES = {
    "COPY models TO '{folder}/out.parquet'": "COPY",
    "COPY (SELECT 1) TO '{own}'": "COPY",
    "COPY models FROM '{own}'": "COPY",
    "EXPORT DATABASE '{folder}/out'": "EXPORT",
    "IMPORT DATABASE '{folder}/out'": "PRAGMA",
    "ATTACH '{folder}/other.duckdb'": "ATTACH",
    "DETACH memory": "DETACH",
    "USE stored": "SET",
    "CREATE TABLE t AS SELECT 1": "CREATE",
    "CREATE VIEW v AS SELECT 1": "CREATE",
    "CREATE MACRO f(x) AS x": "CREATE",
    "CREATE SECRET (TYPE s3)": "CREATE",
    "DROP VIEW models": "DROP",
    "ALTER VIEW models RENAME TO m": "ALTER",
    "INSERT INTO stored.committed VALUES ('x')": "INSERT",
    "DELETE FROM models": "DELETE",
    "UPDATE models SET name = 'x'": "UPDATE",
    "MERGE INTO models USING zoos ON true WHEN MATCHED THEN DELETE": "MERGE",
    "TRUNCATE models": "DELETE",
    "WITH x AS (INSERT INTO stored.committed VALUES ('y') RETURNING *) FROM x": "INSERT",
    "WITH x AS (DELETE FROM stored.committed RETURNING *) FROM x": "DELETE",
    "WITH x AS (UPDATE stored.committed SET commit_id = 'z' RETURNING *) FROM x": "UPDATE",
    "WITH x AS (COPY models TO '{folder}/out.csv') FROM x": "COPY",
    "EXPLAIN ANALYZE COPY models TO '{folder}/out.csv'": "COPY",
    "EXPLAIN ANALYZE CREATE TABLE t AS SELECT 1": "CREATE",
    "EXPLAIN (FORMAT JSON) DELETE FROM models": "DELETE",
    "EXPLAIN ANALYZE WITH x AS (COPY models TO '{folder}/out.csv') FROM x": "COPY",
}
READS = {
    "SELECT * FROM read_text('/etc/passwd')": "read_text",
    "SELECT * FROM read_blob('/etc/passwd')": "read_blob",
    "SELECT * FROM READ_CSV('/etc/passwd')": "READ_CSV",
    "SELECT * FROM read_csv_auto('/etc/passwd')": "read_csv_auto",
    "SELECT * FROM system.main.read_csv('/etc/passwd')": "read_csv",
    "SELECT * FROM read_json('/etc/passwd')": "read_json",
    "SELECT * FROM read_parquet('{other}')": "read_parquet",
    "SELECT * FROM read_parquet('{own}')": "read_parquet",
    "SELECT * FROM parquet_scan('{own}')": "parquet_scan",
    "SELECT * FROM parquet_metadata('{own}')": "parquet_metadata",
    "SELECT * FROM parquet_schema('{own}')": "parquet_schema",
    "SELECT * FROM glob('/etc/*')": "glob",
    "SELECT * FROM sniff_csv('/etc/passwd')": "sniff_csv",
    "SELECT (SELECT count(*) FROM read_text('/etc/passwd'))": "read_text",
    "SELECT 1 WHERE EXISTS (FROM read_text('/etc/passwd'))": "read_text",
    "WITH x AS (FROM read_text('/etc/passwd')) FROM x": "read_text",
    "SELECT 1 UNION ALL SELECT 1 FROM glob('/etc/*')": "glob",
    "SELECT 1 ORDER BY (SELECT count(*) FROM glob('/etc/*'))": "glob",
    "SELECT 1 LIMIT (SELECT count(*) FROM glob('/etc/*'))": "glob",
    "FROM (VALUES ((SELECT count(*) FROM glob('/etc/*'))))": "glob",
    "SELECT count(*) FILTER (WHERE (SELECT true FROM glob('/etc/*'))) FROM models": "glob",
    "DESCRIBE SELECT * FROM read_csv('/etc/passwd')": "read_csv",
    "SUMMARIZE FROM read_csv('/etc/passwd')": "read_csv",
    "EXPLAIN SELECT * FROM read_csv('/etc/passwd')": "read_csv",
    "EXPLAIN ANALYZE SELECT * FROM read_csv('/etc/passwd')": "read_csv",
    "SELECT * FROM '/etc/passwd'": "/etc/passwd",
    "SELECT * FROM '{other}'": "other.parquet",
    "SELECT * FROM '{own}'": "refused",
    "FROM 'passwd.csv'": "passwd.csv",
    "DESCRIBE '{own}'": "refused",
    "SELECT * FROM query('SELECT * FROM read_text(''/etc/passwd'')')": "query",
    "SELECT * FROM query_table('models')": "query_table",
    "SELECT * FROM json_execute_serialized_sql('{{}}')": "json_execute_serialized_sql",
    "SELECT * FROM arrow_scan(1::POINTER, 2::POINTER, 3::POINTER)": "arrow_scan",
    "SELECT * FROM python_map_function()": "python_map_function",
    "SELECT * FROM duckdb_secrets()": "duckdb_secrets",
    "SELECT * FROM duckdb_settings()": "duckdb_settings",
    "SELECT * FROM outside": "outside",
    "SELECT getenv('HOME')": "getenv",
}
SETTINGS = {
    "SET threads = 1": "SET",
    "SET enable_external_access = true": "SET",
    "SET allowed_paths = ['/etc/passwd']": "SET",
    "SET VARIABLE x = 1": "SET",
    "RESET lock_configuration": "SET",
    "PRAGMA enable_external_access": "PRAGMA",
    "PRAGMA version": "PRAGMA",
    "CALL pragma_version()": "CALL",
    "INSTALL httpfs": "LOAD",
    "FORCE INSTALL httpfs": "LOAD",
    "LOAD httpfs": "LOAD",
    "LOAD '{folder}/x.duckdb_extension'": "LOAD",
    "CHECKPOINT": "CALL",
    "VACUUM": "VACUUM",
    "BEGIN": "TRANSACTION",
    "PREPARE p AS SELECT 1": "PREPARE",
    "EXECUTE p": "EXECUTE",
    "DEALLOCATE p": "DROP",
    "SELECT 1; SELECT 2": "2 statements",
    "SELECT 1; COPY models TO '{folder}/out.csv'": "2 statements",
    "": "no statement",
    "-- nothing": "no statement",
    "PIVOT metrics ON name USING first(value)": "PIVOT",
}


@pytest.fixture(scope="module")
def filled(
    tmp_path_factory: pytest.TempPathFactory, tiny_zoo: tuple[PopulationBatch, ...]
) -> Iterator[Catalog]:
    folder = tmp_path_factory.mktemp("refusals")
    with open_catalog(folder / "catalog", create=True, registry=load_plugins()) as catalog:
        catalog.append(tiny_zoo[0], zoo="tiny")
        yield catalog


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(("query", "word"), [*WRITES.items(), *READS.items(), *SETTINGS.items()])
def test_anything_but_reading_the_catalog_is_refused(
    query: str, word: str, filled: Catalog, tmp_path: Path
) -> None:
    other = tmp_path / "other.parquet"
    pq.write_table(outside, other)
    own = filled.snapshot().files("models").pure[0]
    text = query.format(folder=tmp_path, own=own, other=other)
    before = _files(tmp_path), _files(filled.path)
    with pytest.raises(QueryError) as caught:
        filled.sql(text)
    assert word.lower() in str(caught.value).lower()
    assert (_files(tmp_path), _files(filled.path)) == before
    # The same text streamed, and the connection is as good as before.
    with pytest.raises(QueryError):
        filled.engine().reader(text)
    assert filled.sql("SELECT count(*) AS n FROM models")["n"].to_pylist() == [4]


def test_duckdb_itself_is_closed_too(filled: Catalog, tmp_path: Path) -> None:
    """What would get past the check meets a connection without external access."""
    other = tmp_path / "other.parquet"
    pq.write_table(outside, other)
    filled.sql("SELECT 1")
    connection = filled.engine()._opened()
    own = filled.snapshot().files("models").pure[0]
    for text in (
        "SELECT * FROM read_text('/etc/passwd')",
        f"SELECT * FROM read_parquet('{other}')",
        f"COPY (SELECT 1) TO '{tmp_path}/out.csv'",
        f"COPY (SELECT 1 AS x) TO '{own}'",
        f"ATTACH '{tmp_path}/other.duckdb'",
        "SET threads = 1",
        "SET allowed_paths = ['/etc/passwd']",
        "SET enable_external_access = true",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SELECT * FROM outside",
    ):
        with pytest.raises(duckdb.Error):
            connection.execute(text).fetchall()
    settings = "SELECT current_setting('python_enable_replacements')"
    assert connection.execute(settings).fetchall() == [(False,)]


def test_a_variable_of_the_program_is_not_a_table(filled: Catalog) -> None:
    local = pa.table({"secret": [1]})
    with pytest.raises(QueryError, match="local does not exist"):
        filled.sql("SELECT * FROM local")
    assert local.num_rows == outside.num_rows


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1 AS x",
        "VALUES (1)",
        "FROM models",
        "TABLE models",
        "(SELECT 1) UNION BY NAME (SELECT 2)",
        "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 3) FROM r",
        "WITH models AS (SELECT 1 AS x) FROM models",
        "SELECT * FROM range(3), unnest([1, 2]), json_each('{\"a\": 1}')",
        "SELECT * FROM (PIVOT metrics ON name IN ('accuracy') USING first(value))",
        "UNPIVOT (SELECT 1 AS a, 2 AS b) ON a, b",
        "DESCRIBE models",
        "DESCRIBE SELECT 1",
        "SHOW models",
        "SHOW TABLES",
        "SHOW ALL TABLES",
        "SUMMARIZE metrics",
        "EXPLAIN SELECT * FROM models",
        "EXPLAIN ANALYZE SELECT * FROM models",
        "EXPLAIN (FORMAT JSON) SELECT * FROM models",
        "explain /* é; */ (select name from models)",
        "-- a remark\nSELECT 1;",
        "SELECT * FROM information_schema.tables",
        "SELECT * FROM duckdb_views()",
        "SELECT m.name FROM memory.main.models AS m",
        "SELECT 'COPY x TO y; DROP TABLE z' AS text",
    ],
)
def test_every_way_of_reading_works(query: str, filled: Catalog) -> None:
    table = filled.sql(query)
    assert table.num_columns > 0
    with filled.engine().reader(query) as reader:
        assert reader.read_all().schema.names == table.schema.names


def test_the_message_is_duckdbs_own(filled: Catalog) -> None:
    with pytest.raises(QueryError, match=r'syntax error at or near "models"'):
        filled.sql("SELECT * FORM models")
    with pytest.raises(QueryError, match=r'Did you mean "models"'):
        filled.sql("SELECT * FROM model")
    with pytest.raises(QueryError, match='"nam" not found'):
        filled.sql("SELECT nam FROM models")
    with pytest.raises(QueryError, match="Conversion Error"):
        filled.sql("SELECT name::INTEGER FROM models")


def test_a_query_that_is_nested_too_deeply_is_refused(filled: Catalog) -> None:
    with pytest.raises(QueryError, match=r"nested too deeply|expression depth"):
        filled.sql("SELECT " + "+".join(["1"] * 5000))


def test_long_lists_are_fine(filled: Catalog) -> None:
    ids = ", ".join(f"'{n}'" for n in range(20_000))
    assert (
        filled.sql(f"SELECT count(*) AS n FROM models WHERE model_id IN ({ids})")["n"][0].as_py()
        == 0
    )


def test_nothing_is_left_in_the_working_folder(
    filled: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    filled.close()
    filled.sql("SELECT max(h) FROM (SELECT hash(i) AS h FROM range(100000) t(i) ORDER BY h)")
    assert os.listdir(here) == []  # noqa: PTH208 - names are enough
