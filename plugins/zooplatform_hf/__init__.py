"""Source `hf-hub:`: models of the Hugging Face Hub."""

from __future__ import annotations

from zooplatform import hookimpl
from zooplatform.interfaces import SourceSpec


@hookimpl
def zoo_register_sources() -> list[SourceSpec]:
    return [
        SourceSpec(
            name="hf-hub",
            scheme="hf-hub",
            factory="zooplatform_hf.source:HubSource",
            summary="Models of the Hugging Face Hub: hf-hub:org/name[@revision][/file].",
            requires=("huggingface_hub",),
            install="pip install huggingface-hub",
        )
    ]
