"""Datasets: the right weights with the right targets, in one order everywhere, from any process."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from zooplatform.catalog import open_catalog, writer
from zooplatform.errors import CatalogError, ConfigError, IntegrityError, UnknownIdError
from zooplatform.interfaces import MetricRecord
from zooplatform.splits import create_split
from zooplatform.testing import sample_population

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.catalog import Catalog
    from zooplatform.datasets import Batch, WeightDataset

# torch warns where a test asks for more workers than there are processors.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def large_population(num_models: int) -> Any:
    """Networks of 1,500 parameters, whose rows are longer than a page."""
    batch = sample_population(num_models=num_models)
    spec = replace(batch.layout[0], shape=(60, 25), size_bytes=6000)
    weights = np.random.default_rng(1).standard_normal((len(batch.rows), 1500)).astype(np.float32)
    rows = [replace(r, model=replace(r.model, key=f"large {r.model.key}")) for r in batch.rows]
    return replace(batch, layout=(spec,), weights=weights, rows=rows, family="", config={})


def flat(catalog: Catalog, checkpoint: str) -> torch.Tensor:
    """The values of the main dtype of a network, by the other way of reading."""
    state = catalog.state_dict(checkpoint)
    dtype = next(t.dtype for t in state.values() if t.is_floating_point())
    return torch.cat([t.reshape(-1) for t in state.values() if t.dtype == dtype])


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
    )


def check(catalog: Catalog, data: WeightDataset, batches: list[Batch]) -> None:
    """Every network once, with the weights and the target that the catalog has for it."""
    assert sorted(i for batch in batches for i in batch.ids) == sorted(data.ids)
    stored = {
        row["checkpoint_id"]: (row["architecture_id"], row["test_accuracy"])
        for row in catalog.sql("select * from wide").to_pylist()
    }
    for batch in batches:
        for at, checkpoint in enumerate(batch.ids):
            architecture, accuracy = stored[checkpoint]
            assert batch.architecture_id == architecture
            assert same(batch.weights[at], flat(catalog, checkpoint))
            target = batch.target[at].item()
            assert target == pytest.approx(accuracy) if accuracy is not None else target != target


@pytest.fixture
def mixed(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """Four layouts: small networks in one shard, others in several, integers aside, and files."""
    catalog.append(sample_population("mlp", num_models=5), zoo="mlps")
    with monkeypatch.context() as patch:
        patch.setattr(writer, "MAX_POPULATION_BYTES", 119 * 4 * 3)
        catalog.append(sample_population("cnn", num_models=4), zoo="cnns")
        patch.setattr(writer, "MAX_POPULATION_BYTES", 6000 * 3)
        catalog.append(large_population(4), zoo="large")
    states, rows = [], []
    for number in range(3):
        torch.manual_seed(number)
        net = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        net[1].num_batches_tracked.fill_(number + 1)
        states.append(net.state_dict())
        row = sample_population().rows[2 * number]
        rows.append(replace(row, model=replace(row.model, key=f"bn {number}")))
    catalog.add_state_dicts(states[:2], rows[:2], zoo="bn")
    # The third network of this layout is stored tensor by tensor.
    torch.save(states[2], tmp_path / "bn.pt")
    catalog.ingest(tmp_path / "bn.pt", zoo="bn")
    for number, dtype in enumerate([torch.bfloat16, torch.bfloat16, torch.float8_e4m3fn]):
        torch.manual_seed(number)
        state = {n: t.to(dtype) for n, t in torch.nn.Linear(4, 3).state_dict().items()}
        save_file(state, tmp_path / f"{number}.safetensors")
        catalog.ingest(tmp_path / f"{number}.safetensors", zoo="files")
    tied = torch.randn(4, 4)
    torch.save({"a": tied, "empty": torch.empty(0), "b": tied}, tmp_path / "tied.pt")
    catalog.ingest(tmp_path / "tied.pt", zoo="files")
    return catalog


def test_every_network_of_every_architecture_once(mixed: Catalog) -> None:
    data = mixed.dataset(missing="keep")
    assert len(data) == 10 + 8 + 8 + 3 + 3 + 1
    assert len(data.architectures) == 7
    for batches in (
        list(data.batches(3)),
        list(data.batches(100, seed=5)),
        [data.read([at]) for at in range(len(data))],
    ):
        check(mixed, data, batches)
    for at in (0, 7, -1):
        sample = data[at]
        assert sample.checkpoint_id == data.ids[at]
        assert sample.architecture_id == data.architecture_ids[at]
        assert same(sample.weights, flat(mixed, data.ids[at]))
    with pytest.raises(IndexError):
        data[len(data)]


def test_batches_hold_one_architecture_and_the_size_asked_for(mixed: Catalog) -> None:
    data = mixed.dataset(missing="keep")
    sizes: dict[str, list[int]] = {}
    for batch in data.batches(4, seed=1):
        sizes.setdefault(batch.architecture_id, []).append(len(batch.ids))
        assert batch.weights.shape == (
            len(batch.ids),
            data.architectures[batch.architecture_id].width,
        )
        assert batch.target.dtype == torch.float32
    assert sorted(sorted(found) for found in sizes.values()) == [
        *([1], [1], [2], [2, 4, 4], [3], [4, 4], [4, 4]),
    ]
    full = list(data.batches(4, seed=1, drop_last=True))
    assert [len(batch.ids) for batch in full] == [4] * 6
    with pytest.raises(ConfigError, match="A batch of 0 networks"):
        list(data.batches(0))
    with pytest.raises(ConfigError, match="all are of one architecture; these 33 have 7"):
        data.read(range(len(data)))


def test_batches_are_fresh_memory(mixed: Catalog) -> None:
    data = mixed.dataset(missing="keep")
    for batch in data.batches(4):
        batch.weights.view(torch.uint8).zero_()
    check(mixed, data, list(data.batches(4)))


def test_the_bytes_aside_are_those_of_each_network(mixed: Catalog) -> None:
    data = mixed.dataset(None, missing="keep")
    sizes = set()
    for indices in data.order(2):
        aside = data.read_aside(indices)
        for at, row in zip(indices.tolist(), aside, strict=True):
            state = mixed.state_dict(data.ids[at])
            main = data.architectures[data.architecture_ids[at]].dtype
            beside = [t for t in state.values() if str(t.dtype) != f"torch.{main}"]
            assert row.tobytes() == b"".join(t.numpy().tobytes() for t in beside)
        sizes.add(aside.shape[1])
    assert 0 in sizes
    assert max(sizes) > 0
    with pytest.raises(ConfigError, match="all are of one architecture"):
        data.read_aside(range(len(data)))


def test_order_depends_on_seed_epoch_and_content_alone(mixed: Catalog, tmp_path: Path) -> None:
    data = mixed.dataset(missing="keep")

    def order(dataset: WeightDataset, **options: int) -> list[str]:
        return [i for batch in dataset.batches(4, **options) for i in batch.ids]

    assert order(data, seed=1, epoch=2) == order(mixed.dataset(missing="keep"), seed=1, epoch=2)
    orders = [order(data), order(data, seed=1), order(data, seed=1, epoch=1), order(data, seed=2)]
    assert len({tuple(ids) for ids in orders}) == 4
    # Another catalog, where the same networks came in another order and under other ids.
    batch = sample_population("mlp", num_models=5)
    rows = [replace(r, model=replace(r.model, key=f"other {r.model.key}")) for r in batch.rows]
    with open_catalog(tmp_path / "other", create=True) as other:
        for at in reversed(range(10)):
            part = replace(batch, weights=batch.weights[at : at + 1].copy(), rows=rows[at : at + 1])
            other.append(part, zoo="mlps")
        ours = mixed.dataset("select checkpoint_id from wide where zoo = 'mlps' order by 1")
        theirs = other.dataset("select checkpoint_id from wide order by checkpoint_id desc")
        for one, two in zip(ours.batches(4, seed=3), theirs.batches(4, seed=3), strict=True):
            assert torch.equal(one.weights, two.weights)
            assert torch.equal(one.target, two.target)
            assert one.ids != two.ids


def test_the_shuffle_is_frozen(catalog: Catalog) -> None:
    """Another version of numpy or of this code must not give another order for the same seed."""
    catalog.append(sample_population("mlp", num_models=4), zoo="mlps")
    order = catalog.dataset().order(3, seed=7, epoch=2)
    assert [part.tolist() for part in order] == [[3, 4, 5], [6, 7, 1], [0, 2]]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")  # what is tested
def test_workers_give_the_same_batches(mixed: Catalog, workers: int, method: Any) -> None:
    data = mixed.dataset(missing="keep")
    loader = data.loader(4, seed=3, num_workers=workers, start_method=method)
    for epoch in (0, 1):
        loader.batch_sampler.epoch = epoch  # type: ignore[union-attr]
        expected = list(data.batches(4, seed=3, epoch=epoch))
        got: list[Any] = list(loader)
        assert len(loader) == len(got) == len(expected)
        for one, two in zip(got, expected, strict=True):
            assert (one.ids, one.architecture_id) == (two.ids, two.architecture_id)
            assert same(one.weights, two.weights)
            assert torch.equal(one.target.nan_to_num(-1), two.target.nan_to_num(-1))
    check(mixed, data, got)


def test_a_plain_data_loader_works_too(catalog: Catalog) -> None:
    catalog.append(sample_population("mlp", num_models=5), zoo="mlps")
    data = catalog.dataset()
    (batch,) = DataLoader(data, batch_size=10)
    assert same(batch.weights, data.read(range(10)).weights)
    assert list(batch.checkpoint_id) == list(data.ids)
    assert torch.equal(batch.target, torch.from_numpy(data.targets.astype(np.float32)))


def test_it_pickles_without_the_weights(catalog: Catalog) -> None:
    catalog.append(large_population(200), zoo="large")
    data = catalog.dataset()
    list(data.batches(64))
    pickled = pickle.dumps(data)
    assert len(pickled) < 2_400_000 / 20
    again = pickle.loads(pickled)
    assert torch.equal(again.read([3, 1]).weights, data.read([3, 1]).weights)


@pytest.mark.gpu
def test_pinned_batches_reach_the_gpu(mixed: Catalog) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    data = mixed.dataset(missing="keep")
    loader = data.loader(4, seed=3, num_workers=2, pin_memory=True)
    got: list[Any] = list(loader)
    assert all(batch.weights.is_pinned() and batch.target.is_pinned() for batch in got)
    moved = [b._replace(weights=b.weights.to("cuda", non_blocking=True).cpu()) for b in got]
    check(mixed, data, moved)


# --- what is in it ---------------------------------------------------------------------------------------------------


def test_targets_come_from_the_query_or_from_wide(catalog: Catalog) -> None:
    ids = catalog.append(sample_population(), zoo="mlps")
    wide = {r["checkpoint_id"]: r for r in catalog.sql("select * from wide").to_pylist()}
    for target in ("test_accuracy", "epoch", "num_parameters", "seed"):
        data = catalog.dataset(target=target)
        assert data.targets.tolist() == [wide[i][target] for i in data.ids]
    data = catalog.dataset(
        "select checkpoint_id, 1 - test_accuracy as error, epoch > 1 as late from wide",
        target="error",
    )
    assert data.targets.tolist() == pytest.approx([1 - wide[i]["test_accuracy"] for i in data.ids])
    data = catalog.dataset("select checkpoint_id, epoch > 1 as late from wide", target="late")
    assert data.targets.tolist() == [float(wide[i]["epoch"] > 1) for i in data.ids]
    assert set(catalog.dataset([ids[4], ids[1], ids[4]]).ids) == {ids[1], ids[4]}
    nothing = catalog.dataset(target=None)
    assert nothing.target is None
    assert nothing.read([0]).target.isnan().all()


def test_missing_targets_are_said(catalog: Catalog) -> None:
    batch = sample_population(num_models=4)
    rows = list(batch.rows)
    rows[0] = replace(rows[0], metrics=())
    bad = MetricRecord(name="test_accuracy", value=float("nan"), dataset="sample", split="test")
    rows[5] = replace(rows[5], metrics=(bad,))
    ids = catalog.append(replace(batch, rows=rows), zoo="mlps")
    with pytest.raises(
        CatalogError, match=r"2 of 8 networks have no test_accuracy .*missing='drop'"
    ):
        catalog.dataset()
    dropped = catalog.dataset(missing="drop")
    assert set(dropped.ids) == set(ids) - {ids[0], ids[5]}
    assert not np.isnan(dropped.targets).any()
    assert dropped.notes == ("2 networks left out: no test_accuracy.",)
    kept = catalog.dataset(missing="keep")
    assert {i for i, v in zip(kept.ids, kept.targets, strict=True) if np.isnan(v)} == {
        ids[0],
        ids[5],
    }
    assert kept.notes == (
        "2 of 8 networks have no test_accuracy (NULL or NaN); their target is NaN.",
    )
    with pytest.raises(CatalogError, match=r"holds no network\. 2 networks left out"):
        catalog.dataset([ids[0], ids[5]], missing="drop")
    with pytest.raises(ConfigError, match="missing='ignore' is not"):
        catalog.dataset(missing="ignore")  # type: ignore[arg-type]


def test_a_role_of_a_split(catalog: Catalog) -> None:
    batch = sample_population(num_models=20)
    ids = catalog.append(batch, zoo="mlps")
    split = create_split(catalog, "main", steps="10")
    roles = {
        row["checkpoint_id"]: row["role"]
        for row in catalog.sql("select checkpoint_id, role from splits").to_pylist()
    }
    seen: list[str] = []
    for role in ("train", "val", "test"):
        data = catalog.dataset(split="main", role=role)
        assert {roles[i] for i in data.ids} == {role}
        assert len(data) == split.checkpoints[role]
        seen += data.ids
    assert sorted(seen) == sorted(roles) == sorted(ids[::2])
    whole = catalog.dataset("select checkpoint_id from checkpoints", split=split.split_id)
    assert set(whole.ids) == set(roles)
    assert whole.notes == (f"20 networks left out: not in split {split.split_id}.",)
    late = "select checkpoint_id from wide where step = 20"
    with pytest.raises(
        CatalogError, match=r"holds no network\. 20 networks left out: not in role train"
    ):
        catalog.dataset(late, split="main", role="train")
    # A copy of a member, under another id, is on the member's side.
    copies = [replace(r, model=replace(r.model, key=f"copy {r.model.key}")) for r in batch.rows]
    catalog.append(replace(batch, rows=copies), zoo="copies")
    copied = "select checkpoint_id from wide where zoo = 'copies'"
    train = catalog.dataset(copied, split="main", role="train")
    assert len(train) == split.checkpoints["train"]


def test_unusable_requests_say_what_would_work(catalog: Catalog, tmp_path: Path) -> None:
    ids = catalog.append(sample_population(), zoo="mlps")
    create_split(catalog, "main", ratio="50/50")
    with pytest.raises(ConfigError, match=r"no target 'acuracy', neither.*test_accuracy"):
        catalog.dataset(target="acuracy")
    with pytest.raises(ConfigError, match="Target 'model' of the view `wide` is string, no number"):
        catalog.dataset(target="model")
    with pytest.raises(ConfigError, match="several values of 'x'"):
        catalog.dataset("select checkpoint_id, unnest([1, 2]) as x from checkpoints", target="x")
    with pytest.raises(ConfigError, match="give split=NAME"):
        catalog.dataset(role="train")
    with pytest.raises(ConfigError, match=r"no role 'val'\. Its roles: train, test"):
        catalog.dataset(split="main", role="val")
    with pytest.raises(UnknownIdError, match="Splits: main"):
        catalog.dataset(split="mian")
    with pytest.raises(UnknownIdError, match="feedbeef"):
        catalog.dataset([ids[0], "feedbeef"])
    with pytest.raises(CatalogError, match="needs a column checkpoint_id"):
        catalog.dataset("select model_id from models")
    save_file(torch.nn.Linear(3, 2).state_dict(), tmp_path / "h.safetensors")
    (header,) = catalog.ingest(tmp_path / "h.safetensors", header_only=True).checkpoint_ids
    assert header not in catalog.dataset().ids
    with pytest.raises(CatalogError, match=f"1 of 1 checkpoints have no weights .*{header}"):
        catalog.dataset([header])


def test_a_shard_that_went_away_is_named(catalog: Catalog) -> None:
    catalog.append(sample_population(), zoo="mlps")
    data = catalog.dataset()
    (shard,) = (catalog.path / "weights" / "population").rglob("*.arrow")
    shard.unlink()
    with pytest.raises(IntegrityError, match=shard.name):
        data.read([0])


@pytest.mark.parametrize("row", [10**9, -1])
def test_a_row_that_its_shard_does_not_have_is_refused(catalog: Catalog, row: int) -> None:
    """Rows are read by address: one too many would be somebody else's memory, or the end of the process."""
    catalog.append(sample_population(), zoo="mlps")
    data = catalog.dataset()
    (gatherer,) = data._gather
    gatherer._row_of[1] = row
    for batch in ([0], [1]):
        with pytest.raises(
            IntegrityError, match=rf"\.arrow: a checkpoint is said to be row {row} "
        ):
            data.read(batch)


def test_rows_of_several_shards_in_any_order(catalog: Catalog) -> None:
    """Shards of their own files, read in one gather: repeated, backwards, across all of them."""
    for seed in range(5):
        catalog.append(sample_population("mlp", num_models=3, seed=seed), zoo=f"zoo-{seed}")
    data = catalog.dataset()
    (gatherer,) = data._gather
    assert len(gatherer._matrices) == 5
    order = [*range(len(data) - 1, -1, -1), 0, 0, len(data) - 1]
    batch = data.read(order)
    assert batch.ids == [data.ids[at] for at in order]
    for at, checkpoint in enumerate(batch.ids):
        assert same(batch.weights[at], flat(catalog, checkpoint))
    batch.weights.fill_(0)  # fresh memory: nothing of it reaches the shards
    assert same(data.read([0]).weights[0], flat(catalog, data.ids[0]))


@pytest.mark.shared_data
def test_a_real_zoo(catalog: Catalog, shared_folder: Path) -> None:
    folder = shared_folder / "data" / "small_cnn_zoo" / "mnist"
    catalog.ingest(f"small-cnn-zoo:{folder}")
    data = catalog.dataset("select checkpoint_id from wide where step = 8", missing="drop")
    rows = {
        r["checkpoint_id"]: int(r["value"])
        for r in catalog.sql("select * from metrics where name = 'source_row'").to_pylist()
    }
    stored = np.load(folder / "weights.npy")
    (vector,) = data.architectures.values()
    bias = vector.by_name["layers.0.bias"].offset
    for batch in data.batches(128, seed=0):
        expected = stored[[rows[i] for i in batch.ids], :16]
        assert np.array_equal(batch.weights[:, bias : bias + 16].numpy(), expected)
