"""`zoo ingest`: references in, a line for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from zooplatform.cli._errors import FAILED
from zooplatform.cli._options import catalog_option, json_option, note_options, progress_option
from zooplatform.cli._output import out, progress_callback
from zooplatform.cli._session import open_catalog
from zooplatform.cli._text import human_bytes, human_count
from zooplatform.errors import ZooError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zooplatform.ingest import IngestReport

__all__ = ["ingest"]


@click.command()
@click.argument("references", metavar="REF...", nargs=-1, required=True)
@click.option("--zoo", metavar="NAME", help="Zoo that the models join. [default: by the source]")
@click.option(
    "--header-only",
    is_flag=True,
    help="Store names, shapes and dtypes and read no weights. [default: off]",
)
@click.option(
    "--revision",
    metavar="R",
    help="Branch, tag or commit to read, for sources that have them. [default: the newest]",
)
@catalog_option
@json_option
@progress_option
@note_options
@click.pass_context
def ingest(
    ctx: click.Context,
    references: tuple[str, ...],
    zoo: str | None,
    header_only: bool,
    revision: str | None,
    catalog: str,
    as_json: bool,
) -> None:
    """Store checkpoints in the catalog.

    REF is `scheme:rest` for any source that `zoo plugins` lists, or a plain path. The catalog is
    made when it is not there. What is already stored is recognised and not stored again. A
    reference that fails does not stop the others; the exit code is then 1.

    \b
    zoo ingest model.safetensors
    zoo ingest runs/*.pt --zoo my-runs
    zoo ingest hf-hub:timm/resnet18.a1_in1k --header-only
    """
    results: list[dict[str, Any]] = []
    with open_catalog(catalog, create=True) as opened:
        for reference in references:
            with progress_callback() as progress:
                try:
                    report = opened.ingest(
                        reference,
                        zoo=zoo,
                        header_only=header_only,
                        revision=revision,
                        progress=progress,
                    )
                except ZooError as error:
                    result = {"reference": reference, "status": "failed", "error": str(error)}
                else:
                    result = _result(reference, report) | {"header_only": header_only}
            results.append(result)
            if not as_json:
                _print(result)
    failed = [result["reference"] for result in results if result["status"] == "failed"]
    if as_json:
        out.data({"references": results, "num_failed": len(failed)})
    if len(references) > 1:
        stored = sum(result.get("num_stored", 0) for result in results)
        out.note(
            f"{human_count(len(references), 'reference')}: "
            f"{human_count(stored, 'checkpoint')} stored in {catalog}, {len(failed)} failed."
        )
        for reference in failed:
            out.note(f"  failed: {reference}")
    if failed:
        ctx.exit(FAILED)


def _result(reference: str, report: IngestReport) -> dict[str, Any]:
    """What became of one reference, as `--json` prints it."""
    return {
        "reference": reference,
        "status": "failed" if report.failed else "stored" if report.num_stored else "present",
        "num_stored": report.num_stored,
        "checkpoint_ids": list(report.checkpoint_ids),
        "model_ids": list(report.model_ids),
        "bytes_read": report.bytes_read,
        "bytes_stored": report.bytes_stored,
        "skipped": [{"reference": ref, "reason": reason} for ref, reason in report.skipped],
        "failed": [{"reference": ref, "error": error} for ref, error in report.failed],
        "notes": list(report.notes),
    }


def _print(result: Mapping[str, Any]) -> None:
    reference = result["reference"]
    if "error" in result:
        out.error(result["error"])
        return
    if result["num_stored"] and result["header_only"]:
        headers = human_count(result["num_stored"], "header")
        out.line(f"{reference}: {headers} stored; the weights were not fetched")
    elif result["num_stored"]:
        out.line(
            f"{reference}: {human_count(result['num_stored'], 'checkpoint')} stored, "
            f"{human_bytes(result['bytes_read'])} read, "
            f"{human_bytes(result['bytes_stored'])} written"
        )
    elif result["failed"]:
        known = human_count(len(result["skipped"]), "checkpoint")
        out.line(f"{reference}: nothing stored, {known} already in the catalog")
    else:
        out.line(f"{reference}: already in the catalog, nothing stored")
        for skipped in result["skipped"]:
            out.note(f"  {skipped['reference']}: {skipped['reason']}")
    for note in result["notes"]:
        out.note(f"  {note}")
    for failure in result["failed"]:
        out.error(failure["error"])
    if len(result["failed"]) > 1:
        out.note(f"{reference}: {len(result['failed'])} of its checkpoints failed.")
