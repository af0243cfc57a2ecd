"""Repositories that are as they should be, read whole and by their headers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from zooplatform.errors import SourceError
from zooplatform.interfaces import Checkpoint, LineageRecord, MetricRecord

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from zooplatform.testing.hub import LoopbackHub
    from zooplatform_hf.source import HubSource

Check = "Callable[[Checkpoint], None]"


def open_one(source: HubSource, ref: str, **how: Any) -> Checkpoint:
    (found,) = source.list(ref)
    return source.open(found, **how)


def test_a_repository_becomes_a_checkpoint_with_its_metadata(
    hub: LoopbackHub, net: str, source: HubSource, weights: Path, assert_holds: Check
) -> None:
    sha = hub.store.repos[net].refs["main"]
    (ref,) = source.list(net)
    assert (ref.ref, ref.revision) == (f"hf-hub:org/net@{sha}", sha)
    seen: list[tuple[str, int, int | None]] = []
    with source.open(ref, progress=lambda *step: seen.append(step)) as checkpoint:
        assert isinstance(checkpoint, Checkpoint)
        assert_holds(checkpoint)
        info = checkpoint.info
        assert checkpoint.header.config == {"architecture": "tiny", "num_classes": 10}
        assert checkpoint.header.metadata == {"format": "pt"}
        (file,) = checkpoint.files
        raw = weights.read_bytes()
        assert file.header is not None
        assert raw.startswith(file.header)
        assert file.sha256 == hub.store.repos[net].commits[sha]["model.safetensors"].sha256
    assert (info.key, info.name, info.revision) == ("hf-hub:org/net", "org/net", sha)
    assert (info.license, info.base_model) == ("apache-2.0", "google/bert")
    assert info.metadata["library"] == "timm"
    assert set(info.metadata["tags"]) >= {"tiny", "test"}
    assert info.lineage == (
        LineageRecord(
            parent="hf-hub:google/bert", relation="finetuned_from", detail={"as": "finetune"}
        ),
        LineageRecord(parent="hf-hub:datasets/imagenet-1k", relation="trained_on"),
        LineageRecord(parent="hf-hub:datasets/org/own", relation="trained_on"),
    )
    assert checkpoint.metrics == (
        MetricRecord(name="accuracy", value=0.785, dataset="imagenet-1k", split="validation"),
        MetricRecord(name="loss", value=1.25, dataset="imagenet-1k", split="validation"),
        MetricRecord(name="accuracy", value=0.5, dataset="cifar10"),
    )
    assert any("no numbers: f1" in note for note in checkpoint.header.notes)
    size = len(raw)
    assert seen[-1] == ("downloading model.safetensors", size, size)


def test_a_file_and_a_tag_and_a_folder_can_be_named(
    hub: LoopbackHub, net: str, source: HubSource, weights: Path, assert_holds: Check
) -> None:
    repo = hub.store.repos[net]
    old = repo.refs["v1"] = repo.refs["main"]
    new = repo.commit({"step-5/model.safetensors": weights, "model.safetensors": b"other"})
    with open_one(source, f"{net}@v1/model.safetensors") as checkpoint:
        assert_holds(checkpoint)
        assert (checkpoint.info.key, checkpoint.info.revision) == ("hf-hub:org/net", old)
    with open_one(source, f"{net}/step-5") as checkpoint:
        assert_holds(checkpoint)
        assert checkpoint.info.key == "hf-hub:org/net/step-5/model.safetensors"
        assert checkpoint.info.revision == new
    (short,) = source.list(f"{net}@{old[:10]}")
    assert short.revision == old


def test_several_checkpoints_of_one_repository_are_listed_one_by_one(
    hub: LoopbackHub, source: HubSource, weights: Path, assert_holds: Check
) -> None:
    hub.store.repo("org/many", {f"{name}.safetensors": weights for name in "abc"})
    refs = list(source.list("org/many"))
    assert [ref.name for ref in refs] == [f"org/many/{name}.safetensors" for name in "abc"]
    assert len(list(source.list("org/many", limit=2))) == 2
    with source.open(refs[1]) as checkpoint:
        assert_holds(checkpoint)
        assert checkpoint.info.key == "hf-hub:org/many/b.safetensors"


@pytest.fixture
def sharded(state: dict[str, torch.Tensor], tmp_path: Path) -> dict[str, Path | bytes]:
    """`state` in two shards and an index."""
    from safetensors.torch import save_file

    parts = {
        "model-00001-of-00002.safetensors": ["conv.weight"],
        "model-00002-of-00002.safetensors": ["fc.weight", "counter"],
    }
    files: dict[str, Path | bytes] = {}
    for name, keys in parts.items():
        save_file({key: state[key] for key in keys}, tmp_path / name)
        files[name] = tmp_path / name
    weight_map = {key: name for name, keys in parts.items() for key in keys}
    size = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    files["model.safetensors.index.json"] = json.dumps(index).encode()
    return files


@pytest.mark.parametrize("folder", ["", "unet/", "a/b/"])
def test_sharded_weights(
    hub: LoopbackHub,
    source: HubSource,
    sharded: dict[str, Path | bytes],
    assert_holds: Check,
    folder: str,
) -> None:
    hub.store.repo("org/big", {folder + name: content for name, content in sharded.items()})
    with (
        open_one(source, "org/big", header_only=True) as header,
        open_one(source, "org/big") as full,
    ):
        assert_holds(full)
        assert header.header.tensors == full.header.tensors
        assert [file.path for file in header.files] == [file.path for file in full.files]
        assert all(file.sha256 for file in full.files if file.format == "safetensors")


def test_a_missing_shard_is_named(
    hub: LoopbackHub, source: HubSource, sharded: dict[str, Path | bytes]
) -> None:
    del sharded["model-00002-of-00002.safetensors"]
    hub.store.repo("org/big", sharded)
    for header_only in (False, True):
        with pytest.raises(
            SourceError, match=r"org/big.*shard model-00002-of-00002.safetensors is not in the"
        ):
            open_one(source, "org/big", header_only=header_only)


def test_torch_files_go_through_the_restricted_loader(
    hub: LoopbackHub,
    source: HubSource,
    state: dict[str, torch.Tensor],
    tmp_path: Path,
    assert_holds: Check,
) -> None:
    import torch

    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (open, (str(canary), "w"))

    torch.save(state, tmp_path / "good.bin")
    torch.save({"weight": torch.ones(2), "evil": Evil()}, tmp_path / "evil.bin")
    hub.store.repo("org/good", {"pytorch_model.bin": tmp_path / "good.bin"})
    hub.store.repo("org/evil", {"pytorch_model.bin": tmp_path / "evil.bin"})
    with open_one(source, "org/good") as checkpoint:
        assert_holds(checkpoint)
    with pytest.raises(SourceError, match=r"^hf-hub:org/evil@\w{40}/pytorch_model.bin: "):
        open_one(source, "org/evil")
    assert not canary.exists()
    with pytest.raises(SourceError, match=r"good.*Ingest it without --header-only"):
        open_one(source, "org/good", header_only=True)


def test_the_header_alone_costs_little_traffic(
    hub: LoopbackHub, source: HubSource, tmp_path: Path
) -> None:
    """The bound that the project promises: 200 kB for a file of 90 MB."""
    import torch
    from safetensors.torch import save_file

    tensors = {f"blocks.{i}.attention.weight": torch.zeros(450, 500) for i in range(100)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_size > 90_000_000
    hub.store.repo("org/large", {"model.safetensors": tmp_path / "model.safetensors"})
    with open_one(source, "org/large", header_only=True) as checkpoint:
        assert len(checkpoint.header.tensors) == 100
        assert checkpoint.header.tensors[0].shape == (450, 500)
        with pytest.raises(SourceError, match="Open it without header_only"):
            checkpoint.buffer("blocks.0.attention.weight")
    assert 0 < hub.bytes_sent + hub.bytes_received <= 200_000

    # A server that ignores ranges is hung up on: what is on its way then fills the sockets' buffers.
    hub.forget()
    hub.fail("GET .*/resolve/", "no-ranges", times=99)
    open_one(source, "org/large", header_only=True).close()
    assert hub.bytes_sent < 20_000_000


@pytest.mark.parametrize("ranges", [True, False])
def test_a_long_header_is_fetched_in_two_parts(
    hub: LoopbackHub, source: HubSource, tmp_path: Path, ranges: bool
) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = {f"layer.{i:04}.weight": torch.zeros(1) for i in range(1000)}
    save_file(tensors, tmp_path / "model.safetensors")
    hub.store.repo("org/wide", {"model.safetensors": tmp_path / "model.safetensors"})
    if not ranges:
        hub.fail("GET .*/resolve/", "no-ranges", times=99)
    with open_one(source, "org/wide", header_only=True) as checkpoint:
        assert len(checkpoint.header.tensors) == 1000
        assert len(checkpoint.files[0].header or b"") > 32 << 10


def test_a_config_that_is_none_is_left_out_and_said_so(
    hub: LoopbackHub, source: HubSource, weights: Path
) -> None:
    hub.store.repo("org/odd", {"model.safetensors": weights, "config.json": b"{nope"})
    with open_one(source, "org/odd") as checkpoint:
        assert checkpoint.header.config == {}
        assert any("left out config.json" in note for note in checkpoint.header.notes)


def test_timm_itself_loads_from_the_loopback_hub(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is enough of a Hub for a program that knows nothing of it."""
    import subprocess
    import sys

    import timm
    from safetensors.torch import save_file

    model = timm.create_model("resnet10t", num_classes=3)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "resnet10t",
        "num_classes": 3,
        "pretrained_cfg": {"num_classes": 3, "first_conv": "conv1.0", "classifier": "fc"},
    }
    files = {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": tmp_path / "model.safetensors",
    }
    hub.store.repo("org/timm", files)
    program = (
        "import timm; m = timm.create_model('hf-hub:org/timm', pretrained=True);"
        "print(sum(p.double().sum().item() for p in m.parameters()))"
    )
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = sum(p.double().sum().item() for p in model.parameters())
    assert float(done.stdout) == pytest.approx(expected, abs=1e-9)
