"""HDF5 weights (Keras, PyTorch): every dataset of numbers that the file itself holds, named by its path.

HDF5 follows links, reads other files as data and inflates chunks that were never written; all of that is refused before
a value is read.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from zooplatform.errors import SourceError
from zooplatform.formats.archives import MAX_RATIO
from zooplatform.formats.dtypes import numpy_name, stored_bytes
from zooplatform.formats.extras import need
from zooplatform.formats.files import OpenFile
from zooplatform.formats.hdf5_texts import Layout, read_texts
from zooplatform.formats.limits import check_shape, name_notes, shown
from zooplatform.formats.reader import ReaderBase
from zooplatform.interfaces import CheckpointHeader, SourceFile, TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Hdf5Reader"]

_AGAIN = "Copy or download it again, or save the weights alone."
_FREE_BYTES = 1 << 20
_MAX_DEPTH = 64
# deflate, shuffle, fletcher32, szip, nbit, scale-offset, lzf: what the library brings itself. Others are loaded
# as code.
_FILTERS = frozenset((1, 2, 3, 4, 5, 6, 32000))
_MAX_TEXT = 4096
_ERRORS = (
    OSError, RuntimeError, ValueError, TypeError, LookupError, OverflowError, MemoryError, AttributeError,
    NotImplementedError, RecursionError,
)  # fmt: skip


class Hdf5Reader(ReaderBase):
    """One HDF5 file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._h5py = need("h5py", "hdf5", "Reading HDF5 files")
        self._path = path
        self._file = self._own(OpenFile(path))
        self._notes: list[str] = []
        self._specs_found: dict[str, TensorSpec] = {}
        self._tied: dict[str, str] = {}
        self._addresses: dict[int, str] = {}
        try:
            self._h5 = self._h5py.File(path, "r", locking=False)
        except _ERRORS as exc:
            raise SourceError(path, f"HDF5 cannot open it: {str(exc)[:200]}.", _AGAIN) from exc
        try:
            # Keras keeps training state in a group of its own beside the weights.
            self._walk(self._h5, "", frozenset())
            metadata = self._metadata()
        except _ERRORS as exc:
            self.close()
            if isinstance(exc, SourceError):
                raise
            raise SourceError(path, f"HDF5 cannot read it: {str(exc)[:200]}.", _AGAIN) from exc
        if not self._specs_found:
            self.close()
            raise SourceError(
                path, "It holds no arrays of numbers.", "Give the file of the weights."
            )
        self.header = CheckpointHeader(
            tensors=tuple(self._specs_found.values()),
            format="hdf5",
            metadata=metadata,
            tied=self._tied,
            notes=(*self._notes, *name_notes(self._specs_found, path)),
        )
        self.files = (
            SourceFile(
                path=path.name,
                format="hdf5",
                size_bytes=self._file.size,
                tensors=tuple(self._specs_found),
            ),
        )

    def buffer(self, name: str) -> memoryview:
        spec = self.spec(name)
        try:
            values = np.asarray(self._h5[name][()])
        except _ERRORS as exc:
            raise SourceError(
                self._path, f"Array {shown(name)} is damaged: {str(exc)[:200]}.", _AGAIN
            ) from exc
        if values.dtype.byteorder == ">":
            values = values.byteswap()
        plain = np.ascontiguousarray(values).reshape(-1)
        if plain.nbytes != spec.size_bytes:
            raise SourceError(
                self._path, f"Array {shown(name)} does not have the shape that was stated.", _AGAIN
            )
        return plain.view(np.uint8).data

    def close(self) -> None:
        if hasattr(self, "_h5"):
            # A damaged file may fail to close; nothing was written.
            with suppress(*_ERRORS):
                self._h5.close()
        super().close()

    def _walk(self, group: Any, prefix: str, above: frozenset[int]) -> None:
        """Collect the datasets below `group`; `above` are the addresses of the groups around it."""
        if len(above) > _MAX_DEPTH:
            raise SourceError(
                self._path, f"Its groups are nested deeper than {_MAX_DEPTH}.", _AGAIN
            )
        address = self._address(group)
        if address in above:
            raise SourceError(self._path, f"Its group {shown(prefix)} contains itself.", _AGAIN)
        for key in group:
            name = f"{prefix}/{key}" if prefix else key
            link = group.get(key, getlink=True)
            if not isinstance(link, self._h5py.HardLink):
                self._refuse_link(name, link)
            if not prefix and key in ("optimizer_weights", "optimizer"):
                self._notes.append(f"left out {key}: training state")
                continue
            found = group[key]
            if isinstance(found, self._h5py.Group):
                self._walk(found, name, above | {address})
            elif isinstance(found, self._h5py.Dataset):
                self._add(name, found)

    def _refuse_link(self, name: str, link: Any) -> None:
        if isinstance(link, self._h5py.ExternalLink):
            what = f"is a link into another file ({shown(str(link.filename))})"
        else:
            what = f"is a soft link ({shown(str(getattr(link, 'path', '')))})"
        raise SourceError(
            self._path,
            f"Its entry {shown(name)} {what}; only what the file itself holds is taken.",
            "Copy the data into the file: h5repack, or save it again.",
        )

    def _add(self, name: str, data: Any) -> None:
        """Check one dataset and note its spec."""
        if data.dtype.kind not in "fiub":
            if self._h5py.check_ref_dtype(data.dtype) is not None:
                raise self._refused(name, "holds references to other objects")
            text = self._h5py.check_string_dtype(data.dtype) is not None
            if not text and self._h5py.check_vlen_dtype(data.dtype) is not None:
                raise self._refused(name, "holds rows of varying length")
            self._notes.append(f"left out {shown(name)}: no numbers")
            return
        dtype = numpy_name(data.dtype.kind, data.dtype.itemsize)
        if dtype is None:
            raise self._refused(name, f"has the dtype {data.dtype}, which torch does not know")
        if data.shape is None:
            self._notes.append(f"left out {shown(name)}: empty by declaration")
            return
        if data.external:
            raise self._refused(
                name, f"takes its values from another file ({shown(str(data.external[0][0]))})"
            )
        if data.is_virtual:
            raise self._refused(name, "is virtual: it takes its values from other files")
        shape = check_shape(data.shape, name, self._path)
        size = stored_bytes(dtype, shape)
        creation = data.id.get_create_plist()
        filters = {creation.get_filter(i)[0] for i in range(creation.get_nfilters())}
        if filters - _FILTERS:
            raise self._refused(
                name, f"is packed with the filters {sorted(filters - _FILTERS)}, which are plugins"
            )
        stored = data.id.get_storage_size()
        if stored > self._file.size or size > MAX_RATIO * stored + (_FREE_BYTES if filters else 0):
            raise self._refused(
                name, f"claims {size:,} bytes where the file holds {stored:,} for it"
            )
        if (
            sum(spec.size_bytes for spec in self._specs_found.values()) + size
            > MAX_RATIO * self._file.size + _FREE_BYTES
        ):
            raise self._refused(
                name, f"makes the whole more than {MAX_RATIO} times as large as the file"
            )
        if data.dtype.byteorder == ">":
            self._notes.append(
                f"{shown(name)} is big-endian, stored little-endian, values unchanged"
            )
        first = self._addresses.setdefault(self._address(data), name)
        if first != name:
            self._tied[name] = first
        self._specs_found[name] = TensorSpec(name, dtype, shape, size)

    def _metadata(self) -> dict[str, str]:
        """Attributes of the file that are short texts (Keras: `backend`, `keras_version`)."""
        found: dict[str, str] = {}
        varying = []
        for key in self._h5.attrs:
            attribute = self._h5.attrs.get_id(key)
            kind = self._h5py.check_string_dtype(attribute.dtype)
            if kind is None or attribute.shape != () or attribute.get_storage_size() > _MAX_TEXT:
                continue
            if kind.length is None:
                varying.append(key)
                continue
            value = self._h5.attrs[key]
            text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            if isinstance(text, str) and len(text) <= _MAX_TEXT:
                found[key] = text
        texts = self._texts() if varying else {}
        if lacking := [key for key in varying if key not in texts]:
            self._notes.append(f"left out texts beside the arrays: {shown(', '.join(lacking))}")
        return found | {key: text for key in varying if (text := texts.get(key)) is not None}

    def _texts(self) -> dict[str, str | None]:
        address_bytes, length_bytes = self._h5.id.get_create_plist().get_sizes()
        layout = Layout(self._h5.userblock_size, address_bytes, length_bytes)
        with self._path.open("rb") as file:
            return read_texts(file, layout, self._address(self._h5), _MAX_TEXT)

    def _address(self, thing: Any) -> int:
        return int(self._h5py.h5o.get_info(thing.id).addr)

    def _refused(self, name: str, reason: str) -> SourceError:
        return SourceError(self._path, f"Array {shown(name)} {reason}.", _AGAIN)
