"""`zoo tokenizer`: fit a tokenizer and store it."""

from __future__ import annotations

import click

from zooplatform.cli._fitting import artifact_fields, config_options, name_option, print_artifacts
from zooplatform.cli._options import catalog_option, json_option, note_options, seed_option
from zooplatform.cli._output import out
from zooplatform.cli._session import open_catalog

__all__ = ["tokenizer"]


@click.group()
def tokenizer() -> None:
    """Fit tokenizers, which turn weights into tokens and back.

    \b
    zoo tokenizer fit chunk --name chunks --set chunk_size=32
    zoo tokenizer ls
    """


@tokenizer.command()
@click.argument("backend", metavar="BACKEND")
@name_option
@click.option(
    "--query",
    metavar="SQL",
    help="What to fit on: SQL with a column checkpoint_id. [default: every stored checkpoint]",
)
@config_options
@seed_option
@catalog_option
@json_option
@note_options
def fit(
    backend: str,
    name: str,
    query: str | None,
    config: str | None,
    settings: tuple[str, ...],
    seed: int,
    catalog: str,
    as_json: bool,
) -> None:
    """Fit a tokenizer and store it under a name.

    BACKEND is a tokenizer that `zoo plugins` lists. Weights are read only as far as it learns from
    them.

    \b
    zoo tokenizer fit chunk --name chunks --set chunk_size=32
    zoo tokenizer fit neuron --name units --config units.toml --json
    """
    from zooplatform.evaluation.stored_fits import fit_tokenizer

    with open_catalog(catalog) as opened:
        made = fit_tokenizer(
            opened, backend, name=name, query=query, config=config, settings=settings, seed=seed
        )
    if as_json:
        out.data(artifact_fields(made))
        return
    read = made.data["checkpoints"]
    learned = f"fitted on {read:,} checkpoints" if read else "there was nothing to learn"
    out.line(f"{made.name} ({made.artifact_id}): {made.backend}, {learned}")


@tokenizer.command("ls")
@catalog_option
@json_option
@note_options
def ls(catalog: str, as_json: bool) -> None:
    """List stored tokenizers, the latest first.

    \b
    zoo tokenizer ls
    zoo tokenizer ls --json
    """
    print_artifacts(catalog, "tokenizer", as_json=as_json)
