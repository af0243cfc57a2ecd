"""Networks of a real zoo, rebuilt: their accuracy is the recorded one."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from zooplatform_cnn.adapter import CnnAdapter

ZOOS = Path(__file__).parents[4] / "shared" / "data" / "small_cnn_zoo"
ACTIVATIONS = {"leaky": "leaky_relu(0.1)"}


@pytest.mark.shared_data
@pytest.mark.skipif(not ZOOS.parents[1].is_dir(), reason="the shared folder is not beside the tree")
@pytest.mark.parametrize("zoo", ["mnist", "fashion_mnist"])
def test_rebuilt_networks_have_the_recorded_accuracy(zoo):
    with gzip.open(ZOOS / zoo / "metrics.csv.gz", "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    weights = np.load(ZOOS / zoo / "weights.npy", mmap_mode="r")
    images = np.load(ZOOS / zoo / "test_images.npz")
    x, y = torch.from_numpy(images["x"]), torch.from_numpy(images["y"].astype(np.int64))

    first = {}  # one trained network of every activation
    for index, row in enumerate(rows):
        if row["step"] == "8":
            first.setdefault(row["config.activation"], index)
    assert set(first) == {"tanh", "relu", "gelu", "silu", "leaky"}
    for name, index in first.items():
        activation = ACTIVATIONS.get(name, name)
        network = CnnAdapter().build(
            {"preset": "unterthiner", "size": 16, "activation": activation}
        )
        vector, state, start = torch.from_numpy(np.array(weights[index])), {}, 0
        for key, like in network.state_dict().items():
            layer, _, suffix = key.rpartition(".")
            if suffix == "bias":
                continue
            # Bias first, kernels as height, width, in, out and dense as in, out.
            out, bias_end = like.shape[0], start + like.shape[0]
            kernel = vector[bias_end : bias_end + like.numel()]
            start, state[f"{layer}.bias"] = bias_end + like.numel(), vector[start:bias_end]
            if like.ndim == 4:
                kernel = kernel.reshape(3, 3, like.shape[1], out).permute(3, 2, 0, 1)
            else:
                kernel = kernel.reshape(like.shape[1], out).T
            state[key] = kernel
        assert start == 4970
        network.load_state_dict(state, strict=True)
        with torch.inference_mode():
            accuracy = (network.eval()(x).argmax(1) == y).double().mean().item()
        assert accuracy == pytest.approx(
            float(rows[index]["test_accuracy"]), abs=1e-6
        )  # kept as float32
