"""The command `zoo export-small-cnn-zoo`."""

from __future__ import annotations

import click

__all__ = ["export"]


@click.command("export-small-cnn-zoo")
@click.argument("zoo")
@click.argument("folder", type=click.Path(file_okay=False))
@click.option(
    "-c",
    "--catalog",
    "path",
    envvar="ZOO_CATALOG",
    default="./zoo",
    show_default=True,
    help="The catalog.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def export(zoo: str, folder: str, path: str, as_json: bool) -> None:
    """Write ZOO as weights.npy, metrics.csv.gz and layout.csv.

    The files are those of the Small CNN Zoo; a zoo that was ingested from such a folder gives back its weights.npy bit
    for bit.

    \b
    zoo export-small-cnn-zoo mnist ./mnist-again
    """
    import json

    from zooplatform.catalog import open_catalog
    from zooplatform_zoos.small_cnn_export import export_small_cnn_zoo

    written = export_small_cnn_zoo(open_catalog(path, create=False), zoo, folder)
    click.echo(json.dumps({"zoo": zoo, "folder": str(written)}) if as_json else str(written))
