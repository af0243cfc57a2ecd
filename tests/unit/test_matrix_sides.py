"""Which networks a comparison fits on and asks about."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import pytest
from comparing import protocol

from zooplatform.errors import ConfigError
from zooplatform.evaluation.plan import Task
from zooplatform.evaluation.sides import freeze_sides, networks, scored_rows, torn_groups
from zooplatform.splits import find_split, split_members
from zooplatform.testing.comparisons import sample_zoos

if TYPE_CHECKING:
    from zooplatform.catalog import Catalog


def test_no_stack_and_no_run_is_on_both_sides(compared: Catalog) -> None:
    asked = protocol(cells=[{"kind": "leakage"}])
    task = Task("test_accuracy", ("mlp-a",), leaky=True)
    sides = freeze_sides(compared, asked, [task])
    stack_of = {
        row["checkpoint_id"]: (row["zoo"], row["value"])
        for row in compared.sql(
            "select checkpoint_id, zoo, value from wide join hyperparameters using (model_id) where key = 'stack'"
        ).to_pylist()
    }
    for zoo in asked.zoos:
        sides_of = defaultdict(set)
        for member in split_members(compared, find_split(compared, f"s.{zoo}")):
            sides_of[stack_of[member.checkpoint_id]].add(member.role)
        assert all(len(roles) == 1 for roles in sides_of.values())
        assert {role for roles in sides_of.values() for role in roles} == {"train", "val", "test"}
        assert torn_groups(compared, sides.main[zoo]) == []
    # The leaky split tears runs, and none of the networks that are kept is in it.
    leaky = sides.leaky["mlp-a"]
    assert len(torn_groups(compared, leaky)) > 5
    kept = {m.checkpoint_id for m in split_members(compared, sides.final["mlp-a"], "test")}
    assert kept
    assert kept < {m.checkpoint_id for m in split_members(compared, sides.main["mlp-a"], "test")}
    assert not kept & {m.checkpoint_id for m in split_members(compared, leaky)}


def test_splits_stay_frozen_and_another_draw_is_refused(compared: Catalog) -> None:
    first = freeze_sides(compared, protocol(), []).ids()
    sample_zoos(compared, num_models=26)  # the zoos grow
    assert freeze_sides(compared, protocol(), []).ids() == first
    changed = protocol(split={"name": "s", "by": "model", "ratio": "50/20/30", "final": 0.25})
    with pytest.raises(ConfigError, match=r"'s\.mlp-a' is frozen by stack"):
        freeze_sides(compared, changed, [])


def test_shares_of_runs_are_nested_and_whole(compared: Catalog) -> None:
    asked = protocol()
    sides = freeze_sides(compared, asked, [])
    table = compared.sql("select checkpoint_id, model_id from checkpoints")
    model_of = dict(zip(*(column.to_pylist() for column in table.columns), strict=True))

    def runs(fraction: float, seed: int = 0) -> set[str]:
        task = Task("test_accuracy", ("mlp-a",), fraction)
        data = networks(compared, asked, sides, task, "train", seed=seed)
        found = {model_of[one] for one in data.ids}
        assert len(data) == 3 * len(found)
        return found

    quarter, half, whole = runs(0.25), runs(0.5), runs(1.0)
    assert quarter < half < whole
    assert (len(quarter), len(half), len(whole)) == (3, 6, 12)
    assert runs(0.5, seed=1) != half


def test_targets_are_sql_and_what_lacks_them_is_left_out(compared: Catalog) -> None:
    asked = protocol(
        cells=[{"kind": "in-distribution"}],
        targets={"rate": "log10(hyper['learning_rate']::double)", "ggap": "train_accuracy - test_accuracy",
                 "odd": "case when epoch = 3 then 'nan'::double else epoch end"}
    )  # fmt: skip
    sides = freeze_sides(compared, asked, [])
    rows = scored_rows(compared, asked, sides, "cnn-b", leaky=False)
    members = split_members(compared, sides.main["cnn-b"], "test")
    assert rows["ggap"].ids == tuple(sorted(m.checkpoint_id for m in members))
    truth = compared.sql(
        "select checkpoint_id, train_accuracy - test_accuracy as g from wide"
    ).to_pylist()
    gap = {row["checkpoint_id"]: row["g"] for row in truth}
    np.testing.assert_allclose(rows["ggap"].targets, [gap[one] for one in rows["ggap"].ids])
    assert rows["ggap"].last.sum() * 3 == len(members)
    assert rows["odd"].num_lacking == len(members) / 3
    assert not rows["odd"].last.any()
    every = [
        networks(compared, asked, sides, Task("rate", ("mlp-a",)), role)
        for role in ("train", "val", "test")
    ]
    assert sum(map(len, every)) == 3 * 22  # every tenth of 24 models has no learning rate
    assert np.isfinite(np.concatenate([data.targets for data in every])).all()
