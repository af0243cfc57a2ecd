"""Networks of the zoo of report cards, for the tests of their figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zooplatform.generation.images import task_images
from zooplatform.generation.networks import Builder
from zooplatform.growing.images import ImageData
from zooplatform.scorecard.networks import Bench
from zooplatform.scorecard.novelty import TrainingSide
from zooplatform.scorecard.sides import read_side
from zooplatform.testing.scorecards import ALL, SPLIT, card_folder

if TYPE_CHECKING:
    from zooplatform.catalog import Catalog
    from zooplatform.generation.images import TaskData
    from zooplatform.scorecard.sides import Side

__all__ = ["Setting", "setting"]


class Setting(NamedTuple):
    """What a report card on `rows` measures with."""

    catalog: Catalog
    task: TaskData
    training: Side
    held_out: Side
    builder: Builder
    bench: Bench
    reference: TrainingSide


def setting(catalog: Catalog) -> Setting:
    training = read_side(catalog, ALL, SPLIT, "train", "rows")
    held_out = read_side(catalog, ALL, SPLIT, "test", "rows")
    task = task_images(catalog, training.ids, folder=card_folder(), names=["rows"])["rows"]
    builder = Builder(catalog.recogniser)
    data = ImageData(
        name="rows",
        source=task.source,
        train=task.train,
        test=task.validation,
        num_classes=task.num_classes,
        sha256=task.sha256,
    )
    bench = Bench(builder, data)
    reference = TrainingSide(training, bench=bench, x=task.test.x, y=task.test.y)
    return Setting(catalog, task, training, held_out, builder, bench, reference)
