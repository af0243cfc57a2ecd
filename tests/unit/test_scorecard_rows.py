"""An accuracy is made and printed together with its novelty, or not at all."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from zooplatform.errors import ConfigError
from zooplatform.scorecard.reconstruction import Reconstruction
from zooplatform.scorecard.render import load_card, page, render
from zooplatform.scorecard.rows import Diversity, Novelty, Row, Spread

if TYPE_CHECKING:
    from pathlib import Path

NOVELTY = Novelty(
    relative=0.5,
    relative_q10=0.25,
    relative_q90=0.75,
    distance=3.0,
    disagreement=0.2,
    least_disagreement=0.1,
    error_overlap=0.4,
    most_error_overlap=0.6,
)


def row(method: str = "mine", epochs: int = 0, **changes: Any) -> Row:
    return Row(
        **{
            "method": method,
            "epochs": epochs,
            "accuracy": Spread.of(np.array([0.5, 0.7, 0.9])),
            "novelty": NOVELTY,
            "diversity": Diversity(distinct=3, distance=2.0, relative_distance=1.0),
            "ensemble": 0.8,
            "about": {"kind": "generator", "generator": method},
            **changes,
        }
    )


def card(rows: list[Row]) -> dict[str, Any]:
    return {
        "format": 1,
        "name": "card",
        "title": "Report card",
        "complete": True,
        "dataset": "digits",
        "query": "from wide",
        "split": "main",
        "settings": {
            "seed": 0,
            "tried": 4,
            "learning_rates": [0.1],
            "schooling": {"optimizer": "sgd", "batch_size": 8},
        },
        "generators": [],
        "images": {"digits": {"num_train": 90, "num_validation": 10, "num_test": 50}},
        "zoo": {
            "training_networks": 8,
            "training_runs": 4,
            "training_runs_of_dataset": 4,
            "held_out_runs": 2,
            "left_out": {name: getattr(NOVELTY, name) for name in NOVELTY.__dataclass_fields__},
            "diversity": {"distinct": 4, "distance": 2.0, "disagreement": 0.1},
        },
        "rows": [one.to_json() for one in rows],
        "wrong": [],
        "cost": [],
        "reconstruction": [],
        "refused": [],
        "notes": [],
        "versions": {"zooplatform": "0"},
        "machine": {"system": "Linux", "processor": "x", "cpus": 2, "device": "cpu"},
    }


def test_a_spread_is_that_of_a_sample() -> None:
    spread = Spread.of(np.array([0.5, 0.7, 0.9]))
    assert (spread.mean, spread.std, spread.best, spread.n) == pytest.approx((0.7, 0.2, 0.9, 3))
    low, high = spread.ci
    assert 0.5 <= low < 0.7 < high <= 0.9
    assert Spread.of(np.array([0.4])).std == 0.0
    many = Spread.of(np.tile([0.5, 0.7, 0.9], 100))
    assert many.ci[1] - many.ci[0] < (high - low) / 3


def test_there_is_no_row_without_novelty() -> None:
    with pytest.raises(TypeError, match="novelty"):
        Row(  # type: ignore[call-arg]
            method="mine",
            epochs=0,
            accuracy=Spread.of(np.array([1.0])),
            diversity=Diversity(distinct=1),
            ensemble=1.0,
        )
    for nothing in (None, 0.9, {"relative": 1.0}):
        with pytest.raises(ConfigError, match="an accuracy but no novelty"):
            row(novelty=nothing)


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_novelty_has_to_be_known(value: Any) -> None:
    with pytest.raises(ConfigError, match="finite relative"):
        replace(NOVELTY, relative=value)


def test_a_row_survives_json() -> None:
    one = row(learning_rate=0.01, epochs=5)
    told = json.loads(json.dumps(one.to_json()))
    assert Row.from_json(told) == one
    # What other tools read.
    fixed = ("method", "epochs", "accuracy_mean", "accuracy_std", "accuracy_best", "n")
    assert [told[name] for name in fixed] == ["mine", 5, *map(pytest.approx, (0.7, 0.2)), 0.9, 3]
    assert told["relative_novelty"] == 0.5


@pytest.mark.parametrize("name", ["novelty", "relative_novelty", "accuracy_ci", "diversity"])
def test_a_row_of_a_file_without_novelty_is_refused(name: str, tmp_path: Path) -> None:
    value = row().to_json()
    del value[name]
    with pytest.raises(ConfigError, match="without its novelty never is"):
        Row.from_json(value)
    whole = card([row()])
    del whole["rows"][0][name]
    (tmp_path / "card.json").write_text(json.dumps(whole))
    with pytest.raises(ConfigError, match="novelty"):
        load_card(tmp_path / "card.json")
    for show in (lambda: page(whole), lambda: render(whole, tmp_path / "pages")):
        with pytest.raises(ConfigError, match="novelty"):
            show()
    assert not [*tmp_path.glob("pages/*")]


def test_two_novelties_of_one_row_are_refused() -> None:
    value = {**row().to_json(), "relative_novelty": 1.2}
    with pytest.raises(ConfigError, match="two relative novelties"):
        Row.from_json(value)


def test_an_accuracy_is_printed_with_its_novelty() -> None:
    one = row()
    for text in (one.headline, one.cell):
        assert "0.700" in text
        assert "novelty 0.50" in text
    rows = [row("scratch"), row("mine"), row("mine", 1, learning_rate=0.1)]
    text = page(card(rows))
    line = next(line for line in text.splitlines() if line.startswith("| mine | 0.700"))
    cells = line.strip("| ").split(" | ")
    assert len(cells) == 3
    assert all("0.700" in cell and "novelty 0.50" in cell for cell in cells[1:])
    # In the tables of all figures they are neighbours.
    details = [line for line in text.splitlines() if line.startswith("| mine | 3 |")]
    assert len(details) == 2
    assert all("0.700 ± 0.200" in line and "| 0.50 | 0.25 to 0.75 |" in line for line in details)


def test_pages_come_from_the_card_alone(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [row("scratch"), row("copy"), row("mine"), row("mine", 1, learning_rate=0.1)]
    path = tmp_path / "card.json"
    path.write_text(json.dumps(card(rows)))
    first = {p.name: p.read_bytes() for p in render(load_card(path), tmp_path / "a")}
    second = {p.name: p.read_bytes() for p in render(load_card(path), tmp_path / "b")}
    assert first == second
    assert sorted(first) == ["card-epochs.svg", "card-novelty.svg", "card.md"]
    assert b"(card-novelty.svg)" in first["card.md"]
    for name in ("card-epochs.svg", "card-novelty.svg"):
        assert b"mine" in first[name]
    assert b"novelty 0.50" in first["card-epochs.svg"]
    plain = render(load_card(path), tmp_path / "c", figures=False)
    assert [p.name for p in plain] == ["card.md"]
    assert b".svg" not in plain[0].read_bytes()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 0, "rows": []}'])
def test_what_is_no_card_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="zoo generator evaluate"):
        load_card(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_card(tmp_path / "other.json")


def test_a_reconstruction_needs_agreement_and_diversity() -> None:
    whole = Reconstruction(
        method="mine",
        n=3,
        original_accuracy=0.9,
        accuracy=0.8,
        agreement_own=0.8,
        agreement_other=0.7,
        originals_agreement=0.75,
        relative_error=0.1,
        relative_distance=0.9,
        relative_disagreement=0.9,
    ).to_json()
    assert Reconstruction.from_json(whole).agreement_other == 0.7
    for name in ("agreement_own", "agreement_other", "relative_distance"):
        less = {key: value for key, value in whole.items() if key != name}
        with pytest.raises(ConfigError, match="needs its agreements and its diversity"):
            Reconstruction.from_json(less)
