"""Weight files: readers that go by content, refuse what is not weights, and never run code from a file.

`open_reader(path)` opens one checkpoint; a source makes a `Checkpoint` of it with `FileCheckpoint`. Heavy libraries are
imported when a file of their format is opened.
"""

from __future__ import annotations

from zooplatform.formats.detect import FORMATS, detect, looks_like_weights
from zooplatform.formats.files import OpenFile, sha256_file, sha256_of_set
from zooplatform.formats.opening import checkpoint_files, open_reader
from zooplatform.formats.reader import FileCheckpoint, Reader

__all__ = [
    "FORMATS",
    "FileCheckpoint",
    "OpenFile",
    "Reader",
    "checkpoint_files",
    "detect",
    "looks_like_weights",
    "open_reader",
    "sha256_file",
    "sha256_of_set",
]
