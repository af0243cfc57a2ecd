"""Settings: argument over environment over file, strict about types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from zooplatform.config import Settings, load_settings
from zooplatform.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "zooplatform.toml"


def test_without_anything_the_defaults_hold(config: Path) -> None:
    assert load_settings(environ={}) == Settings()


def test_the_file_is_read_from_the_working_directory(config: Path) -> None:
    config.write_text('catalog = "big"\nplugins = ["local"]\nstrict_plugins = true\n')
    expected = Settings(catalog="big", plugins=("local",), strict_plugins=True)
    assert load_settings(environ={}) == expected


def test_environment_beats_file_and_argument_beats_environment(config: Path) -> None:
    config.write_text('catalog = "file"\n')
    assert load_settings(environ={"ZOO_CATALOG": "env"}).catalog == "env"
    assert load_settings(environ={"ZOO_CATALOG": "env"}, catalog="argument").catalog == "argument"


def test_a_falsy_value_that_is_given_still_wins(config: Path) -> None:
    config.write_text('plugins = ["local"]\nstrict_plugins = true\ndisable_plugins = ["hf"]\n')
    given = load_settings(
        environ={"ZOO_STRICT_PLUGINS": "0", "ZOO_PLUGINS": ""}, disable_plugins=()
    )
    assert given == Settings(plugins=(), disable_plugins=(), strict_plugins=False)


def test_zoo_config_names_another_file(tmp_path: Path) -> None:
    file = tmp_path / "other.toml"
    file.write_text("debug = true\n")
    assert load_settings(environ={"ZOO_CONFIG": str(file)}).debug
    with pytest.raises(ConfigError, match=r"gone\.toml: there is no such file\. ZOO_CONFIG names"):
        load_settings(environ={"ZOO_CONFIG": str(tmp_path / "gone.toml")})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, True) for text in ("1", "TRUE", "yes", "on")),
        *((text, False) for text in ("0", "false", "No", "off", "")),
    ],
)
def test_booleans_are_read_strictly(text: str, value: bool, config: Path) -> None:
    assert load_settings(environ={"ZOO_DEBUG": text}).debug is value


@pytest.mark.parametrize("text", ["2", "maybe", "truee", "none"])
def test_anything_else_is_no_boolean(text: str, config: Path) -> None:
    with pytest.raises(ConfigError, match=f"ZOO_DEBUG is '{text}'.*Write 1 or 0"):
        load_settings(environ={"ZOO_DEBUG": text})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("catalgo = 'x'", "unknown setting.*Did you mean 'catalog'"),
        ("strict_plugins = 1", "strict_plugins is 1; it must be of type bool"),
        ("catalog = 1", "catalog is 1; it must be of type str"),
        ("plugins = 'igpg'", "plugins is 'igpg'; it must be a list of plugin names"),
        ("plugins = [1]", "it must be a list of plugin names"),
        ("plugins = 3", "it must be a list of plugin names"),
        ("catalog =", "not readable as TOML"),
    ],
)
def test_a_wrong_file_is_refused_by_name(text: str, message: str, config: Path) -> None:
    config.write_text(text)
    with pytest.raises(ConfigError, match=rf"zooplatform\.toml.*{message}"):
        load_settings(environ={})


def test_a_wrong_argument_is_refused() -> None:
    wrong: Any = "local"
    with pytest.raises(ConfigError, match="argument 'plugins' is 'local'"):
        load_settings(plugins=wrong)
