"""Published protocols, against a second implementation of what they say."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from zooplatform.errors import ConfigError, SourceError
from zooplatform.interfaces import CheckpointRecord, MetricRecord, ModelInfo, PopulationBatch
from zooplatform.splits import create_split, find_split, split_members
from zooplatform.testing import sample_population

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from zooplatform.catalog import Catalog

STEPS = (0, 20, 86)


def numbered_zoo(num_models: int) -> PopulationBatch:
    """A zoo as `small-cnn-zoo:` brings it: every checkpoint knows its row of the file."""
    batch = sample_population(num_models=num_models, num_checkpoints=3)
    rows = [
        replace(
            row,
            step=STEPS[at % 3],
            metrics=(*row.metrics, MetricRecord(name="source_row", value=float(at))),
        )
        for at, row in enumerate(batch.rows)
    ]
    return replace(batch, rows=rows)


def published_file(path: Path, count: int, *, seed: int = 3, first: int | None = None) -> list[int]:
    """A split file as it was published: pandas wrote a series with its header `0`."""
    order = np.random.default_rng(seed).permutation(count).tolist()
    if first is not None:
        order.remove(first)
        order.insert(0, first)
    path.write_text("0\n" + "".join(f"{row}\n" for row in order), encoding="utf-8")
    return order


def as_the_paper_does(
    order: Sequence[int], steps: Sequence[int], final: int
) -> dict[str, list[int]]:
    """Rows by role: shuffle all rows, keep final ones, halve, shuffle the first half, cut at 80 %."""
    shuffled = np.array([0, *order])  # the header, read as a row
    kept = shuffled[np.array(steps)[shuffled] == final]
    half = len(kept) // 2
    places = list(range(half))
    random.Random(0).shuffle(places)
    cut = int(0.8 * half)
    return {
        "train": kept[places[:cut]].tolist(),
        "val": kept[places[cut:]].tolist(),
        "test": kept[half:].tolist(),
    }


def rows_by_role(catalog: Catalog, name: str) -> dict[str, set[int]]:
    table = catalog.sql(
        "select role, value::bigint as row from splits as s join metrics as m using (checkpoint_id) "
        "where m.name = 'source_row' and s.name = ?",
        [name],
    ).to_pylist()
    found: dict[str, set[int]] = {"train": set(), "val": set(), "test": set()}
    for entry in table:
        found[entry["role"]].add(entry["row"])
    return found


@pytest.mark.parametrize("num_models", [20, 21])
def test_the_nfn_split_is_the_published_one(
    catalog: Catalog, tmp_path: Path, num_models: int
) -> None:
    catalog.append(numbered_zoo(num_models), zoo="mnist")
    file = tmp_path / "mnist_split.csv"
    order = published_file(file, 3 * num_models)
    split = create_split(catalog, "nfn", protocol="nfn-2023", order=file)
    expected = as_the_paper_does(order, [STEPS[at % 3] for at in range(3 * num_models)], 86)
    assert rows_by_role(catalog, "nfn") == {role: set(rows) for role, rows in expected.items()}
    assert (split.by, split.seed) == ("checkpoint", None)
    assert split.detail["steps"] == "86"
    assert "row 0 twice" in split.notes[0]
    assert create_split(catalog, "nfn", protocol="nfn-2023", order=file).created is False


def test_a_final_checkpoint_in_row_0_is_in_two_roles_as_published(
    catalog: Catalog, tmp_path: Path
) -> None:
    batch = numbered_zoo(10)
    rows = [replace(row, step=STEPS[(at + 2) % 3]) for at, row in enumerate(batch.rows)]
    # Steps of a model come in another order, so that row 0 is at step 86.
    catalog.append(replace(batch, rows=rows), zoo="mnist")
    for seed in range(50):
        file = tmp_path / f"{seed}.csv"
        order = published_file(file, 30, seed=seed)
        expected = as_the_paper_does(order, [row.step or 0 for row in rows], 86)
        assert sum(map(len, expected.values())) == 11
        if 0 in expected["test"]:
            break
    split = create_split(catalog, "nfn", protocol="nfn-2023", order=file)
    assert rows_by_role(catalog, "nfn") == {role: set(rows) for role, rows in expected.items()}
    assert sum(split.checkpoints.values()) == 11
    assert any("equal content are in several roles" in note for note in split.notes)


def test_what_is_not_the_whole_zoo_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    catalog.append(numbered_zoo(10), zoo="mnist")
    file = tmp_path / "split.csv"
    published_file(file, 30)
    with pytest.raises(
        ConfigError, match=r"leaves out 5 checkpoints at step 86 \(the first is row 17"
    ):
        create_split(
            catalog,
            "nfn",
            "select checkpoint_id from checkpoints join metrics using (checkpoint_id) "
            "where name = 'source_row' and value < 15",
            protocol="nfn-2023",
            order=file,
        )
    published_file(file, 33)
    with pytest.raises(SourceError, match=r"orders rows 0 to 32 .*has 30 rows up to 29"):
        create_split(catalog, "nfn", protocol="nfn-2023", order=file)
    file.write_text("checkpoint,role\n", encoding="utf-8")
    with pytest.raises(SourceError, match="no list of row numbers"):
        create_split(catalog, "nfn", protocol="nfn-2023", order=file)
    with pytest.raises(SourceError, match="cannot be read"):
        create_split(catalog, "nfn", protocol="nfn-2023", order=tmp_path / "absent.csv")
    published_file(file, 30)
    catalog.append(sample_population("cnn"), zoo="others")
    with pytest.raises(ConfigError, match="did not come from a file with numbered rows"):
        create_split(catalog, "nfn", protocol="nfn-2023", order=file, steps="20-86")


def test_arguments_that_a_protocol_decides_are_refused(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nfn-2023 needs --order FILE"):
        create_split(catalog, "x", protocol="nfn-2023")
    with pytest.raises(ConfigError, match="decides --by, --ratio itself"):
        create_split(catalog, "x", protocol="schurholt-2022", by="model", ratio="80/20")
    with pytest.raises(ConfigError, match="--order belongs to --protocol nfn-2023"):
        create_split(catalog, "x", protocol="schurholt-2022", order=tmp_path)
    with pytest.raises(ConfigError, match="--order belongs to --protocol nfn-2023"):
        create_split(catalog, "x", order=tmp_path)
    with pytest.raises(
        ConfigError, match=r"Unknown protocol 'nfn'\. Known: nfn-2023, schurholt-2022"
    ):
        create_split(catalog, "x", protocol="nfn")


def test_schurholt_leaves_out_what_diverged(catalog: Catalog) -> None:
    batch = sample_population(num_models=20, num_checkpoints=1)
    weights = batch.weights / 2  # of a normal distribution: far below 5
    assert abs(weights).max() < 5
    weights[3, 7], weights[5, 0], weights[8, 2], weights[11, 1] = np.nan, np.inf, -5.5, 5.0
    ids = catalog.append(replace(batch, weights=weights), zoo="mlps")
    split = create_split(catalog, "main", protocol="schurholt-2022", seed=1)
    members = split_members(catalog, find_split(catalog, "main"))
    assert {m.checkpoint_id for m in members} == set(ids) - {ids[3], ids[5], ids[8]}
    assert split.models == {"train": 12, "val": 3, "test": 2}
    assert (split.by, split.detail["ratio"]) == ("model", "70/15/15")
    assert split.notes[0].startswith("3 checkpoints with NaN")


def test_running_statistics_and_counters_are_no_weights(catalog: Catalog) -> None:
    import torch

    records = [
        CheckpointRecord(model=ModelInfo(key=f"{i}", name=f"{i}", source="x:"), step=1)
        for i in range(4)
    ]
    states = []
    for number in range(4):
        torch.manual_seed(number)
        state = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2)).state_dict()
        state["1.running_var"] = torch.full((2,), 900.0)
        state["1.num_batches_tracked"] = torch.tensor(5000)
        states.append(state)
    catalog.add_state_dicts(states, records, zoo="bn")
    split = create_split(catalog, "main", protocol="schurholt-2022")
    assert sum(split.checkpoints.values()) == 4


@pytest.mark.shared_data
def test_both_protocols_on_a_real_zoo(
    catalog: Catalog, shared_folder: Path, tmp_path: Path
) -> None:
    folder = shared_folder / "data" / "small_cnn_zoo" / "mnist"
    catalog.ingest(f"small-cnn-zoo:{folder}")
    file = tmp_path / "mnist_split.csv"
    order = published_file(file, 1152)
    split = create_split(catalog, "nfn", protocol="nfn-2023", order=file, steps="8")
    steps = [(1, 3, 8)[at % 3] for at in range(1152)]
    expected = as_the_paper_does(order, steps, 8)
    assert rows_by_role(catalog, "nfn") == {role: set(rows) for role, rows in expected.items()}
    assert split.checkpoints == {"train": 153, "val": 39, "test": 192}
    # The rows are those of the file: the weights of a test network are the ones that lie there.
    weights = np.load(folder / "weights.npy", mmap_mode="r")
    row = min(expected["test"])
    member = catalog.sql(
        "select checkpoint_id from metrics where name = 'source_row' and value = ?", [row]
    )["checkpoint_id"][0].as_py()
    bias = catalog.state_dict(member)["layers.0.bias"].numpy()
    assert np.array_equal(bias, weights[row, :16])
    stacks = create_split(
        catalog,
        "stacks",
        r"select checkpoint_id, regexp_extract(model, '(\d+)$', 1)::int // 32 as stack from wide",
        by="stack",
        seed=1,
    )
    assert stacks.checkpoints == {"train": 768, "val": 192, "test": 192}
    # Frozen: an id that others quote means these networks in these roles, on every machine.
    assert stacks.split_id == "857cb4ef559c277852d81e33e9958c86"
    schurholt = create_split(catalog, "schurholt", protocol="schurholt-2022")
    assert sum(schurholt.checkpoints.values()) == 1152 - int(schurholt.notes[0].split()[0])
