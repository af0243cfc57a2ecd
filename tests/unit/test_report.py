"""What a report says: the numbers are those of the zoo, and every kind of zoo has a page."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from zooplatform.errors import ConfigError, NotInstalledError, UnknownIdError
from zooplatform.interfaces import CheckpointRecord, MetricRecord, ModelInfo
from zooplatform.reporting import write_report
from zooplatform.reporting.factors import factors
from zooplatform.reporting.facts import gather
from zooplatform.testing import sample_population

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.catalog import Catalog

_VOID = frozenset({"meta", "link", "br", "img"})


class Page(HTMLParser):
    """Checks that tags are closed in order; collects ids and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.labels: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if given.get("aria-label"):
            self.labels.append(str(given["aria-label"]))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if dict(attrs).get("id"):
            self.ids.append(str(dict(attrs)["id"]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def grow(
    catalog: Catalog, *, models: int = 60, epochs: tuple[int, ...] = (0, 1, 2), zoo: str = "grown"
) -> np.ndarray:
    """A zoo whose accuracy follows `optimizer` and nothing else; values by (model, epoch)."""
    draw = np.random.default_rng(3)
    values = np.empty((models, len(epochs)))
    states, records = [], []
    for n in range(models):
        optimizer = ("adam", "sgd")[n % 2]
        for at, epoch in enumerate(epochs):
            torch.manual_seed(1000 * n + epoch)
            values[n, at] = (
                0.1 + 0.2 * at + (0.3 if optimizer == "adam" else 0) + 0.01 * draw.random()
            )
            states.append(torch.nn.Linear(4, 3).state_dict())
            records.append(
                CheckpointRecord(
                    model=ModelInfo(
                        key=f"{zoo}-{n}",
                        name=f"run {n}",
                        source="test:",
                        config={
                            "optimizer": optimizer,
                            "learning_rate": float(10 ** draw.uniform(-5, -1)),
                            "width": 4,
                        },
                    ),
                    step=epoch,
                    epoch=float(epoch),
                    metrics=(
                        MetricRecord(name="test_accuracy", value=values[n, at], split="test"),
                        MetricRecord(
                            name="train_accuracy", value=values[n, at] + 0.05, split="train"
                        ),
                    ),
                )
            )
    catalog.add_state_dicts(states, records, zoo=zoo)
    return values


def test_the_numbers_are_those_of_the_zoo(catalog: Catalog) -> None:
    values = grow(catalog)
    grow(catalog, models=4, zoo="other")
    facts = gather(catalog, "grown", None)
    assert (facts.metric, facts.train_metric, facts.clock) == (
        "test_accuracy",
        "train_accuracy",
        "epoch",
    )
    course = facts.courses["test_accuracy"]
    assert [row["moment"] for row in course] == [0.0, 1.0, 2.0]
    assert [row["num_models"] for row in course] == [60] * 3
    got = np.asarray([row["quantiles"] for row in course]).T
    assert np.allclose(got, np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0))
    assert np.allclose(sorted(facts.final_values), sorted(values[:, -1]))
    assert np.allclose([row["train"] - row["value"] for row in facts.finals], 0.05)
    assert len({row["rank"] for row in facts.runs}) == 40
    assert {row["model_id"] for row in facts.runs} <= {row["model_id"] for row in facts.finals}
    (architecture,) = facts.architectures
    first = architecture.norms[0]
    norms = catalog.population(
        "select checkpoint_id from checkpoints join models using (model_id) "
        "where zoo_id = 'grown' and epoch = 0"
    ).layer("weight")
    assert first["middle"] == pytest.approx(
        float(norms.flatten(1).norm(dim=1).double().median()), 0.02
    )
    assert [row["name"] for row in architecture.norms] == ["weight"] * 3


def test_the_setting_that_decides_comes_first(catalog: Catalog) -> None:
    grow(catalog)
    facts = gather(catalog, "grown", None)
    assert [factor.key for factor in facts.factors] == ["optimizer", "learning_rate"]
    optimizer, rate = facts.factors
    assert optimizer.explained > 0.99
    assert rate.explained < 0.2
    assert [name for name, _ in optimizer.levels] == ["adam", "sgd"]
    assert all(len(results) == 30 for _, results in optimizer.levels)
    assert rate.logarithmic
    assert len(rate.x) == len(rate.y) == 60
    assert facts.fixed == [{"key": "width", "value": "4"}]


def test_names_that_every_model_has_for_itself_are_no_setting() -> None:
    models = [str(n) for n in range(40)]
    finals = [{"model_id": m, "value": float(m)} for m in models]
    rows = [{"key": "path", "models": models, "values": [f"/runs/{m}" for m in models]}]
    assert factors(rows, finals) == []


def test_settings_in_float32_are_told_in_few_digits() -> None:
    values = ["0.10000000149011612", "0.5", "0.1", "2", "a name"]
    rows = [{"key": "dropout", "models": list("abcde"), "values": values}]
    finals = [{"model_id": model, "value": 0.1 * at} for at, model in enumerate("abcde")]
    (found,) = factors(rows, finals)
    assert sorted(name for name, _ in found.levels) == ["0.1", "0.1", "0.5", "2", "a name"]
    assert [len(results) for _, results in found.levels] == [1] * 5


def test_chance_explains_nothing() -> None:
    draw = np.random.default_rng(0)
    models = [str(n) for n in range(2000)]
    finals = [{"model_id": m, "value": float(draw.random())} for m in models]
    rows = [
        {"key": "level", "models": models, "values": [str(draw.integers(5)) for _ in models]},
        {"key": "number", "models": models, "values": [str(draw.random()) for _ in models]},
    ]
    assert all(factor.explained < 0.01 for factor in factors(rows, finals))


def test_the_page_is_well_formed_and_its_ids_are_unique(catalog: Catalog, tmp_path: Path) -> None:
    grow(catalog)
    written = write_report(catalog, "grown", tmp_path / "new" / "folder")
    assert written.path == tmp_path / "new" / "folder" / "index.html"
    text = written.path.read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.ids) == len(set(page.ids)) > 20
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    assert used <= set(page.ids)
    assert len(page.labels) == len(written.figures) == 4
    assert "goes from 0.2" in page.labels[0]
    assert len(text.encode()) == written.size_bytes
    assert sorted(p.name for p in written.path.parent.iterdir()) == ["index.html"]


def test_the_same_zoo_gives_the_same_page(catalog: Catalog, tmp_path: Path) -> None:
    grow(catalog, models=6)
    pages = [write_report(catalog, "grown", tmp_path / n).path.read_bytes() for n in ("a", "b")]
    assert pages[0] == pages[1]


def test_what_is_not_stated_is_said(catalog: Catalog, tmp_path: Path) -> None:
    grow(catalog, models=2)
    catalog.append(
        sample_population(), zoo="stated", source="made here", license="CC0-1.0", citation="A & B"
    )
    text = write_report(catalog, "grown", tmp_path).path.read_text(encoding="utf-8")
    assert text.count("not stated") == 3
    text = write_report(catalog, "stated", tmp_path).path.read_text(encoding="utf-8")
    assert "not stated" not in text
    assert all(words in text for words in ("made here", "CC0-1.0", "A &amp; B"))


def test_a_zoo_without_metrics_has_a_page(catalog: Catalog, tmp_path: Path) -> None:
    batch = sample_population()
    rows = [replace(row, metrics=()) for row in batch.rows]
    catalog.append(replace(batch, rows=rows), zoo="silent")
    written = write_report(catalog, "silent", tmp_path)
    assert written.metric is None
    assert written.figures == ("Norm of the weights: sample-mlp",)
    assert "Nothing was measured" in written.path.read_text(encoding="utf-8")


def test_values_that_are_no_numbers_are_left_out_and_counted(
    catalog: Catalog, tmp_path: Path
) -> None:
    batch = sample_population()
    broken = MetricRecord(name="test_accuracy", value=float("nan"), dataset="sample", split="test")
    rows = [replace(batch.rows[0], metrics=(broken,)), *batch.rows[1:]]
    catalog.append(replace(batch, rows=rows), zoo="partly")
    facts = gather(catalog, "partly", None)
    assert facts.left_out == 1
    assert [row["num_models"] for row in facts.courses["test_accuracy"]] == [3, 4]
    text = write_report(catalog, "partly", tmp_path).path.read_text(encoding="utf-8")
    assert "1 value of test_accuracy left out of the figures: NaN" in text


def test_single_deep_networks_have_a_page(catalog: Catalog, tmp_path: Path) -> None:
    """One checkpoint without step or epoch, more layers than colours."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    net = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(30)))
    save_file(net.state_dict(), tmp_path / "deep.safetensors")
    catalog.ingest(tmp_path / "deep.safetensors", zoo="deep")
    written = write_report(catalog, "deep", tmp_path / "page")
    (title,) = written.figures
    assert title.startswith("Norm of the weights")
    Page(written.path.read_text(encoding="utf-8"))


def test_another_metric_can_be_asked_for(catalog: Catalog, tmp_path: Path) -> None:
    grow(catalog, models=4)
    assert write_report(catalog, "grown", tmp_path, metric="train_accuracy").figures[0] == (
        "train_accuracy by epoch"
    )
    with pytest.raises(ConfigError, match=r"has no metric 'f1'\. It has: .*test_accuracy"):
        write_report(catalog, "grown", tmp_path, metric="f1")


def test_an_unknown_zoo_is_named(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(UnknownIdError, match="No zoo 'x'"):
        write_report(catalog, "x", tmp_path)


def test_a_folder_that_cannot_be_made_is_named(catalog: Catalog, tmp_path: Path) -> None:
    grow(catalog, models=2)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file: the report cannot be written there"):
        write_report(catalog, "grown", tmp_path / "file")


def test_without_matplotlib_the_pip_line_is_shown(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(catalog, models=2)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(NotInstalledError, match=r"pip install 'zooplatform\[report\]'"):
        write_report(catalog, "grown", tmp_path)
