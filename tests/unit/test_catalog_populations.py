"""Populations: exact weights back, views instead of copies, nothing stored twice."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from zooplatform.catalog import open_catalog, shards, writer
from zooplatform.errors import CatalogError, IntegrityError, SchemaError, UnknownIdError
from zooplatform.interfaces import CheckpointRecord, MetricRecord, ModelInfo
from zooplatform.testing import sample_population

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.catalog import Catalog


def records(count: int, *, step: int = 1, prefix: str = "run") -> list[CheckpointRecord]:
    return [
        CheckpointRecord(
            model=ModelInfo(
                key=f"{prefix}/{i}",
                name=f"{prefix} {i}",
                source="test:x",
                seed=i,
                config={"lr": 0.1},
            ),
            step=step,
            epoch=float(step),
            metrics=(
                MetricRecord(name="test_accuracy", value=i / count, dataset="digits", split="test"),
            ),
        )
        for i in range(count)
    ]


def batch_norm_states(count: int) -> list[dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    states = []
    for number in range(count):
        net = torch.nn.Sequential(
            torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Linear(4, 3)
        )
        state = net.state_dict()
        state["1.num_batches_tracked"] = torch.tensor(number + 2**40)
        state["0.weight"].view(torch.int32).view(-1)[0] = 0x7FC0BEEF  # a NaN with a payload
        states.append(state)
    return states


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and bool(
            torch.equal(
                a.reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8)
            )
        )
    )


def test_state_dicts_come_back_bit_for_bit_integers_included(catalog: Catalog) -> None:
    states = batch_norm_states(5)
    ids = catalog.add_state_dicts(states, records(5), zoo="bn")
    for checkpoint, state in zip(ids, states, strict=True):
        got = catalog.state_dict(checkpoint, verify=True)
        assert list(got) == list(state)
        assert all(same_bits(got[name], state[name]) for name in state)
    population = catalog.population(ids)
    assert population.layer("1.num_batches_tracked").tolist() == [i + 2**40 for i in range(5)]
    assert population.layer("0.weight").shape == (5, 2, 1, 3, 3)
    assert all(same_bits(population.state_dict(3)[name], states[3][name]) for name in states[3])


def test_weights_are_a_view_of_the_file_and_writing_changes_no_file(catalog: Catalog) -> None:
    batch = sample_population()
    ids = catalog.append(batch, zoo="mlps")
    population = catalog.population()
    again = catalog.population()
    assert torch.equal(population.weights, torch.from_numpy(np.asarray(batch.weights)))
    assert population.weights.data_ptr() % shards.ALIGNMENT == 0
    assert population.layer("layers.1.weight").untyped_storage().data_ptr() == (
        population.weights.untyped_storage().data_ptr()
    )
    population.weights[0] = 0
    catalog.state_dict(ids[1])["layers.0.weight"].zero_()
    assert torch.equal(again.weights, torch.from_numpy(np.asarray(batch.weights)))
    assert catalog.population(verify=True).weights[0].abs().sum() > 0


def test_the_order_of_the_query_is_kept(catalog: Catalog) -> None:
    ids = catalog.append(sample_population(), zoo="mlps")
    wanted = [ids[5], ids[0], ids[3]]
    population = catalog.population(wanted)
    assert list(population.ids) == wanted
    whole = dict(zip(ids, np.asarray(sample_population().weights), strict=True))
    assert np.array_equal(population.weights.numpy(), np.stack([whole[i] for i in wanted]))
    assert np.array_equal(population.read([2, 0]), np.stack([whole[ids[3]], whole[ids[5]]]))
    assert np.array_equal(population.read(1), whole[ids[0]])
    by_sql = catalog.population("select checkpoint_id from checkpoints order by checkpoint_id desc")
    assert list(by_sql.ids) == sorted(ids, reverse=True)


def test_several_shards_are_one_population(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MAX_POPULATION_BYTES", 51 * 4 * 3)
    batch = sample_population()
    ids = catalog.append(batch, zoo="mlps")
    assert catalog.snapshot().shards("population").num_rows == 3
    population = catalog.population(ids, verify=True)
    assert np.array_equal(population.weights.numpy(), batch.weights)
    assert np.array_equal(population.read(np.arange(8)[::-1]), np.asarray(batch.weights)[::-1])
    some = [ids[7], ids[0], ids[6]]
    population = catalog.population(some, verify=True)  # of the first and of the last shard
    assert np.array_equal(population.weights.numpy(), np.asarray(batch.weights)[[7, 0, 6]])
    assert population.ids == tuple(some)


def test_the_whole_catalog_comes_as_the_shards_hold_it(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MAX_POPULATION_BYTES", 51 * 4 * 3)
    batch = sample_population()
    ids = catalog.append(batch, zoo="mlps")
    whole = dict(zip(ids, np.asarray(batch.weights), strict=True))
    rows = catalog.sql("select * exclude (commit_id) from checkpoints").to_pylist()
    catalog.commit("turned round", {"checkpoints": rows[::-1]}, replaces=["checkpoints"])
    with open_catalog(catalog.path) as opened:
        population = opened.population(verify=True)
        places = opened.sql("select checkpoint_id from checkpoints order by shard_id, shard_row")
    assert list(population.ids) == places.column(0).to_pylist()
    expected = np.stack([whole[i] for i in population.ids])
    assert np.array_equal(population.weights.numpy(), expected)


def test_files_ingested_one_by_one_are_a_population_too(catalog: Catalog, tmp_path: Path) -> None:
    """Together with networks that came as one: gathered, in the order that was asked for, bytes aside included."""
    states = batch_norm_states(5)
    together = catalog.add_state_dicts(states[:2], records(2), zoo="bn")
    alone = []
    for number, state in enumerate(states[2:]):
        torch.save(state, tmp_path / f"{number}.pt")
        alone += catalog.ingest(tmp_path / f"{number}.pt").checkpoint_ids
    wanted = [alone[1], together[1], alone[0], together[0], alone[2]]
    expected = [states[i] for i in (3, 1, 2, 0, 4)]
    population = catalog.population(wanted, verify=True)
    assert list(population.ids) == wanted
    assert population.weights.shape == (5, population.vector.width)
    for number, state in enumerate(expected):
        for found in (population.state_dict(number), catalog.state_dict(wanted[number])):
            assert list(found) == list(state)
            assert all(same_bits(found[name], state[name]) for name in state)
        for name in state:
            assert same_bits(population.layer(name)[number], state[name])
        row = population.read(number).view(np.uint32)
        assert np.array_equal(row, population.weights[number].numpy().view(np.uint32))
    some = population.read([4, 0]).view(np.uint32)
    assert np.array_equal(some, population.weights[[4, 0]].numpy().view(np.uint32))
    assert sorted(catalog.population().ids) == sorted(wanted)
    only_files = catalog.population(alone)
    only_files.weights.zero_()
    assert same_bits(catalog.state_dict(alone[0])["0.weight"], states[2]["0.weight"])


def test_what_cannot_be_rows_of_a_matrix_says_why(catalog: Catalog, tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "header.safetensors")
    save_file({"x": torch.ones(2).bfloat16()}, tmp_path / "bf16.safetensors")
    (header,) = catalog.ingest(tmp_path / "header.safetensors", header_only=True).checkpoint_ids
    (bf16,) = catalog.ingest(tmp_path / "bf16.safetensors").checkpoint_ids
    with pytest.raises(CatalogError, match=f"{header}: only its header was ingested"):
        catalog.population([header])
    with pytest.raises(CatalogError, match=r"these are bfloat16\. Read them with"):
        catalog.population([bf16])
    with pytest.raises(CatalogError, match="these 2 checkpoints have 2"):
        catalog.population([header, bf16])
    with pytest.raises(CatalogError, match="these 0 checkpoints have 0"):
        catalog.population([])


def test_the_same_rows_again_change_nothing(catalog: Catalog) -> None:
    batch = sample_population()
    first = catalog.append(batch, zoo="mlps")
    version = catalog.snapshot().version
    assert catalog.append(batch, zoo="mlps") == first
    assert catalog.snapshot().version == version
    more = replace(
        batch, rows=[*batch.rows[:4], *(replace(r, step=99, epoch=99.0) for r in batch.rows[4::2])]
    )
    more = replace(more, weights=np.ascontiguousarray(batch.weights[[0, 1, 2, 3, 5, 7]]))
    ids = catalog.append(more, zoo="mlps")
    assert ids[:4] == first[:4]
    assert catalog.sql("select count(*) as n from checkpoints").column("n").to_pylist() == [10]
    assert np.array_equal(catalog.population(ids).weights.numpy(), more.weights)


def test_networks_of_one_layout_that_differ_in_what_it_does_not_show_build_as_they_were(
    catalog: Catalog,
) -> None:
    """Activations leave no trace in the weights."""
    batch = sample_population()
    other = replace(
        batch,
        config={**batch.config, "activation": "relu"},
        rows=[replace(r, model=replace(r.model, key=r.model.key + "-relu")) for r in batch.rows],
    )
    (tanh, *_), (relu, *_) = catalog.append(batch, zoo="a"), catalog.append(other, zoo="a")
    x = torch.randn(5, 4)
    assert catalog.sql("select count(*) as n from architectures").column("n").to_pylist() == [1]
    state = catalog.state_dict(tanh)
    hidden = x @ state["layers.0.weight"].T + state["layers.0.bias"]

    def head(h: torch.Tensor) -> torch.Tensor:
        return h @ state["layers.1.weight"].T + state["layers.1.bias"]

    assert torch.allclose(catalog.build(tanh)(x), head(hidden.tanh()), atol=1e-6)
    assert torch.allclose(catalog.build(relu)(x), head(hidden.relu()), atol=1e-6)


def test_batches_that_do_not_fit_are_refused_and_store_nothing(catalog: Catalog) -> None:
    batch = sample_population()
    version = catalog.snapshot().version
    with pytest.raises(SchemaError, match="do not fit 8 rows of a layout with 51 float32 values"):
        catalog.append(replace(batch, weights=batch.weights[:, :-1]), zoo="z")
    with pytest.raises(SchemaError, match="do not fit"):
        catalog.append(replace(batch, weights=batch.weights.astype(np.float64)), zoo="z")
    with pytest.raises(SchemaError, match="Two rows of the batch are the same checkpoint"):
        catalog.append(replace(batch, rows=[batch.rows[0]] * 8), zoo="z")
    twice = (
        batch.layout[0],
        replace(batch.layout[1], name=batch.layout[0].name),
        *batch.layout[2:],
    )
    with pytest.raises(SchemaError, match="same name"):
        catalog.append(replace(batch, layout=twice), zoo="z")
    with pytest.raises(SchemaError, match="another layout than the first"):
        catalog.add_state_dicts([{"a": torch.ones(2)}, {"a": torch.ones(3)}], records(2), zoo="z")
    assert catalog.snapshot().version == version
    assert not list((catalog.path / "weights").rglob("*.arrow"))
    assert not list((catalog.path / "tmp").iterdir())


def test_populations_of_several_architectures_are_an_error_that_helps(catalog: Catalog) -> None:
    catalog.append(sample_population(), zoo="a")
    catalog.append(sample_population("cnn"), zoo="b")
    with pytest.raises(CatalogError, match="where architecture_id = "):
        catalog.population()
    with pytest.raises(UnknownIdError, match="No checkpoint 'nope'"):
        catalog.population(["nope"])
    with pytest.raises(CatalogError, match="needs a column checkpoint_id"):
        catalog.population("select 1 as one")


def test_a_flipped_byte_is_found_when_asked_for(catalog: Catalog) -> None:
    ids = catalog.append(sample_population(), zoo="a")
    shard = catalog.snapshot().shards("population").to_pylist()[0]
    path: Path = catalog.path / shard["path"]
    raw = bytearray(path.read_bytes())
    raw[shard["value_offset"] + shard["row_bytes"] * 2 + 5] ^= 1
    path.write_bytes(raw)
    catalog.state_dict(ids[1], verify=True)
    for read in (
        lambda: catalog.state_dict(ids[2], verify=True),
        lambda: catalog.population(verify=True),
    ):
        with pytest.raises(IntegrityError, match=ids[2]):
            read()
    assert [p.subject for p in catalog.check(deep=True)] == [shard["path"]]
    assert catalog.check() == []


def test_ids_may_be_shortened_while_they_are_clear(catalog: Catalog) -> None:
    ids = catalog.append(sample_population(num_models=40), zoo="a")
    assert catalog.resolve("checkpoint", ids[0][:12]) == ids[0]
    assert catalog.resolve("zoo", "a") == "a"
    with pytest.raises(UnknownIdError, match="ids begin so"):
        catalog.resolve("checkpoint", next(i[0] for i in ids if sum(j[0] == i[0] for j in ids) > 1))
    with pytest.raises(UnknownIdError, match="No model 'zzz'"):
        catalog.resolve("model", "zzz")


def test_a_url_of_a_local_folder_opens(catalog: Catalog) -> None:
    catalog.append(sample_population(), zoo="a")
    with open_catalog(f"file://{catalog.path}") as other:
        assert len(other.population()) == 8
