"""Tokenizers whose tokens are the weights themselves."""

from __future__ import annotations

from zooplatform import hookimpl
from zooplatform.interfaces import TokenizerSpec


@hookimpl
def zoo_register_tokenizers() -> list[TokenizerSpec]:
    return [
        TokenizerSpec(
            name="chunk",
            factory="zooplatform_chunk.chunk:ChunkTokenizer",
            summary="Layers flattened, padded and cut into chunks; rows and kernels kept whole if asked.",
            requires=("numpy", "torch"),
            install="pip install numpy torch",
        ),
        TokenizerSpec(
            name="neuron",
            factory="zooplatform_chunk.neuron:NeuronTokenizer",
            summary="One token per output unit: its incoming weights, then its bias.",
            requires=("numpy", "torch"),
            install="pip install numpy torch",
        ),
    ]
