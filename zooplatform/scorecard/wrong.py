"""What a generator makes when it is asked for something else: a condition that changes nothing is not followed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zooplatform.errors import ConfigError
from zooplatform.scorecard.entrants import GeneratorEntrant
from zooplatform.scorecard.examining import accuracy_elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from zooplatform.fitting import Blueprint
    from zooplatform.generation.images import TaskData
    from zooplatform.scorecard.entrants import Entrant
    from zooplatform.scorecard.examining import Examiner
    from zooplatform.scorecard.networks import Networks
    from zooplatform.scorecard.wishes import Wishes

__all__ = ["most_frequent", "wrong_figures"]


def most_frequent(task: TaskData) -> float:
    """Accuracy of always naming the most frequent class of the test images: what chance can reach."""
    return float(task.test.y.bincount().max() / len(task.test.y))


def wrong_figures(
    entrant: Entrant,
    networks: Networks,
    examiner: Examiner,
    tasks: Mapping[str, TaskData],
    wishes: Wishes,
    build: Callable[[Blueprint], nn.Module],
    device: str,
) -> list[dict[str, Any]]:
    """Accuracies by what was asked for and what was measured.

    With another data set B beside the measured one A: networks for B measured on A, those for A on B, and those for B
    on B. With other words: networks for those on A.

    Args:
        entrant: rows of other than generators give nothing.
        networks: its networks for the right condition.
        examiner: measures on A.
        tasks: images of A and, where there is one, B.
        wishes: says what else to ask for.
        build: a new network of a blueprint.
        device: torch device.

    Returns:
        `method`, `asked_for`, `measured_on`, `accuracy_mean`, `chance`, `n`; or `refused`, with the reason, where the
        generator knows nothing that meets the condition.
    """
    if not isinstance(entrant, GeneratorEntrant):
        return []
    other = wishes.wrong_dataset
    (here,) = [task for name, task in tasks.items() if name != other] or tasks.values()
    found = []

    def note(asked_for: str, task: TaskData, accuracy: Callable[[], tuple[float, int]]) -> None:
        line: dict[str, Any] = {
            "method": entrant.label,
            "asked_for": asked_for,
            "measured_on": task.name,
        }
        try:
            value, count = accuracy()
        except ConfigError as exc:
            found.append({**line, "refused": str(exc)})
        else:
            chance = most_frequent(task)
            found.append({**line, "accuracy_mean": value, "chance": chance, "n": count})

    def made(of: str | None, words: str | None, task: TaskData) -> tuple[float, int]:
        drawn = entrant.ask(of, words)
        if task is here:
            return examiner.accuracy(drawn), len(drawn)
        return accuracy_elsewhere(drawn, task, build=build, device=device), len(drawn)

    if other is not None:
        there = tasks[other]
        note(other, here, lambda: made(other, None, here))
        right = entrant.about["instruction"] or here.name
        note(
            right,
            there,
            lambda: (
                accuracy_elsewhere(networks, there, build=build, device=device),
                len(networks),
            ),
        )
        note(other, there, lambda: made(other, None, there))
    for words in wishes.wrong_instructions:
        note(words, here, lambda words=words: made(None, words, here))  # type: ignore[misc]
    return found
