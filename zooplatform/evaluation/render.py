"""A comparison as a page: tables in Markdown and figures, made from the JSON file alone."""

from __future__ import annotations

import json
from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING, Any

from zooplatform.errors import ConfigError
from zooplatform.evaluation.state import FORMAT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["load_results", "page", "render", "row_label"]

Results = dict[str, Any]


def load_results(path: Path) -> Results:
    """The results of a comparison.

    Raises:
        ConfigError: the file is missing, or it is none of this version.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(
            f"{path}: the results cannot be read ({exc.strerror}). `zoo predictor matrix` writes them."
        ) from exc
    except ValueError as exc:
        raise ConfigError(
            f"{path}: no JSON: {exc}. `zoo predictor matrix` writes it anew."
        ) from exc
    if not isinstance(found, dict) or found.get("format") != FORMAT or "cells" not in found:
        raise ConfigError(f"{path}: not the results of `zoo predictor matrix` in format {FORMAT}.")
    return found


def render(results: Results, folder: Path, *, figures: bool = True) -> list[Path]:
    """Write `<name>.md` and its figures.

    Args:
        results: as `load_results` gives them.
        folder: where to.
        figures: draw heat maps and curves too; needs matplotlib.

    Returns:
        The files.

    Raises:
        NotInstalledError: matplotlib is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, str] = {}
    if figures:
        from zooplatform.evaluation.heatmaps import draw

        drawn = draw(results)
    written = []
    for name, svg in drawn.items():
        file = folder / name
        file.write_text(svg, encoding="utf-8")
        written.append(file)
    file = folder / f"{results['name']}.md"
    file.write_text(page(results, figures=figures), encoding="utf-8")
    return [file, *written]


def page(results: Results, *, figures: bool = True) -> str:
    """The page, the same for the same results."""
    blocks = [
        f"# {results['title']}",
        _introduction(results),
        "## Zoos",
        _zoos(results),
        "## Methods",
        _methods(results),
    ]
    for target, sql in results["protocol"]["targets"].items():
        own = [item for item in results["summaries"] if item["target"] == target]
        if not own:
            continue
        blocks += [f"## {target}", f"`{sql}`"]
        if figures:
            blocks += [f"![{alt}]({name})" for name, alt in figure_files(results, target)]
        blocks += _summaries(own)
        blocks += ["### Every cell", _cells(results, target)]
    if results["tuning"]:
        blocks += ["## Tried configurations", _tuning(results)]
    refused = {
        (item["method"], reason) for item in results["fits"] for reason in item["refused"].values()
    }
    if refused:
        blocks += ["## Refused", "\n".join(f"- {label}: {why}" for label, why in sorted(refused))]
    if results["failed"]:
        lines = [f"- {item['fit']}: {item['reason']}" for item in results["failed"]]
        blocks += ["## Failed", "\n".join(lines)]
    return "\n\n".join(blocks) + "\n"


def figure_files(results: Results, target: str) -> Iterator[tuple[str, str]]:
    """(file name, alternative text) of the figures of a target."""
    cells = [cell for cell in results["cells"] if cell["target"] == target]
    if any(cell["kind"] != "data-fraction" for cell in cells):
        yield (
            f"{results['name']}-{target}.svg",
            f"Kendall's tau of {target} by training and test zoo",
        )
    if any(cell["kind"] == "data-fraction" for cell in cells):
        yield (
            f"{results['name']}-{target}-fractions.svg",
            f"Kendall's tau of {target} by the share of the training runs",
        )


def row_label(cell: Mapping[str, Any]) -> str:
    """What a cell was fitted on, in a table of training against test zoos."""
    train: list[str] = cell["train"]
    if cell["kind"] == "leakage":
        return f"{train[0]} (by checkpoint)"
    if len(train) == 1 and not cell["kind"].startswith(("pooled", "leave-one-out")):
        return train[0]
    return str(cell["kind"])


def _introduction(results: Results) -> str:
    protocol, machine = results["protocol"], results["machine"]
    split = protocol["split"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    side = (
        "the test networks that were kept for the last look"
        if results["side"] == "final"
        else "test networks"
    )
    by, ratio, seed = split.get("by", "model"), split.get("ratio", "70/15/15"), split.get("seed", 0)
    draws = protocol.get("draws", 1000)
    words = [
        f"Kendall's tau (tau-b) of predictions about {side}: all kept checkpoints, and the last of every run alone. "
        f"Intervals hold 95 % of {draws} bootstrap draws of training runs; differences are paired "
        "by run. A baseline is chosen by its tau on validation networks; `hardest` is the one that turned out best on "
        "the test networks.",
        f"Split by {by}, {ratio}, seed {seed}, frozen as "
        f"`{split['name']}.ZOO`. Protocol `{results['protocol_digest']}`; {versions}; {machine['system']} "
        f"{machine['processor']}, {machine['cpus']} CPUs, {machine['jobs']} jobs of one thread, device "
        f"{machine['device']}.",
    ]
    if not results["complete"]:
        words.append("**Not complete**: some fits are still to be done.")
    return "\n\n".join(words)


def _zoos(results: Results) -> str:
    rows = []
    for name, zoo in results["protocol"]["zoos"].items():
        count, audit = results["counts"][name], results["audit"][name]
        sizes = [
            f"{count[role]:,} ({count[f'{role}_models']:,})" if role in count else "-"
            for role in ("train", "val", "test")
        ]
        ids = next(iter(results["splits"][name].values()))
        torn = audit.get("leaking_by_checkpoint")
        rows.append(
            (
                name,
                zoo["dataset"],
                zoo["architecture"],
                *sizes,
                audit["leaking"],
                "-" if torn is None else torn,
                f"`{ids[:12]}`",
            )
        )
    head = ("zoo", "data set", "architecture", "train (runs)", "val (runs)", "test (runs)", "leaking groups",
            "runs torn by the leaky split", "split")  # fmt: skip
    return _table(head, rows)


def _methods(results: Results) -> str:
    fits = defaultdict(list)
    for item in results["fits"]:
        fits[item["method"]].append(item)
    rows = []
    for label, method in results["protocol"]["methods"].items():
        own = fits[label]
        if not own:
            continue
        rates = [item["predict_rate"] for item in own if "predict_rate" in item]
        config = method.get("config", {})
        rows.append(
            (
                label,
                f"`{method['backend']}`",
                f"`{config if isinstance(config, str) else json.dumps(config)}`",
                method.get("trials", "-"),
                "yes" if method.get("baseline") else "",
                len({item["seed"] for item in own}),
                len(own),
                f"{median(item['seconds'] for item in own):.1f}",
                f"{max(item['seconds'] for item in own):.1f}",
                f"{median(rates):,.0f}" if rates else "-",
            )
        )
    head = ("method", "backend", "config", "trials", "baseline", "seeds", "fits", "fit s (median)", "fit s (longest)",
            "predict/s")  # fmt: skip
    return _table(head, rows)


def _summaries(summaries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One table per kind and fraction, with all checkpoints and last ones side by side."""
    by_kind: dict[tuple[str, float], dict[str, Any]] = defaultdict(dict)
    for item in summaries:
        by_kind[item["kind"], item["fraction"]][item["subset"]] = item
    for (kind, fraction), subsets in by_kind.items():
        every, last = subsets["all"], subsets.get("last")
        share = "" if kind != "data-fraction" else f", {fraction:g} of the runs"
        yield f"### {kind}{share}: mean of {every['num_cells']} cells"
        of_last = {entry["method"]: entry for entry in (last or {"methods": []})["methods"]}
        best = max(
            (e["kendall_tau"] for e in every["methods"] if e["kendall_tau"] is not None),
            default=None,
        )
        rows = []
        for entry in every["methods"]:
            label = entry["method"]
            other = of_last.get(label, {})
            mark = "**" if entry["kendall_tau"] is not None and entry["kendall_tau"] == best else ""
            rows.append(
                (
                    label + (" (baseline)" if label == every["baseline"] else ""),
                    f"{mark}{_with_ci(entry)}{mark}",
                    _with_ci(other),
                    _difference(entry, "difference"),
                    _difference(other, "difference"),
                    _difference(entry, "difference_hardest"),
                    _figure(entry.get("worst_difference"), sign=True),
                    _figure(entry["spearman"]),
                    _figure(entry["r2"]),
                    _figure(entry["mae"], digits=4),
                    _small(entry["mse"]),
                )
            )
        head = ("method", "tau, all", "tau, last", "against baseline, all", "against baseline, last",
                "against hardest, all", "worst cell", "Spearman", "R2", "MAE", "MSE")  # fmt: skip
        yield _table(head, rows)
        if every.get("pairs"):  # older results have none
            yield _pairs(every["pairs"], (last or {}).get("pairs", ()))


def _pairs(every: Sequence[Mapping[str, Any]], last: Sequence[Mapping[str, Any]]) -> str:
    """Differences of methods that are no baselines from all others."""
    of_last = {(pair["method"], pair["to"]): {"pair": pair} for pair in last}
    rows = [
        (
            pair["method"],
            pair["to"],
            _difference({"pair": pair}, "pair"),
            _difference(of_last.get((pair["method"], pair["to"]), {}), "pair"),
        )
        for pair in every
    ]
    return _table(("difference of", "from", "all", "last"), rows)


def _cells(results: Results, target: str) -> str:
    """All checkpoints / last ones, mean over seeds, with the spread of seeds."""
    pairs: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for cell in results["cells"]:
        if cell["target"] == target:
            key = (cell["kind"], row_label(cell), cell["test"], cell["fraction"])
            entries = {entry["method"]: entry for entry in cell["methods"]}
            pairs.setdefault(key, {})[cell["subset"]] = {"cell": cell, "entries": entries}
    labels = [
        label
        for label in results["protocol"]["methods"]
        if any(label in subsets["all"]["entries"] for subsets in pairs.values())
    ]
    rows = []
    for (kind, train, test, fraction), subsets in pairs.items():
        texts = []
        for label in labels:
            every = subsets["all"]["entries"].get(label)
            if every is None:
                texts.append("-")
                continue
            last = subsets.get("last", {"entries": {}})["entries"].get(label, {})
            spread = every["kendall_tau_std"]
            around = "" if spread is None else f" ± {spread:.3f}"
            texts.append(
                f"{_figure(every['kendall_tau'])}{around} / {_figure(last.get('kendall_tau'))}"
            )
        one = next(iter(subsets["all"]["entries"].values()), {"n": 0, "num_models": 0})
        rows.append(
            (kind, train, f"{fraction:g}", test, f"{one['n']:,} ({one['num_models']:,})", *texts)
        )
    note = "All checkpoints ± spread of seeds / last checkpoints."
    return f"{note}\n\n" + _table(("kind", "fitted on", "share", "test", "n (runs)", *labels), rows)


def _tuning(results: Results) -> str:
    rows = []
    for item in results["tuning"]:
        for number, trial in enumerate(item["trials"]):
            rows.append(
                (
                    item["method"],
                    ", ".join(item["train"]) + (" (by checkpoint)" if item["leaky"] else ""),
                    f"{item['fraction']:g}",
                    item["target"],
                    "**chosen**" if number == item["chosen"] else "",
                    _figure(trial["val_kendall_tau"]),
                    f"`{json.dumps(trial['config'])}`",
                )
            )
    return _table(("method", "fitted on", "share", "target", "", "tau, validation", "config"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    lines += [
        f"| {' | '.join(str(value).replace('|', chr(92) + '|') for value in row)} |" for row in rows
    ]
    return "\n".join(lines)


def _figure(value: float | None, *, digits: int = 3, sign: bool = False) -> str:
    return "-" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def _small(value: float | None) -> str:
    """Three digits from the first that is not 0."""
    return "-" if value is None else f"{value:.3g}"


def _with_ci(entry: Mapping[str, Any]) -> str:
    if entry.get("kendall_tau") is None:
        return "-"
    low, high = entry["kendall_tau_ci"]
    return f"{entry['kendall_tau']:.3f} [{_figure(low)}, {_figure(high)}]"


def _difference(entry: Mapping[str, Any], name: str) -> str:
    found = entry.get(name)
    if found is None or found["value"] is None:
        return "-"
    low, high = found["ci"]
    return f"{found['value']:+.3f} [{_figure(low, sign=True)}, {_figure(high, sign=True)}]"
