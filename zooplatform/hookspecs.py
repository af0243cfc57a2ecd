"""The whole extension contract: every hook a plugin may implement.

A registration hook is called once per process without arguments, returns descriptors (plain data) and must not import
heavy modules: the dotted path in a descriptor is imported when the backend is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zooplatform.catalog import Catalog
    from zooplatform.ingest import IngestReport
    from zooplatform.interfaces import (
        ArchitectureSpec,
        CommandSpec,
        GeneratorSpec,
        PredictorSpec,
        PropertySpec,
        SourceSpec,
        SqlFunction,
        SqlView,
        TokenizerSpec,
    )

__all__ = ["HOST", "ZOO_API", "hookimpl", "hookspec"]

HOST = "zooplatform"
ZOO_API = "1"

hookspec = pluggy.HookspecMarker(HOST)
hookimpl = pluggy.HookimplMarker(HOST)


@hookspec
def zoo_register_sources() -> Iterable[SourceSpec]:
    """Name the sources that checkpoints come from.

    Returns:
        One `SourceSpec` per scheme.

    Called when:
        Plugins are loaded.

    Example:
        `return [SourceSpec(name="s3", scheme="s3", factory="my_plugin:S3Source", summary="Objects of a bucket.")]`
    """


@hookspec
def zoo_register_architectures() -> Iterable[ArchitectureSpec]:
    """Name the architecture adapters.

    Returns:
        One `ArchitectureSpec` per family of architectures.

    Called when:
        Plugins are loaded.

    Example:
        `return [ArchitectureSpec(name="siren", factory="my_plugin:Siren", summary="Sinusoidal MLPs.")]`
    """


@hookspec
def zoo_register_tokenizers() -> Iterable[TokenizerSpec]:
    """Name the tokenizers: state dict to weight tokens and back.

    Returns:
        One `TokenizerSpec` per tokenizer.

    Called when:
        Plugins are loaded.

    Example:
        `return [TokenizerSpec(name="rows", factory="my_plugin:Rows", summary="One token per output unit.")]`
    """


@hookspec
def zoo_register_predictors() -> Iterable[PredictorSpec]:
    """Name the predictors: networks in, a property out.

    Returns:
        One `PredictorSpec` per predictor.

    Called when:
        Plugins are loaded.

    Example:
        `return [PredictorSpec(name="mean", factory="my_plugin:Mean", summary="Always the training mean.")]`
    """


@hookspec
def zoo_register_generators() -> Iterable[GeneratorSpec]:
    """Name the generators: an instruction in, networks out.

    Returns:
        One `GeneratorSpec` per generator.

    Called when:
        Plugins are loaded.

    Example:
        `return [GeneratorSpec(name="copy", factory="my_plugin:Copy", summary="Returns a training network.")]`
    """


@hookspec
def zoo_register_properties() -> Iterable[PropertySpec]:
    """Name values that are computed from the weights at ingest and stored as measured metrics.

    Returns:
        One `PropertySpec` per property.

    Called when:
        Plugins are loaded.

    Example:
        `return [PropertySpec(name="sparsity", factory="my_plugin:sparsity", summary="Share of zero weights.")]`
    """


@hookspec
def zoo_register_sql() -> Iterable[SqlFunction | SqlView]:
    """Give SQL macros and views; the host applies them to every connection.

    Returns:
        `SqlFunction` and `SqlView` descriptors.

    Called when:
        Plugins are loaded.

    Example:
        `return [SqlFunction(name="mb", parameters=("n",), sql="n / 1e6", returns="DOUBLE", summary="Bytes to MB.")]`
    """


@hookspec
def zoo_register_commands() -> Iterable[CommandSpec]:
    """Add `zoo NAME` commands; they are imported when they are run.

    Returns:
        One `CommandSpec` per command.

    Called when:
        Plugins are loaded.

    Example:
        `return [CommandSpec(name="hello", target="my_plugin.cli:hello", summary="Say hello.")]`
    """


@hookspec
def zoo_model_ingested(catalog: Catalog, model_id: str, report: IngestReport) -> None:
    """Hear of a model that has just been committed; a failure here is logged and changes nothing.

    Args:
        catalog: the catalog that holds it.
        model_id: the model.
        report: the report of the running ingest so far.

    Called when:
        The commit that holds the model is durable.

    Example:
        `print(f"{model_id} is in {catalog.path}")`
    """
