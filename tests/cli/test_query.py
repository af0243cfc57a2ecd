"""`zoo query` on a real catalog."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zooplatform.testing import sample_population

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    Cli = Callable[..., Result]

ACCURACIES = "select checkpoint_id, value from metrics where name = 'test_accuracy' order by value"
EXPECTED = sorted(metric.value for row in sample_population("mlp").rows for metric in row.metrics)


def test_the_default_is_a_table(cli: Cli, mlp_path: Path) -> None:
    result = cli("query", "select zoo_id, license from zoos", "-c", mlp_path)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "zoo_id  license\n------  -------\nmlps    CC0-1.0\n"
    assert result.stderr == "1 row\n"


def test_quiet_says_nothing_beside_the_data(cli: Cli, mlp_path: Path) -> None:
    assert cli("query", "select 1 as one", "-q", "-c", mlp_path).stderr == ""


def test_json(cli: Cli, mlp_path: Path) -> None:
    result = cli("query", ACCURACIES, "-c", mlp_path, "--json")
    assert [row["value"] for row in json.loads(result.stdout)] == EXPECTED
    assert result.stdout == cli("query", ACCURACIES, "-c", mlp_path, "--format", "json").stdout


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet", "arrow"])
def test_the_files_name_chooses_the_format(
    cli: Cli, mlp_path: Path, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"result.{suffix}"
    result = cli("query", ACCURACIES, "-c", mlp_path, "--output", path)
    assert result.exit_code == 0, result.stderr
    assert (result.stdout, result.stderr) == ("", f"8 rows in {path}\n")
    data = path.read_bytes()
    read = {
        "json": lambda: [row["value"] for row in json.loads(data)],
        "jsonl": lambda: [json.loads(line)["value"] for line in data.splitlines()],
        "csv": lambda: [float(r["value"]) for r in csv.DictReader(io.StringIO(data.decode()))],
        "parquet": lambda: pq.read_table(path).column("value").to_pylist(),
        "arrow": lambda: pa.ipc.open_file(data).read_all().column("value").to_pylist(),
    }
    assert read[suffix]() == EXPECTED


def test_weights_are_whole_in_json_and_short_in_a_table(cli: Cli, mlp_path: Path) -> None:
    sql = "select weights from population_weights order by checkpoint_id"
    rows = json.loads(cli("query", sql, "-c", mlp_path, "--json").stdout)
    stored = {tuple(row) for row in sample_population("mlp").weights.tolist()}
    assert {tuple(row["weights"]) for row in rows} == stored
    assert "; 51 values]" in cli("query", sql, "-c", mlp_path).stdout


def test_limit(cli: Cli, mlp_path: Path) -> None:
    result = cli("query", ACCURACIES, "-c", mlp_path, "--limit", 3, "--json")
    assert len(json.loads(result.stdout)) == 3
    assert result.stderr == "3 rows, more were left out by --limit\n"


def test_sql_from_stdin(cli: Cli, mlp_path: Path) -> None:
    result = cli("query", "-", "-c", mlp_path, "--json", input="select 1 as one\n")
    assert json.loads(result.stdout) == [{"one": 1}]


def test_a_syntax_error_shows_duckdbs_own_message(cli: Cli, mlp_path: Path) -> None:
    result = cli("query", "selec 1", "-c", mlp_path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert 'syntax error at or near "selec"' in result.stderr
    assert "LINE 1: selec 1" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_table_names_the_closest(cli: Cli, mlp_path: Path) -> None:
    result = cli("query", "select * from modells", "-c", mlp_path)
    assert result.exit_code == 1
    assert "modells does not exist" in result.stderr


def test_an_error_while_rows_stream_is_foreseen_too(cli: Cli, mlp_path: Path) -> None:
    sql = "select cast(name as integer) from models"
    result = cli("query", sql, "-c", mlp_path, "--json")
    assert result.exit_code == 1
    assert "Could not convert string" in result.stderr


def test_empty_sql_is_refused(cli: Cli, mlp_path: Path) -> None:
    result = cli("query", "  ", "-c", mlp_path)
    assert result.exit_code == 1
    assert 'The SQL is empty. Try: zoo query "show tables"' in result.stderr


def test_json_and_another_format_exclude_each_other(cli: Cli, mlp_path: Path) -> None:
    result = cli("query", "select 1", "-c", mlp_path, "--json", "--format", "csv")
    assert result.exit_code == 2
    assert "--json and --format csv exclude each other." in result.stderr


def test_a_catalog_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    result = cli("query", "select 1", "-c", tmp_path / "nowhere")
    assert result.exit_code == 1
    assert "nowhere is not a catalog. Make one with `zoo ingest REF" in result.stderr
    assert not (tmp_path / "nowhere").exists()


ENDLESS = "select sum(a.range * b.range) from range(10000000) a, range(1000000) b"

# Everything is imported before the interrupt comes, so that it meets the running query.
READY = """
import signal
import sys
import zooplatform.catalog
# A shell that starts the tests in the background has their interrupts ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from zooplatform.cli import main
print("ready", flush=True)
main(sys.argv[1:], prog_name="zoo")
"""


@pytest.mark.parametrize("sql", [ENDLESS, f"from ({ENDLESS}) union all from ({ENDLESS})"])
@pytest.mark.parametrize("seconds", [0.5, 1.5])
def test_an_interrupt_ends_a_running_query(mlp_path: Path, sql: str, seconds: float) -> None:
    words = ["query", sql, "-c", str(mlp_path), "--format", "csv"]
    with subprocess.Popen(
        [sys.executable, "-c", READY, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(seconds)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        try:
            shown, said = process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert (process.returncode, shown, said) == (130, "", "Error: interrupted\n")


def test_a_reader_that_goes_away_is_no_error(mlp_path: Path) -> None:
    done = subprocess.run(
        f"{sys.executable} -m zooplatform query 'from range(3000000)' -c {mlp_path} | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout == "range\n"
    assert "Traceback" not in done.stderr


def test_queries_work_without_plugins(cli: Cli, mlp_path: Path) -> None:
    result = cli("--no-plugins", "query", "select count(*) as n from models", "-c", mlp_path)
    assert result.stdout.split() == ["n", "-", "4"]
