"""`zoo push`: from a catalog to the loopback Hub and back."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from zooplatform.catalog import open_catalog

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from click.testing import Result

    from zooplatform.catalog import Catalog
    from zooplatform.interfaces import PopulationBatch
    from zooplatform.testing.hub import LoopbackHub

    Cli = Callable[..., Result]

# The Hub's client uses its HTTP library in an old way; nothing that we could change.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(autouse=True)
def _at_the_hub(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's settings, which it reads from the environment when it is imported."""
    from huggingface_hub import constants

    hub.store.users["hf_writer"] = "me"
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def stored(net: str, tmp_path: Path) -> tuple[Path, str]:
    """A catalog that holds `org/net`, and the id of its checkpoint."""
    with open_catalog(tmp_path / "zoo", create=True) as catalog:
        (checkpoint,) = catalog.ingest(f"hf-hub:{net}").checkpoint_ids
    return tmp_path / "zoo", checkpoint


def test_push_and_ingest_give_the_same_file(
    hub: LoopbackHub, stored: tuple[Path, str], cli: Cli, weights: Path
) -> None:
    path, checkpoint = stored
    done = cli("push", checkpoint[:8], "hf-hub:me/copy", "-c", path, "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    repo = hub.store.repos["me/copy"]
    assert report["commit"] == repo.refs["main"]
    assert report["url"] == f"{hub.url}/me/copy"
    tree = repo.commits[report["commit"]]
    assert {"README.md", "model.safetensors"} <= set(tree)
    assert tree["model.safetensors"].sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert not repo.private

    card = tree["README.md"].content
    assert isinstance(card, bytes)
    from huggingface_hub import ModelCard

    data = ModelCard(card.decode()).data
    assert (data.license, data.base_model) == ("apache-2.0", "google/bert")
    assert data.datasets == ["imagenet-1k", "org/own"]
    assert data.tags == ["tiny", "test", "zooplatform", "safetensors"]
    assert {(r.dataset_type, r.metric_type, r.metric_value) for r in data.eval_results} == {
        ("imagenet-1k", "accuracy", 0.785),
        ("imagenet-1k", "loss", 1.25),
        ("cifar10", "accuracy", 0.5),
    }
    assert "| Came from | hf-hub:org/net |" in card.decode()

    with open_catalog(path) as catalog:
        again = catalog.ingest("hf-hub:me/copy")
        row = catalog.sql(
            "select license, base_model from models where model_id = ?", list(again.model_ids)
        ).to_pylist()
        metrics = catalog.sql(
            "select name from metrics where checkpoint_id = ? and origin = 'reported'",
            list(again.checkpoint_ids),
        )
    assert row == [{"license": "apache-2.0", "base_model": "google/bert"}]
    assert metrics.num_rows == 3


def test_a_network_of_a_population_can_be_pushed_and_built_again(
    hub: LoopbackHub, catalog: Catalog, zoo_population: PopulationBatch, cli: Cli
) -> None:
    import torch

    checkpoint = catalog.append(zoo_population, zoo="mlps", license="cc0-1.0")[0]
    done = cli("push", checkpoint, "hf-hub:me/mlp", "-c", catalog.path, "--private")
    assert done.exit_code == 0, done.stderr
    assert "Get it back: zoo ingest hf-hub:me/mlp@" in done.stdout
    assert hub.store.repos["me/mlp"].private
    (again,) = catalog.ingest("hf-hub:me/mlp").checkpoint_ids
    old, new = catalog.state_dict(checkpoint), catalog.state_dict(again)
    assert set(old) == set(new)
    assert all(torch.equal(old[name], new[name]) for name in old)


def test_timm_loads_what_was_pushed(
    hub: LoopbackHub, catalog: Catalog, tmp_path: Path, cli: Cli
) -> None:
    import timm
    import torch
    from safetensors.torch import save_file

    model = timm.create_model("resnet10t", num_classes=4).eval()
    save_file(model.state_dict(), tmp_path / "r.safetensors")
    config = {"architecture": "resnet10t", "num_classes": 4}
    files = {
        "model.safetensors": tmp_path / "r.safetensors",
        "config.json": json.dumps(config).encode(),
    }
    hub.store.repo("org/timm", files)
    (checkpoint,) = catalog.ingest("hf-hub:org/timm").checkpoint_ids
    assert cli("push", checkpoint, "hf-hub:me/timm", "-c", catalog.path).exit_code == 0
    loaded = timm.create_model("hf-hub:me/timm", pretrained=True).eval()
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


def test_files_are_replaced_only_when_asked(
    hub: LoopbackHub, stored: tuple[Path, str], cli: Cli
) -> None:
    path, checkpoint = stored
    repo = hub.store.repo("me/mine", {"README.md": b"# precious"})
    before = repo.refs["main"]
    refused = cli("push", checkpoint, "hf-hub:me/mine", "-c", path)
    assert refused.exit_code == 1
    assert "hf-hub:me/mine: The repository already holds README.md. Add -y" in refused.stderr
    assert repo.refs["main"] == before
    assert cli("push", checkpoint, "hf-hub:me/mine", "-c", path, "-y", "-m", "New").exit_code == 0
    assert repo.messages[repo.refs["main"]] == "New"


@pytest.mark.parametrize(
    ("token", "reference", "text"),
    [
        (None, "hf-hub:me/x", "hf auth login"),
        ("hf_wrong", "hf-hub:me/x", "hf auth login"),
        ("hf_writer", "hf-hub:org/net", "does not let this account write there (status 403)"),
        ("hf_writer", "hf-hub:other/x", "does not let this account write there (status 403)"),
        ("hf_writer", "hf-hub:me", "Write hf-hub:org/name"),
        ("hf_writer", "me/x", "Write hf-hub:org/name"),
        ("hf_writer", "hf-hub:me/x@main", "Write hf-hub:org/name"),
    ],
)
def test_refusals(
    hub: LoopbackHub,
    stored: tuple[Path, str],
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
    reference: str,
    text: str,
) -> None:
    path, checkpoint = stored
    before = dict(hub.store.repos["org/net"].refs)
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    refused = cli("push", checkpoint, reference, "-c", path, "-y")
    assert refused.exit_code == 1
    assert text in " ".join(refused.stderr.split())
    assert "me/x" not in hub.store.repos
    assert hub.store.repos["org/net"].refs == before


def test_an_upload_that_fails_leaves_no_commit(
    hub: LoopbackHub, catalog: Catalog, zoo_population: PopulationBatch, cli: Cli
) -> None:
    checkpoint = catalog.append(zoo_population, zoo="mlps")[0]
    hub.fail("PUT /lfs/", "status", status=400, times=99)
    refused = cli("push", checkpoint, "hf-hub:me/mlp", "-c", catalog.path)
    assert refused.exit_code == 1
    assert "hf-hub:me/mlp: The upload failed: Error while uploading" in refused.stderr
    (tree,) = hub.store.repos["me/mlp"].commits.values()
    assert set(tree) == {".gitattributes"}


def test_a_header_has_nothing_to_push(
    hub: LoopbackHub, net: str, catalog: Catalog, cli: Cli
) -> None:
    (checkpoint,) = catalog.ingest(f"hf-hub:{net}", header_only=True).checkpoint_ids
    refused = cli("push", checkpoint, "hf-hub:me/x", "-c", catalog.path)
    assert refused.exit_code == 1
    assert "only its header was ingested" in refused.stderr
