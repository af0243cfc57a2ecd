"""What holds for every test: a home of its own, no network, the same output everywhere."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    from zooplatform.catalog import Catalog
    from zooplatform.interfaces import PopulationBatch

# Libraries read these when they are imported, so they are set before any test module is.
_CACHE = Path(tempfile.mkdtemp(prefix="zoo-tests-"))
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ.update(
    HF_HOME=str(_CACHE / "huggingface"),
    TORCH_HOME=str(_CACHE / "torch"),
    MPLCONFIGDIR=str(_CACHE / "matplotlib"),
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    NO_COLOR="1",
    COLUMNS="120",
)
for _name in [name for name in os.environ if name.startswith("ZOO_") and "FUZZ" not in name]:
    del os.environ[_name]
for _name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "FORCE_COLOR"):
    os.environ.pop(_name, None)

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1", "", None})


@pytest.fixture(autouse=True)
def _isolated(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A home and a cache of the test's own, and no way out but the loopback.

    Tests marked `network` keep the home, where pip finds its configuration, and the network.
    """
    if request.node.get_closest_marker("network"):
        return
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / ".cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / ".config"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _block_sockets(monkeypatch)


def _block_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
        def connect(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in _LOOPBACK:
                pytest.fail(f"the test opened a connection to {address[0]}; mark it `network`")
            return method(self, address)

        return connect

    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in _LOOPBACK:
            pytest.fail(f"the test looked up the host {name}; mark it `network`")
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture
def catalog(zoo_catalog: Catalog) -> Catalog:
    """A new, empty catalog with the built-in plugins."""
    return zoo_catalog


@pytest.fixture
def cli(zoo_cli: Callable[..., Result]) -> Callable[..., Result]:
    """`cli("ls", "-c", path)` runs `zoo ls -c path`; stdout and stderr are kept apart."""
    return zoo_cli


@pytest.fixture(scope="session")
def tiny_zoo() -> tuple[PopulationBatch, PopulationBatch]:
    """Eight checkpoints of an MLP and four of a CNN, the same in every run."""
    from zooplatform.testing import sample_population

    return sample_population("mlp"), sample_population("cnn", num_models=2)


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """The data folder beside the checkout; its tests skip only where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("there is no data folder beside the checkout")
    return folder


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parents[1]
