"""Every hook of zooplatform, implemented once."""

from __future__ import annotations

import os
from pathlib import Path

from zooplatform import hookimpl
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

ZOO_API = "1"


@hookimpl
def zoo_register_sources():
    return [
        SourceSpec(
            name="sketch",
            scheme="sketch",
            population=True,
            factory="zooplatform_sketch.source:SketchSource",
            summary="Networks with random weights: the control group.",
        )
    ]


@hookimpl
def zoo_register_architectures():
    return [
        ArchitectureSpec(
            name="sketch",
            factory="zooplatform_sketch.architecture:SketchAdapter",
            summary="One linear layer called `sketch`.",
            requires=("torch",),
            install="pip install torch",
            families=("sketch",),
            specificity=90,
        )
    ]


@hookimpl
def zoo_register_tokenizers():
    return [
        TokenizerSpec(
            name="sketch",
            factory="zooplatform_sketch.tokenizer:SketchTokenizer",
            summary="A network as one token.",
        )
    ]


@hookimpl
def zoo_register_predictors():
    return [
        PredictorSpec(
            name="sketch",
            factory="zooplatform_sketch.predictor:SketchPredictor",
            summary="The target of the nearest network.",
        )
    ]


@hookimpl
def zoo_register_generators():
    return [
        GeneratorSpec(
            name="sketch",
            factory="zooplatform_sketch.generator:SketchGenerator",
            summary="Networks near a training network.",
            tokenizer="sketch",
        )
    ]


@hookimpl
def zoo_register_properties():
    return [
        PropertySpec(
            name="positive_share",
            factory="zooplatform_sketch.numbers:positive_share",
            summary="Share of weights above zero.",
            unit="fraction",
        )
    ]


@hookimpl
def zoo_register_sql():
    return [
        SqlFunction(
            name="sketch_percent",
            parameters=("x",),
            sql="round(100 * x, 1)",
            returns="DOUBLE",
            summary="A fraction in percent.",
        ),
        SqlView(
            name="sketch_networks",
            sql="SELECT * FROM models WHERE source LIKE 'sketch:%'",
            summary="The models of this plugin.",
        ),
    ]


@hookimpl
def zoo_register_commands():
    return [
        CommandSpec(
            name="sketch-count",
            target="zooplatform_sketch.command:count",
            summary="Count the networks of this plugin.",
        )
    ]


@hookimpl
def zoo_model_ingested(catalog, model_id):
    """Append the model to the file that SKETCH_LOG names; arguments that are not used are left out."""
    if "SKETCH_LOG" in os.environ:
        with Path(os.environ["SKETCH_LOG"]).open("a", encoding="utf-8") as log:
            log.write(f"{catalog.path.name} {model_id}\n")
