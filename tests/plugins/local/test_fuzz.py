"""Mutants of valid files: read, or refused with a ZooError; no crash, no hang, memory bounded.

ZOO_FUZZ_SECONDS is the time for all formats together (10 by default; CI takes 60 and more).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz_readers.py")
SECONDS = float(os.environ.get("ZOO_FUZZ_SECONDS", "10"))
FORMATS = {
    **dict.fromkeys(
        ("safetensors", "safetensors-header", "index", "npz", "npz-member", "npy"), "numpy"
    ),
    **dict.fromkeys(("torch-zip", "torch-pickle", "torch-legacy"), "torch"),
    **{"onnx": "onnx", "hdf5": "h5py", "hdf5-heap": "h5py", "gguf": "gguf"},
}


@pytest.mark.timeout(int(SECONDS) + 300)
@pytest.mark.parametrize("name", FORMATS)
def test_mutants(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(FORMATS[name]) is None:
        pytest.skip(f"{FORMATS[name]} is not installed")
    command = [sys.executable, str(SCRIPT), name, str(SECONDS / len(FORMATS)), str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS + 240, check=False
    )
    assert done.returncode == 0, (
        f"exit {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    )
    outcomes = json.loads(done.stdout)
    # A damaged heap costs the texts that lie in it, and no array.
    assert outcomes.get("refused", 0) > 0 or name == "hdf5-heap", outcomes
