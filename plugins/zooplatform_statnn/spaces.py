"""What searches draw from: the same for all backends of a kind, so that none is favoured."""

from __future__ import annotations

TREES = {
    "learning_rate": (0.02, 0.03, 0.05, 0.08),
    "leaves": (7, 15, 31, 63),
    "min_leaf": (5, 10, 20, 40),
    "features": (0.1, 0.2, 0.35, 0.5, 0.8),
    "rows": (0.6, 0.8, 1.0),
    "l2": (0.1, 1.0, 10.0),
    "target_transform": ("auto", "none"),
}
NETS = {
    "width": (96, 192, 320),
    "depth": (1, 2, 3),
    "dropout": (0.0, 0.1, 0.2, 0.35, 0.5),
    "learning_rate": (5e-4, 1e-3, 2e-3, 4e-3),
    "weight_decay": (0.01, 0.05, 0.2),
    "batch_size": (32, 64, 128),
    "scaling": ("quantile", "robust"),
}
ENCODERS = {
    "width": (16, 32, 48),
    "depth": (2, 3),
    "dropout": (0.0, 0.1, 0.2),
    "learning_rate": (1e-3, 2e-3, 4e-3),
    "weight_decay": (0.01, 0.05),
    "batch_size": (32, 64),
}
RIDGE = {"penalty": (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)}
