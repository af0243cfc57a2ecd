"""What plugin authors test with: fixtures (loaded by pytest on their own) and contract suites.

Public names are imported when they are first used, since pytest loads this package in every run of
the environment.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zooplatform.testing.architectures import ArchitectureContract, header_of
    from zooplatform.testing.generators import GeneratorContract
    from zooplatform.testing.index_tokenizers import IndexTokenizerContract
    from zooplatform.testing.installs import PluginInstaller
    from zooplatform.testing.predictors import PredictorContract
    from zooplatform.testing.properties import PropertyContract
    from zooplatform.testing.samples import sample_population
    from zooplatform.testing.sources import PopulationSourceContract, SourceContract
    from zooplatform.testing.sql import SqlContract, SqlExample
    from zooplatform.testing.tokenizers import TokenizerContract

__all__ = [
    "ArchitectureContract",
    "GeneratorContract",
    "IndexTokenizerContract",
    "PluginInstaller",
    "PopulationSourceContract",
    "PredictorContract",
    "PropertyContract",
    "SourceContract",
    "SqlContract",
    "SqlExample",
    "TokenizerContract",
    "header_of",
    "sample_population",
]

_HOMES = {
    "ArchitectureContract": "architectures",
    "GeneratorContract": "generators",
    "IndexTokenizerContract": "index_tokenizers",
    "PluginInstaller": "installs",
    "PopulationSourceContract": "sources",
    "PredictorContract": "predictors",
    "PropertyContract": "properties",
    "SourceContract": "sources",
    "SqlContract": "sql",
    "SqlExample": "sql",
    "TokenizerContract": "tokenizers",
    "header_of": "architectures",
    "sample_population": "samples",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
