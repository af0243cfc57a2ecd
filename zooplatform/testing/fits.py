"""What the contract suites of all that is fitted begin with: fixtures, and what damage to a saved fit leads to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch

from zooplatform.testing.saved_files import check_damage_is_refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from zooplatform.interfaces import Progress

__all__ = ["FitContract", "interrupting"]


def interrupting(calls: int = 3) -> Progress:
    """A progress whose user gives up when so many calls have said how far it is."""
    made = 0

    def progress(what: str, done: int, total: int | None) -> None:
        nonlocal made
        made += 1
        if made == calls:
            raise KeyboardInterrupt

    return progress


class FitContract:
    """Fixtures and tests of everything that is fitted and stored; suites that inherit give the fixture `fitted`."""

    seconds: ClassVar[float] = 30.0

    @pytest.fixture
    def make(self) -> Callable[[], Any]:
        """Makes an instance that was not fitted, as the registry does."""
        raise NotImplementedError("override the fixture `make`")

    @pytest.fixture
    def config(self) -> dict[str, Any]:
        """A configuration that is fitted in a second or two."""
        return {}

    @pytest.fixture(autouse=True)
    def _one_thread(self) -> Iterator[None]:
        """Sums of several threads may differ in the last bit."""
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)

    def test_a_damaged_file_is_refused_and_never_run(
        self, make: Callable[[], Any], fitted: Any, tmp_path: Path
    ) -> None:
        check_damage_is_refused(fitted, make, tmp_path)
