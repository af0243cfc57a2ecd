"""What contract suites look at in a folder that `save` wrote: that it is data, and that damage is refused."""

from __future__ import annotations

import pickle
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from zooplatform.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["check_damage_is_refused", "check_data_files"]


class _Touch:
    """Unpickling it makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def check_data_files(folder: Path) -> list[Path]:
    """The files of a folder, every one of a kind that runs no code."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    assert found, "nothing was saved"
    for file in found:
        assert file.suffix in (".json", ".safetensors", ".txt"), f"{file.name} is no data format"
    return found


def check_damage_is_refused(fitted: Any, make: Callable[[], Any], tmp_path: Path) -> None:
    """Save it, then cut, replace by a pickle and remove each file in turn; `load` has to refuse each."""
    good = tmp_path / "good"
    good.mkdir()
    fitted.save(good)
    marker = tmp_path / "was run"
    for file in check_data_files(good):
        whole = file.read_bytes()
        for damaged in (whole[: len(whole) // 2], pickle.dumps(_Touch(str(marker))), None):
            bad = tmp_path / "bad"
            shutil.copytree(good, bad)
            there = bad / file.relative_to(good)
            there.unlink()
            if damaged is not None:
                there.write_bytes(damaged)
            with pytest.raises(ArtifactError):
                make().load(bad)
            assert not marker.exists(), f"{file.name} was unpickled"
            shutil.rmtree(bad)
