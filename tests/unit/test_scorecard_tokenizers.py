"""Stored tokenizers, measured on networks that they were not fitted on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from zooplatform.artifacts import find_artifact, load_artifact
from zooplatform.catalog import open_catalog
from zooplatform.errors import ConfigError, UnknownIdError
from zooplatform.evaluation.stored_fits import fit_tokenizer
from zooplatform.growing import grow, load_recipe
from zooplatform.scorecard.tokenizers import evaluate_tokenizer
from zooplatform.splits import create_split
from zooplatform.testing import sample_population

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result

    from zooplatform.catalog import Catalog

QUERY = "select checkpoint_id from wide where zoo_id = 'small'"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    """Sixteen digit networks of independent seeds, a quarter of them held out, and some that nobody can build."""
    settings = ("name=small", "runs=16", "epochs=4", "initialisation=independent", "stack=16")
    with open_catalog(tmp_path_factory.mktemp("tokenizers") / "zoo", create=True) as catalog:
        grow(load_recipe("digits-shared", settings), catalog)
        create_split(catalog, "main", QUERY, by="model", seed=0, ratio="50/25/25")
        fit_tokenizer(
            catalog, "vq", name="fine", query=QUERY, split="main",
            settings=["quantizer=scalar", "codebook_size=64"],
        )  # fmt: skip
        fit_tokenizer(
            catalog, "vq", name="coarse", query=QUERY, split="main",
            settings=["base=kmeans", "chunk_size=2", "codebook_size=8"],
        )  # fmt: skip
        fit_tokenizer(
            catalog, "vq", name="careful", query=QUERY, split="main",
            settings=["base=kmeans", "chunk_size=2", "codebook_size=8", "feedback=true", "refit=true"],
        )  # fmt: skip
        fit_tokenizer(catalog, "chunk", name="exact", settings=["chunk_size=16"])
        yield catalog


def test_a_fit_on_a_split_is_measured_on_its_validation_networks(zoo: Catalog) -> None:
    made = find_artifact(zoo, "coarse")
    assert made.data["split"] == "main"
    assert made.data["checkpoints"] == 8
    assert made.metrics["num_looked_at"] == 4
    assert made.metrics["bits_per_weight"] == pytest.approx(1.5, rel=0.1)
    assert 0 < made.metrics["relative_mse"] < 1
    assert made.metrics["perplexity"] <= 8
    assert load_artifact(zoo, made).codebook_size == 8


def test_every_network_counts_where_no_split_is_named(zoo: Catalog) -> None:
    made = fit_tokenizer(zoo, "vq", name="all", query=QUERY, config="debug")
    assert made.data["checkpoints"] == made.metrics["num_looked_at"] == 16
    with pytest.raises(ConfigError, match="'chunk' has nothing to measure on a split"):
        fit_tokenizer(zoo, "chunk", name="x", query=QUERY, split="main")


def test_codes_lose_what_exact_tokens_keep(zoo: Catalog) -> None:
    found = {
        name: evaluate_tokenizer(zoo, name, QUERY, split="main")
        for name in ("exact", "fine", "coarse", "careful")
    }
    assert all(one.n == 4 for one in found.values())
    exact, _ = found["exact"].datasets["digits"]
    assert found["exact"].relative_error == 0
    assert found["exact"].bits_per_weight >= 32
    assert found["exact"].codes == {}
    assert exact.accuracy == exact.original_accuracy
    assert found["fine"].bits_per_weight == pytest.approx(6)
    assert found["fine"].codes["codebook_use"] > 0.9
    assert found["fine"].relative_error < 0.01 < found["coarse"].relative_error
    fine, coarse, careful = (found[n].datasets["digits"][0] for n in ("fine", "coarse", "careful"))
    assert fine.accuracy > careful.accuracy > coarse.accuracy + 0.05
    # A decoder that ignores its codes knows nothing of any network, whatever its accuracy.
    _, constant = found["coarse"].datasets["digits"]
    assert constant.relative_distance == 0
    assert constant.accuracy > coarse.accuracy
    assert abs(constant.agreement_own - constant.agreement_other) < 0.05


def test_without_images_weights_are_compared_alone(zoo: Catalog) -> None:
    with open_catalog(zoo.path) as catalog:
        catalog.append(sample_population("mlp"), zoo="mlps")
        query = "select checkpoint_id from wide where zoo_id = 'mlps'"
        found = evaluate_tokenizer(catalog, "fine", query, n=5)
    assert found.n == 5
    assert found.datasets == {}
    assert 0 < found.relative_error < 1
    assert found.num_tokens > 0


def test_what_is_not_there_is_refused(zoo: Catalog) -> None:
    with pytest.raises(UnknownIdError, match="Known: "):
        evaluate_tokenizer(zoo, "nothing", QUERY)
    with pytest.raises(ConfigError, match="give split=NAME too"):
        evaluate_tokenizer(zoo, "fine", QUERY, role="test")


def test_the_command_prints_what_is_lost(
    zoo: Catalog, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    where = ("--query", QUERY, "--split", "main", "-c", zoo.path)
    found = json.loads(cli("tokenizer", "evaluate", "coarse", *where, "--json").stdout)
    assert found["name"] == "coarse"
    assert found["backend"] == "vq"
    assert found["n"] == 4
    assert set(found["datasets"]["digits"]) >= {"accuracy", "agreement_own", "constant"}
    said = cli("tokenizer", "evaluate", "coarse", *where)
    assert said.exit_code == 0, said.stderr
    assert "one network" in said.stdout
    assert "bits_per_weight" in said.stdout
    wrong = cli("tokenizer", "evaluate", "coarse", "--query", QUERY, "--role", "test")
    assert wrong.exit_code == 2
    fit = ("tokenizer", "fit", "vq", "--name", "told", "--query", QUERY, "--split", "main")
    made = cli(*fit, "--config", "debug", "-c", zoo.path)
    assert made.exit_code == 0, made.stderr
    assert "relative_mse" in made.stdout
