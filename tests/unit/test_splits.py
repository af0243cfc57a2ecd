"""Splits in a catalog: who is in, what stays together, what is frozen."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from zooplatform.catalog import open_catalog
from zooplatform.errors import CatalogError, ConfigError, QueryError, UnknownIdError
from zooplatform.interfaces import CheckpointRecord, ModelInfo, PopulationBatch
from zooplatform.splits import create_split, find_split, list_splits, split_members
from zooplatform.testing import sample_population

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.catalog import Catalog


def zoo(num_models: int = 20, seed: int = 0, **config: list[Any]) -> PopulationBatch:
    """Models of two checkpoints; `config` gives a value per model."""
    batch = sample_population(num_models=num_models, seed=seed)
    rows = []
    for number, row in enumerate(batch.rows):
        own = {name: values[number // 2] for name, values in config.items()}
        rows.append(replace(row, model=replace(row.model, config={**row.model.config, **own})))
    return replace(batch, rows=rows)


def reordered(batch: PopulationBatch, order: np.ndarray[Any, Any]) -> PopulationBatch:
    weights = np.ascontiguousarray(batch.weights[order])
    return replace(batch, weights=weights, rows=[batch.rows[at] for at in order])


def by_content(catalog: Catalog, name: str) -> dict[str, str]:
    return {m.content_hash: m.role for m in split_members(catalog, find_split(catalog, name))}


def roles_by(catalog: Catalog, name: str, column: str) -> dict[str, set[str]]:
    table = catalog.sql(
        f"select ({column})::varchar as key, role from splits join wide using (checkpoint_id) "
        "join models as m on m.model_id = wide.model_id where splits.name = ?",
        [name],
    )
    found = defaultdict(set)
    for row in table.to_pylist():
        found[row["key"]].add(row["role"])
    return found


def test_all_checkpoints_of_a_run_are_on_one_side(catalog: Catalog) -> None:
    catalog.append(zoo(), zoo="mlps")
    split = create_split(catalog, "main", seed=4)
    assert (split.by, split.seed, split.created) == ("model", 4, True)
    assert split.models == {"train": 14, "val": 3, "test": 3}
    assert split.checkpoints == {"train": 28, "val": 6, "test": 6}
    assert all(len(roles) == 1 for roles in roles_by(catalog, "main", "wide.model_id").values())
    assert split.notes == []


def test_by_checkpoint_says_that_runs_are_torn(catalog: Catalog) -> None:
    catalog.append(zoo(), zoo="mlps")
    split = create_split(catalog, "loose", by="checkpoint")
    assert split.checkpoints == {"train": 28, "val": 6, "test": 6}
    torn = sum(len(r) > 1 for r in roles_by(catalog, "loose", "wide.model_id").values())
    assert torn > 0
    assert split.notes == [
        f"{torn} of 20 models have checkpoints in several roles. Splitting by model keeps each in one."
    ]


def test_stacks_are_never_shared_between_roles(catalog: Catalog) -> None:
    catalog.append(zoo(30, stack=[i // 5 for i in range(30)]), zoo="mlps")
    split = create_split(catalog, "stacks", by="stack", ratio="50/25/25")
    assert split.detail["groups"] == 6
    by_stack = roles_by(catalog, "stacks", "json_extract_string(m.config, '$.stack')")
    assert len(by_stack) == 6
    assert all(len(roles) == 1 for roles in by_stack.values())
    # A column of the query does the same.
    query = (
        "select checkpoint_id, json_extract(config, '$.stack') as pile "
        "from checkpoints join models using (model_id)"
    )
    again = create_split(catalog, "piles", query, by="pile", ratio="50/25/25")
    assert again.split_id == split.split_id


def test_the_same_networks_give_the_same_split_whatever_the_order_ids_and_files(
    tmp_path: Path, catalog: Catalog
) -> None:
    batch = zoo(24, stack=[i // 3 for i in range(24)])
    catalog.append(batch, zoo="mlps")
    order = np.random.default_rng(1).permutation(len(batch.rows))
    renamed = replace(
        batch,
        rows=[
            replace(r, model=replace(r.model, key=f"elsewhere/{r.model.key}")) for r in batch.rows
        ],
    )
    with open_catalog(tmp_path / "other", create=True) as other:
        for part in np.array_split(order, 5):
            other.append(reordered(renamed, part), zoo="anything")
        ids = "select checkpoint_id from checkpoints"
        assert set(catalog.sql(ids)["checkpoint_id"].to_pylist()).isdisjoint(
            other.sql(ids)["checkpoint_id"].to_pylist()
        )
        for by in ("model", "checkpoint", "stack"):
            one = create_split(catalog, by, by=by, seed=9, stratify="activation")
            query = "select checkpoint_id from wide order by test_accuracy desc, model"
            two = create_split(other, by, query, by=by, seed=9, stratify="activation")
            assert one.split_id == two.split_id
            assert by_content(catalog, by) == by_content(other, by)
        assert create_split(other, "seed", by="model", seed=10).split_id != one.split_id


def test_networks_of_equal_content_are_in_one_role(catalog: Catalog) -> None:
    batch = zoo(20)
    catalog.append(batch, zoo="mlps")
    copies = [
        replace(r, model=replace(r.model, key=f"copy/{r.model.key}"), step=(r.step or 0) + 5)
        for r in batch.rows[:10]
    ]
    catalog.append(replace(batch, rows=copies, weights=batch.weights[:10].copy()), zoo="copies")
    for by in ("model", "checkpoint"):
        create_split(catalog, by, by=by)
        roles = defaultdict(set)
        for member in split_members(catalog, find_split(catalog, by)):
            roles[member.content_hash].add(member.role)
        assert len(roles) == 40
        assert all(len(found) == 1 for found in roles.values())


def test_a_shared_initialisation_is_explained(catalog: Catalog) -> None:
    batch = zoo(6)
    weights = batch.weights.copy()
    weights[::2] = weights[0]
    catalog.append(replace(batch, weights=weights), zoo="mlps")
    with pytest.raises(
        ConfigError, match=r"in 6 of 6; a shared initialisation does this.*epoch > 0"
    ):
        create_split(catalog, "main")
    assert create_split(catalog, "main", steps="20").models["train"] == 4


def test_strata_are_alike_in_all_roles(catalog: Catalog) -> None:
    catalog.append(zoo(40, kind=["a", "b", "b", "b"] * 10), zoo="mlps")
    for name, expression in (("key", "kind"), ("sql", "epoch < 1.5"), ("none", None)):
        create_split(catalog, name, by="checkpoint", ratio="50/50", stratify=expression, seed=5)
    table = catalog.sql(
        "select s.name, s.role, count(*) filter (json_extract_string(m.config, '$.kind') = 'a') as a, "
        "count(*) filter (epoch < 1.5) as early from splits as s join wide as w using (checkpoint_id) "
        "join models as m on m.model_id = w.model_id group by all"
    ).to_pylist()
    counted = {(r["name"], r["role"]): (r["a"], r["early"]) for r in table}
    assert {counted["key", role][0] for role in ("train", "test")} == {10}
    assert {counted["sql", role][1] for role in ("train", "test")} == {20}
    assert {counted["none", role] for role in ("train", "test")} != {(10, 20)}


def test_steps_and_epochs_filter(catalog: Catalog) -> None:
    catalog.append(zoo(), zoo="mlps")
    assert create_split(catalog, "late", steps="20").detail["steps"] == "20"
    assert sum(find_split(catalog, "late").checkpoints.values()) == 20
    assert sum(create_split(catalog, "both", epochs="1-2").checkpoints.values()) == 40
    with pytest.raises(
        CatalogError, match="None of the 40 checkpoints of the query is at epoch 21-25"
    ):
        create_split(catalog, "none", epochs="21-25")
    with pytest.raises(ConfigError, match=r"--epochs '25-21' ends before it begins"):
        create_split(catalog, "none", epochs="25-21")
    with pytest.raises(ConfigError, match="Write 86 or 21-25"):
        create_split(catalog, "none", steps="last")


def test_a_name_is_frozen_and_the_error_names_both(catalog: Catalog) -> None:
    catalog.append(zoo(), zoo="mlps")
    first = create_split(catalog, "main", seed=1)
    commits = catalog.sql("select count(*) as n from commits").to_pylist()
    again = create_split(catalog, "main", seed=1)
    assert again == first
    assert again.created is False
    assert catalog.sql("select count(*) as n from commits").to_pylist() == commits
    other = create_split(catalog, "other", seed=2).split_id
    with pytest.raises(CatalogError, match=f"'main' is frozen as {first.split_id}.*now is {other}"):
        create_split(catalog, "main", seed=2)
    catalog.append(zoo(22, seed=7), zoo="more")
    with pytest.raises(CatalogError, match="Choose another name"):
        create_split(catalog, "main", seed=1)
    assert find_split(catalog, "main") == first
    assert [split.name for split in list_splits(catalog)] == ["main", "other"]


def test_two_names_for_the_same_members_both_stay(catalog: Catalog) -> None:
    catalog.append(zoo(), zoo="mlps")
    a, b = create_split(catalog, "a"), create_split(catalog, "b")
    catalog.compact()
    assert a.split_id == b.split_id
    assert [s.name for s in list_splits(catalog)] == ["a", "b"]
    assert len(split_members(catalog, find_split(catalog, "b"))) == 40


CREATE = """
import sys
from zooplatform.catalog import open_catalog
from zooplatform.errors import CatalogError
from zooplatform.splits import create_split

with open_catalog(sys.argv[1]) as catalog:
    catalog.sql("select 1")
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        print(create_split(catalog, "main", seed=int(sys.argv[2])).split_id)
    except CatalogError as exc:
        print(exc)
"""


def test_of_several_processes_one_freezes_the_name(catalog: Catalog) -> None:
    catalog.append(zoo(), zoo="mlps")
    pipe = subprocess.PIPE
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE, str(catalog.path), str(seed)],
            stdin=pipe,
            stdout=pipe,
            text=True,
        )
        for seed in range(3)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    said = [worker.communicate(timeout=60)[0].strip() for worker in workers]
    winner = find_split(catalog, "main")
    assert said.count(winner.split_id) == 1
    assert sum(f"frozen as {winner.split_id}" in text for text in said) == 2
    assert len(split_members(catalog, winner)) == 40


def test_the_id_can_be_computed_by_anyone(catalog: Catalog) -> None:
    catalog.append(zoo(), zoo="mlps")
    split = create_split(catalog, "main")
    rows = catalog.sql("select distinct role, content_hash from splits").to_pylist()
    lines = sorted(f"{row['role']} {row['content_hash']}\n" for row in rows)
    assert hashlib.sha256("".join(lines).encode()).hexdigest()[:32] == split.split_id
    assert find_split(catalog, split.split_id[:6]) == split


def test_checkpoints_stored_tensor_by_tensor_take_part(catalog: Catalog, tmp_path: Path) -> None:
    for number in range(4):
        torch.manual_seed(number)
        save_file(torch.nn.Linear(3, 2).state_dict(), tmp_path / f"{number}.safetensors")
        catalog.ingest(tmp_path / f"{number}.safetensors", zoo="single")
    split = create_split(catalog, "main", ratio="50/25/25")
    assert split.checkpoints == {"train": 2, "val": 1, "test": 1}


def test_unusable_requests_say_what_would_work(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="names no checkpoint"):
        create_split(catalog, "empty")
    catalog.append(zoo(stack=[*range(19), None]), zoo="mlps")
    with pytest.raises(ConfigError, match=r"'my split' cannot name a split"):
        create_split(catalog, "my split")
    with pytest.raises(ConfigError, match=r"Did you mean 'activation'\?.*learning_rate"):
        create_split(catalog, "x", by="activatoin")
    with pytest.raises(ConfigError, match="70/15/15 by activation needs more groups"):
        create_split(catalog, "x", by="activation")
    with pytest.raises(ConfigError, match=r"2 of 40 checkpoints have no 'stack'"):
        create_split(catalog, "x", by="stack")
    with pytest.raises(QueryError, match="nonsense"):
        create_split(catalog, "x", stratify="nonsense + 1")
    with pytest.raises(CatalogError, match="needs a column checkpoint_id"):
        create_split(catalog, "x", "select model_id from models")
    with pytest.raises(UnknownIdError, match="feedbeef"):
        create_split(catalog, "x", "select 'feedbeef' as checkpoint_id")
    with pytest.raises(ConfigError, match="several values of 'n'"):
        create_split(
            catalog, "x", "select checkpoint_id, unnest([1, 2]) as n from checkpoints", by="n"
        )
    with pytest.raises(UnknownIdError, match="Splits: none"):
        find_split(catalog, "x")
    save_file(torch.nn.Linear(3, 2).state_dict(), tmp_path / "h.safetensors")
    catalog.ingest(tmp_path / "h.safetensors", header_only=True)
    with pytest.raises(
        CatalogError, match=r"1 of the 41 checkpoints have no weights.*state = 'stored'"
    ):
        create_split(catalog, "x", "select checkpoint_id from checkpoints")
    assert list_splits(catalog) == []
    assert create_split(catalog, "x").created


def test_fifty_thousand_checkpoints_take_seconds(catalog: Catalog) -> None:
    count = 50_000
    layout = sample_population().layout[1:2]
    weights = np.random.default_rng(0).standard_normal((count, 6)).astype(np.float32)
    rows = [
        CheckpointRecord(
            model=ModelInfo(
                key=f"{i // 5}", name=f"run {i // 5}", source="x:", config={"s": i // 320}
            ),
            step=i % 5,
        )
        for i in range(count)
    ]
    # Without properties and statistics to measure, only the split is timed by this test.
    catalog.append(PopulationBatch(layout=layout, weights=weights, rows=rows), zoo="large")
    started = time.process_time()
    split = create_split(catalog, "main", by="s", stratify="step")
    # Two seconds on the machine that this was written on.
    assert time.process_time() - started < 12
    assert sum(split.checkpoints.values()) == count
