"""Pairs of the storage suite: reading and sealing weights."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from measuring import Pair, Row, compare, single
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from workloads import (
    LAYOUT,
    NUM_NETWORKS,
    WIDTH,
    batch,
    file_state,
    grown_catalog,
    save_vit,
    spans,
    zoo_weights,
)

from zooplatform.catalog import open_catalog
from zooplatform.catalog.shards import seal_population

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zooplatform.registry import Registry

__all__ = ["run"]

_ROW_BYTES = WIDTH * 4
_SOME = 1000


def run(work: Path, registry: Registry, show: Callable[[Row], None]) -> None:
    """Measure every pair; rows are shown as they are ready."""
    weights = zoo_weights(NUM_NETWORKS)
    raw = work / "zoo.raw"
    weights.tofile(raw)
    zoo = work / "zoo"
    with open_catalog(zoo, create=True, registry=registry) as catalog:
        ids = catalog.append(batch(weights, "zoo"), zoo="zoo")
    _whole(zoo, raw, weights, registry, show)
    _some(work, zoo, raw, weights, ids, registry, show)
    _layer(zoo, weights, registry, show)
    _seal(work, weights, ids, show)
    _sizes(zoo, raw, show)
    _large(work, registry, show)
    _growth(work, registry, show)


def _whole(
    zoo: Path, raw: Path, weights: Any, registry: Registry, show: Callable[[Row], None]
) -> None:
    def opened(_: object) -> Any:
        return open_catalog(zoo, registry=registry).population().weights.sum()

    def from_file(_: object) -> Any:
        return np.fromfile(raw, dtype=np.float32).reshape(-1, WIDTH).sum()

    assert np.isclose(float(opened(None)), float(from_file(None)), rtol=1e-3)
    show(
        compare(
            Pair(
                suite="storage",
                name="open the zoo as one tensor and read it all / np.fromfile + sum",
                ours=opened,
                baseline=from_file,
                bound=0.3,
                note="a catalog opened anew in every round, population().weights.sum()",
            )
        )
    )

    def owned(_: object) -> Any:
        population = open_catalog(zoo, registry=registry).population()
        return torch.from_numpy(population.read(np.arange(len(population))))

    assert np.array_equal(owned(None).numpy(), weights)
    show(
        compare(
            Pair(
                suite="storage",
                name="load it into owned memory / np.fromfile",
                ours=owned,
                baseline=lambda _: np.fromfile(raw, dtype=np.float32).reshape(-1, WIDTH),
                bound=1.1,
                note="a catalog opened anew in every round, population().read(all)",
            )
        )
    )


def _some(
    work: Path,
    zoo: Path,
    raw: Path,
    weights: Any,
    ids: tuple[str, ...],
    registry: Registry,
    show: Callable[[Row], None],
) -> None:
    chosen = np.random.default_rng(1).choice(NUM_NETWORKS, _SOME, replace=False)
    pickled, safe = work / "pt", work / "st"
    pickled.mkdir()
    safe.mkdir()
    for number in chosen.tolist():
        state = file_state(weights[number])
        torch.save(state, pickled / f"{number}.pt")
        save_file(state, safe / f"{number}.safetensors")
    torch_files = [pickled / f"{number}.pt" for number in chosen.tolist()]
    safe_files = [safe / f"{number}.safetensors" for number in chosen.tolist()]
    wanted = [ids[number] for number in chosen.tolist()]
    catalog = open_catalog(zoo, registry=registry)

    def rows(_: object) -> torch.Tensor:
        population = catalog.population(wanted)
        return torch.from_numpy(population.read(np.arange(len(population))))

    assert np.array_equal(rows(None).numpy(), weights[chosen])
    note = "catalog open; population(1,000 random ids).read(all)"
    show(
        compare(
            Pair(
                suite="storage",
                name="1,000 networks as state dicts' data in one tensor / torch.load of 1,000 files",
                ours=rows,
                baseline=lambda _: [torch.load(path, weights_only=True) for path in torch_files],
                bound=0.005,
                note=note,
            )
        )
    )
    show(
        compare(
            Pair(
                suite="storage",
                name="the same / safetensors load_file of 1,000 files",
                ours=rows,
                baseline=lambda _: [load_file(path) for path in safe_files],
                bound=0.0125,
                note=note,
            )
        )
    )
    population = catalog.population(ids)
    handle = os.open(raw, os.O_RDONLY)
    numbers = chosen.tolist()
    assert population.read(numbers[0]).tobytes() == os.pread(
        handle, _ROW_BYTES, numbers[0] * _ROW_BYTES
    )
    show(
        compare(
            Pair(
                suite="storage",
                name="1,000 random single networks / pread of the same bytes",
                ours=lambda _: [population.read(n) for n in numbers],
                baseline=lambda _: [os.pread(handle, _ROW_BYTES, n * _ROW_BYTES) for n in numbers],
                bound=2,
                note="Population.read(i), a copy of one network",
            )
        )
    )
    os.close(handle)


def _layer(zoo: Path, weights: Any, registry: Registry, show: Callable[[Row], None]) -> None:
    population = open_catalog(zoo, registry=registry).population()
    start, stop = {name: (a, b) for name, a, b in spans()}["conv2.weight"]
    shape = next(spec.shape for spec in LAYOUT if spec.name == "conv2.weight")

    def ours(_: object) -> torch.Tensor:
        layer: torch.Tensor = torch.from_numpy(
            np.ascontiguousarray(population.layer("conv2.weight"))
        )
        return layer

    def numpy(_: object) -> Any:
        return np.ascontiguousarray(weights[:, start:stop]).reshape(-1, *shape)

    assert np.array_equal(ours(None).numpy(), numpy(None))
    show(
        compare(
            Pair(
                suite="storage",
                name="one layer of all networks, contiguous / numpy strided copy in memory",
                ours=ours,
                baseline=numpy,
                bound=1.3,
                note="np.ascontiguousarray(Population.layer(name))",
            )
        )
    )


def _seal(work: Path, weights: Any, ids: tuple[str, ...], show: Callable[[Row], None]) -> None:
    folder = work / "seal"
    folder.mkdir()
    bytes_ = memoryview(weights).cast("B")

    def clear() -> None:
        for path in folder.iterdir():
            path.unlink()

    def ours(_: object) -> Any:
        return seal_population(folder / "tmp", folder / "zoo.arrow", ids, weights)

    def raw(_: object) -> None:
        with (folder / "raw").open("wb", buffering=0) as handle:
            handle.write(bytes_)
            os.fsync(handle.fileno())

    show(
        compare(
            Pair(
                suite="storage",
                name="seal a population shard durably / raw write + fsync",
                ours=ours,
                baseline=raw,
                bound=1.3,
                prepare_ours=clear,
                prepare_baseline=clear,
                note="98.6 MB; hashed, fsynced, renamed, folder fsynced",
            )
        )
    )
    clear()


def _sizes(zoo: Path, raw: Path, show: Callable[[Row], None]) -> None:
    from bench_memory import in_fresh_process

    stored = sum(p.stat().st_size for p in (zoo / "weights").rglob("*.arrow"))
    size = raw.stat().st_size
    show(
        single(
            "storage",
            "shard bytes / raw bytes",
            stored / 1e6,
            size / 1e6,
            bound=1.005,
            unit="MB",
        )
    )
    peak = in_fresh_process("owned-load", str(zoo))
    show(
        single(
            "storage",
            "peak memory of an owned load / raw bytes",
            peak["grown_bytes"] / 1e6,
            size / 1e6,
            bound=1.1,
            unit="MB",
            note="growth of the peak resident set of a fresh process from one network read to all, mapped "
            "pages included",
        )
    )


def _large(work: Path, registry: Registry, show: Callable[[Row], None]) -> None:
    file = work / "vit.safetensors"
    save_vit(file)
    folder = work / "large"
    with open_catalog(folder, create=True, registry=registry) as catalog:
        (checkpoint,) = catalog.ingest(file).checkpoint_ids
    catalog = open_catalog(folder, registry=registry)

    def total(state: dict[str, torch.Tensor]) -> float:
        return sum(float(tensor.sum()) for tensor in state.values())

    assert total(catalog.state_dict(checkpoint)) == total(load_file(file))
    show(
        compare(
            Pair(
                suite="storage",
                name="346 MB checkpoint: state_dict + full pass / safetensors load_file + full pass",
                ours=lambda _: total(catalog.state_dict(checkpoint)),
                baseline=lambda _: total(load_file(file)),
                bound=1.2,
            )
        )
    )
    name = "blocks.5.mlp.fc1.weight"

    def get_tensor(_: object) -> torch.Tensor:
        with safe_open(file, framework="pt") as opened:
            tensor: torch.Tensor = opened.get_tensor(name).clone()
        return tensor

    def ours(_: object) -> torch.Tensor:
        return catalog.tensor(checkpoint, name).clone()

    assert torch.equal(ours(None), get_tensor(None))
    show(
        compare(
            Pair(
                suite="storage",
                name="the same, one tensor / safe_open.get_tensor",
                ours=ours,
                baseline=get_tensor,
                bound=1.2,
                note="9.4 MB, copied into owned memory on both sides",
            )
        )
    )


def _growth(work: Path, registry: Registry, show: Callable[[Row], None]) -> None:
    small, small_ids = grown_catalog(work / "one", 1, registry)
    large, large_ids = grown_catalog(work / "hundred", 100, registry)
    generator = np.random.default_rng(2)

    def lookup(folder: Path, ids: list[str]) -> Any:
        wanted = ids[int(generator.integers(len(ids)))]
        return open_catalog(folder, registry=registry).state_dict(wanted)["fc2.bias"].sum()

    show(
        compare(
            Pair(
                suite="storage",
                name="growth: open and point lookup at 100,000 checkpoints in 100 shards / at 1,000 in one",
                ours=lambda _: lookup(large, large_ids),
                baseline=lambda _: lookup(small, small_ids),
                bound=5,
                note="both sides are catalogs, opened anew in every round; 100 commits and 1",
            )
        )
    )
