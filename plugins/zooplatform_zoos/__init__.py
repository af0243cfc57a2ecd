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
