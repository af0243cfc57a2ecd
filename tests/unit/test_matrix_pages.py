"""What a comparison keeps of its fits, and the pages made from its results."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING

import numpy as np
import pytest
from comparing import PROTOCOL, cell_of, entry_of, protocol

from zooplatform.errors import ConfigError
from zooplatform.evaluation.matrix import run_matrix
from zooplatform.evaluation.render import load_results, page, render
from zooplatform.evaluation.state import State, fit_key, pack, unpack

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.catalog import Catalog


def test_states_give_back_the_bits_and_refuse_other_files(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=50)
    np.testing.assert_array_equal(unpack(pack(values)), values)
    state = State(tmp_path / "a.state.jsonl")
    state.add({"key": "k", "tests": {"x": {}}, "code": "c"})
    again = State(tmp_path / "a.state.jsonl")
    assert again.find("k", ["x"]) is not None
    assert again.find("k", ["x", "y"]) is None
    (tmp_path / "b.jsonl").write_text("[]\n{}\n")
    with pytest.raises(ConfigError, match="line 1 is no finished fit"):
        State(tmp_path / "b.jsonl")
    assert fit_key(a=1, b=2) == fit_key(b=2, a=1) != fit_key(a=1, b=3)


def test_pages_come_from_the_json_alone_and_are_the_same_each_time(
    compared: Catalog, tmp_path: Path
) -> None:
    cells = [*tomllib.loads(PROTOCOL)["cells"],
             {"kind": "data-fraction", "fractions": [0.5, 1.0], "targets": ["test_accuracy"]},
             {"kind": "leakage", "targets": ["test_accuracy"]}]  # fmt: skip
    report = run_matrix(compared, protocol(cells=cells), tmp_path / "out.json")
    written = render(load_results(report.path), tmp_path / "pages")
    assert {path.name for path in written} == {
        "small.md", "small-test_accuracy.svg", "small-rate.svg", "small-test_accuracy-fractions.svg"
    }  # fmt: skip
    before = {path: path.read_bytes() for path in written}
    assert {
        path: path.read_bytes() for path in render(load_results(report.path), tmp_path / "pages")
    } == before
    text = (tmp_path / "pages" / "small.md").read_text()
    assert str(tmp_path) not in text
    for path in written[1:]:
        assert f"]({path.name})" in text
    cell = cell_of(report, "cross-dataset", "cnn-b", "cnn-a")
    line = entry_of(cell, "line")
    assert (
        f"| cross-dataset | cnn-b | 1 | cnn-a | {line['n']} ({line['num_models']}) | {line['kendall_tau']:.3f} ±"
        in text
    )
    assert "cnn-b (by checkpoint)" in text
    summary = next(s for s in report.results["summaries"] if s["kind"] == "cross-dataset")
    entry = next(e for e in summary["methods"] if e["method"] == "line")
    assert f"| {entry['mae']:.4f} | {entry['mse']:.3g} |" in text


def test_results_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_results(tmp_path / "none.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ConfigError, match="no JSON"):
        load_results(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"format": 99}')
    with pytest.raises(ConfigError, match="not the results"):
        load_results(tmp_path / "x.json")


def test_committed_pages_are_those_of_their_json(checkout: Path) -> None:
    """Every `docs/results/NAME.json` of a comparison has the page that is made from it."""
    for file in sorted((checkout / "docs" / "results").glob("*.json")):
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict) and "protocol_digest" in content:
            made = page(load_results(file))
            assert (file.parent / f"{content['name']}.md").read_text(encoding="utf-8") == made
