"""`zoo split`: freeze who is in train, val and test, look at it, take it elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from zooplatform.cli._options import (
    catalog_option,
    json_option,
    limit_option,
    note_options,
    progress_option,
    seed_option,
)
from zooplatform.cli._output import out, progress_callback
from zooplatform.cli._session import open_catalog
from zooplatform.cli._text import human_bytes, human_count

if TYPE_CHECKING:
    from zooplatform.splits import Split

__all__ = ["split"]


@click.group()
def split() -> None:
    """Freeze who is in train, val and test.

    Which role a network gets depends on the seed and on what the network holds, not on files, ids
    or the order of rows: the same networks give the same split, with the same id, everywhere.

    \b
    zoo split create main --query "select checkpoint_id from wide where zoo = 'mnist'"
    zoo split ls
    zoo split show main
    zoo split export main main-split/
    zoo split import main-split/ -c other-zoo
    """


@split.command()
@click.argument("name")
@click.option(
    "--query",
    metavar="SQL",
    help="What to split: SQL with a column checkpoint_id. [default: every stored checkpoint]",
)
@click.option(
    "--by",
    metavar="KEY",
    help="What stays together: model, checkpoint, a column of the query or a hyper-parameter, such "
    "as stack for networks that were trained together. [default: model]",
)
@click.option(
    "--ratio",
    metavar="R",
    help="Shares of train/val/test, or of train/test as in 80/20. [default: 70/15/15]",
)
@click.option(
    "--stratify",
    metavar="EXPR",
    help="Make roles alike in this: a column of the query, a hyper-parameter or SQL over `wide`. "
    "[default: nothing]",
)
@click.option(
    "--steps", metavar="N[-M]", help="Only checkpoints at these steps. [default: all of the query]"
)
@click.option(
    "--epochs",
    metavar="N[-M]",
    help="Only checkpoints at these epochs. [default: all of the query]",
)
@click.option(
    "--protocol",
    metavar="NAME",
    help="A published protocol, nfn-2023 or schurholt-2022; it decides --by and --ratio. "
    "[default: none]",
)
@click.option(
    "--order",
    metavar="FILE",
    help="The published *_split.csv that nfn-2023 reads. [default: none]",
)
@seed_option
@catalog_option
@json_option
@note_options
def create(
    name: str,
    query: str | None,
    by: str | None,
    ratio: str | None,
    stratify: str | None,
    steps: str | None,
    epochs: str | None,
    protocol: str | None,
    order: str | None,
    seed: int,
    catalog: str,
    as_json: bool,
) -> None:
    """Draw a split and freeze it under NAME.

    Networks of equal content are always in one role. A name is given once: the same members again
    change nothing, others are an error.

    \b
    zoo split create main --query "select checkpoint_id from wide where zoo = 'mnist'" --seed 1
    zoo split create stacks --by stack --ratio 80/20 --stratify activation
    zoo split create late --epochs 21-25 --stratify "floor(test_accuracy * 10)"
    zoo split create nfn --protocol nfn-2023 --order mnist_split.csv
    """
    from zooplatform.splits import create_split

    with open_catalog(catalog) as opened:
        made = create_split(
            opened,
            name,
            query,
            by=by,
            seed=seed,
            ratio=ratio,
            stratify=stratify,
            steps=steps,
            epochs=epochs,
            protocol=protocol,
            order=order,
        )
    _print(made, as_json=as_json, verb="created" if made.created else "was there already")


@split.command("ls")
@catalog_option
@json_option
@note_options
def ls(catalog: str, as_json: bool) -> None:
    """List splits.

    \b
    zoo split ls
    zoo split ls --json
    """
    from zooplatform.splits import list_splits

    with open_catalog(catalog) as opened:
        found = list_splits(opened)
    if as_json:
        out.data([_as_dict(item) for item in found])
        return
    rows = [
        (item.name, item.split_id[:12], item.by, item.seed, _sizes(item), item.detail.get("ratio"))
        for item in found
    ]
    out.table(rows, ("name", "split_id", "by", "seed", "checkpoints", "ratio"))
    if not found:
        out.note("No split yet; `zoo split create` makes one.")


@split.command()
@click.argument("name", metavar="NAME")
@limit_option("Members to print. [default: none; all of them with --json]")
@catalog_option
@json_option
@note_options
def show(name: str, limit: int | None, catalog: str, as_json: bool) -> None:
    """Show one split whole: how it was made and who is in it.

    NAME is its name, its id or the beginning of its id.

    \b
    zoo split show main
    zoo split show main --limit 20
    zoo split show 4fbac141 --json
    """
    from zooplatform.splits import find_split, split_members

    with open_catalog(catalog) as opened:
        found = find_split(opened, name)
        members = split_members(opened, found)
    if as_json:
        out.data({**_as_dict(found), "members": [m._asdict() for m in members[:limit]]})
        return
    out.fields(
        {
            "name": found.name,
            "split_id": found.split_id,
            "by": found.by,
            "seed": found.seed,
            **{key: value for key, value in found.detail.items() if key != "notes"},
        }
    )
    out.heading("roles")
    rows = [(role, n, found.models[role]) for role, n in found.checkpoints.items()]
    out.table(rows, ("role", "checkpoints", "models"))
    for note in found.notes:
        out.note(note)
    if limit:
        out.heading("members")
        out.table((tuple(m) for m in members[:limit]), type(members[0])._fields)


@split.command("export")
@click.argument("name", metavar="NAME")
@click.argument("folder", metavar="DIR")
@catalog_option
@json_option
@progress_option
@note_options
def export(name: str, folder: str, catalog: str, as_json: bool) -> None:
    """Write a split as safetensors files with a manifest.

    The folder holds everything that another catalog needs to have the same split: weights, metrics,
    hyper-parameters, roles, and the SHA-256 of every file.

    \b
    zoo split export main main-split/
    zoo split export main main-split/ --json
    """
    from zooplatform.bundles import export_split

    with open_catalog(catalog) as opened, progress_callback() as progress:
        report = export_split(opened, name, folder, progress=progress)
    if as_json:
        out.data(
            {
                "folder": str(report.folder),
                "split_id": report.split.split_id,
                "files": report.files,
                "size_bytes": report.size_bytes,
            }
        )
        return
    out.line(
        f"{report.split.name} ({report.split.split_id}): {human_count(report.files, 'file')}, "
        f"{human_bytes(report.size_bytes)} in {report.folder}"
    )


@split.command("import")
@click.argument("folder", metavar="DIR")
@catalog_option
@json_option
@progress_option
@note_options
def import_(folder: str, catalog: str, as_json: bool) -> None:
    """Bring an exported split into a catalog.

    Every file is compared with its hash. The split, its models and checkpoints have the ids that
    they had where they came from; what the catalog holds already is not stored again. The catalog
    is made when it is not there.

    \b
    zoo split import main-split/ -c other-zoo
    zoo split import main-split/ --json
    """
    from zooplatform.bundles import import_split

    with open_catalog(catalog, create=True) as opened, progress_callback() as progress:
        made = import_split(opened, folder, progress=progress)
    _print(made, as_json=as_json, verb="imported" if made.created else "was there already")


def _print(made: Split, *, as_json: bool, verb: str) -> None:
    if as_json:
        out.data({**_as_dict(made), "created": made.created})
    else:
        out.line(f"{made.name} ({made.split_id}): {_sizes(made)}; {verb}")
    for note in made.notes:
        out.note(note)


def _as_dict(item: Split) -> dict[str, Any]:
    names = ("name", "split_id", "by", "seed", "checkpoints", "models", "detail")
    return {name: getattr(item, name) for name in names}


def _sizes(item: Split) -> str:
    return ", ".join(f"{count:,} {role}" for role, count in item.checkpoints.items())
