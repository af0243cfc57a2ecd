"""timm takes seconds to import: only a checkpoint that names a model may cost that."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
from zooplatform.interfaces import CheckpointHeader, TensorSpec
from zooplatform.plugins import load_plugins
adapter = load_plugins().architectures.create("timm")
plain = CheckpointHeader(tensors=(TensorSpec("w", "float32", (2,), 8),), format="npz")
assert not adapter.matches(plain)
print("timm" in sys.modules)
named = CheckpointHeader(tensors=plain.tensors, format="npz", config={"architecture": "resnet18"})
assert not adapter.matches(named)
print("timm" in sys.modules)
"""


def test_timm_is_imported_when_a_checkpoint_names_a_model():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "True"]
