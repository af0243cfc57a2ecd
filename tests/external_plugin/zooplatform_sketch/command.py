"""`zoo sketch-count`."""

from __future__ import annotations

import click

from zooplatform import open_catalog


@click.command()
@click.option(
    "-c", "--catalog", envvar="ZOO_CATALOG", default="./zoo", help="Folder of the catalog."
)
def count(catalog):
    """Count the networks of this plugin."""
    with open_catalog(catalog) as opened:
        click.echo(opened.sql("SELECT count(*) AS n FROM sketch_networks").to_pylist()[0]["n"])
