"""`zoo push`: a checkpoint to the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import asdict

import click

from zooplatform.cli._find import find_checkpoint
from zooplatform.cli._options import (
    catalog_option,
    json_option,
    note_options,
    progress_option,
    yes_option,
)
from zooplatform.cli._output import out, progress_callback
from zooplatform.cli._session import open_catalog

__all__ = ["push"]


@click.command()
@click.argument("checkpoint", metavar="ID")
@click.argument("reference", metavar="hf-hub:ORG/NAME")
@click.option("--private", is_flag=True, help="Make a new repository private. [default: off]")
@click.option(
    "-m", "--message", metavar="TEXT", help="Message of the commit. [default: names the checkpoint]"
)
@catalog_option
@yes_option
@json_option
@progress_option
@note_options
def push(
    checkpoint: str,
    reference: str,
    private: bool,
    message: str | None,
    catalog: str,
    yes: bool,
    as_json: bool,
) -> None:
    """Put a checkpoint on the Hugging Face Hub.

    ID is a checkpoint, the beginning of one, or a model that has one checkpoint. The weights go as
    safetensors, with the configuration and a model card, in one commit. The repository is made when
    it is not there; files that are there are replaced only with -y. Log in first: hf auth login.

    \b
    zoo push 01935c2f hf-hub:my-name/digits-cnn
    zoo push 01935c2f hf-hub:my-name/digits-cnn --private -m "Best of epoch 50" --json
    """
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    from zooplatform.publish import push as push_checkpoint

    with open_catalog(catalog) as opened, progress_callback() as progress:
        # The client draws its own bars; they follow the same switch.
        if progress is None:
            disable_progress_bars()
        report = push_checkpoint(
            opened,
            find_checkpoint(opened, checkpoint),
            reference,
            private=private,
            replace=yes,
            message=message,
        )
    if as_json:
        out.data(asdict(report))
    else:
        out.line(f"{report.checkpoint_id}: {', '.join(report.files)} pushed to {report.url}")
        out.line(f"Get it back: zoo ingest hf-hub:{report.repo_id}@{report.commit}")
