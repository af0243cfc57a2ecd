"""Remote catalogs: read in place through fsspec, one ranged request for one network, and never written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import save_file

from zooplatform.catalog import open_catalog
from zooplatform.errors import CatalogError, IntegrityError
from zooplatform.testing import sample_population

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zooplatform.catalog import Catalog


class Bucket(MemoryFileSystem):
    """An object store in memory that notes what is asked of it."""

    protocol = "bucket"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    asked: ClassVar[list[tuple[str, str, int]]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("bucket://", "memory://"))

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        data: bytes = super().cat_file(path, start=start, end=end, **kwargs)
        self.asked.append(("range", path, len(data)))
        return data

    def get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        super().get_file(rpath, lpath, **kwargs)
        self.asked.append(("file", rpath, self.size(rpath)))

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        self.asked.append(("list", path, 0))
        return super().ls(path, detail=detail, **kwargs)


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    Bucket.store.clear()
    Bucket.pseudo_dirs[:] = [""]
    Bucket.asked.clear()
    yield Bucket(skip_instance_cache=True)
    Bucket.store.clear()


def upload(bucket: Bucket, catalog: Catalog) -> str:
    for path in sorted(p for p in catalog.path.rglob("*") if p.is_file()):
        target = f"/zoo/{path.relative_to(catalog.path)}"
        if not bucket.exists(target):
            bucket.put_file(str(path), target)
    Bucket.asked.clear()
    return "bucket://zoo"


def test_one_network_is_one_ranged_request_of_its_bytes(bucket: Bucket, catalog: Catalog) -> None:
    ids = catalog.append(sample_population(), zoo="mlps")
    with open_catalog(upload(bucket, catalog), registry=catalog.registry) as remote:
        remote.snapshot()
        Bucket.asked.clear()
        got = remote.state_dict(ids[3], verify=True)
        want = catalog.state_dict(ids[3])
        assert all(torch.equal(got[name], want[name]) for name in want)
        assert [(kind, size) for kind, _, size in Bucket.asked if kind != "list"] == [
            ("range", 51 * 4)
        ]
        assert remote.build(ids[3])(torch.ones(1, 4)).shape == (1, 3)


def test_sql_over_metadata_fetches_no_weights_and_population_fetches_its_shards_once(
    bucket: Bucket, catalog: Catalog
) -> None:
    catalog.append(sample_population(), zoo="mlps")
    with open_catalog(upload(bucket, catalog), registry=catalog.registry) as remote:
        query = "select name, count(*) as n from tensor_stats group by 1 order by 1"
        assert remote.sql(query) == catalog.sql(query)
        assert not [path for _, path, _ in Bucket.asked if path.endswith(".arrow")]
        order = "select checkpoint_id from checkpoints order by 1"
        assert torch.equal(remote.population(order).weights, catalog.population(order).weights)
        norms = "select checkpoint_id, l2_norm(weights) as n from population_weights order by 1"
        assert remote.sql(norms) == catalog.sql(norms)
        assert len([path for _, path, _ in Bucket.asked if path.endswith(".arrow")]) == 1


def test_tensors_are_read_one_by_one_and_exported(
    bucket: Bucket, catalog: Catalog, tmp_path: Path
) -> None:
    save_file({"a": torch.randn(40, 5), "b": torch.randn(3).bfloat16()}, tmp_path / "m.safetensors")
    (checkpoint,) = catalog.ingest(tmp_path / "m.safetensors").checkpoint_ids
    with open_catalog(upload(bucket, catalog), registry=catalog.registry) as remote:
        got = remote.state_dict(checkpoint, verify=True)
        assert torch.equal(got["a"], catalog.state_dict(checkpoint)["a"])
        out = remote.export(checkpoint, tmp_path / "again.safetensors")
        assert out.read_bytes() == (tmp_path / "m.safetensors").read_bytes()


def test_new_commits_are_seen_and_only_new_files_fetched(bucket: Bucket, catalog: Catalog) -> None:
    catalog.append(sample_population(), zoo="mlps")
    url = upload(bucket, catalog)
    with open_catalog(url, registry=catalog.registry) as remote:
        assert remote.sql("select count(*) as n from checkpoints").to_pylist() == [{"n": 8}]
        Bucket.asked.clear()
        assert remote.sql("select count(*) as n from checkpoints").to_pylist() == [{"n": 8}]
        assert [kind for kind, _, _ in Bucket.asked] == ["list"]
        catalog.append(sample_population("cnn"), zoo="cnns")
        catalog.compact()
        upload(bucket, catalog)
        assert remote.sql("select count(*) as n from checkpoints").to_pylist() == [{"n": 16}]
    with open_catalog(url, registry=catalog.registry) as again:
        Bucket.asked.clear()
        assert again.sql("select count(*) as n from models").to_pylist() == [{"n": 8}]
        assert {kind for kind, _, _ in Bucket.asked} == {"list"}


def test_a_remote_catalog_is_never_written(
    bucket: Bucket, catalog: Catalog, tmp_path: Path
) -> None:
    catalog.append(sample_population(), zoo="mlps")
    save_file({"a": torch.randn(4)}, tmp_path / "m.safetensors")
    with open_catalog(upload(bucket, catalog), registry=catalog.registry) as remote:
        for change in (
            lambda: remote.append(sample_population("cnn"), zoo="x"),
            lambda: remote.ingest(tmp_path / "m.safetensors"),
            lambda: remote.commit("x", {}),
            remote.compact,
            remote.gc,
            remote.check,
        ):
            with pytest.raises(CatalogError, match="a remote catalog can only be read"):
                change()
    assert not [path for kind, path, _ in Bucket.asked if kind == "put"]


def test_what_is_not_there_is_said(bucket: Bucket, catalog: Catalog) -> None:
    with pytest.raises(CatalogError, match="bucket://nothing is not a catalog that can be reached"):
        open_catalog("bucket://nothing")
    with pytest.raises(CatalogError, match="Protocol not known"):
        open_catalog("gopher3://zoo")
    ids = catalog.append(sample_population(), zoo="mlps")
    url = upload(bucket, catalog)
    (shard,) = [path for path in Bucket.store if path.endswith(".arrow")]
    bucket.pipe_file(shard, bucket.cat_file(shard)[:1000])
    with (
        open_catalog(url, registry=catalog.registry) as remote,
        pytest.raises(IntegrityError, match="shorter than"),
    ):
        remote.state_dict(ids[-1])
    bucket.rm_file(shard)
    with (
        open_catalog(url, registry=catalog.registry) as remote,
        pytest.raises(IntegrityError, match="is missing"),
    ):
        remote.state_dict(ids[0])
