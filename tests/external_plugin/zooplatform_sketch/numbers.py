"""The share of weights above zero."""

from __future__ import annotations


def positive_share(state, layers):
    values = [value for value in state.values() if value.is_floating_point() and value.numel()]
    total = sum(value.numel() for value in values)
    return sum((value > 0).sum().item() for value in values) / total if total else None
