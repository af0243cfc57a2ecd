"""The platform's main job on a small real zoo: questions in SQL, a network out, its accuracy checked and predicted, and
a new network from an instruction.

The zoo comes built with the package, a fitted predictor and a fitted generator in it, so that the demo needs neither
network nor training.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zooplatform.errors import ConfigError, IntegrityError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    import pyarrow as pa
    from torch import nn

    from zooplatform.catalog import Catalog
    from zooplatform.plugins import Registry

__all__ = [
    "DEFAULT_FOLDER",
    "GENERATOR",
    "PREDICTOR",
    "SHARED_ZOO",
    "SPLIT",
    "SUSPECTS",
    "ZOO",
    "DemoStep",
    "generated_report",
    "run_demo",
]

DEFAULT_FOLDER = "zoo-demo"
ZOO = "digits"
IMAGES = "test_images.npz"
SPLIT = "digits"
PREDICTOR = "digits-sne"
SHARED_ZOO = "digits-shared"  # networks that began alike
GENERATOR = "digits-igpg"

_ASKED = "a small CNN with {activation} units that reads handwritten digits"
_WRITTEN = 8  # networks
_TEMPERATURE = 0.7

_QUESTIONS = (
    (
        "Which layers are the largest?",
        """\
select tensors[1] as layer, layer_type, num_parameters, human_bytes(size_bytes) as size
from layer_sizes
order by num_parameters desc, layer limit 10""",
    ),
    (
        "How do the weights of each layer grow while the networks learn?",
        f"""\
select s.name as layer, w.epoch, round(avg(s.l2), 3) as norm, round(stddev(s.l2), 3) as spread,
    round(avg(w.test_accuracy), 4) as accuracy
from tensor_stats s join wide w using (checkpoint_id)
where w.zoo_id = '{ZOO}' and s.name like '%.weight'
group by s.tensor_index, s.name, w.epoch
order by s.tensor_index, w.epoch""",
    ),
    (
        "Which networks lie nearest to the most accurate one, by the cosine of their weights?",
        f"""\
with ranked as (
    from wide join population_weights using (checkpoint_id, architecture_id)
    where zoo_id = '{ZOO}'
), best as (from ranked order by test_accuracy desc, checkpoint_id limit 1)
select other.model, other.epoch, round(other.test_accuracy, 4) as accuracy,
    round(cosine(other.weights, best.weights), 4) as similarity
from ranked other, best
where other.checkpoint_id <> best.checkpoint_id
order by similarity desc, other.checkpoint_id limit 5""",
    ),
)

_COUNTS = f"""\
select count(distinct model_id) as num_models, count(*) as num_checkpoints,
    any_value(num_parameters) as num_parameters
from wide where zoo_id = '{ZOO}'"""

_BEST = f"""\
select checkpoint_id, test_accuracy from wide where zoo_id = '{ZOO}'
order by test_accuracy desc, checkpoint_id limit 1"""

_COMPARED = f"""\
select model, epoch, round(test_accuracy, 4) as measured,
    round(sne_accuracy(checkpoint_id), 4) as predicted, round(predicted - measured, 4) as difference
from wide
where epoch = 20 and model_id in (select model_id from splits where name = '{SPLIT}' and role = 'test')
order by measured desc, model"""

SUSPECTS = """\
select model, epoch, round(test_accuracy, 4) as declared,
    round(sne_accuracy(checkpoint_id), 4) as predicted,
    round(abs(test_accuracy - sne_accuracy(checkpoint_id)), 4) as difference, checkpoint_id
from wide
where zoo_id = 'digits' and test_accuracy is not null
order by difference desc, checkpoint_id limit 5"""

# By what is predicted and not by what is declared, so that a demo that was interrupted between the
# wrong label and its correction picks the same two networks when it is run again.
_EXTREMES = f"""\
select checkpoint_id, model, epoch, test_accuracy, sne_accuracy(checkpoint_id) as predicted
from wide
where model_id in (select model_id from splits where name = '{SPLIT}' and role = 'test')
order by predicted desc, checkpoint_id"""

_DECLARED = """\
select * exclude (commit_id) from metrics
where checkpoint_id = ? and name = 'test_accuracy' and origin <> 'predicted'"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoStep:
    """One thing that was done: what, how a user would do it, and what came of it."""

    name: str
    title: str
    how: str
    result: pa.Table | dict[str, Any]


def run_demo(
    folder: str | os.PathLike[str], *, registry: Registry | None = None
) -> Iterator[DemoStep]:
    """Do the main job in `folder` and yield each step when it is done.

    A folder that an earlier demo left is used again.

    Args:
        folder: where the catalog and the exported file go; stays behind.
        registry: the plugins; the installed ones by default.

    Raises:
        ConfigError: `folder` holds something else, or the package came without its zoo.
        IntegrityError: the rebuilt network is not as accurate as the catalog says, or the entry with
            the wrong accuracy is not found.
    """
    from zooplatform.catalog import open_catalog

    folder = Path(folder)
    path = _unpacked(folder)
    with open_catalog(path, registry=registry) as catalog:
        counts = catalog.sql(_COUNTS).to_pylist()[0]
        yield DemoStep(
            name="open",
            title="Open a catalog of small networks, trained on scikit-learn's handwritten digits",
            how=f"zoo show {ZOO} -c {path}",
            result={"catalog": str(path), **counts},
        )
        for number, (title, query) in enumerate(_QUESTIONS, start=1):
            yield DemoStep(
                name=f"question-{number}", title=title, how=query, result=catalog.sql(query)
            )
        yield from _rebuild(catalog, folder)
        yield from _predict(catalog)
        yield from _find_wrong_label(catalog)
        yield from _generate(catalog)


def _unpacked(folder: Path) -> Path:
    """The demo's catalog inside `folder`; copied out of the package unless it is there."""
    path = folder / ZOO
    if (path / "FORMAT").is_file():
        return path
    # Under a passing name first: an interrupted copy must not look like a catalog.
    copying = folder / f".{ZOO}.copying"
    if folder.exists() and (
        not folder.is_dir() or any(item != copying for item in folder.iterdir())
    ):
        raise ConfigError(
            f"{folder} is already there and not from this demo. Give --output another folder."
        )
    built = Path(str(resources.files("zooplatform.catalogs"))) / ZOO
    if not (built / "FORMAT").is_file():
        raise ConfigError(f"{built} is missing from this installation. Install zooplatform again.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(copying, ignore_errors=True)
        shutil.copytree(built, copying)
        copying.rename(path)
    except OSError as exc:
        raise ConfigError(
            f"{folder}: the demo cannot write there ({exc.strerror or exc}). Give --output another folder."
        ) from exc
    return path


def _accuracy(network: nn.Module, images: Path) -> tuple[float, int]:
    """The share of the test images that `network` classifies rightly, and how many there are."""
    import numpy as np
    import torch

    with np.load(images) as data:
        x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    with torch.no_grad():
        right = (network(x).argmax(dim=1) == y).sum().item()
    return right / len(y), len(y)


def _rebuild(catalog: Catalog, folder: Path) -> Iterator[DemoStep]:
    """Export the best network, build it from the file alone and measure it again."""
    from safetensors.torch import load_file

    best = catalog.sql(_BEST).to_pylist()[0]
    checkpoint_id, stored = best["checkpoint_id"], best["test_accuracy"]
    exported = catalog.export(checkpoint_id, folder / "best.safetensors")
    yield DemoStep(
        name="export",
        title="Export the best network to a safetensors file",
        how=f"zoo export {checkpoint_id} {exported} -c {folder / ZOO}",
        result={
            "checkpoint_id": checkpoint_id,
            "file": str(exported),
            "size_bytes": exported.stat().st_size,
        },
    )
    network = catalog.build(checkpoint_id)
    network.load_state_dict(load_file(exported), strict=True)
    measured, num_images = _accuracy(network, catalog.path / IMAGES)
    if measured != stored:
        raise IntegrityError(
            f"Checkpoint {checkpoint_id} classifies {measured:.6f} of the test images, but the "
            f"catalog says {stored:.6f}. Remove {folder} and run the demo again."
        )
    yield DemoStep(
        name="evaluate",
        title="Build the network from that file and classify real images it has never seen",
        how=f"""\
network = zooplatform.open_catalog("{folder / ZOO}").build("{checkpoint_id}")
network.load_state_dict(safetensors.torch.load_file("{exported}"))""",
        result={
            "num_images": num_images,
            "measured_accuracy": measured,
            "stored_accuracy": stored,
            "equal": True,
        },
    )


def _predict(catalog: Catalog) -> Iterator[DemoStep]:
    """Ask the stored predictor about the networks that it was kept from."""
    from zooplatform.evaluation.predictions import evaluate

    found = evaluate(catalog, PREDICTOR, split=SPLIT)
    scores = found.scores
    yield DemoStep(
        name="predict",
        title="Predict the accuracy of networks that the predictor never saw, from their weights alone",
        how=f"zoo predictor evaluate {PREDICTOR} --split {SPLIT} -c {catalog.path}",
        result={
            "num_networks": scores.num_models,
            "num_checkpoints": scores.n,
            "num_seen_in_fit": found.num_seen,
            "kendall_tau": scores.kendall_tau,
            "kendall_tau_low": scores.kendall_tau_ci[0],
            "kendall_tau_high": scores.kendall_tau_ci[1],
            "mean_absolute_error": scores.mae,
        },
    )
    yield DemoStep(
        name="compare",
        title="Compare what was predicted with what was measured after the last epoch",
        how=_COMPARED,
        result=catalog.sql(_COMPARED),
    )


def _find_wrong_label(catalog: Catalog) -> Iterator[DemoStep]:
    """Give a good network the accuracy of a worse one, find it with one query, measure it and put it right."""
    ranked = catalog.sql(_EXTREMES).to_pylist()
    good, bad = ranked[0], ranked[-1]
    wronged = good["checkpoint_id"]
    wrong = _declare(catalog, wronged, bad["test_accuracy"])
    yield DemoStep(
        name="mislabel",
        title="Declare a wrong accuracy: a good network gets the one of a worse network",
        how=f"""\
(row,) = catalog.sql("select * exclude (commit_id) from metrics where checkpoint_id = '{wronged}'"
    " and name = 'test_accuracy' and origin <> 'predicted'").to_pylist()
row["value"] = {wrong:.6f}
catalog.commit("a wrong accuracy", {{"metrics": [row]}}, replaces=["metrics"])""",
        result={
            "model": good["model"],
            "epoch": good["epoch"],
            "copied_from": f"{bad['model']}, epoch {bad['epoch']:g}",
            "declared_accuracy": wrong,
        },
    )
    suspects = catalog.sql(SUSPECTS)
    first = suspects.to_pylist()[0]
    if first["checkpoint_id"] != wronged:
        raise IntegrityError(
            f"Checkpoint {wronged} was given a wrong accuracy, but {first['checkpoint_id']} comes "
            f"first among the suspicious ones. Remove {catalog.path.parent} and run the demo again."
        )
    yield DemoStep(
        name="suspects",
        title="Find suspicious metadata: predicted against declared accuracy, largest difference first",
        how=SUSPECTS,
        result=suspects,
    )
    measured, _ = _accuracy(catalog.build(wronged), catalog.path / IMAGES)
    _declare(catalog, wronged, measured)
    yield DemoStep(
        name="correct",
        title="Measure the first of them again and correct the catalog",
        how=f'zooplatform.open_catalog("{catalog.path}").build("{wronged}")',
        result={
            "checkpoint_id": wronged,
            "declared_accuracy": wrong,
            "predicted_accuracy": first["predicted"],
            "measured_accuracy": measured,
        },
    )


def _generate(catalog: Catalog) -> Iterator[DemoStep]:
    """Let the stored generator write networks, measure them, and say how new they are."""
    wanted = "tanh"
    yield DemoStep(
        name="generate",
        title="Write new networks from an instruction, measure them on the same images, and see how new they are",
        how=f"zoo generator sample {GENERATOR} --n {_WRITTEN} --temperature {_TEMPERATURE} "
        f"--instruction '{_ASKED.format(activation=wanted)}' -c {catalog.path}",
        result=generated_report(catalog, wanted),
    )


def generated_report(catalog: Catalog, activation: str, *, store: bool = True) -> dict[str, Any]:
    """Accuracy and novelty of networks that the stored generator writes.

    `relative_novelty` is the mean distance to the nearest training network, over the median distance of training
    networks to the nearest other one; all began alike, so their hidden units are compared as they stand.

    Args:
        catalog: the demo's.
        activation: what the instruction asks for.
        store: take the networks into the catalog; otherwise they are only drawn.
    """
    import torch

    from zooplatform.artifacts import find_artifact
    from zooplatform.generation.drawing import draw
    from zooplatform.generation.networks import Builder
    from zooplatform.generation.sampling import sample_networks
    from zooplatform.generation.stored_fits import fitted_ids
    from zooplatform.interfaces import Condition
    from zooplatform.symmetry import leave_one_out, nearest

    instruction = _ASKED.format(activation=activation)
    artifact = find_artifact(catalog, GENERATOR, "generator")
    told = Condition(instruction=instruction)
    drawn = list(
        draw(catalog, artifact, _WRITTEN, condition=told, seed=0, temperature=_TEMPERATURE)
    )
    weights = torch.cat([batch.weights for batch in drawn])
    vector = drawn[0].blueprint.vector
    build = Builder(catalog.recogniser)
    images = catalog.path / IMAGES
    measured = [
        _accuracy(build.load(batch.blueprint, row), images)[0]
        for batch in drawn
        for row in batch.weights
    ]
    learnt = catalog.population(fitted_ids(catalog, artifact))
    known = torch.as_tensor(learnt.weights)
    distance, _ = nearest(weights, known, vector, align=False)
    usual = leave_one_out(known, list(learnt.ids), vector, align=False).median()
    trained = catalog.sql(
        f"select round(avg(test_accuracy), 6) as mean from wide where zoo_id = '{SHARED_ZOO}' and model_id in "
        "(select model_id from hyperparameters where key = 'activation' and value = ?)",
        [activation],
    ).to_pylist()[0]
    found: dict[str, Any] = {
        "instruction": instruction,
        "activations": ", ".join(
            sorted({str(b.blueprint.config.get("activation")) for b in drawn})
        ),
        "mean_accuracy": sum(measured) / len(measured),
        "best_accuracy": max(measured),
        "accuracy_of_trained": trained["mean"],
        "relative_novelty": float((distance / usual).mean()),
    }
    if store:
        made = sample_networks(
            catalog, GENERATOR, _WRITTEN, instruction=instruction, seed=0, temperature=_TEMPERATURE
        )
        found["checkpoint_id"] = made.checkpoint_ids[0]
        found["zoo"] = made.zoo
    return found


def _declare(catalog: Catalog, checkpoint_id: str, accuracy: float) -> float:
    """Replace the declared test accuracy of a checkpoint; gives what the catalog then says."""
    (row,) = catalog.sql(_DECLARED, [checkpoint_id]).to_pylist()
    catalog.commit(
        f"test accuracy of {checkpoint_id}",
        {"metrics": [row | {"value": accuracy}]},
        replaces=["metrics"],
    )
    (stored,) = catalog.sql(_DECLARED, [checkpoint_id]).to_pylist()
    value: float = stored["value"]
    return value
