"""The README names what there is."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from zooplatform.plugins import load_plugins

README = Path(__file__).parents[3] / "plugins" / "zooplatform_kde" / "README.md"
REGISTRY = load_plugins()
NAMES = [n for n in REGISTRY.generators if REGISTRY.generators.owner(n).name == "kde"]


def rows(section: str) -> list[list[str]]:
    text = README.read_text(encoding="utf-8").split(f"## {section}\n")[1].split("\n## ")[0]
    found = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return found[2:]  # behind the heading and the rule


def test_generators_are_the_registered_ones() -> None:
    assert sorted(row[0].strip("`") for row in rows("Generators")) == sorted(NAMES)


def test_settings_are_told_with_their_defaults() -> None:
    told: dict[str, dict[str, list[str]]] = {}
    for names, text in rows("Settings"):
        for name in NAMES if names == "all" else re.findall(r"`([a-z-]+)`", names):
            for key, values in re.findall(r"`([a-z_]+)` \(([^)]*)\)", text):
                told.setdefault(name, {})[key] = re.findall(r"[a-z0-9.]+", values)
    for name in NAMES:
        settings = REGISTRY.generators.create(name).SETTINGS()
        assert told[name].keys() == {one.name for one in fields(settings)}, name
        for key, values in told[name].items():
            assert str(getattr(settings, key)).lower() in values, f"{name}: {key}"


def test_configurations_and_options_are_told() -> None:
    text = README.read_text(encoding="utf-8")
    for name in NAMES:
        generator = REGISTRY.generators.create(name)
        for config in generator.CONFIGS:
            assert f"`{config}`" in text
        for option in generator.OPTIONS:
            assert f"`{option}`" in text.split("`sample` takes options")[1].split("\n\n")[0]
        reconstructs = text.split("have `reconstruct(")[0].rsplit("\n\n", 1)[1]
        assert (f"`{name}`" in reconstructs) == hasattr(generator, "reconstruct")
