"""Configurations of backends: by name, by file, by value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from zooplatform.errors import ConfigError
from zooplatform.evaluation.configurations import configuration, written_out

if TYPE_CHECKING:
    from pathlib import Path


class Backend:
    CONFIGS: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {"epochs": 2, "net": {"width": 8, "depth": 1}},
        "large": {"epochs": 50},
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {}),
        ("large", {"epochs": 50}),
        ({"epochs": 3}, {"epochs": 3}),
        (
            {"base": "small", "epochs": 3, "rate": 0.1},
            {"epochs": 3, "rate": 0.1, "net": {"width": 8, "depth": 1}},
        ),
    ],
)
def test_nothing_is_left_to_names(given: Any, expected: dict[str, Any]) -> None:
    assert written_out("b", Backend.CONFIGS, given) == expected


def test_what_is_changed_does_not_reach_the_backend() -> None:
    given = {"base": "small", "own": {"x": [1]}}
    found = written_out("b", Backend.CONFIGS, given)
    found["net"]["width"] = 99
    found["own"]["x"].append(2)
    assert Backend.CONFIGS["small"]["net"] == {"width": 8, "depth": 1}
    assert given == {"base": "small", "own": {"x": [1]}}


@pytest.mark.parametrize("given", ["smal", {"base": "smal"}])
def test_a_name_that_is_none_is_told_with_those_that_are(given: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"'b' has no configuration 'smal'.*small, large.*'small'\?"
    ):
        written_out("b", Backend.CONFIGS, given)


@pytest.mark.parametrize("base", [3, ["small"]])
def test_a_base_that_is_no_name(base: Any) -> None:
    with pytest.raises(ConfigError, match="has no configuration"):
        written_out("b", Backend.CONFIGS, {"base": base})


def test_a_file_and_settings_replace_what_a_name_says(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('base = "small"\nepochs = 7\n')
    found = configuration("b", Backend(), str(file), ["net.depth=4", "net.kind=flat"])
    assert found == {"epochs": 7, "net": {"width": 8, "depth": 4, "kind": "flat"}}
    with pytest.raises(ConfigError, match="'epochs' is a value, not a table"):
        configuration("b", Backend(), "large", ["epochs.first=1"])
    with pytest.raises(ConfigError, match=r"none\.toml: the configuration cannot be read"):
        configuration("b", Backend(), str(tmp_path / "none.toml"))
