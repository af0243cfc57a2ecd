"""`zoo predictor`: what a network can do, told from its weights."""

from __future__ import annotations

import click

from zooplatform.cli._fitting import (
    artifact_fields,
    config_options,
    fit_query_option,
    fit_split_option,
    max_minutes_option,
    name_option,
    print_artifacts,
)
from zooplatform.cli._loading import LazyGroup
from zooplatform.cli._options import (
    catalog_option,
    device_option,
    json_option,
    member_options,
    note_options,
    progress_option,
    refuse_role_alone,
    seed_option,
)
from zooplatform.cli._output import out, progress_callback
from zooplatform.cli._session import open_catalog
from zooplatform.cli._text import human_count

__all__ = ["predictor"]


@click.group(
    cls=LazyGroup,
    elsewhere={
        "matrix": "zooplatform.cli.matrix:matrix",
        "render": "zooplatform.cli.matrix:render",
    },
)
def predictor() -> None:
    """Tell from its weights what a network can do.

    \b
    zoo predictor fit sne --name accuracy --target test_accuracy --query "select checkpoint_id from wide"
    zoo predictor evaluate accuracy --query "select checkpoint_id from wide where zoo = 'usps'"
    zoo predictor predict accuracy --query "select checkpoint_id from wide where zoo = 'usps'"
    """


@predictor.command()
@click.argument("backend", metavar="BACKEND")
@name_option
@fit_query_option
@click.option(
    "--target",
    required=True,
    metavar="METRIC",
    help="What to predict: a column of the query or of `wide`.",
)
@fit_split_option
@config_options
@seed_option
@device_option
@max_minutes_option
@catalog_option
@json_option
@progress_option
@note_options
def fit(
    backend: str,
    name: str,
    query: str,
    target: str,
    split: str | None,
    config: str | None,
    settings: tuple[str, ...],
    seed: int,
    device: str,
    max_minutes: float | None,
    catalog: str,
    as_json: bool,
) -> None:
    """Fit a predictor and store it under a name.

    BACKEND is a predictor that `zoo plugins` lists. Networks that have no target are left out. A
    fit that is interrupted goes on when the same command is given again.

    \b
    zoo predictor fit sne --name accuracy --target test_accuracy --query "select checkpoint_id from wide"
    zoo predictor fit sne --name gap --target gap --query "select *, train_accuracy - test_accuracy as gap from wide"
    zoo predictor fit sne --name quick --target test_accuracy --query "from wide" --split main --config debug
    """
    from zooplatform.evaluation.stored_fits import fit_predictor

    with open_catalog(catalog) as opened, progress_callback() as progress:
        made = fit_predictor(
            opened,
            backend,
            name=name,
            query=query,
            target=target,
            split=split,
            config=config,
            settings=settings,
            seed=seed,
            device=device,
            max_minutes=max_minutes,
            progress=progress,
        )
    for note in made.data["notes"]:
        out.note(note)
    if as_json:
        out.data(artifact_fields(made))
        return
    sizes = (made.data[side]["checkpoints"] for side in ("train", "validation"))
    train, validation = (human_count(size, "network") for size in sizes)
    out.line(f"{made.name} ({made.artifact_id}): {made.backend} for {target}")
    out.fields(
        {
            "fitted on": f"{train}, split {made.data['split']}",
            "validated on": validation,
            "kendall_tau": made.metrics["validation_tau"],
            "mae": made.metrics["validation_mae"],
            "seconds": made.metrics["fit_seconds"],
        }
    )


@predictor.command()
@click.argument("name", metavar="NAME")
@click.option(
    "--query",
    metavar="SQL",
    help="Whom to ask about: SQL with a column checkpoint_id. [default: all of the split]",
)
@click.option(
    "--target",
    metavar="METRIC",
    help="What to compare with: a column of the query or of `wide`. "
    "[default: what it was fitted to]",
)
@member_options
@seed_option
@catalog_option
@json_option
@note_options
def evaluate(
    name: str,
    query: str | None,
    target: str | None,
    split: str | None,
    role: str | None,
    seed: int,
    catalog: str,
    as_json: bool,
) -> None:
    """Compare predictions with what was measured.

    The interval of Kendall's tau (tau-b) is a bootstrap over training runs. Networks that have no
    target are left out; those that NAME was fitted on are named on stderr.

    \b
    zoo predictor evaluate accuracy --split main
    zoo predictor evaluate accuracy --query "select checkpoint_id from wide where zoo = 'usps'" --json
    """
    from zooplatform.evaluation.predictions import evaluate as evaluate_in

    if query is None and split is None:
        raise click.UsageError("Give --query or --split: whom to ask about.")
    refuse_role_alone(role, split)
    with open_catalog(catalog) as opened:
        found = evaluate_in(opened, name, query, target=target, split=split, role=role, seed=seed)
    for note in found.notes:
        out.note(note)
    if found.num_seen:
        out.warn(
            f"{found.num_seen:,} of {found.scores.n:,} networks are of training runs that {name} was fitted on or "
            f"chosen by, which flatters it. Add `--split {found.artifact.data['split']}` to leave them out."
        )
    scores = found.scores
    figures = {
        "n": scores.n,
        "num_models": scores.num_models,
        "kendall_tau": scores.kendall_tau,
        "kendall_tau_ci": list(scores.kendall_tau_ci),
        "spearman": scores.spearman,
        "r2": scores.r2,
        "mae": scores.mae,
        "mse": scores.mse,
    }
    known = {"name": found.artifact.name, "backend": found.artifact.backend}
    if as_json:
        asked = {
            "artifact_id": found.artifact.artifact_id,
            "target": found.target,
            "query": found.query,
            "split": found.split,
            "role": found.role,
            "seed": seed,
            "num_seen_in_fit": found.num_seen,
        }
        out.data({**known, **figures, **asked})
        return
    low, high = scores.kendall_tau_ci
    shown = {**figures, "kendall_tau_ci": f"{low:.4f} to {high:.4f}"}
    out.fields({**known, "target": found.target, **shown})


@predictor.command()
@click.argument("name", metavar="NAME")
@click.option(
    "--query",
    required=True,
    metavar="SQL",
    help="Whom to ask about: SQL with a column checkpoint_id.",
)
@click.option(
    "--store",
    is_flag=True,
    help="Keep the predictions in the catalog, as metrics of origin predicted. [default: off]",
)
@catalog_option
@json_option
@note_options
def predict(name: str, query: str, store: bool, catalog: str, as_json: bool) -> None:
    """Print what a predictor says of each network.

    Stored predictions are what `zoo_predict` gives in SQL, and the column predicted_TARGET of `wide`.

    \b
    zoo predictor predict accuracy --query "select checkpoint_id from wide where zoo = 'usps'"
    zoo predictor predict accuracy --query "select checkpoint_id from wide" --store --json
    """
    from zooplatform.artifacts import find_artifact, load_artifact
    from zooplatform.evaluation.predictions import predict as predict_in
    from zooplatform.evaluation.predictions import queried_ids, store_predictions

    with open_catalog(catalog) as opened:
        artifact = find_artifact(opened, name, "predictor")
        ids = queried_ids(opened, query)
        values = predict_in(opened, load_artifact(opened, artifact), ids)
        if store:
            new = store_predictions(opened, artifact, ids, values)
            out.note(f"{human_count(new, 'new prediction')} stored.")
    rows = [
        {"checkpoint_id": checkpoint, "prediction": value}
        for checkpoint, value in zip(ids, values.tolist(), strict=True)
    ]
    if as_json:
        out.data(rows)
    else:
        out.table(rows, ("checkpoint_id", "prediction"))


@predictor.command()
@click.argument("name", metavar="NAME")
@click.option(
    "--query",
    metavar="SQL",
    help="What to embed: SQL with a column checkpoint_id. [default: every stored checkpoint]",
)
@catalog_option
@json_option
@note_options
def embed(name: str, query: str | None, catalog: str, as_json: bool) -> None:
    """Store what a predictor sees in each network as a vector.

    The vectors are rows of the table embeddings; `nearest` finds neighbours among them. What is
    there already is not made again.

    \b
    zoo predictor embed accuracy
    zoo predictor embed accuracy --query "select checkpoint_id from wide where zoo = 'usps'" --json
    """
    from zooplatform.artifacts import find_artifact
    from zooplatform.catalog.predicting import store_embeddings

    with open_catalog(catalog) as opened:
        artifact = find_artifact(opened, name, "predictor")
        new = store_embeddings(opened, artifact.artifact_id, query)
    if as_json:
        out.data({"name": artifact.name, "artifact_id": artifact.artifact_id, "embedded": new})
    else:
        out.line(f"{artifact.name} ({artifact.artifact_id}): {human_count(new, 'new embedding')}")


@predictor.command("ls")
@catalog_option
@json_option
@note_options
def ls(catalog: str, as_json: bool) -> None:
    """List stored predictors, the latest first.

    \b
    zoo predictor ls
    zoo predictor ls --json
    """
    print_artifacts(catalog, "predictor", as_json=as_json)
