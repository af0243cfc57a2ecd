"""`population_weights` and `tensor_values`: the right values, and no more of them touched than asked for."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import duckdb
import numpy as np
import pytest
import torch

from zooplatform.catalog.loose_weights import MAX_LOOSE_VALUES
from zooplatform.catalog.weight_views import PIECE_VALUES, decode_float32
from zooplatform.errors import IntegrityError
from zooplatform.interfaces import (
    CheckpointHeader,
    CheckpointRecord,
    MetricRecord,
    ModelInfo,
    PopulationBatch,
    SourceFile,
    TensorSpec,
)
from zooplatform.layout import layout_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from zooplatform.catalog import Catalog

LAYOUT = (("a.weight", (3, 4)), ("a.bias", (3,)), ("b.weight", (2, 3)))
P = 21


def _specs(
    dtype: str, shapes: Sequence[tuple[str, tuple[int, ...]]] = LAYOUT
) -> tuple[TensorSpec, ...]:
    size = np.dtype(dtype).itemsize
    return tuple(TensorSpec(n, dtype, s, size * int(np.prod(s))) for n, s in shapes)


def _rows(count: int, tag: str = "m") -> list[CheckpointRecord]:
    return [
        CheckpointRecord(model=ModelInfo(key=f"{tag}{i}", name=f"{tag}{i}", source="test:zoo"))
        for i in range(count)
    ]


def _draw(count: int, dtype: str = "float32", width: int = P, seed: int = 0) -> npt.NDArray[Any]:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(dtype)


@dataclass
class OneCheckpoint:
    """A checkpoint in memory, as a source would open it."""

    name: str
    state: dict[str, torch.Tensor]
    stored_only: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    step: int | None = None
    epoch: float | None = None
    metrics: tuple[MetricRecord, ...] = ()

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(key=self.name, name=self.name, source=f"test:{self.name}")

    @property
    def header(self) -> CheckpointHeader:
        others = (TensorSpec(n, d, (len(b),), len(b)) for n, (d, b) in self.stored_only.items())
        return CheckpointHeader(tensors=(*layout_of(self.state), *others), format="test")

    @property
    def files(self) -> tuple[SourceFile, ...]:
        return ()

    def buffer(self, name: str) -> memoryview:
        if name in self.stored_only:
            return memoryview(self.stored_only[name][1])
        tensor = self.state[name].contiguous().reshape(-1)
        return memoryview(tensor.view(torch.uint8).numpy().tobytes())

    def verify(self) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_a_population_is_one_list_per_network(dtype: str, catalog: Catalog) -> None:
    weights = _draw(7, dtype)
    ids = catalog.append(
        PopulationBatch(layout=_specs(dtype), weights=weights, rows=_rows(7)), zoo="z"
    )
    table = catalog.sql("SELECT * FROM population_weights")
    assert table.schema.names == ["checkpoint_id", "architecture_id", "weights"]
    found = dict(zip(table["checkpoint_id"].to_pylist(), table["weights"].to_pylist(), strict=True))
    for row, id_ in enumerate(ids):
        assert np.array_equal(np.float32(found[id_]), weights[row].astype(np.float32))
    assert set(table["architecture_id"].to_pylist()) == set(
        catalog.sql("SELECT architecture_id FROM architectures")[0].to_pylist()
    )
    kinds = catalog.sql("DESCRIBE population_weights")["column_type"].to_pylist()
    assert kinds == ["VARCHAR", "VARCHAR", "FLOAT[]"]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_filters_and_columns_give_what_they_give_on_a_copy(dtype: str, catalog: Catalog) -> None:
    first = catalog.append(
        PopulationBatch(layout=_specs(dtype), weights=_draw(9, dtype), rows=_rows(9)), zoo="z"
    )
    other = (("only", (5,)),)
    catalog.append(
        PopulationBatch(
            layout=_specs(dtype, other), weights=_draw(4, dtype, 5), rows=_rows(4, "n")
        ),
        zoo="z",
    )
    a, b = first[3], first[5]
    for table in ("population_weights", "tensor_values"):
        copy = catalog.sql(f"SELECT * FROM {table}")
        value = copy.schema.names[-1]
        conditions = [
            f"checkpoint_id = '{a}'",
            f"checkpoint_id IN ('{a}', '{b}', 'nobody')",
            f"checkpoint_id = '{a}' AND checkpoint_id = '{b}'",
            f"checkpoint_id <> '{a}' AND checkpoint_id > '8'",
            f"checkpoint_id = '{a}' OR checkpoint_id < '2'",
            f"{value} IS NOT NULL",
            f"{value} IS NULL",
            f"{value}[1] > 0",
            f"len({value}) = 5",
            f"checkpoint_id = (SELECT '{a}') AND {value} IS NOT NULL",
            "checkpoint_id LIKE '%a%'",
        ]
        if table == "tensor_values":
            conditions += ["name = 'a.bias'", f"name = 'b.weight' AND checkpoint_id = '{b}'",
                           "part > 0", "part = 0 AND name IN ('only', 'a.bias')"]  # fmt: skip
        with duckdb.connect() as plain:
            plain.register("copied", copy)
            for condition in conditions:
                for columns in ("*", "checkpoint_id", value, f"{value}, checkpoint_id", "count(*)"):
                    query = f"SELECT {columns} FROM {{}} WHERE {condition}"
                    got = catalog.sql(query.format(table)).to_pylist()
                    want = plain.sql(query.format("copied")).to_arrow_table().to_pylist()
                    assert sorted(map(repr, got)) == sorted(map(repr, want)), condition


def test_counters_kept_aside_are_values_too(catalog: Catalog) -> None:
    layout = (
        TensorSpec("w", "float32", (2, 2), 16),
        TensorSpec("steps", "int64", (), 8),
        TensorSpec("v", "float32", (3,), 12),
        TensorSpec("mask", "bool", (2,), 2),
    )
    weights = _draw(3, width=7)
    steps = np.array([[5], [2**40], [-1]], dtype=np.int64)
    masks = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.uint8)
    aside = np.concatenate([steps.view(np.uint8), masks], axis=1)
    batch = PopulationBatch(layout=layout, weights=weights, rows=_rows(3), aside=aside)
    ids = catalog.append(batch, zoo="z")
    rows = catalog.sql("SELECT checkpoint_id, name, part, values FROM tensor_values").to_pylist()
    found = {(r["checkpoint_id"], r["name"]): r["values"] for r in rows}
    assert len(rows) == len(found) == 12
    for row, id_ in enumerate(ids):
        assert np.array_equal(np.float32(found[id_, "w"]), weights[row, :4])
        assert np.array_equal(np.float32(found[id_, "v"]), weights[row, 4:])
        assert found[id_, "steps"] == [float(steps[row, 0])]
        assert found[id_, "mask"] == masks[row].tolist()


DTYPES = [
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
    "float8_e5m2fnuz", "int64", "int32", "int16", "int8", "uint8", "uint16", "bool", "complex64",
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_decoded_as_torch_does(dtype: str, catalog: Catalog) -> None:
    kind = getattr(torch, dtype)
    drawn = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)) * 3
    tensor = drawn.abs().to(kind) if dtype.startswith(("uint", "bool")) else drawn.to(kind)
    catalog.write_checkpoint(OneCheckpoint("one", {"t": tensor, "empty": tensor[:0]}), None)
    rows = catalog.sql("SELECT name, part, values FROM tensor_values ORDER BY name").to_pylist()
    assert [(r["name"], r["part"]) for r in rows] == [("empty", 0), ("t", 0)]
    wanted = (tensor.abs() if tensor.is_complex() else tensor).to(torch.float32).reshape(-1)
    assert rows[0]["values"] == []
    assert torch.equal(torch.tensor(rows[1]["values"]), wanted)


def test_two_values_of_float4_come_from_one_byte() -> None:
    raw = np.arange(256, dtype=np.uint8)
    codes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]  # sign, two bits of exponent with bias 1, one of mantissa
    table = np.array(codes + [-c for c in codes], dtype=np.float32)
    found = decode_float32(raw, "float4_e2m1fn_x2").reshape(256, 2)
    assert np.array_equal(found[:, 0], table[raw % 16])
    assert np.array_equal(found[:, 1], table[raw // 16])


def test_stored_only_types_are_null(catalog: Catalog) -> None:
    one = OneCheckpoint("one", {"t": torch.ones(2)}, {"q": ("gguf.q4_k", bytes(144))})
    catalog.write_checkpoint(one, None)
    query = "SELECT name, values FROM tensor_values WHERE values IS {} NULL"
    assert catalog.sql(query.format("")).to_pylist() == [{"name": "q", "values": None}]
    assert catalog.sql(query.format("NOT")).to_pylist() == [{"name": "t", "values": [1.0, 1.0]}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_tensors_come_in_pieces(dtype: torch.dtype, catalog: Catalog) -> None:
    tensor = torch.randn(2 * PIECE_VALUES + 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = torch.ones(PIECE_VALUES, dtype=dtype)
    catalog.write_checkpoint(OneCheckpoint("one", {"t": tensor, "exact": exact}), None)
    table = catalog.sql("SELECT part, values FROM tensor_values WHERE name = 't' ORDER BY part")
    assert [len(v) for v in table["values"].to_pylist()] == [PIECE_VALUES, PIECE_VALUES, 7]
    joined = table["values"].combine_chunks().flatten().to_numpy()
    assert np.array_equal(joined, tensor.float().numpy())
    parts = catalog.sql("SELECT count(*) AS n FROM tensor_values WHERE name = 'exact'")
    assert parts["n"].to_pylist() == [1]
    last = catalog.sql("SELECT values FROM tensor_values WHERE part = 2")["values"].to_pylist()
    assert np.array_equal(np.float32(last[0]), tensor[-7:].float().numpy())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_files_ingested_one_by_one_are_lists_too(dtype: torch.dtype, catalog: Catalog) -> None:
    """Of every size up to a limit, with counters left out; two architectures, beside a population."""
    torch.manual_seed(0)
    states = [
        {"w": torch.randn(3, 4).to(dtype), "steps": torch.tensor(7), "b": torch.randn(3).to(dtype)}
        for _ in range(3)
    ]
    ids = [
        catalog.write_checkpoint(OneCheckpoint(f"one{i}", state), None).checkpoint_ids[0]
        for i, state in enumerate(states)
    ]
    other = catalog.write_checkpoint(OneCheckpoint("other", {"t": torch.ones(2)}), None)
    large = {"t": torch.ones(MAX_LOOSE_VALUES + 1)}
    catalog.write_checkpoint(OneCheckpoint("large", large), None)
    codes = {"c": torch.ones(3, dtype=torch.complex64)}
    catalog.write_checkpoint(OneCheckpoint("complex", codes), None)
    batch = PopulationBatch(layout=_specs("float32"), weights=_draw(2), rows=_rows(2))
    population = catalog.append(batch, zoo="z")
    table = catalog.sql("SELECT checkpoint_id, weights FROM population_weights").to_pylist()
    found = {row["checkpoint_id"]: row["weights"] for row in table}
    assert set(found) == {*ids, *population, other.checkpoint_ids[0]}
    for id_, state in zip(ids, states, strict=True):
        want = torch.cat([state["w"].reshape(-1), state["b"]]).float().tolist()
        assert found[id_] == want
        one = catalog.sql("SELECT weights FROM population_weights WHERE checkpoint_id = ?", [id_])
        assert one["weights"].to_pylist() == [want]
    counted = catalog.sql(
        "SELECT count(*) AS n FROM population_weights JOIN architectures USING (architecture_id) "
        "WHERE num_parameters = 15"
    )
    assert counted["n"].to_pylist() == [3]


def test_large_tensors_of_populations_come_in_pieces(catalog: Catalog) -> None:
    layout = _specs("float32", (("big", (PIECE_VALUES + 3,)), ("small", (2,))))
    weights = _draw(2, width=PIECE_VALUES + 5)
    ids = catalog.append(PopulationBatch(layout=layout, weights=weights, rows=_rows(2)), zoo="z")
    table = catalog.sql(
        "SELECT name, part, values FROM tensor_values WHERE checkpoint_id = ? ORDER BY name, part",
        [ids[1]],
    )
    assert [len(v) for v in table["values"].to_pylist()] == [PIECE_VALUES, 3, 2]
    assert np.array_equal(table["values"].combine_chunks().flatten().to_numpy(), weights[1])


def test_only_what_a_query_names_is_read(catalog: Catalog) -> None:
    """A shard that is gone is noticed by queries that need it, and by no other."""
    kept = catalog.append(
        PopulationBatch(layout=_specs("float32"), weights=_draw(2), rows=_rows(2)), zoo="z"
    )
    lost = catalog.append(
        PopulationBatch(layout=_specs("float32"), weights=_draw(2, seed=1), rows=_rows(2, "n")),
        zoo="z",
    )
    one = OneCheckpoint("one", {"t": torch.ones(2)})
    single = catalog.write_checkpoint(one, None).checkpoint_ids[0]
    shards = catalog.sql(
        "SELECT path FROM shards JOIN checkpoints USING (shard_id) WHERE checkpoint_id = ?",
        [lost[0]],
    )
    gone = catalog.path / shards["path"][0].as_py()
    gone.unlink()
    for query, id_ in (
        ("tensor_values", kept[0]),
        ("population_weights", kept[1]),
        ("tensor_values", single),
    ):
        assert catalog.sql(f"SELECT * FROM {query} WHERE checkpoint_id = ?", [id_]).num_rows > 0
    assert catalog.sql("SELECT count(*) AS n FROM tensors")["n"].to_pylist() == [13]
    for query in ("population_weights", f"tensor_values WHERE checkpoint_id = '{lost[0]}'"):
        with pytest.raises(IntegrityError, match=gone.name):
            catalog.sql(f"SELECT * FROM {query}")
    with pytest.raises(IntegrityError, match=gone.name):
        catalog.engine().reader("SELECT * FROM population_weights").read_all()
    assert catalog.sql("SELECT 1 AS x")["x"].to_pylist() == [1]


def test_a_truncated_shard_is_noticed(catalog: Catalog) -> None:
    catalog.append(
        PopulationBatch(layout=_specs("float32"), weights=_draw(3), rows=_rows(3)), zoo="z"
    )
    path = catalog.path / catalog.sql("SELECT path FROM shards")["path"][0].as_py()
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(IntegrityError, match=r"bytes .* were committed"):
        catalog.sql("SELECT * FROM population_weights")


def test_a_scan_is_bounded_in_memory(catalog: Catalog) -> None:
    count, width = 600, 40_000
    raw = np.zeros((count, width), dtype=np.float16)  # 48 MB, 96 MB as float32
    raw[:, 0] = np.arange(count)
    layout = _specs("float16", (("w", (width,)),))
    catalog.append(PopulationBatch(layout=layout, weights=raw, rows=_rows(count)), zoo="z")
    query = "SELECT sum({0}[1]) AS s FROM {1}"
    catalog.sql("SELECT 1")
    tracemalloc.start()
    try:
        for table, column in (("population_weights", "weights"), ("tensor_values", "values")):
            tracemalloc.reset_peak()
            total = catalog.sql(query.format(column, table))["s"].to_pylist()
            assert total == [count * (count - 1) / 2]
            assert tracemalloc.get_traced_memory()[1] < 60e6
    finally:
        tracemalloc.stop()


def test_a_superseded_row_is_not_seen(catalog: Catalog) -> None:
    """Networks whose checkpoint row points elsewhere now are not scanned in their old shard."""
    weights = _draw(4)
    ids = catalog.append(
        PopulationBatch(layout=_specs("float32"), weights=weights, rows=_rows(4)), zoo="z"
    )
    stored = catalog.snapshot().table("checkpoints").to_pylist()
    moved = next(row for row in stored if row["checkpoint_id"] == ids[1])
    moved.pop("commit_id")
    shard_row = next(row for row in stored if row["checkpoint_id"] == ids[2])["shard_row"]
    catalog.commit(
        "move one", {"checkpoints": [{**moved, "shard_row": shard_row}]}, replaces=["checkpoints"]
    )
    table = catalog.sql("SELECT checkpoint_id, weights FROM population_weights")
    found = dict(zip(table["checkpoint_id"].to_pylist(), table["weights"].to_pylist(), strict=True))
    assert table.num_rows == 4
    assert np.array_equal(np.float32(found[ids[1]]), weights[2])


def test_cosine_neighbours_and_norms_are_those_of_numpy(catalog: Catalog) -> None:
    weights = _draw(200)
    ids = catalog.append(
        PopulationBatch(layout=_specs("float32"), weights=weights, rows=_rows(200)), zoo="z"
    )
    unit = weights / np.linalg.norm(weights, axis=1, keepdims=True)
    wanted = [ids[i] for i in np.argsort(-(unit @ unit[0]))[:10]]
    table = catalog.sql(
        "SELECT p.checkpoint_id FROM population_weights p, population_weights q "
        "WHERE q.checkpoint_id = ? ORDER BY list_cosine_similarity(p.weights, q.weights) DESC LIMIT 10",
        [ids[0]],
    )
    assert table["checkpoint_id"].to_pylist() == wanted
    norms = catalog.sql(
        "SELECT checkpoint_id, sqrt(list_inner_product(weights, weights)) AS n FROM population_weights"
    )
    found = dict(zip(norms["checkpoint_id"].to_pylist(), norms["n"].to_pylist(), strict=True))
    assert np.allclose([found[i] for i in ids], np.linalg.norm(weights, axis=1), rtol=1e-6)
