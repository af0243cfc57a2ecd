"""Every built-in source keeps the contract of sources, and its checkpoints come out as they went in."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from zooplatform.plugins import load_plugins
from zooplatform.testing import SourceContract

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from zooplatform.catalog import Catalog

REGISTRY = load_plugins()
NAMES = [
    spec.name
    for spec in REGISTRY.sources.specs()
    if not spec.population and REGISTRY.sources.owner(spec.name).distribution == "zooplatform"
]


def state(seed: int) -> dict[str, Any]:
    """Weights of several dtypes, with a scalar and an empty tensor."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    return {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=draw),
        "fc.weight": torch.randn(5, 16, generator=draw).bfloat16(),
        "fc.bias": torch.zeros(5),
        "steps": torch.tensor(seed),
        "none": torch.zeros(0, 2),
    }


@contextlib.contextmanager
def local(folder: Path, _: pytest.MonkeyPatch) -> Iterator[tuple[Any, str]]:
    import torch
    from safetensors.torch import save_file

    (folder / "runs").mkdir()
    save_file(state(1), folder / "runs" / "one.safetensors")
    torch.save({"model": state(2), "epoch": 3}, folder / "runs" / "two.pt")
    yield REGISTRY.sources.create("local"), str(folder / "runs")


@contextlib.contextmanager
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, str]]:
    from huggingface_hub import constants
    from safetensors.torch import save_file

    from zooplatform.testing.hub import LoopbackHub

    # The client reads these when it is imported, which another test may have done.
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    save_file(state(1), folder / "model.safetensors")
    with LoopbackHub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        server.store.repo(
            "org/net", {"model.safetensors": folder / "model.safetensors", "README.md": b"# A net"}
        )
        yield REGISTRY.sources.create("hf-hub"), "org/net"


CASES: dict[str, Callable[..., Any]] = {"local": local, "hf-hub": hub}
MISSING = {"hf-hub": "org/nothing"}


@pytest.mark.parametrize("name", NAMES)
class TestContract(SourceContract):
    @pytest.fixture
    def case(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[tuple[Any, str]]:
        if name not in CASES:
            pytest.fail(f"source {name!r} has no case here; write one")
        with CASES[name](tmp_path, monkeypatch) as made:
            yield made

    @pytest.fixture
    def source(self, case: tuple[Any, str]) -> Any:
        return case[0]

    @pytest.fixture
    def reference(self, case: tuple[Any, str]) -> str:
        return case[1]

    @pytest.fixture
    def missing(self, name: str) -> str:
        return MISSING.get(name, "no-such-thing-anywhere")

    def test_a_catalog_gives_back_what_the_source_read(
        self, name: str, case: tuple[Any, str], catalog: Catalog
    ) -> None:
        source, reference = case
        scheme = REGISTRY.sources.spec(name).scheme
        report = catalog.ingest(f"{scheme}:{reference}")
        assert report.failed == ()
        stored = [catalog.state_dict(item) for item in report.checkpoint_ids]
        expected = [_raw(source, item) for item in source.list(reference)]
        assert [
            {name: _bytes(value) for name, value in found.items()} for found in stored
        ] == expected
        again = catalog.ingest(f"{scheme}:{reference}")
        assert again.bytes_stored == 0
        assert catalog.sql("SELECT count(*) AS n FROM checkpoints").to_pylist() == [
            {"n": len(expected)}
        ]


def _raw(source: Any, ref: Any) -> dict[str, bytes]:
    with source.open(ref) as checkpoint:
        return {
            tensor.name: bytes(checkpoint.buffer(tensor.name))
            for tensor in checkpoint.header.tensors
        }


def _bytes(value: Any) -> bytes:
    import torch

    flat = value.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
