"""Which files of a repository are taken for its weights."""

from __future__ import annotations

import pytest

from zooplatform_hf.selection import choose

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


@pytest.mark.parametrize(
    ("files", "wanted", "taken"),
    [
        (["model.safetensors", "pytorch_model.bin", "tf_model.h5"], "", ["model.safetensors"]),
        (["pytorch_model.bin", "training_args.bin", "a.txt"], "", ["pytorch_model.bin"]),
        ([*SHARDS, "model.safetensors.index.json"], "", ["model.safetensors.index.json"]),
        (["a.safetensors", "b.safetensors", "c.pt"], "", ["a.safetensors", "b.safetensors"]),
        (["best.pth", "optimizer.pt", "rng_state_0.pth"], "", ["best.pth"]),
        (["model.onnx", "q4.gguf"], "", ["q4.gguf"]),
        (["unet/diffusion_pytorch_model.safetensors", "vae/x.safetensors", "vae/x.bin"], "",
         ["unet/diffusion_pytorch_model.safetensors", "vae/x.safetensors"]),
        (["model.safetensors", "step-5/model.safetensors"], "", ["model.safetensors"]),
        (["model.safetensors", "step-5/model.safetensors"], "step-5", ["step-5/model.safetensors"]),
        (["model.safetensors", "pytorch_model.bin"], "pytorch_model.bin", ["pytorch_model.bin"]),
        (["model.safetensors"], "missing", []),
        (["README.md", "optimizer.pt"], "", []),
    ],
)  # fmt: skip
def test_choice(files: list[str], wanted: str, taken: list[str]) -> None:
    assert [weights.path for weights in choose(files, wanted)] == taken


def test_naming_the_obvious_file_means_the_same_as_naming_the_repository() -> None:
    files = ["model.safetensors", "onnx/model.onnx", "pytorch_model.bin"]
    (by_repository,), (by_file,) = choose(files), choose(files, "model.safetensors")
    assert by_repository == by_file
    assert by_repository.implied
    assert by_repository.left_out == ("onnx/model.onnx", "pytorch_model.bin")
    assert not choose(files, "pytorch_model.bin")[0].implied


def test_shards_are_not_left_out_of_their_own_set() -> None:
    (weights,) = choose([*SHARDS, "model.safetensors.index.json", "other.bin"])
    assert weights.sharded
    assert weights.left_out == ("other.bin",)
