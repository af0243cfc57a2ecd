"""Architecture adapter for any state dict."""

from __future__ import annotations

from zooplatform import hookimpl
from zooplatform.interfaces import ArchitectureSpec


@hookimpl
def zoo_register_architectures() -> list[ArchitectureSpec]:
    return [
        ArchitectureSpec(
            name="generic",
            factory="zooplatform_generic.adapter:GenericAdapter",
            summary="Any state dict: layers, their types and the family, from names and shapes.",
            families=("*",),
            specificity=0,
        )
    ]
