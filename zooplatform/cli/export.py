"""`zoo export`: a checkpoint back to a safetensors file."""

from __future__ import annotations

from pathlib import Path

import click

from zooplatform.cli._find import find_checkpoint
from zooplatform.cli._options import catalog_option, json_option, note_options, yes_option
from zooplatform.cli._output import out
from zooplatform.cli._session import open_catalog
from zooplatform.cli._text import human_bytes
from zooplatform.errors import ConfigError

__all__ = ["export"]


@click.command()
@click.argument("checkpoint", metavar="ID")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@catalog_option
@yes_option
@json_option
@note_options
def export(checkpoint: str, path: Path, catalog: str, yes: bool, as_json: bool) -> None:
    """Write a checkpoint to a safetensors file.

    ID is a checkpoint, the beginning of one, or a model that has one checkpoint. What came as a
    safetensors file is given back byte for byte. A FILE that is there is replaced only with -y.

    \b
    zoo export 01935c2f weights.safetensors
    zoo export 01935c2f weights.safetensors -y --json
    """
    if path.exists() and not yes:
        raise ConfigError(f"{path} is already there. Add -y to replace it.")
    with open_catalog(catalog) as opened:
        checkpoint_id = find_checkpoint(opened, checkpoint)
        written = opened.export(checkpoint_id, path)
    size = written.stat().st_size
    if as_json:
        out.data({"checkpoint_id": checkpoint_id, "path": str(written), "size_bytes": size})
    else:
        out.line(f"{checkpoint_id}: {human_bytes(size)} written to {written}")
