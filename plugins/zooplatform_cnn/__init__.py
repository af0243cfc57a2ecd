"""Plain CNN and MLP zoo networks."""

from __future__ import annotations

from zooplatform import hookimpl
from zooplatform.interfaces import ArchitectureSpec


@hookimpl
def zoo_register_architectures() -> list[ArchitectureSpec]:
    return [
        ArchitectureSpec(
            name="cnn",
            factory="zooplatform_cnn.adapter:CnnAdapter",
            summary="Plain CNN, MLP and small residual networks of model zoos, from a configuration.",
            requires=("torch",),
            install="pip install torch",
            families=("cnn", "mlp"),
            specificity=50,
        )
    ]
