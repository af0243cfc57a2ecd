"""What the tests of the local source share: reading a file whole, expecting a refusal, and modules of their folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from zooplatform.errors import SourceError
from zooplatform_local.source import LocalSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from zooplatform.interfaces import Checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parent))


def read_whole(path: Path) -> tuple[Checkpoint, dict[str, bytes]]:
    """The (closed) checkpoint at `path` and the bytes of its tensors, as an ingest reads them."""
    source = LocalSource()
    (ref,) = source.list(str(path))
    with source.open(ref) as checkpoint:
        values = {}
        for spec in checkpoint.header.tensors:
            values[spec.name] = bytes(checkpoint.buffer(spec.name))
            assert len(values[spec.name]) == spec.size_bytes
        checkpoint.verify()
    return checkpoint, values


@pytest.fixture
def read() -> Callable[[Path], tuple[Checkpoint, dict[str, bytes]]]:
    return read_whole


@pytest.fixture
def refusal() -> Callable[[Path], str]:
    """The text with which a file is refused; the test fails when it is taken."""

    def text(path: Path) -> str:
        with pytest.raises(SourceError) as caught:
            read_whole(path)
        assert path.name in str(caught.value)
        assert caught.value.remedy, "what the user can do is said of every file"
        return str(caught.value)

    return text


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.pt"
    torch.save({"w": torch.arange(4, dtype=torch.float32)}, path)
    return path
