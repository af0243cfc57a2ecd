"""Where the images of a recipe come from: files, scikit-learn, torchvision, the Hugging Face Hub."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from zooplatform.errors import NotInstalledError, SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["RawImages", "read_source"]

Array: TypeAlias = npt.NDArray[Any]

_INSTALL = "pip install 'zooplatform[grow]'"
_CHECK_PATH = "Check data.source; data.folder says where relative paths start."
_TEST_SPLITS = ("test", "validation", "valid", "val")


@dataclass(frozen=True, slots=True, kw_only=True)
class RawImages:
    """A data set as it is stored.

    Attributes:
        name: short name.
        source: the reference.
        x: inputs, images or vectors of any number type.
        y: classes, whole numbers.
        scale: what `x` is divided by to lie in [0, 1].
        test_x: inputs set aside for testing by the data set itself, or None.
        test_y: their classes.
    """

    name: str
    source: str
    x: Array
    y: Array
    scale: float
    test_x: Array | None = None
    test_y: Array | None = None


def read_source(source: str, folder: str) -> RawImages:
    """Read a data set by reference.

    Args:
        source: `scheme:rest`; a path without scheme is an `.npz` file or a folder of `.npy` files.
        folder: where relative paths start and where torchvision puts what it downloads; empty is
            the working directory, and `data` in it for downloads.

    Raises:
        SourceError: there is no such data set, or it does not hold images with classes.
        NotInstalledError: the library that reads it is missing.
    """
    scheme, colon, rest = source.partition(":")
    if not colon or len(scheme) == 1:  # a single letter is a drive, not a scheme
        scheme, rest = "path", source
    reader = _READERS.get(scheme)
    if reader is None:
        raise SourceError(
            source,
            f"unknown scheme {scheme!r}.",
            f"Known: {', '.join(_READERS)}, function, or a path.",
        )
    if not rest:
        raise SourceError(source, "names no data set.", f"Write {scheme}:NAME.")
    raw = reader(source, rest, Path(folder).expanduser())
    for x, y in ((raw.x, raw.y), (raw.test_x, raw.test_y)):
        if x is not None and y is not None and (len(x) != len(y) or not len(x)):
            raise SourceError(source, f"has {len(x):,} inputs but {len(y):,} classes.")
    return raw


# --- files ----------------------------------------------------------------------------------------


def _scale(x: Array, source: str) -> float:
    """What brings `x` into [0, 1]: 255 or 65535 for pixels stored as whole numbers, 1 for floats."""
    if x.dtype == np.uint8:
        return 255.0
    if x.dtype == np.uint16:
        return 65535.0
    if x.dtype.kind == "f" and x.size and float(x.min()) >= 0 and float(x.max()) <= 1:
        return 1.0
    raise SourceError(
        source,
        f"holds {x.dtype} values whose range is not known.",
        "Store pixels as uint8, uint16 or floats from 0 to 1.",
    )


def _from_arrays(source: str, name: str, arrays: Mapping[str, Array]) -> RawImages:
    """`x` and `y`, or `x_train`, `y_train`, `x_test`, `y_test`."""
    if {"x", "y"} <= arrays.keys():
        x, y, test_x, test_y = arrays["x"], arrays["y"], arrays.get("x_test"), arrays.get("y_test")
    elif {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        x, y, test_x, test_y = (arrays[k] for k in ("x_train", "y_train", "x_test", "y_test"))
    else:
        raise SourceError(
            source,
            f"holds {', '.join(sorted(arrays)) or 'no arrays'}.",
            "Name the arrays x and y, or x_train, y_train, x_test and y_test.",
        )
    return RawImages(
        name=name, source=source, x=x, y=y, scale=_scale(x, source), test_x=test_x, test_y=test_y
    )


def _npz(source: str, rest: str, folder: Path) -> RawImages:
    path = folder / Path(rest).expanduser()
    try:
        # Opened here, since np.load leaves a file open that is not a zip.
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError as exc:
        raise SourceError(source, f"there is no file {path}.", _CHECK_PATH) from exc
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, TypeError) as exc:
        raise SourceError(
            source, f"{path} is not an .npz file of plain arrays: {exc}.", "Write it by np.savez."
        ) from exc
    return _from_arrays(source, path.stem, arrays)


def _folder(source: str, rest: str, folder: Path) -> RawImages:
    path = folder / Path(rest).expanduser()
    if not path.is_dir():
        raise SourceError(source, f"there is no folder {path}.", _CHECK_PATH)
    arrays: dict[str, Array] = {}
    for file in sorted(path.glob("*.npy")):
        try:
            arrays[file.stem] = np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError) as exc:
            raise SourceError(
                source, f"{file} is not a plain array: {exc}.", "Write it by np.save."
            ) from exc
    return _from_arrays(source, path.name, arrays)


def _path(source: str, rest: str, folder: Path) -> RawImages:
    is_folder = (folder / Path(rest).expanduser()).is_dir()
    return (_folder if is_folder else _npz)(source, rest, folder)


# --- libraries ------------------------------------------------------------------------------------


def _sklearn(source: str, rest: str, folder: Path) -> RawImages:
    if rest != "digits":
        raise SourceError(source, f"unknown data set {rest!r}.", "Known: sklearn:digits.")
    try:
        from sklearn.datasets import load_digits
    except ImportError as exc:
        raise NotInstalledError(source, ["scikit-learn"], _INSTALL) from exc
    digits = load_digits()
    # Grey levels are 0 to 16 there.
    return RawImages(name="digits", source=source, x=digits.images, y=digits.target, scale=16.0)


def _torchvision(source: str, rest: str, folder: Path) -> RawImages:
    try:
        from torchvision import datasets
    except ImportError as exc:
        raise NotInstalledError(source, ["torchvision"], _INSTALL) from exc
    kind = getattr(datasets, rest, None)
    if folder == Path():
        folder = Path("data")
    if not isinstance(kind, type) or not issubclass(kind, datasets.VisionDataset):
        raise SourceError(
            source, f"torchvision has no data set {rest!r}.", "Write it as in torchvision:MNIST."
        )
    parts = []
    for choice in ({"train": True}, {"train": False}), ({"split": "train"}, {"split": "test"}):
        try:
            parts = [kind(str(folder), download=True, **chosen) for chosen in choice]
        except TypeError:
            continue  # the data set names its halves in the other way
        except (OSError, RuntimeError, ValueError) as exc:
            raise SourceError(
                source,
                f"torchvision could not read or download it into {folder}: {exc}.",
                "Check the connection, or put the files there.",
            ) from exc
        break
    if not parts or not all(hasattr(part, "data") for part in parts):
        raise SourceError(
            source,
            "this data set of torchvision does not keep its images in memory with a train and a test half.",
            "Save it as an .npz file with x and y.",
        )
    (x, y), (test_x, test_y) = (
        (np.asarray(part.data), np.asarray(getattr(part, "targets", getattr(part, "labels", ()))))
        for part in parts
    )
    return RawImages(
        name=rest.lower(),
        source=source,
        x=x,
        y=y,
        scale=_scale(x, source),
        test_x=test_x,
        test_y=test_y,
    )


# --- the Hub --------------------------------------------------------------------------------------


def _hub(source: str, rest: str, folder: Path) -> RawImages:
    """A data set of the Hub that is stored as Parquet with an image and a class column."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = rest.partition("@")
    try:
        root = Path(
            snapshot_download(
                repo, repo_type="dataset", revision=revision or None, allow_patterns=["*.parquet"]
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as exc:
        raise SourceError(
            source,
            f"the data set cannot be had: {str(exc).splitlines()[0]}",
            "Check its name and the connection.",
        ) from exc
    # Both `data/train-00000-of-00002.parquet` and `default/train/0000.parquet` are in use.
    files = {
        file: {part.partition("-")[0] for part in file.relative_to(root).with_suffix("").parts}
        for file in sorted(root.rglob("*.parquet"))
    }
    train = [file for file, words in files.items() if "train" in words]
    held_out: list[Path] = []
    for split in _TEST_SPLITS:
        held_out = held_out or [file for file, words in files.items() if split in words]
    if not train:
        raise SourceError(
            source,
            f"its {len(files)} Parquet files do not name a train split.",
            "Only data sets stored as Parquet files named by split can be read; save others as .npz.",
        )
    x, y = _parquet_images(source, train)
    test = _parquet_images(source, held_out) if held_out else (None, None)
    name = repo.rpartition("/")[2].lower()
    return RawImages(
        name=name, source=source, x=x, y=y, scale=255.0, test_x=test[0], test_y=test[1]
    )


def _parquet_images(source: str, files: list[Path]) -> tuple[Array, Array]:
    """Images (N, H, W) or (N, H, W, 3) uint8 and classes of Parquet files as the Hub keeps them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        from PIL import Image
    except ImportError as exc:
        raise NotInstalledError(source, ["pillow"], _INSTALL) from exc
    try:
        table = pa.concat_tables([pq.read_table(file) for file in files])
    except (pa.ArrowInvalid, OSError) as exc:
        raise SourceError(source, f"a Parquet file cannot be read: {exc}.") from exc
    image = next((c for c in table.column_names if c in ("image", "img")), None)
    label = next((c for c in table.column_names if c in ("label", "labels", "fine_label")), None)
    if image is None or label is None:
        raise SourceError(
            source,
            f"its columns are {', '.join(table.column_names)}.",
            "An image column (image, img) and a class column (label, labels, fine_label) are needed.",
        )
    pictures = []
    for cell in table.column(image).to_pylist():
        with Image.open(io.BytesIO(cell["bytes"])) as picture:
            if picture.mode not in ("1", "L", "P", "RGB", "RGBA"):
                raise SourceError(
                    source,
                    f"holds pictures of mode {picture.mode}, not 8 bits a channel.",
                    "Save them as an .npz file with x and y.",
                )
            mode = "L" if picture.mode in ("1", "L") else "RGB"
            pictures.append(np.asarray(picture.convert(mode)))
    shapes = sorted({picture.shape for picture in pictures})
    if len(shapes) > 1:
        raise SourceError(
            source,
            f"its images have {len(shapes)} shapes, from {shapes[0]} to {shapes[-1]}.",
            "Resize them and save them as an .npz file with x and y.",
        )
    return np.stack(pictures), np.asarray(table.column(label).to_numpy())


_READERS: Mapping[str, Callable[[str, str, Path], RawImages]] = {
    "npz": _npz,
    "folder": _folder,
    "path": _path,
    "sklearn": _sklearn,
    "torchvision": _torchvision,
    "hub": _hub,
}
