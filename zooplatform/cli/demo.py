"""`zoo demo`: shows the main job step by step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zooplatform.cli._options import json_option, note_options
from zooplatform.cli._output import out
from zooplatform.cli._session import get_session
from zooplatform.demo import DEFAULT_FOLDER, PREDICTOR, ZOO, run_demo

if TYPE_CHECKING:
    from zooplatform.demo import DemoStep

__all__ = ["demo"]


@click.command()
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_FOLDER,
    show_default=True,
    help="Folder to work in; it stays behind.",
)
@json_option
@note_options
def demo(output: Path, as_json: bool) -> None:
    """Do the main job, end to end and offline.

    Opens a small real zoo that comes with the package, asks it three questions in SQL, exports a
    network, builds it again from the file and measures it on real images. Then a stored predictor
    tells the accuracy of networks that it never saw, and finds the one whose entry is wrong.

    \b
    zoo demo
    zoo demo --output somewhere --json
    """
    steps: list[dict[str, Any]] = []
    for number, step in enumerate(run_demo(output, registry=get_session().registry), start=1):
        if as_json:
            steps.append({"step": step.name, "title": step.title, "result": _plain(step)})
        else:
            _print(number, step)
    if as_json:
        out.data(steps)
        return
    catalog = output / ZOO
    out.note(f"\nEverything is in {output}. Try next:")
    for command in (
        f"zoo ls models -c {catalog}",
        f'zoo query "from wide order by test_accuracy desc limit 5" -c {catalog}',
        f"zoo predictor embed {PREDICTOR} -c {catalog}",
        "zoo ingest PATH-OF-YOUR-OWN.safetensors && zoo ls checkpoints",
    ):
        out.note(f"  {command}")


def _plain(step: DemoStep) -> Any:
    return step.result if isinstance(step.result, dict) else step.result.to_pylist()


def _print(number: int, step: DemoStep) -> None:
    out.heading(f"{number}. {step.title}")
    for line in step.how.splitlines():
        out.line(f"   {line}")
    out.line()
    if isinstance(step.result, dict):
        out.fields(step.result)
    else:
        out.table(step.result.to_pylist(), step.result.column_names)
