"""Population sources: public zoo formats."""

from __future__ import annotations

from zooplatform import hookimpl
from zooplatform.interfaces import CommandSpec, SourceSpec


def _source(scheme: str, target: str, summary: str) -> SourceSpec:
    return SourceSpec(
        name=scheme,
        scheme=scheme,
        factory=f"zooplatform_zoos.{target}",
        summary=summary,
        requires=("torch", "pyarrow"),
        install="pip install torch pyarrow",
        population=True,
    )


@hookimpl
def zoo_register_sources() -> list[SourceSpec]:
    return [
        _source(
            "small-cnn-zoo",
            "small_cnn:SmallCnnZoo",
            "weights.npy, metrics.csv[.gz] and layout.csv (Unterthiner et al.).",
        ),
        _source("ray-zoo", "ray:RayZoo", "Ray Tune trees of trials with checkpoint folders."),
        _source("model-dataset", "dataset_file:ModelDataset", "Pickled dataset_*.pt, no code run."),
        _source("pdiff-zoo", "pdiff:PdiffZoo", "NNNN_acc0.xxxx_seedSSSS_<tag>.pth (p-diff, RPG)."),
        _source("transformer-zoo", "transformer:TransformerZoo", "Small Transformer Zoo."),
        _source("nws-zoo", "nws:NwsZoo", "NWS: CSV files and raw float64 vectors."),
        _source("vector-zoo", "vectors:VectorZoo", "{data set: vectors} with a layout beside it."),
    ]


@hookimpl
def zoo_register_commands() -> list[CommandSpec]:
    return [
        CommandSpec(
            name="export-small-cnn-zoo",
            target="zooplatform_zoos.cli:export",
            summary="Write a zoo as weights.npy, metrics.csv.gz and layout.csv.",
        )
    ]
