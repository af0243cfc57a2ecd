"""The encoder in SQL."""

from __future__ import annotations

from zooplatform.interfaces import SqlFunction

__all__ = ["FUNCTIONS"]

FUNCTIONS = (
    SqlFunction(
        name="sne_accuracy",
        parameters=("checkpoint_id",),
        sql="zoo_predict('sne:test_accuracy', checkpoint_id)",
        returns="DOUBLE",
        summary="Test accuracy as the newest encoder fitted on it predicts it from the weights.",
        null_handling="NULL in, NULL out; NULL for a checkpoint without weights",
    ),
)
