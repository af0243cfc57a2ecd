"""Rules about the course of a training run: tensors that never change, epochs that do not rise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zooplatform.linting.findings import Finding, finding, plural

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zooplatform.catalog import Catalog

__all__ = ["order", "untrained"]

# Seven numbers of a tensor that stay the same to the last bit mean that it did; buffers are not trained. Tensors with
# no finite statistics are left to `not-finite`.
_UNTRAINED = """
    with moments as (
        select checkpoint_id, model_id from checkpoints
        where model_id in (
            select model_id from checkpoints group by 1
            having count(distinct coalesce(step, epoch)) > 1)
    ),
    tensors_of as (
        select c.model_id, s.tensor_index, any_value(s.name) as name,
            count(s.l2) = count(*)
            and min(s.l2) = max(s.l2) and min(s.mean) = max(s.mean) and min(s.std) = max(s.std)
            and min(s.min) = max(s.min) and min(s.max) = max(s.max)
            and min(s.q25) = max(s.q25) and min(s.q75) = max(s.q75) as same
        from tensor_stats s join moments c using (checkpoint_id)
        where not regexp_matches(s.name, '(running_mean|running_var|num_batches_tracked)$')
        group by c.model_id, s.tensor_index having count(*) > 1
    ),
    models_of as (
        select model_id, count(*) as total, list(name order by tensor_index) filter (where same) as names
        from tensors_of group by model_id having names is not null
    )
    select m.zoo_id, u.names, u.total, list(u.model_id order by u.model_id) as ids
    from models_of u join models m using (model_id)
    group by all order by all"""


def untrained(catalog: Catalog) -> Iterator[Finding]:
    """Training changes every tensor between the first and the last checkpoint of a run.

    Single tensors that stay may be frozen on purpose and are a note; a whole network that stays is a warning.
    """
    for row in catalog.sql(_UNTRAINED).to_pylist():
        names, whole = row["names"], len(row["names"]) == row["total"]
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        yield finding(
            "untrained",
            "warning" if whole else "note",
            "model",
            row["ids"],
            zoo=row["zoo_id"],
            declared="the checkpoints are of different steps of a training run",
            found="no tensor differs between them"
            if whole
            else f"{len(names)} of {row['total']} tensors never change ({shown})",
            repair="Training did nothing, or one file was saved under several steps: check the learning rate and the "
            "files of the run."
            if whole
            else "Frozen on purpose, or left out of the optimizer: check the training code.",
        )


_ORDER = """
    with rows as (
        select model_id, checkpoint_id, step, epoch, lag(epoch) over run as epoch_before,
            lag(step) over run as step_before
        from checkpoints
        window run as (partition by model_id order by step, epoch, checkpoint_id)
    ),
    wrong as (
        select *, case when step < 0 or epoch < 0 then 'negative'
            when epoch < epoch_before then 'falls' when epoch = epoch_before then 'stays' end as fault
        from rows where step is not null or epoch < 0
    )
    select m.zoo_id, w.fault, list(w.checkpoint_id order by w.model_id, w.step) as ids,
        first(w.step order by w.model_id, w.step) as step,
        first(w.epoch order by w.model_id, w.step) as epoch,
        first(w.step_before order by w.model_id, w.step) as step_before,
        first(w.epoch_before order by w.model_id, w.step) as epoch_before,
        count(distinct w.model_id) as num_models
    from wrong w join models m using (model_id)
    where w.fault is not null group by all order by all"""


def order(catalog: Catalog) -> Iterator[Finding]:
    """Epochs rise with the steps of a run, and neither is negative."""
    for row in catalog.sql(_ORDER).to_pylist():
        if row["fault"] == "negative":
            found = f"the first has step {row['step']} and epoch {row['epoch']}"
        else:
            found = (
                f"the epoch {row['fault']} in {plural(row['num_models'], 'model')}: {row['epoch_before']:g} at step "
                f"{row['step_before']}, {row['epoch']:g} at step {row['step']}"
            )
        yield finding(
            "order",
            # Several checkpoints of one epoch are common where epochs are counted in whole numbers.
            "note" if row["fault"] == "stays" else "warning",
            "checkpoint",
            row["ids"],
            zoo=row["zoo_id"],
            declared="epochs rise with the steps of a run, from 0",
            found=found,
            repair="Check how the source counts; write corrected rows with "
            "`catalog.commit(message, {'checkpoints': rows}, replaces=['checkpoints'])`.",
        )
