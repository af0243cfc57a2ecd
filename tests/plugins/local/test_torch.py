"""torch files: what training left in them is found, and what of it cannot be read is said."""

from __future__ import annotations

import argparse
import zipfile
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn
from torch_archives import rewrite

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


# --- what is common in genuine files and cannot be read --------------------------------------------------------------


def test_a_whole_module(tmp_path: Path, refusal) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "m.pt")
    assert "Python object (torch.nn.modules.linear.Linear)" in refusal(tmp_path / "m.pt")


def test_numpy_scalars(tmp_path: Path, refusal) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}, "best": np.float64(0.9)}, tmp_path / "m.pt")
    found = refusal(tmp_path / "m.pt")
    assert "numpy value" in found
    assert "save_file" in found


def test_a_namespace(tmp_path: Path, refusal) -> None:
    torch.save({"model": {"w": torch.ones(2)}, "args": argparse.Namespace(lr=1)}, tmp_path / "m.pt")
    assert "settings of its training as a Python object (argparse.Namespace)" in refusal(
        tmp_path / "m.pt"
    )


def test_a_dtype_that_no_catalog_stores(tmp_path: Path, refusal) -> None:
    raw = torch.zeros(4, dtype=torch.uint8).view(torch.bits8)
    torch.save({"w": torch.ones(2), "raw": raw}, tmp_path / "m.pt")
    found = refusal(tmp_path / "m.pt")
    assert "tensors of dtype torch.bits8, which a catalog does not store" in found
    assert "Convert them" in found


def test_torchscript(tmp_path: Path, refusal) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}.")
        archive.writestr("m/constants.pkl", b"\x80\x02).")
        archive.writestr("m/code/__torch__.py", "")
    assert "TorchScript archive" in refusal(tmp_path / "m.pt")


def test_optimizer_state_alone(tmp_path: Path, refusal) -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    assert "the state of an optimizer" in refusal(tmp_path / "o.pt")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: torch.empty(3, device="meta"), "on the device meta"),
        (lambda: torch.eye(3).to_sparse(), "is sparse"),
        (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantised"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_plain(
    make: Callable[[], torch.Tensor], text: str, tmp_path: Path, refusal
) -> None:
    torch.save({"w": make()}, tmp_path / "m.pt")
    assert text in refusal(tmp_path / "m.pt")


@pytest.mark.parametrize("content", [{}, [], "text", 3, {"epoch": 3}, {"a": {"b": []}}])
def test_no_tensors(content: object, tmp_path: Path, refusal) -> None:
    torch.save(content, tmp_path / "m.pt")
    assert "It holds no tensors" in refusal(tmp_path / "m.pt")


# --- training checkpoints --------------------------------------------------------------------------------------------

NET = {"w": torch.ones(2), "b": torch.zeros(1)}
ADAM = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: net,
        lambda net: OrderedDict(net),
        lambda net: {"model": net, "optimizer": ADAM, "epoch": 3},
        lambda net: {"state_dict": net, "optimizer": ADAM},
        lambda net: {"model_state_dict": net, "optimizer_state_dict": ADAM, "loss": 0.1},
        lambda net: {"step": 5, "model_state": net, "optimizer_state": ADAM},
        lambda net: {
            "model": {"state_dict": net, "model_args": {"a": [1]}},
            "scheduler": {"last_epoch": 1},
        },
        lambda net: {"params": net, "params_ema": net, "rng_state": torch.get_rng_state()},
        lambda net: {f"module.{name}": value for name, value in net.items()},
        lambda net: {"model": {f"_orig_mod.module.{name}": value for name, value in net.items()}},
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_unwrapped(wrap: Callable[[Any], Any], legacy: bool, tmp_path: Path, read) -> None:
    torch.save(wrap(NET), tmp_path / "m.ckpt", _use_new_zipfile_serialization=not legacy)
    _, values = read(tmp_path / "m.ckpt")
    assert {name: np.frombuffer(raw, "<f4").tolist() for name, raw in values.items()} == {
        "w": [1, 1],
        "b": [0],
    }


def test_what_is_left_out_is_said(tmp_path: Path, read) -> None:
    content = {
        "model": {**NET, "extra": "text"},
        "optimizer": ADAM,
        "epoch": 7,
        "global_step": 1234,
    }
    torch.save(content, tmp_path / "m.pt")
    checkpoint, _ = read(tmp_path / "m.pt")
    assert (checkpoint.step, checkpoint.epoch) == (1234, 7.0)
    assert checkpoint.header.notes == (
        "the weights were found in model",
        "left out 'optimizer': 1 tensor(s) of training state",
        "left out what is no tensor of the model: 'extra' (str)",
    )


def test_parts_of_one_model_are_all_kept(tmp_path: Path, read) -> None:
    torch.save({"net": NET, "head": {"w": torch.ones(3)}, "optimizer": ADAM}, tmp_path / "m.pt")
    checkpoint, values = read(tmp_path / "m.pt")
    assert list(values) == ["net.w", "net.b", "head.w"]
    assert any(
        "'optimizer' (1 tensors of training state)" in note for note in checkpoint.header.notes
    )


def test_a_parameter_may_have_the_name_of_a_wrapper(tmp_path: Path, read) -> None:
    torch.save({"model": torch.ones(1), "optimizer": torch.ones(1)}, tmp_path / "m.pt")
    assert list(read(tmp_path / "m.pt")[1]) == ["model", "optimizer"]


def test_numbered_and_listed_tensors(tmp_path: Path, read) -> None:
    torch.save(
        {0: torch.ones(1), "layers": [torch.ones(1), {"w": torch.ones(1)}]}, tmp_path / "m.pt"
    )
    assert list(read(tmp_path / "m.pt")[1]) == ["0", "layers.0", "layers.1.w"]


def test_two_names_that_become_one(tmp_path: Path, refusal) -> None:
    torch.save({"a": {"b": torch.ones(1)}, "a.b": torch.zeros(1)}, tmp_path / "m.pt")
    assert "Two tensors have the name 'a.b'" in refusal(tmp_path / "m.pt")


def test_a_tensor_alone(tmp_path: Path, read) -> None:
    torch.save(torch.ones(2), tmp_path / "m.pt")
    assert list(read(tmp_path / "m.pt")[1]) == ["tensor"]


def test_every_kind_of_training_value_is_passed_over(tmp_path: Path, read) -> None:
    """What torch's restricted unpickler takes beside tensors must not stop the reader."""
    content = {
        "model": nn.BatchNorm1d(2).state_dict(),
        "bytes": b"\x00\xff" * 10,
        "set": {1, 2},
        "complex": 1j,
        "dtype": torch.float16,
        "device": torch.device("cuda:0"),
        "size": torch.Size([1, 2]),
        "none": None,
        "long": 2**100,
        "nested": [(1, {"a": (2.5, True)})],
    }
    torch.save(content, tmp_path / "m.pt")
    torch.load(tmp_path / "m.pt", weights_only=True)
    checkpoint, values = read(tmp_path / "m.pt")
    assert len(values) == 5
    assert checkpoint.header.tensors[-1].shape == ()


def test_cuda_storages(tmp_path: Path, read) -> None:
    """CUDA storages load on a machine without CUDA: the location in the pickle is not followed."""
    path = tmp_path / "m.pt"
    torch.save({"w": torch.arange(3.0)}, path)
    cuda = rewrite(
        path,
        tmp_path / "cuda.pt",
        lambda name, data: (
            data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            if name == "data.pkl"
            else data
        ),
    )
    assert read(cuda)[1] == {"w": torch.arange(3.0).numpy().tobytes()}
