"""A split as a folder of safetensors files with a manifest, and back."""

from __future__ import annotations

from zooplatform.bundles.manifest import MANIFEST, Manifest, read_manifest
from zooplatform.bundles.reading import import_split
from zooplatform.bundles.writing import ExportReport, export_split

__all__ = [
    "MANIFEST",
    "ExportReport",
    "Manifest",
    "export_split",
    "import_split",
    "read_manifest",
]
