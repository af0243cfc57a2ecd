"""The whole way, as a user goes it: `zoo` in a process of its own, settings in the environment."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from zooplatform.catalog import open_catalog

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zooplatform.testing.hub import LoopbackHub

    Zoo = Callable[..., "subprocess.CompletedProcess[str]"]

TOKEN = "hf_secret"


@pytest.fixture
def zoo(hub: LoopbackHub, tmp_path: Path) -> Zoo:
    """Runs `zoo ...` against the loopback Hub and the catalog `tmp_path / "zoo"`."""

    def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
            "ZOO_CATALOG": str(tmp_path / "zoo"),
        }
        return subprocess.run(
            [sys.executable, "-m", "zooplatform", *map(str, words)],
            env={**os.environ, **settings, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )

    return run


def test_header_then_weights_then_nothing_new(
    hub: LoopbackHub, net: str, zoo: Zoo, weights: Path, tmp_path: Path
) -> None:
    header = zoo("ingest", f"hf-hub:{net}", "--header-only", "--json")
    assert header.returncode == 0, header.stderr
    traffic = hub.bytes_sent
    assert traffic < weights.stat().st_size
    with open_catalog(tmp_path / "zoo") as catalog:
        rows = catalog.sql("select name, dtype, shape from tensors order by tensor_index")
        states = catalog.sql("select state from checkpoints").column("state").to_pylist()
    assert rows.num_rows == 3
    assert states == ["header-only"]

    full = zoo("ingest", f"hf-hub:{net}", "--json")
    assert full.returncode == 0, full.stderr
    again = zoo("ingest", f"hf-hub:{net}@main/model.safetensors")
    assert again.returncode == 0, again.stderr
    assert "already in the catalog" in again.stdout + again.stderr
    with open_catalog(tmp_path / "zoo") as catalog:
        (row,) = catalog.sql(
            "select checkpoint_id, state, revision, license from checkpoints join models using (model_id)"
        ).to_pylist()
        written = catalog.export(row["checkpoint_id"], tmp_path / "out.safetensors")
    assert row["state"] == "stored"
    assert row["revision"] == hub.store.repos[net].refs["main"]
    assert row["license"] == "apache-2.0"
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in (written, weights)}
    assert len(digests) == 1


def test_a_bad_repository_leaves_nothing_and_does_not_stop_the_others(
    hub: LoopbackHub, net: str, zoo: Zoo, weights: Path, tmp_path: Path
) -> None:
    hub.store.repo("org/bad", {"model.safetensors": weights})
    hub.fail("GET /org/bad/resolve/", "corrupt", after_bytes=150_000, times=99)
    done = zoo("ingest", "hf-hub:org/bad", "hf-hub:org/missing", f"hf-hub:{net}")
    assert done.returncode == 1
    assert "hf-hub:org/bad@" in done.stderr
    assert "The download is corrupt" in done.stderr
    assert "There is no repository org/missing" in done.stderr
    with open_catalog(tmp_path / "zoo") as catalog:
        names = catalog.sql("select name from models").column("name").to_pylist()
    assert names == ["org/net"]


def test_the_token_of_the_environment_is_used_and_kept(
    hub: LoopbackHub, net: str, zoo: Zoo
) -> None:
    hub.store.users[TOKEN] = "me"
    hub.store.repos[net].private = True
    hub.store.repos[net].granted.add("me")
    refused = zoo("ingest", f"hf-hub:{net}")
    assert refused.returncode == 1
    assert "for a private one run `hf auth login` first" in refused.stderr
    done = zoo("ingest", f"hf-hub:{net}", "--json", "-v", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    json.loads(done.stdout)


def test_offline_by_the_environment(net: str, zoo: Zoo) -> None:
    refused = zoo("ingest", f"hf-hub:{net}", HF_HUB_OFFLINE="1")
    assert refused.returncode == 1
    assert "hf-hub:org/net: HF_HUB_OFFLINE is set" in " ".join(refused.stderr.split())
