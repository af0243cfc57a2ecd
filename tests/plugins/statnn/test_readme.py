"""The README names what there is."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from zooplatform.plugins import load_plugins
from zooplatform_statnn.features import describe
from zooplatform_statnn.settings import EquivariantSettings, RidgeSettings, TreeSettings

README = Path(__file__).parents[3] / "plugins" / "zooplatform_statnn" / "README.md"


def rows(section: str) -> list[list[str]]:
    text = README.read_text(encoding="utf-8").split(f"## {section}\n")[1].split("\n## ")[0]
    found = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return found[2:]  # behind the heading and the rule


def test_statistics_are_those_of_the_code() -> None:
    assert [(name.strip("`"), meaning) for name, meaning in rows("Statistics")] == list(
        describe("rich").items()
    )


def test_predictors_are_the_registered_ones() -> None:
    registry = load_plugins()
    names = [n for n in registry.predictors if registry.predictors.owner(n).name == "statnn"]
    assert sorted(row[0].strip("`") for row in rows("Predictors")) == sorted(names)


def test_settings_are_all_there() -> None:
    told = set(
        re.findall(r"`([a-z0-9_]+)`", " ".join(" ".join(row[1:]) for row in rows("Settings")))
    )
    there = {
        f.name for kind in (TreeSettings, EquivariantSettings, RidgeSettings) for f in fields(kind)
    }
    assert there <= told
