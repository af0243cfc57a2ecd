"""Instruction-guided parameter generation (IGPG): weights as codes, and a transformer that writes them."""

from __future__ import annotations

from zooplatform import hookimpl
from zooplatform.interfaces import GeneratorSpec, TokenizerSpec

_REQUIRES = ("numpy", "safetensors", "torch")
_INSTALL = "pip install numpy safetensors torch"


@hookimpl
def zoo_register_tokenizers() -> list[TokenizerSpec]:
    return [
        TokenizerSpec(
            name="vq",
            factory="zooplatform_igpg.tokenizer:VqTokenizer",
            summary="Weights as indices into codebooks: VQ-VAE, residual or scalar quantisation, or k-means.",
            requires=_REQUIRES,
            install=_INSTALL,
            token_kind="index",  # noqa: S106 - not a password
        ),
    ]


@hookimpl
def zoo_register_generators() -> list[GeneratorSpec]:
    return [
        GeneratorSpec(
            name="igpg",
            factory="zooplatform_igpg.generator:IgpgGenerator",
            summary="A transformer that writes the codes of whole networks, told in words what they are for.",
            requires=_REQUIRES,
            install=_INSTALL,
            tokenizer="vq",
        ),
    ]
