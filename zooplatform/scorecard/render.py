"""A report card as a page: tables in Markdown and figures, made from the JSON file alone.

Every accuracy comes from a `Row`, which has its novelty, and is printed together with it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from zooplatform.errors import ConfigError
from zooplatform.scorecard.card import FORMAT
from zooplatform.scorecard.reconstruction import Reconstruction
from zooplatform.scorecard.rows import Novelty, Row

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["figure_files", "load_card", "page", "render", "rows_of"]

Card = dict[str, Any]


def load_card(path: Path) -> Card:
    """A report card as it was written.

    Raises:
        ConfigError: the file is missing, none of this version, or has an accuracy without its novelty.
    """
    again = "`zoo generator evaluate` writes it."
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(
            f"{path}: the report card cannot be read ({exc.strerror}). {again}"
        ) from exc
    except ValueError as exc:
        raise ConfigError(f"{path}: no JSON: {exc}. {again}") from exc
    if not isinstance(found, dict) or found.get("format") != FORMAT or "rows" not in found:
        raise ConfigError(f"{path}: no report card in format {FORMAT}. {again}")
    rows_of(found)
    return found


def rows_of(card: Mapping[str, Any]) -> list[Row]:
    """The rows in order; raises ConfigError where one has no novelty."""
    return [Row.from_json(row) for row in card["rows"]]


def render(card: Card, folder: Path, *, figures: bool = True) -> list[Path]:
    """Write `<name>.md` and its figures.

    Args:
        card: as `load_card` gives it.
        folder: where to.
        figures: draw too; needs matplotlib.

    Returns:
        The files.

    Raises:
        NotInstalledError: matplotlib is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, str] = {}
    if figures:
        from zooplatform.scorecard.figures import draw

        drawn = draw(card)
    file = folder / f"{card['name']}.md"
    file.write_text(page(card, figures=figures), encoding="utf-8")
    written = [file]
    for name, svg in drawn.items():
        written.append(folder / name)
        written[-1].write_text(svg, encoding="utf-8")
    return written


def figure_files(card: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(file name, alternative text) of the figures."""
    rows = rows_of(card)
    if rows:
        yield f"{card['name']}-novelty.svg", "Accuracy against relative novelty"
    if any(row.epochs for row in rows):
        yield f"{card['name']}-epochs.svg", "Accuracy by epochs of fine-tuning"


def page(card: Card, *, figures: bool = True) -> str:
    """The page, the same for the same card."""
    rows = rows_of(card)
    blocks = [f"# {card['title']}", *_introduction(card)]
    if figures:
        blocks += [f"![{text}]({name})" for name, text in figure_files(card)]
    blocks += ["## Accuracy, and how new", _headlines(rows)]
    for epochs in sorted({row.epochs for row in rows}):
        own = [row for row in rows if row.epochs == epochs]
        title = "As made" if not epochs else f"After {_epochs(epochs)} of fine-tuning"
        blocks += [f"## {title}", _details(own, card)]
    if card["wrong"]:
        blocks += ["## Asked for something else", _wrong(card["wrong"])]
    if card["reconstruction"]:
        blocks += ["## Held-out networks reconstructed", *_reconstruction(card)]
    blocks += ["## Cost", _cost(card["cost"])]
    if any(row.learning_rate is not None for row in rows):
        blocks += ["## Learning rates", _rates(rows)]
    blocks += ["## Generators", _generators(card)]
    if card["refused"]:
        lines = [f"- {item['method']}: {item['reason']}" for item in card["refused"]]
        blocks += ["## Refused", "\n".join(lines)]
    if card["notes"]:
        blocks += ["## Notes", "\n".join(f"- {note}" for note in card["notes"])]
    return "\n\n".join(blocks) + "\n"


def _introduction(card: Card) -> Iterator[str]:
    settings, zoo, images = card["settings"], card["zoo"], card["images"][card["dataset"]]
    schooling = settings["schooling"]
    if not card["complete"]:
        yield "**Not complete**: some rows are still to be measured."
    if settings.get("final"):  # older cards do not say
        yield (
            "**The last look**: the images are those that neither the training nor the testing of the networks used, "
            "and that are on no other card."
        )
    yield (
        f"Accuracy on {images['num_test']:,} test images of {card['dataset']}. Every accuracy stands with the relative "
        "novelty of the same networks: the L2 distance to the nearest training network, over all orders of hidden "
        "units, divided by what the zoo itself has from run to run. 0 is a copy, 1 as new as another training run. "
        "`docs/report-card.md` says what every figure means."
    )
    yield (
        "`scratch` are random networks as training begins, `zoo` held-out training runs, `copy` training networks as "
        f"they are. Training networks: {zoo['training_networks']:,} of {zoo['training_runs']:,} runs, "
        f"{zoo['training_runs_of_dataset']:,} of them on {card['dataset']}; held out: {zoo['held_out_runs']:,} runs."
    )
    if settings.get("readouts"):  # older cards do not say
        yield (
            "`+ read-out N`: the last linear layer is fitted by ridge regression to N training images of each class; "
            "nothing else is changed."
        )
    rates = ", ".join(f"{rate:g}" for rate in settings["learning_rates"])
    few = settings.get("train_images")  # older cards do not say
    few = f"{few:,} of " if few else ""
    yield (
        f"Fine-tuning with {schooling['optimizer']}, batches of {schooling['batch_size']}, on "
        f"{few}{images['num_train']:,} images; for every method and number of epochs the learning rate of {rates} that "
        f"is best on {images['num_validation']:,} validation images for {settings['tried']} networks. ± is the "
        "standard deviation over networks, brackets hold 95 % of bootstrap draws of the mean. Seed "
        f"{settings['seed']}; split `{card['split']}`."
    )
    versions = ", ".join(f"{name} {version}" for name, version in card["versions"].items())
    machine = card["machine"]
    yield (
        f"{versions}; {machine['system']} {machine['processor']}, {machine['cpus']} CPUs, device "
        f"{machine.get('gpu', machine['device'])}."
    )


def _epochs(count: int) -> str:
    return f"{count} epoch{'' if count == 1 else 's'}"


def _headlines(rows: Sequence[Row]) -> str:
    """A line per method, an accuracy with its novelty per number of epochs."""
    epochs = sorted({row.epochs for row in rows})
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        own = {row.epochs: row for row in rows if row.method == method}
        lines.append([method, *(own[e].cell if e in own else "-" for e in epochs)])
    head = ["method", *("as made" if not e else f"after {_epochs(e)}" for e in epochs)]
    return "Mean accuracy ± standard deviation, best, relative novelty.\n\n" + _table(head, lines)


def _details(rows: Sequence[Row], card: Card) -> str:
    head = (
        *(
            "method",
            "n",
            "accuracy",
            "best",
            "95 % of the mean",
            "relative novelty",
            "10 % to 90 %",
        ),
        *("differs from nearest", "least", "errors shared with nearest", "most"),
        *("distinct", "distance in pairs", "disagreement in pairs", "ensemble"),
    )
    lines: list[Sequence[Any]] = []
    for row in rows:
        accuracy, diversity = row.accuracy, row.diversity
        low, high = accuracy.ci
        lines.append(
            (
                row.method,
                accuracy.n
                if not row.novelty.broken
                else f"{accuracy.n} ({row.novelty.broken} broken)",
                f"{accuracy.mean:.3f} ± {accuracy.std:.3f}",
                f"{accuracy.best:.3f}",
                f"[{low:.3f}, {high:.3f}]",
                *_novel(row.novelty),
                diversity.distinct,
                _share(diversity.relative_distance),
                f"{_share(diversity.disagreement, 3)} ({_share(diversity.relative_disagreement)})",
                f"{row.ensemble:.3f}",
            )
        )
    zoo = Novelty(**card["zoo"]["left_out"])
    of_zoo = card["zoo"]["diversity"]
    lines.append(
        (
            *("zoo, each run left out", "-", "-", "-", "-"),
            *_novel(zoo),
            of_zoo["distinct"],
            _share(1.0 if of_zoo["distance"] else None),
            f"{_share(of_zoo['disagreement'], 3)} ({_share(1.0 if of_zoo['disagreement'] else None)})",
            "-",
        )
    )
    return _table(head, lines)


def _novel(novelty: Novelty) -> tuple[str, ...]:
    return (
        f"{novelty.relative:.2f}",
        f"{novelty.relative_q10:.2f} to {novelty.relative_q90:.2f}",
        f"{novelty.disagreement:.3f}",
        f"{novelty.least_disagreement:.3f}",
        f"{novelty.error_overlap:.3f}",
        f"{novelty.most_error_overlap:.3f}",
    )


def _wrong(lines: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            item["method"],
            item["asked_for"],
            item["measured_on"],
            f"{item['accuracy_mean']:.3f}" if "accuracy_mean" in item else "refused",
            f"{item['chance']:.3f}" if "chance" in item else "-",
            item.get("n", item.get("refused", "-")),
        )
        for item in lines
    ]
    note = "Chance is the accuracy of always naming the most frequent class."
    head = ("method", "asked for", "measured on", "accuracy", "chance", "n, or why not")
    return f"{note}\n\n{_table(head, rows)}"


def _reconstruction(card: Card) -> Iterator[str]:
    yield (
        "A decoder that ignores its codes (`constant`) keeps the accuracy too: it agrees as much with another network "
        "as with the own one, and what it gives has no diversity."
    )
    rows = []
    for item in card["reconstruction"]:
        row = Reconstruction.from_json(item)
        rows.append(
            (
                row.method,
                row.n,
                f"{row.original_accuracy:.3f}",
                f"{row.accuracy:.3f}",
                f"{row.agreement_own:.3f}",
                f"{row.agreement_other:.3f}",
                f"{row.originals_agreement:.3f}",
                f"{row.relative_error:.3f}",
                f"{row.relative_distance:.2f}",
                f"{row.relative_disagreement:.2f}",
            )
        )
    head = (
        *("method", "n", "accuracy before", "accuracy after", "agrees with own", "with another"),
        *("originals with each other", "relative error", "distance in pairs", "disagreement in pairs"),
    )  # fmt: skip
    yield _table(head, rows)


def _cost(lines: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            item["method"],
            item["n"],
            f"{item['seconds_per_network']:.4f}",
            f"{item['networks_per_second']:,.1f}" if item["networks_per_second"] else "-",
            f"{item['peak_bytes'] / 2**20:,.1f}",
            item["peak_of"],
            "-" if item["gpu_bytes"] is None else f"{item['gpu_bytes'] / 2**20:,.1f}",
        )
        for item in lines
    ]
    note = (
        "Of drawing the networks, loading the generator not counted. Memory is how far that of the process grew: read "
        "from VmHWM, which is set back before, or from ru_maxrss, which shows growth beyond an earlier peak only."
    )
    head = (
        "method",
        "n",
        "s per network",
        "networks/s",
        "peak memory, MiB",
        "read from",
        "GPU, MiB",
    )
    return f"{note}\n\n{_table(head, rows)}"


def _rates(rows: Sequence[Row]) -> str:
    lines = [
        (
            row.method,
            row.epochs,
            f"{row.learning_rate:g}",
            ", ".join(
                f"{rate}: {value:.3f}"
                for rate, value in row.about.get("validation_accuracy", {}).items()
            ),
        )
        for row in rows
        if row.learning_rate is not None
    ]
    return _table(("method", "epochs", "chosen", "accuracy on validation images by rate"), lines)


def _generators(card: Card) -> str:
    rows = []
    for item in card["generators"]:
        seconds = item["fit_seconds"]
        config = json.dumps(item["config"], sort_keys=True, ensure_ascii=False)
        rows.append(
            (
                item["name"],
                f"`{item['backend']}`",
                f"`{config if len(config) <= 300 else config[:299] + '…'}`",
                "-" if seconds is None else f"{seconds:,.1f}",
                f"`{item['artifact_id']}`",
            )
        )
    return _table(("generator", "backend", "config", "fit s", "artifact"), rows)


def _share(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    lines += [
        f"| {' | '.join(str(value).replace('|', chr(92) + '|') for value in row)} |" for row in rows
    ]
    return "\n".join(lines)
