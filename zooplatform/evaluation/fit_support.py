"""What fits of every kind share: who is learnt from, what is said of them, and the state of a fit that takes long.

A fit that is interrupted keeps its state in the catalog, in `artifacts/fit-<key>/`, and the same call goes on from it.
The key is a hash of everything that decides the result. The state is removed when the artifact is stored; where no call
goes on, `zoo gc` removes it after its grace period.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from zooplatform.catalog.leases import lease
from zooplatform.errors import CatalogError, ConfigError
from zooplatform.evaluation.predictions import RUNS, runs_of
from zooplatform.splits import create_split, find_split

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zooplatform.catalog import Catalog
    from zooplatform.datasets import WeightDataset
    from zooplatform.splits import Split

__all__ = ["DRAWN_RATIO", "about", "check_device", "fit_split", "fit_state"]

DRAWN_RATIO = "70/15/15"

_LOCK = "lock"


def check_device(device: str) -> None:
    """Raises ConfigError unless torch can use the device."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as exc:  # torch says so in several ways
        reason = str(exc).splitlines()[0]
        raise ConfigError(
            f"Device {device!r} cannot be used ({reason}). `cpu` is always there."
        ) from exc


def fit_split(catalog: Catalog, query: str, given: str | None, seed: int) -> Split:
    """The split that was named, or one that is drawn from the query by training run.

    Raises:
        ConfigError: the named one has no roles to learn from and to choose by.
    """
    if given is None:
        inner = query.strip().rstrip(";")
        drawn = f"select distinct checkpoint_id, run from (\n{inner}\n) join ({RUNS}) using (checkpoint_id)"
        return create_split(catalog, None, drawn, by="run", seed=seed, ratio=DRAWN_RATIO)
    found = find_split(catalog, given)
    lacking = [role for role in ("train", "val") if role not in found.checkpoints]
    if lacking:
        raise ConfigError(
            f"Split {found.name!r} has no role {', '.join(lacking)}; a fit needs train to learn from and val to choose "
            "by. Create one with `zoo split create NAME --ratio 70/15/15`."
        )
    return found


def about(catalog: Catalog, data: WeightDataset) -> dict[str, Any]:
    """Counts of what was fitted on, and a digest of the networks and their targets."""
    runs = runs_of(catalog, data.ids)
    digest = hashlib.sha256("\n".join(runs.column("content_hash").to_pylist()).encode())
    digest.update(data.targets.tobytes())
    return {
        "checkpoints": len(data),
        "models": len(runs.column("model_id").unique()),
        "architectures": len(data.architectures),
        "sha256": digest.hexdigest(),
    }


@contextmanager
def fit_state(catalog: Catalog, decides: list[Any]) -> Iterator[Path]:
    """The folder in which a fit keeps its state; removed when the block ends well.

    Raises:
        CatalogError: another process is at the same fit.
    """
    key = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:32]
    folder = catalog.path / "artifacts" / f"fit-{key}"
    # What is younger than the lease of a living writer is not collected, and the lock is: it is touched below.
    with lease(catalog.path):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / _LOCK).open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise CatalogError(
                    f"The same fit is running ({folder}). Wait for it, or stop it and repeat the command, which then "
                    "goes on."
                ) from exc
            os.utime(folder / _LOCK)
            try:
                yield folder
            except BaseException:
                if [p.name for p in folder.iterdir()] == [_LOCK]:
                    shutil.rmtree(folder)  # there is nothing to go on from
                raise
            shutil.rmtree(folder)
