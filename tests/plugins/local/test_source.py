"""References, identity, what lies beside a checkpoint, and memory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from zooplatform.errors import NotInstalledError, SourceError
from zooplatform.formats import extras
from zooplatform.interfaces import Checkpoint, Source
from zooplatform.plugins import load_plugins
from zooplatform_local.source import LocalSource

if TYPE_CHECKING:
    from collections.abc import Callable


def names(source: LocalSource, ref: object) -> list[str]:
    return [Path(found.ref.removeprefix("local:")).name for found in source.list(str(ref))]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder as training leaves it."""
    folder = tmp_path / "runs"
    (folder / "b").mkdir(parents=True)
    (folder / ".git").mkdir()
    for file in ("a.safetensors", "b/model.safetensors", ".git/x.safetensors"):
        save_file({"w": torch.ones(2)}, folder / file)
    torch.save({"w": torch.ones(2)}, folder / "b" / "no_suffix")
    torch.save({"state": {}, "param_groups": []}, folder / "b" / "optimizer.pt")
    (folder / "notes.txt").write_text("lr 0.1")
    (folder / "vocab.bin").write_bytes(b"not weights at all")
    (folder / "broken.safetensors").write_bytes(b"<html>")
    return folder


def test_it_is_registered() -> None:
    spec, source = load_plugins().source_for_scheme("local")
    assert spec.name == "local"
    assert isinstance(source, LocalSource)


def test_it_keeps_to_the_protocol(runs: Path) -> None:
    source: Source = LocalSource()
    (ref,) = source.list(str(runs / "a.safetensors"))
    with source.open(ref) as checkpoint:
        assert isinstance(checkpoint, Checkpoint)
        assert checkpoint.info.key == "a.safetensors"
        assert checkpoint.info.source == f"local:{runs / 'a.safetensors'}"
        assert re.fullmatch("sha256:[0-9a-f]{64}", checkpoint.info.revision)


def test_a_folder_gives_every_checkpoint_in_it(runs: Path) -> None:
    # A file that calls itself weights is listed although it is broken: opening it says why.
    assert names(LocalSource(), runs) == [
        "a.safetensors",
        "broken.safetensors",
        "model.safetensors",
        "no_suffix",
    ]


def test_globs(runs: Path) -> None:
    assert names(LocalSource(), runs / "*" / "*.safetensors") == ["model.safetensors"]
    assert names(LocalSource(), runs / "**" / "[am]*.safetensors") == [
        "a.safetensors",
        "model.safetensors",
    ]
    (runs / "odd[1].safetensors").write_bytes((runs / "a.safetensors").read_bytes())
    assert names(LocalSource(), runs / "odd[1].safetensors") == ["odd[1].safetensors"]


def test_a_limit(runs: Path) -> None:
    assert len(list(LocalSource().list(str(runs), limit=2))) == 2


@pytest.mark.parametrize(
    ("ref", "text"),
    [
        ("", "names no file"),
        ("nowhere.pt", "There is no such file or folder"),
        ("runs/nowhere.pt", r"Check the path\.$"),
        ("timm/resnet18.a1_in1k", r"of the Hugging Face Hub is hf-hub:timm/resnet18\.a1_in1k\."),
        ("https://huggingface.co/org/name", r"Hub is hf-hub:org/name\."),
        ("nowhere/*.pt", "No file matches this pattern"),
        ("/dev/zero", "not a regular file|no known format"),
    ],
)
def test_nothing_there(
    ref: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = LocalSource()
    with pytest.raises(SourceError, match=text):
        source.open(next(source.list(ref)))


def test_what_cannot_be_looked_at(tmp_path: Path, runs: Path) -> None:
    """Links that lead to each other, as a folder without permission would be for others than root."""
    (runs / "a.pt").symlink_to(runs / "b.pt")
    (runs / "b.pt").symlink_to(runs / "a.pt")
    with pytest.raises(SourceError, match=r"a\.pt: It cannot be looked at: Too many levels"):
        list(LocalSource().list(str(runs / "a.pt")))
    assert "a.pt" not in names(LocalSource(), runs)
    assert names(LocalSource(), runs / "a.*") == ["a.safetensors"]


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="The folder holds no checkpoint"):
        list(LocalSource().list(str(tmp_path)))


def test_a_pipe_does_not_hang(tmp_path: Path, refusal) -> None:
    os.mkfifo(tmp_path / "m.pt")
    assert "not a regular file" in refusal(tmp_path / "m.pt")


def test_the_same_file_elsewhere_is_the_same_model(runs: Path, read) -> None:
    save_file({"w": torch.ones(2)}, runs / "b" / "a.safetensors")
    first, second = read(runs / "a.safetensors")[0].info, read(runs / "b" / "a.safetensors")[0].info
    assert (first.key, first.revision) == (second.key, second.revision)
    save_file({"w": torch.zeros(2)}, runs / "b" / "a.safetensors")
    assert read(runs / "b" / "a.safetensors")[0].info.revision != first.revision


def test_a_wanted_revision(runs: Path) -> None:
    path = str(runs / "a.safetensors")
    (found,) = LocalSource().list(path)
    assert list(LocalSource().list(path, revision=found.revision[:20])) == [found]
    with pytest.raises(SourceError, match="not sha256:00"):
        list(LocalSource().list(path, revision="sha256:00"))


def test_a_file_changed_between_listing_and_opening(runs: Path) -> None:
    source, path = LocalSource(), runs / "a.safetensors"
    (ref,) = source.list(str(path))
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(SourceError, match="changed since it was listed"):
        source.open(ref)


@pytest.mark.parametrize("change", ["write", "replace", "truncate", "remove"])
def test_a_file_changed_while_it_is_read(change: str, runs: Path) -> None:
    source, path = LocalSource(), runs / "a.safetensors"
    (ref,) = source.list(str(path))
    with source.open(ref) as checkpoint:
        if change == "write":
            with path.open("r+b") as file:
                file.seek(-1, 2)
                file.write(b"\1")
        elif change == "replace":
            save_file({"w": torch.zeros(2)}, runs / "new")
            (runs / "new").rename(path)
        elif change == "truncate":
            os.truncate(path, 20)
            with pytest.raises(SourceError, match="truncated"):
                checkpoint.buffer("w")
        else:
            path.unlink()
        with pytest.raises(SourceError, match="while it was read"):
            checkpoint.verify()


def test_a_snapshot_of_a_repository(tmp_path: Path, read) -> None:
    folder = tmp_path / "bert-tiny"
    folder.mkdir()
    save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (folder / "README.md").write_text(
        "---\nlicense: apache-2.0\nbase_model: [org/base]\ntags: [a, b]\nother: 1\n---\n# Card\n"
    )
    checkpoint, _ = read(folder)
    info = checkpoint.info
    assert checkpoint.header.config == {"model_type": "bert"}
    assert (info.name, info.license, info.base_model) == ("bert-tiny", "apache-2.0", "org/base")
    assert info.metadata == {"tags": ["a", "b"]}
    assert [(edge.parent, edge.relation) for edge in info.lineage] == [
        ("hf-hub:org/base", "finetuned_from")
    ]


@pytest.mark.parametrize(
    ("file", "text", "note"),
    [
        ("config.json", "{", "left out config.json"),
        ("config.json", "[1]", "left out config.json"),
        ("config.json", '{"a":1,"a":2}', "names 'a' twice"),
        ("README.md", "---\na: [\n---\n", "not valid YAML"),
        (
            "README.md",
            "---\na: !!python/object/apply:os.system ['touch x']\n---\n",
            "not valid YAML",
        ),
        ("README.md", "---\nno end", "does not end"),
        ("README.md", "# no front matter", ""),
    ],
)
def test_what_is_broken_beside_the_weights_is_noted(
    file: str, text: str, note: str, tmp_path: Path, read
) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "m.safetensors")
    (tmp_path / file).write_text(text)
    checkpoint, _ = read(tmp_path / "m.safetensors")
    assert note in " ".join(checkpoint.header.notes)
    assert bool(checkpoint.header.notes) == bool(note)


@pytest.mark.parametrize(
    ("library", "file"), [("onnx", "m.onnx"), ("hdf5", "m.h5"), ("gguf", "m.gguf")]
)
def test_a_missing_library_names_its_extra(
    library: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The import system's own way to say that a module is not there.
    for name in ("onnx", "h5py", "gguf"):
        monkeypatch.setitem(sys.modules, name, None)
    content = {"m.onnx": b"\x08\x07\x12", "m.h5": b"\x89HDF\r\n\x1a\n", "m.gguf": b"GGUF"}[file]
    (tmp_path / file).write_bytes(content)
    source = LocalSource()
    with pytest.raises(NotInstalledError, match=re.escape(f"pip install 'zooplatform[{library}]'")):
        source.open(next(source.list(str(tmp_path / file))))
    assert extras.need("json", "x", "y") is json


def test_nothing_heavy_is_imported_for_safetensors(runs: Path) -> None:
    code = (
        "import sys; from zooplatform_local.source import LocalSource; s = LocalSource();"
        f"c = s.open(next(s.list({str(runs / 'a.safetensors')!r}))); c.buffer('w'); c.close();"
        "print([m for m in ('torch', 'onnx', 'h5py', 'gguf', 'timm', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_large_file_is_read_in_bounded_memory(tmp_path: Path) -> None:
    """Hash and read a 600 MB file of 24 MB tensors; what is resident at most is one tensor above the start."""
    path, size = tmp_path / "m.safetensors", 24 << 20
    header = {
        f"w{i}": {"dtype": "U8", "shape": [size], "data_offsets": [i * size, (i + 1) * size]}
        for i in range(25)
    }
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + 25 * size)
    code = (
        "import resource, sys; from zooplatform_local.source import LocalSource; import numpy\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "s = LocalSource(); start = peak()\n"
        f"with s.open(next(s.list({str(path)!r}))) as c:\n"
        "    total = sum(len(c.buffer(t.name)) for t in c.header.tensors); c.verify()\n"
        "print(total, peak() - start)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    total, grown = map(int, done.stdout.split())
    assert total == 25 * size
    assert grown < 2 * size


def test_one_bad_file_does_not_stop_the_others(catalog, runs: Path) -> None:
    report = catalog.ingest(f"local:{runs}")
    assert len(report.checkpoint_ids) == 3
    ((ref, text),) = report.failed
    assert ref.endswith("broken.safetensors")
    assert "HTML or XML page" in text
    again = catalog.ingest(f"local:{runs}")
    assert len(again.skipped) == 3


def test_export_gives_the_same_file(catalog, runs: Path) -> None:
    path = runs / "a.safetensors"
    save_file(
        {"b": torch.ones(2), "a": torch.ones(3, dtype=torch.bfloat16)}, path, {"format": "pt"}
    )
    (checkpoint_id,) = catalog.ingest(f"local:{path}").checkpoint_ids
    catalog.export(checkpoint_id, runs / "out.safetensors")
    assert (runs / "out.safetensors").read_bytes() == path.read_bytes()


@pytest.mark.shared_data
def test_the_shared_arrays(
    shared_folder: Path, read: Callable[[Path], tuple[Checkpoint, dict[str, bytes]]]
) -> None:
    path = shared_folder / "data" / "usps.npz"
    _, values = read(path)
    with np.load(path, allow_pickle=False) as arrays:
        assert {name: array.tobytes() for name, array in arrays.items()} == values
