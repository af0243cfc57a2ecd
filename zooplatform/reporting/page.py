"""The HTML of a report: one file, no script, nothing that is fetched."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from zooplatform import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from zooplatform.reporting.facts import Facts
    from zooplatform.reporting.figures import Drawing

__all__ = ["render"]

# Colours that people with any colour vision tell apart, in a version for light and one for dark ground.
_LIGHT = ("#1f6fb4", "#c2570c", "#2a8a57", "#8b4bb0", "#b03060", "#6b6b00", "#2f8a94", "#5a6270")
_DARK = ("#6db3f2", "#f0a060", "#6fd09a", "#c79be8", "#f08aae", "#cfcf5a", "#74d0da", "#aab2c0")

_STYLE = f"""
:root {{ color-scheme: light dark; --ground: #fbfbfa; --card: #fff; --ink: #1c2127; --muted: #59636e; --grid: #d8dce1;
  {" ".join(f"--c{n}: {c};" for n, c in enumerate(_LIGHT))} }}
@media (prefers-color-scheme: dark) {{ :root {{ --ground: #14171b; --card: #1c2026; --ink: #e8ebee; --muted: #a3acb7;
  --grid: #3a4149; {" ".join(f"--c{n}: {c};" for n, c in enumerate(_DARK))} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }}
main {{ max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }}
h1 {{ font-size: 2rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }}
p {{ margin: 0 0 .75rem; }}
.kind, figcaption, footer, .note {{ color: var(--muted); font-size: .9rem; }}
.kind {{ text-transform: uppercase; letter-spacing: .08em; font-size: .75rem; margin: 0; }}
dl.origin {{ display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.25rem; margin: 1rem 0 1.5rem; }}
dl.origin dt {{ color: var(--muted); }}
dl.origin dd {{ margin: 0; overflow-wrap: anywhere; }}
.missing {{ color: var(--c1); }}
ul.counts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(7.2rem, 1fr)); gap: .75rem; list-style: none;
  padding: 0; margin: 0 0 1.5rem; }}
ul.counts li, section {{ background: var(--card); border: 1px solid var(--grid); border-radius: .5rem; }}
ul.counts li {{ padding: .6rem .85rem; }}
ul.counts strong {{ display: block; font-size: 1.3rem; white-space: nowrap; font-weight: 600;
  font-variant-numeric: tabular-nums; }}
ul.counts span {{ color: var(--muted); font-size: .85rem; }}
section {{ padding: 1.1rem 1.25rem; margin: 0 0 1.25rem; }}
figure {{ margin: 0; }}
figure svg {{ display: block; width: 100%; height: auto; margin-top: .75rem; stroke-linejoin: round; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--grid); vertical-align: top; }}
th {{ color: var(--muted); font-weight: 500; }}
td.number, th.number {{ text-align: right; }}
td {{ max-width: 26rem; overflow-wrap: anywhere; }}
summary {{ cursor: pointer; color: var(--muted); font-size: .9rem; margin-top: .5rem; }}
@media print {{ section {{ break-inside: avoid; }} }}
"""


def render(facts: Facts, figures: Sequence[Drawing]) -> str:
    """The whole page."""
    zoo = facts.zoo
    name = escape(zoo["zoo_id"])
    parts = [_origin(zoo), _counts(facts)]
    if facts.metric is None:
        parts.append(
            '<p class="note">Nothing was measured of these networks, so that the page shows their weights alone.</p>'
        )
    elif facts.left_out:
        parts.append(
            f'<p class="note">{facts.left_out:,} {_noun(facts.left_out, "value")} of {escape(facts.metric)} left out '
            "of the figures: NaN, infinite or empty.</p>"
        )
    parts += [_figure(drawing, facts) for drawing in figures]
    parts += [_architectures(facts), _hyperparameters(facts), _metrics(facts)]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{name}: a zoo of {zoo["num_models"]:,} networks</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<main>
<header>
<p class="kind">Model zoo</p>
<h1>{name}</h1>
</header>
{"".join(parts)}
<footer>Written by zooplatform {escape(__version__)} from commit {escape(zoo["commit"])} of the catalog.</footer>
</main>
</body>
</html>
"""


def _origin(zoo: dict[str, Any]) -> str:
    licenses = [zoo["license"]] if zoo["license"] else sorted(filter(None, zoo["licenses"] or []))
    given = {
        "Source": zoo["source"],
        "Licence": ", ".join(licenses),
        "Citation": zoo["citation"],
        "In the catalog since": f"{zoo['created_at']:%d %B %Y}",
    }
    rows = "".join(
        f"<dt>{key}</dt><dd>{escape(value)}</dd>"
        if value
        else f'<dt>{key}</dt><dd class="missing">not stated</dd>'
        for key, value in given.items()
    )
    return f'<dl class="origin">{rows}</dl>\n'


def _counts(facts: Facts) -> str:
    zoo = facts.zoo
    size = f"{zoo['fewest']:,}"
    if zoo["fewest"] != zoo["most"]:
        size = f"{zoo['fewest']:,} – {zoo['most']:,}"
    tiles = [
        (f"{zoo['num_models']:,}", _noun(zoo["num_models"], "model")),
        (f"{zoo['num_checkpoints']:,}", _noun(zoo["num_checkpoints"], "checkpoint")),
        (f"{zoo['num_architectures']:,}", _noun(zoo["num_architectures"], "architecture")),
        (size, "parameters each"),
        (_bytes(zoo["size_bytes"]), "of weights"),
    ]
    if facts.metric and facts.finals:
        values = sorted(facts.final_values)
        tiles += [
            (f"{values[len(values) // 2]:.3g}", f"median final {facts.metric}"),
            (f"{values[-1]:.3g}", f"highest final {facts.metric}"),
        ]
    items = "".join(
        f"<li><strong>{escape(value)}</strong><span>{escape(text)}</span></li>"
        for value, text in tiles
    )
    return f'<ul class="counts">{items}</ul>\n'


def _figure(drawing: Drawing, facts: Facts) -> str:
    svg = drawing.svg.replace(
        "<svg", f'<svg role="img" aria-label="{escape(drawing.alt)}"', 1
    ).rstrip()
    numbers = ""
    if drawing.title.startswith(f"{facts.metric} by "):
        numbers = _course_table(facts)
    return (
        f"<section><figure><h2>{escape(drawing.title)}</h2><figcaption>{escape(drawing.text)}</figcaption>\n"
        f"{svg}</figure>{numbers}</section>\n"
    )


def _course_table(facts: Facts) -> str:
    rows = [
        {
            facts.clock: f"{row['moment']:g}",
            "models": f"{row['num_models']:,}",
            **dict(
                zip(
                    ("5 %", "25 %", "median", "75 %", "95 %"),
                    (f"{q:.4g}" for q in row["quantiles"]),
                    strict=True,
                )
            ),
        }
        for row in facts.courses[facts.metric or ""]
    ]
    return f"<details><summary>Numbers</summary>{_table(rows, numbers=tuple(rows[0]))}</details>"


def _architectures(facts: Facts) -> str:
    rows = [
        {
            "architecture": a.row["name"] or a.row["architecture_id"],
            "family": a.row["family"] or "",
            "dtype": a.row["dtype"],
            "tensors": f"{a.row['num_tensors']:,}",
            "parameters": f"{a.row['num_parameters']:,}",
            "models": f"{a.row['num_models']:,}",
            "checkpoints": f"{a.row['num_checkpoints']:,}",
        }
        for a in facts.architectures[:20]
    ]
    more = len(facts.architectures) - len(rows)
    note = f'<p class="note">{more:,} more are not listed.</p>' if more > 0 else ""
    numbers = ("tensors", "parameters", "models", "checkpoints")
    return _section("Architectures", _table(rows, numbers=numbers) + note)


def _hyperparameters(facts: Facts) -> str:
    rows = [
        {
            "hyper-parameter": factor.key,
            "values": ", ".join(name for name, _ in factor.levels)
            or f"{factor.x.min():.4g} to {factor.x.max():.4g}",
            "explains": f"{factor.explained:.1%}",
        }
        for factor in facts.factors
    ] + [
        {"hyper-parameter": row["key"], "values": f"{row['value']} (always)", "explains": ""}
        for row in facts.fixed
    ]
    return _section("Hyper-parameters", _table(rows, numbers=("explains",)))


def _metrics(facts: Facts) -> str:
    rows = [
        {
            "metric": row["name"],
            "data": " ".join(filter(None, (row["dataset"], row["split"]))),
            "origin": row["origin"],
            "checkpoints": f"{row['num_checkpoints']:,}",
            **{
                key: "" if row[key] is None else f"{row[key]:.4g}" for key in ("min", "mean", "max")
            },
        }
        for row in facts.metrics
    ]
    return _section("Metrics", _table(rows, numbers=("checkpoints", "min", "mean", "max")))


# --- pieces ----------------------------------------------------------------------------------------------------------


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>\n" if body else ""


def _table(rows: Sequence[dict[str, str]], *, numbers: Iterable[str] = ()) -> str:
    """Rows as a table; columns in `numbers` are set to the right. Empty without rows."""
    if not rows:
        return ""
    right = set(numbers)
    kind = {column: ' class="number"' if column in right else "" for column in rows[0]}
    head = "".join(f'<th scope="col"{kind[c]}>{escape(c)}</th>' for c in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td{kind[c]}>{escape(str(v))}</td>" for c, v in row.items()) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _noun(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
