"""Source `local:`: files and folders on this machine."""

from __future__ import annotations

from zooplatform import hookimpl
from zooplatform.interfaces import SourceSpec


@hookimpl
def zoo_register_sources() -> list[SourceSpec]:
    return [
        SourceSpec(
            name="local",
            scheme="local",
            factory="zooplatform_local.source:LocalSource",
            summary="Files and folders: safetensors, torch, numpy, ONNX, HDF5, GGUF.",
        )
    ]
