"""A small protocol over four zoos, and what tests look for in its results."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from zooplatform.evaluation.protocols import Protocol, parse_protocol

if TYPE_CHECKING:
    from zooplatform.evaluation.matrix import MatrixReport

PROTOCOL = """
name = "small"
title = "Small zoos"
seeds = [0, 1]
draws = 200

[split]
name = "s"
by = "stack"
ratio = "50/20/30"
final = 0.25

[targets]
test_accuracy = "test_accuracy"
rate = "log10(hyper['learning_rate']::double)"

[zoos]
mlp-a = { dataset = "a", architecture = "mlp" }
mlp-b = { dataset = "b", architecture = "mlp" }
cnn-a = { dataset = "a", architecture = "cnn" }
cnn-b = { dataset = "b", architecture = "cnn" }

[methods.line]
backend = "spread"
config = "default"
baseline = true

[methods.bent]
backend = "spread"
config = { base = "noisy", ridge = 0.1 }

[methods.flat]
backend = "flat"
architectures = "one"
baseline = true

[[cells]]
kind = "in-distribution"

[[cells]]
kind = "cross-dataset"
targets = ["test_accuracy"]

[[cells]]
kind = "cross-architecture"
targets = ["test_accuracy"]
"""


def protocol(text: str = PROTOCOL, **changes: Any) -> Protocol:
    return parse_protocol({**tomllib.loads(text), **changes})


def cell_of(report: MatrixReport, kind: str, train: str, test: str, **also: Any) -> dict[str, Any]:
    wanted = {
        "kind": kind,
        "train": [train],
        "test": test,
        "subset": "all",
        "target": "test_accuracy",
        **also,
    }
    (found,) = (
        cell for cell in report.results["cells"] if all(cell[k] == v for k, v in wanted.items())
    )
    return dict(found)


def entry_of(cell: dict[str, Any], method: str) -> dict[str, Any]:
    (found,) = (entry for entry in cell["methods"] if entry["method"] == method)
    return dict(found)
