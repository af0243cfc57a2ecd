"""Data sets of recipes: files, libraries and the Hub, prepared as asked."""

from __future__ import annotations

import gzip
import io
import struct
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from zooplatform.errors import ConfigError, SourceError
from zooplatform.growing.images import prepare, read_images
from zooplatform.growing.recipe import DataRecipe
from zooplatform.growing.sources import RawImages, read_source

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt


def some_images(count: int = 50, side: int = 8) -> tuple[npt.NDArray[np.uint8], ...]:
    generator = np.random.default_rng(0)
    x = generator.integers(0, 256, (count, side, side), dtype=np.uint8)
    return x, (np.arange(count) % 10).astype(np.uint8)


def asked(**keys: object) -> DataRecipe:
    return DataRecipe(**{"source": ("x",), **keys})  # type: ignore[arg-type]


def test_an_npz_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = some_images()
    np.savez(tmp_path / "a.npz", x=x, y=y)
    monkeypatch.chdir(tmp_path)
    for source in ("npz:a.npz", "a.npz", str(tmp_path / "a.npz")):
        data = read_images(source, asked(test=0.2))
        assert data.name == "a"
        assert data.shape == (1, 8, 8)
        assert (len(data.train.y), len(data.test.y), data.num_classes) == (40, 10, 10)
        assert 0.99 < float(data.train.x.max()) <= 1
    # Every image is on one side, with its own class.
    both = torch.cat([data.train.x, data.test.x]).flatten(1).mul(255).round().numpy()
    classes = torch.cat([data.train.y, data.test.y]).numpy()
    order, wanted = np.lexsort(both.T), np.lexsort(x.reshape(50, -1).T)
    np.testing.assert_array_equal(both[order], x.reshape(50, -1)[wanted])
    np.testing.assert_array_equal(classes[order], y[wanted])


def test_relative_paths_start_in_the_folder_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = some_images()
    inner = tmp_path / "inner"
    inner.mkdir()
    np.savez(inner / "a.npz", x=x, y=y)
    np.save(inner / "x.npy", x)
    np.save(inner / "y.npy", y)
    monkeypatch.chdir(tmp_path)
    for folder in ("inner", str(inner)):
        for source in ("npz:a.npz", "a.npz", str(inner / "a.npz"), "folder:.", "."):
            assert len(read_images(source, asked(folder=folder)).train.y) == 40
    with pytest.raises(SourceError, match=r"no file a\.npz.*data\.folder says where"):
        read_images("npz:a.npz", asked())


def test_a_folder_with_test_images_of_its_own(tmp_path: Path) -> None:
    x, y = some_images()
    for name, array in {
        "x_train": x[:30],
        "y_train": y[:30],
        "x_test": x[30:],
        "y_test": y[30:],
    }.items():
        np.save(tmp_path / f"{name}.npy", array)
    data = read_images(f"folder:{tmp_path}", asked(train=20))
    assert (len(data.train.y), len(data.test.y)) == (20, 20)
    np.testing.assert_array_equal(data.test.x[:, 0].mul(255).round().numpy(), x[30:])


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": np.zeros((2, 2))}, "holds images. Name the arrays x and y"),
        (
            {"x": np.zeros((3, 4, 4), np.uint8), "y": np.zeros(2, np.int64)},
            "3 inputs but 2 classes",
        ),
        ({"x": np.full((2, 4, 4), 7.0), "y": np.zeros(2, np.int64)}, "float64 values whose range"),
        ({"x": np.zeros((2, 4, 4), np.int32), "y": np.zeros(2, np.int64)}, "int32 values whose"),
    ],
)
def test_arrays_that_are_no_data_set(
    tmp_path: Path, arrays: dict[str, npt.NDArray[np.float64]], words: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(SourceError) as error:
        read_source(str(tmp_path / "a.npz"), "data")
    assert words in str(error.value)


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no file"):
        read_source(f"npz:{tmp_path / 'no.npz'}", "data")
    with pytest.raises(SourceError, match="there is no folder"):
        read_source(f"folder:{tmp_path / 'no'}", "data")
    with pytest.raises(SourceError, match="unknown scheme 'kaggle'"):
        read_source("kaggle:mnist", "data")
    with pytest.raises(SourceError, match="names no data set"):
        read_source("npz:", "data")
    with pytest.raises(SourceError, match="Known: sklearn:digits"):
        read_source("sklearn:iris", "data")
    with pytest.raises(SourceError, match="torchvision has no data set 'Nothing'"):
        read_source("torchvision:Nothing", "data")
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(SourceError, match=r"bad\.npz is not an \.npz file of plain arrays"):
        read_source(str(tmp_path / "bad.npz"), "data")


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", x=np.array([{}], dtype=object), y=np.zeros(1))
    with pytest.raises(SourceError, match="plain arrays"):
        read_source(str(tmp_path / "p.npz"), "data")


def test_digits_of_scikit_learn() -> None:
    pytest.importorskip("sklearn")
    data = read_images("sklearn:digits", asked(test=297))
    assert (len(data.train.y), len(data.test.y)) == (1500, 297)
    assert data.shape == (1, 8, 8)
    assert float(data.train.x.max()) == 1.0
    again = read_images("sklearn:digits", asked(test=297))
    other = read_images("sklearn:digits", asked(test=297, seed=1))
    assert data.sha256 == again.sha256 != other.sha256


def test_images_are_resized_by_averaging() -> None:
    x, y = some_images(side=8)
    raw = RawImages(name="r", source="r", x=x, y=y, scale=255.0)
    small = prepare(raw, asked(size=4))
    whole = prepare(raw, asked())
    blocks = whole.train.x.reshape(-1, 1, 4, 2, 4, 2).mean((3, 5))
    torch.testing.assert_close(small.train.x, blocks)
    assert prepare(raw, asked(size=12)).shape == (1, 12, 12)


@pytest.mark.parametrize("channels_last", [True, False])
def test_colours_are_mixed_by_brightness(channels_last: bool) -> None:
    x = np.zeros((10, 6, 6, 3), np.uint8)
    x[..., 1] = 255  # green
    if not channels_last:
        x = x.transpose(0, 3, 1, 2)
    raw = RawImages(name="c", source="c", x=x, y=np.zeros(10, np.int64), scale=255.0)
    assert prepare(raw, asked()).shape == (3, 6, 6)
    gray = prepare(raw, asked(grayscale=True))
    assert gray.shape == (1, 6, 6)
    torch.testing.assert_close(gray.train.x, torch.full_like(gray.train.x, 0.587))


def test_vectors_stay_vectors() -> None:
    raw = RawImages(name="v", source="v", x=np.ones((10, 7)), y=np.arange(10), scale=1.0)
    assert prepare(raw, asked()).shape == (7,)
    with pytest.raises(ConfigError, match="holds vectors"):
        prepare(raw, asked(size=4))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"test": 50}, "data.test asks for 50 of the 50 images"),
        ({"train": 41}, "data.train asks for 41 images, but s has 40"),
    ],
)
def test_more_images_than_there_are(keys: dict[str, int], words: str) -> None:
    x, y = some_images()
    with pytest.raises(ConfigError) as error:
        prepare(RawImages(name="s", source="s", x=x, y=y, scale=255.0), asked(**keys))
    assert words in str(error.value)


def test_classes_are_whole_numbers() -> None:
    x, y = some_images()
    for bad in (y / 2, y.astype(np.int64) - 1):
        with pytest.raises(ConfigError, match="whole numbers from 0"):
            prepare(RawImages(name="s", source="s", x=x, y=bad, scale=255.0), asked())
    odd = np.zeros((50, 8, 8, 2), np.uint8)
    with pytest.raises(ConfigError, match=r"shape \(50, 8, 8, 2\)"):
        prepare(RawImages(name="s", source="s", x=odd, y=y, scale=255.0), asked())


def test_a_data_set_of_torchvision(tmp_path: Path) -> None:
    """MNIST's own files, written small where torchvision would put the download."""
    pytest.importorskip("torchvision")
    x, y = some_images(30, side=28)
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for split, part in (("train", slice(0, 20)), ("t10k", slice(20, 30))):
        images = struct.pack(">IIII", 0x803, len(x[part]), 28, 28) + x[part].tobytes()
        labels = struct.pack(">II", 0x801, len(y[part])) + y[part].tobytes()
        for name, data in ((f"{split}-images-idx3", images), (f"{split}-labels-idx1", labels)):
            (folder / f"{name}-ubyte").write_bytes(data)
            (folder / f"{name}-ubyte.gz").write_bytes(gzip.compress(data))
    data = read_images("torchvision:MNIST", asked(folder=str(tmp_path), size=14))
    assert (len(data.train.y), len(data.test.y)) == (20, 10)
    assert data.name == "mnist"
    assert data.test.y.tolist() == y[20:].tolist()


def test_torchvision_out_of_reach_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    from torchvision import datasets

    nowhere = "http://127.0.0.1:9/"
    monkeypatch.setattr(datasets.MNIST, "mirrors", [nowhere])
    with pytest.raises(SourceError, match="could not read or download"):
        read_source("torchvision:MNIST", str(tmp_path))


def png(image: npt.NDArray[np.uint8]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, format="PNG")
    return file.getvalue()


def hub_data_set(cache: Path, files: dict[str, tuple[str, str, int, int]]) -> None:
    """A data set in the Hub's local cache: file -> (image column, class column, first, last)."""
    x, y = some_images(30)
    root = cache / "datasets--org--tiny"
    commit = "a" * 40
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit, encoding="utf-8")
    for name, (image, label, first, last) in files.items():
        path = root / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cells = [{"bytes": png(one), "path": None} for one in x[first:last]]
        pq.write_table(pa.table({image: cells, label: y[first:last].astype(np.int64)}), path)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.mark.parametrize(
    "names",
    [
        (
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
            "data/test-00000-of-00001.parquet",
        ),
        (
            "default/train/0000.parquet",
            "default/train/0001.parquet",
            "default/validation/0000.parquet",
        ),
    ],
)
def test_a_data_set_of_the_hub(hub_cache: Path, names: tuple[str, str, str]) -> None:
    spans = ((0, 10), (10, 20), (20, 30))
    hub_data_set(
        hub_cache,
        {name: ("image", "label", *span) for name, span in zip(names, spans, strict=True)},
    )
    x, y = some_images(30)
    raw = read_source("hub:org/tiny", "data")
    assert raw.name == "tiny"
    np.testing.assert_array_equal(raw.x, x[:20])
    np.testing.assert_array_equal(raw.y, y[:20])
    assert raw.test_x is not None
    np.testing.assert_array_equal(raw.test_x, x[20:])


def test_hub_data_sets_that_cannot_be_used(hub_cache: Path) -> None:
    with pytest.raises(SourceError, match="cannot be had"):
        read_source("hub:org/absent", "data")
    hub_data_set(hub_cache, {"data/train-0.parquet": ("text", "label", 0, 5)})
    with pytest.raises(SourceError, match="its columns are text, label"):
        read_source("hub:org/tiny", "data")


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["mnist", "fashion", "cifar10gray", "usps", "optdigits"])
def test_the_data_sets_beside_the_checkout(shared_folder: Path, name: str) -> None:
    data = read_images(str(shared_folder / "data" / f"{name}.npz"), asked(size=16, test=1000))
    assert data.shape == (1, 16, 16)
    assert len(data.test.y) == 1000
    assert data.num_classes == 10
    assert 0 <= float(data.train.x.min()) < float(data.train.x.max()) <= 1
