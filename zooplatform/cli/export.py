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
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@catalog_option
@yes_option
@json_option
@note_options
def export(checkpoint: str, path: Path, catalog: str, yes: bool, as_json: bool) -> None:
    """Write a checkpoint to a safetensors file.

    ID is a checkpoint, the beginning of one, or a model that has one checkpoint. What came as a
    safetensors file is given back byte for byte; what came in shards, too, where FILE is a folder
    or has no suffix. A FILE that is there is replaced only with -y.

    \b
    zoo export 01935c2f weights.safetensors
    zoo export 01935c2f weights-in-shards
    zoo export 01935c2f weights.safetensors -y --json
    """
    if path.exists() and not yes:
        raise ConfigError(f"{path} is already there. Add -y to replace it.")
    with open_catalog(catalog) as opened:
        checkpoint_id = find_checkpoint(opened, checkpoint)
        written = opened.export(checkpoint_id, path)
    # A folder is there only with -y, or was made now: either way what lies in it counts as written.
    parts = written.iterdir() if written.is_dir() else [written]
    size = sum(part.stat().st_size for part in parts)
    if as_json:
        out.data({"checkpoint_id": checkpoint_id, "path": str(written), "size_bytes": size})
    else:
        out.line(f"{checkpoint_id}: {human_bytes(size)} written to {written}")
