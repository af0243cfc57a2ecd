"""Every built-in generator, and a small one of a plugin of its own, keep the contract of generators."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest

from zooplatform.plugins import load_plugins
from zooplatform.testing import GeneratorContract
from zooplatform.testing.stripes import SAMPLE_GENERATOR

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zooplatform.testing import PluginInstaller

REGISTRY = load_plugins()
NAMES = [
    name
    for name in REGISTRY.generators
    if REGISTRY.generators.owner(name).distribution == "zooplatform"
]
# What of the contract does not hold for a backend by what it is.
LIMITS: dict[str, dict[str, Any]] = {
    "random-init": {"near": False},
    "zoo-mean": {"random": False},
    "cluster-mean": {"random": False},
}


class TestSample(GeneratorContract):
    conditions = ("dataset", "architecture_id", "build_config", "instruction")

    @pytest.fixture
    def make(self, zoo_site: PluginInstaller) -> Callable[[], Any]:
        zoo_site.install("normal", SAMPLE_GENERATOR)
        registry = load_plugins(strict=True)
        return lambda: registry.generators.create("normal")


class TestThirdParty(GeneratorContract):
    """Of the plugin in tests/external_plugin, which follows the data set alone."""

    conditions = ("dataset",)
    near = False

    @pytest.fixture
    def make(self, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
        monkeypatch.syspath_prepend(str(checkout / "tests" / "external_plugin"))
        factory = importlib.import_module("zooplatform_sketch.generator").SketchGenerator
        return lambda: factory()


@pytest.mark.parametrize("name", NAMES)
class TestContract(GeneratorContract):
    conditions = ("dataset", "architecture_id", "build_config", "instruction")

    @pytest.fixture(autouse=True)
    def _limits(self, name: str) -> None:
        for attribute, value in LIMITS.get(name, {}).items():
            setattr(self, attribute, value)

    @pytest.fixture
    def make(self, name: str) -> Callable[[], Any]:
        return lambda: REGISTRY.generators.create(name)

    @pytest.fixture
    def config(self, make: Callable[[], Any]) -> dict[str, Any]:
        return dict(getattr(make(), "CONFIGS", {}).get("debug", {}))
