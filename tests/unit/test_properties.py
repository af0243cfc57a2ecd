"""Properties of plugins become measured metrics of everything that comes in."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import torch

from zooplatform import properties
from zooplatform.catalog import open_catalog
from zooplatform.plugins import load_plugins
from zooplatform.testing import sample_population

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.testing.installs import PluginInstaller

SOURCE = """
from zooplatform import hookimpl
from zooplatform.interfaces import PropertySpec

class Largest:
    def __call__(self, state, layers):
        return max(float(t.abs().max()) for t in state.values() if t.is_floating_point())

class Broken:
    def __call__(self, state, layers):
        raise RuntimeError("no such luck")

class Wordy:
    def __call__(self, state, layers):
        return "large"

@hookimpl
def zoo_register_properties():
    return [
        PropertySpec(name="largest", factory="big_plugin:Largest", summary="Largest absolute weight."),
        PropertySpec(name="broken", factory="big_plugin:Broken", summary="Fails."),
        PropertySpec(name="wordy", factory="big_plugin:Wordy", summary="Gives no number."),
    ]
"""


def measured(catalog: object) -> list[tuple[str, float]]:
    table = catalog.sql(  # type: ignore[attr-defined]
        "select checkpoint_id, value from metrics where name = 'largest' and origin = 'measured' order by 1"
    )
    return list(zip(table.column(0).to_pylist(), table.column(1).to_pylist(), strict=True))


def test_a_property_is_measured_on_populations_and_files(
    zoo_site: PluginInstaller, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    zoo_site.install("big", SOURCE, module="big_plugin")
    with open_catalog(tmp_path / "c", create=True, registry=load_plugins()) as catalog:
        with caplog.at_level(logging.WARNING):
            ids = catalog.append(sample_population(), zoo="z")
        for reason in (
            "property 'broken' of plugin 'big' failed and is left out: RuntimeError: no such luck",
            "property 'wordy' of plugin 'big' failed and is left out: ValueError: could not convert",
        ):
            assert reason in caplog.text
        expected = {i: float(catalog.population([i]).weights.abs().max()) for i in ids}
        assert dict(measured(catalog)) == pytest.approx(expected)
        torch.save({"a": torch.tensor([1.0, -7.0]), "b": torch.tensor(3)}, tmp_path / "x.pt")
        (checkpoint,) = catalog.ingest(tmp_path / "x.pt").checkpoint_ids
        assert dict(measured(catalog))[checkpoint] == 7.0


def test_checkpoints_too_large_for_memory_are_stored_without(
    zoo_site: PluginInstaller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zooplatform.catalog.tensor_writer.LIMIT_BYTES", 4)
    assert properties.LIMIT_BYTES == 1 << 30
    zoo_site.install("big", SOURCE, module="big_plugin")
    torch.save({"a": torch.tensor([1.0, -7.0])}, tmp_path / "x.pt")
    with open_catalog(tmp_path / "c", create=True, registry=load_plugins()) as catalog:
        catalog.ingest(tmp_path / "x.pt")
        assert measured(catalog) == []
