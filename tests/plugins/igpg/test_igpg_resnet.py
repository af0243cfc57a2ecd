"""Networks longer than what the transformer sees: residual ones with batch normalisation, block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from zooplatform.catalog import open_catalog
from zooplatform.fitting import GeneratorData
from zooplatform.generation.facts import network_facts
from zooplatform.generation.networks import Builder
from zooplatform.interfaces import CheckpointRecord, ModelInfo, PopulationBatch
from zooplatform.layout import VectorLayout, layout_of
from zooplatform_igpg.generator import IgpgGenerator
from zooplatform_igpg.prepared import variances
from zooplatform_igpg.sampling import blocks_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zooplatform.catalog import Catalog

_NETWORKS = 6
_TOLD: dict[str, Any] = {
    "dim": 32, "depth": 1, "heads": 2, "kv_heads": 1, "patch": 8, "context": 512, "window": 64, "epochs": 1,
    "center": "mean", "basins": 0, "captions": 8, "understanding_steps": 20, "understanding_captions": 200, "rows": 4,
    "tokenizer": {"base": "kmeans", "mode": "layer", "chunk_size": 64, "codebook_size": 16, "iterations": 3},
}  # fmt: skip


def _grown(catalog: Catalog) -> None:
    """Residual networks as their constructor draws them, after a few batches of normalisation statistics."""
    torch.manual_seed(0)
    adapter = catalog.recogniser.adapter("cnn")
    table = {"preset": "resnet_small", "channels": 1, "size": 16, "blocks": (3, 3, 3)}
    rows, config = [], {}
    for number in range(_NETWORKS):
        module: Any = adapter.build(table)
        config = module.config
        with torch.no_grad():
            module.train()(torch.randn(8, 1, 16, 16) + number)
        state = module.state_dict()
        layout = layout_of(state)
        vector = VectorLayout(layout)
        rows.append(
            np.concatenate(
                [state[f.spec.name].numpy().ravel() for f in vector.fields if not f.aside]
            )
        )
    steps = np.ones((_NETWORKS, vector.aside_bytes // 8), np.int64)
    batch = PopulationBatch(
        layout=layout,
        weights=np.stack(rows).astype(np.float32),
        rows=[
            CheckpointRecord(
                model=ModelInfo(
                    key=f"resnet-{number}", name=f"resnet-{number}", source="test",
                    config={"dataset": "noise"},
                ),
                step=1,
            )
            for number in range(_NETWORKS)
        ],
        aside=steps.view(np.uint8),
        family="cnn",
        name="resnet-20",
        config=config,
    )  # fmt: skip
    catalog.append(batch, zoo="resnets")


@pytest.fixture(scope="module")
def resnets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GeneratorData]:
    with open_catalog(tmp_path_factory.mktemp("resnets") / "zoo", create=True) as catalog:
        _grown(catalog)
        ids = catalog.sql("select checkpoint_id from wide")["checkpoint_id"].to_pylist()
        known = network_facts(catalog, ids)
        yield GeneratorData(
            train=catalog.dataset(ids[:4], target=None),
            validation=catalog.dataset(ids[4:], target=None),
            facts=known.facts,
            blueprints=known.blueprints,
            images={},
            build=Builder(catalog.recogniser),
        )


def test_a_residual_network_of_a_quarter_of_a_million_parameters_is_written(
    resnets: GeneratorData,
) -> None:
    generator = IgpgGenerator()
    report = generator.fit(resnets, config=_TOLD, seed=0)
    tokens = int(report.metrics["tokens"])
    assert len(blocks_of(tokens, 512, 64)) > 8
    heard: list[int] = []

    def listen(what: str, done: int, total: int | None) -> None:
        heard.append(done)

    batches = list(generator.sample(2, seed=0, options={"progress": listen}))
    assert heard == [100 * at for at in range(1, tokens // 100 + 1)]  # every place once
    (batch,) = batches
    blueprint = batch.blueprint
    assert blueprint.vector.num_parameters >= 250_000
    assert batch.weights.shape == (2, blueprint.vector.width)
    own = variances(blueprint.vector)
    assert own.sum() > 500
    assert (batch.weights[:, own] > 0).all()
    for weights in batch.weights:
        module = resnets.build.load(blueprint, weights)  # type: ignore[attr-defined]  # strictly
        with torch.no_grad():
            assert module(torch.rand(2, 1, 16, 16)).isfinite().all()
    # What is written lies where the training networks lie, tensor by tensor.
    sizes = [resnets.train[at].weights for at in range(4)]
    for name in ("conv1.weight", "layer2.0.bn1.running_var", "fc.weight"):
        field = blueprint.vector.by_name[name]
        part = slice(field.offset, field.offset + field.spec.num_elements)
        real = float(torch.stack([one[part] for one in sizes]).square().mean())
        assert float(batch.weights[:, part].square().mean()) == pytest.approx(real, rel=0.8)
