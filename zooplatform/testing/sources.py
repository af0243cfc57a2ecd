"""What every source must do, as tests to inherit from.

class TestMySource(SourceContract):
    @pytest.fixture
    def source(self):
        return MySource()

    @pytest.fixture
    def reference(self, tmp_path):
        ...  # make something to read
        return str(tmp_path)
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest

from zooplatform.errors import SourceError

if TYPE_CHECKING:
    from zooplatform.interfaces import Checkpoint, ModelRef, PopulationBatch

__all__ = ["PopulationSourceContract", "SourceContract"]


class SourceContract:
    """Tests of a `Source`; inherit and give the fixtures `source` and `reference`."""

    @pytest.fixture
    def source(self) -> Any:
        """The source under test."""
        raise NotImplementedError("override the fixture `source`")

    @pytest.fixture
    def reference(self) -> str:
        """What follows the scheme in a reference to at least one readable checkpoint."""
        raise NotImplementedError("override the fixture `reference`")

    @pytest.fixture
    def missing(self) -> str:
        """What follows the scheme in a well-formed reference to nothing."""
        return "no-such-thing-anywhere"

    @pytest.fixture
    def found(self, source: Any, reference: str) -> list[ModelRef]:
        found = list(source.list(reference))
        assert found, f"{reference!r} lists nothing; the contract needs a checkpoint to read"
        return found

    def test_list_gives_canonical_references(self, found: list[ModelRef]) -> None:
        for item in found:
            assert ":" in item.ref, f"{item.ref!r} lacks its scheme"
            assert item.name
        assert len({(item.ref, item.revision) for item in found}) == len(found)

    def test_list_is_repeatable_and_pins_the_revision(
        self, source: Any, reference: str, found: list[ModelRef]
    ) -> None:
        assert list(source.list(reference)) == found
        assert all(item.revision for item in found), "a revision must be resolved to a hash"

    def test_list_honours_limit(self, source: Any, reference: str, found: list[ModelRef]) -> None:
        assert list(source.list(reference, limit=1)) == found[:1]

    def test_a_reference_to_nothing_is_refused_by_name(self, source: Any, missing: str) -> None:
        with pytest.raises(SourceError) as caught:
            _open_all(source, missing)
        assert missing in str(caught.value)

    def test_the_header_is_consistent(self, source: Any, found: list[ModelRef]) -> None:
        for item in found:
            with source.open(item) as checkpoint:
                header = checkpoint.header
                names = [tensor.name for tensor in header.tensors]
                assert names
                assert len(set(names)) == len(names)
                assert header.format
                for name, first in header.tied.items():
                    assert names.index(first) < names.index(name)
                for file in checkpoint.files:
                    assert set(file.tensors) <= set(names)

    def test_identity_is_stable(self, source: Any, found: list[ModelRef]) -> None:
        for item in found:
            with source.open(item) as first, source.open(item) as second:
                assert first.info == second.info
                assert first.info.key
                assert first.info.name
                assert first.info.source

    def test_header_only_gives_the_same_header(self, source: Any, found: list[ModelRef]) -> None:
        for item in found:
            with source.open(item) as whole, source.open(item, header_only=True) as header:
                assert header.header.tensors == whole.header.tensors
                assert header.info.key == whole.info.key

    def test_every_tensor_has_its_bytes(self, source: Any, found: list[ModelRef]) -> None:
        for item in found:
            with source.open(item) as checkpoint:
                for tensor in checkpoint.header.tensors:
                    buffer = checkpoint.buffer(tensor.name)
                    assert buffer.nbytes == tensor.size_bytes, tensor.name
                    assert buffer.c_contiguous, tensor.name
                checkpoint.verify()

    def test_bytes_do_not_depend_on_the_order_of_reading(
        self, source: Any, found: list[ModelRef]
    ) -> None:
        for item in found:
            assert _bytes(source.open(item)) == _bytes(source.open(item), backwards=True)

    def test_an_unknown_tensor_is_an_error(self, source: Any, found: list[ModelRef]) -> None:
        with source.open(found[0]) as checkpoint, pytest.raises((SourceError, LookupError)):
            checkpoint.buffer("no.such.tensor")

    def test_closing_twice_is_allowed(self, source: Any, found: list[ModelRef]) -> None:
        checkpoint = source.open(found[0])
        checkpoint.close()
        checkpoint.close()


def _open_all(source: Any, reference: str) -> None:
    for item in source.list(reference):
        source.open(item).close()


def _bytes(checkpoint: Checkpoint, *, backwards: bool = False) -> dict[str, bytes]:
    with checkpoint:
        names = [tensor.name for tensor in checkpoint.header.tensors]
        if backwards:
            names.reverse()
        return {name: bytes(checkpoint.buffer(name)) for name in names}


class PopulationSourceContract:
    """Tests of a `PopulationSource`; inherit and give the fixtures `source` and `reference`."""

    @pytest.fixture
    def source(self) -> Any:
        """The source under test."""
        raise NotImplementedError("override the fixture `source`")

    @pytest.fixture
    def reference(self) -> str:
        """What follows the scheme in a reference to at least two readable checkpoints."""
        raise NotImplementedError("override the fixture `reference`")

    @pytest.fixture
    def missing(self) -> str:
        """What follows the scheme in a well-formed reference to nothing."""
        return "no-such-thing-anywhere"

    @pytest.fixture
    def batches(self, source: Any, reference: str) -> list[PopulationBatch]:
        batches = list(source.batches(reference))
        assert len(_keys(batches)) >= 2, f"{reference!r} gives fewer than two checkpoints"
        return batches

    def test_the_zoo_is_described(self, source: Any, reference: str) -> None:
        description = source.describe(reference)
        assert description["name"]
        assert all(isinstance(value, str) for value in description.values())

    def test_a_batch_is_one_matrix_of_one_layout(self, batches: list[PopulationBatch]) -> None:
        for batch in batches:
            if not len(batch.rows):  # it only reports what could not be read
                assert batch.failed or batch.notes
                continue
            dtype = str(batch.weights.dtype)
            assert dtype in ("float16", "float32", "float64")
            assert batch.weights.flags.c_contiguous
            inside = sum(item.num_elements for item in batch.layout if item.dtype == dtype)
            assert batch.weights.shape == (len(batch.rows), inside)
            aside = sum(item.size_bytes for item in batch.layout if item.dtype != dtype)
            if aside:
                assert batch.aside is not None
                assert batch.aside.shape == (len(batch.rows), aside)
            else:
                assert batch.aside is None

    def test_every_checkpoint_comes_once(self, batches: list[PopulationBatch]) -> None:
        keys = _keys(batches)
        assert len(set(keys)) == len(keys)

    def test_the_order_and_the_weights_are_stable(
        self, source: Any, reference: str, batches: list[PopulationBatch]
    ) -> None:
        again = list(source.batches(reference))
        assert _keys(again) == _keys(batches)
        for first, second in zip(batches, again, strict=True):
            assert first.layout == second.layout
            assert first.weights.tobytes() == second.weights.tobytes()

    def test_what_is_done_is_left_out(
        self, source: Any, reference: str, batches: list[PopulationBatch]
    ) -> None:
        keys = _keys(batches)
        half = frozenset(keys[::2])
        assert _keys(source.batches(reference, done=half)) == [k for k in keys if k not in half]
        assert _keys(source.batches(reference, done=frozenset(keys))) == []

    def test_metrics_are_plain_numbers(self, batches: list[PopulationBatch]) -> None:
        for batch in batches:
            for metric in itertools.chain.from_iterable(row.metrics for row in batch.rows):
                assert metric.name
                assert isinstance(metric.value, float | int)

    def test_a_reference_to_nothing_is_refused_by_name(self, source: Any, missing: str) -> None:
        with pytest.raises(SourceError) as caught:
            list(source.batches(missing))
        assert missing in str(caught.value)


def _keys(batches: Any) -> list[tuple[str, int | None]]:
    return [(row.model.key, row.step) for batch in batches for row in batch.rows]
