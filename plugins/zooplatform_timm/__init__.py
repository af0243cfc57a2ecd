"""Architectures of timm."""

from __future__ import annotations

from zooplatform import hookimpl
from zooplatform.interfaces import ArchitectureSpec


@hookimpl
def zoo_register_architectures() -> list[ArchitectureSpec]:
    return [
        ArchitectureSpec(
            name="timm",
            factory="zooplatform_timm.adapter:TimmAdapter",
            summary="Any registered model of timm, from its name.",
            requires=("timm", "torch"),
            install="pip install timm torch",
            families=("timm",),
            specificity=100,
        )
    ]
