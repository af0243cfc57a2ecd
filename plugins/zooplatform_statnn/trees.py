"""Gradient boosting on statistics, by LightGBM: on one thread, and the same for the same seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightgbm
import torch

from zooplatform.errors import ArtifactError
from zooplatform_statnn.learners import State, restored_scale, scale_state
from zooplatform_statnn.scaling import InputScale

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from zooplatform.layout import VectorLayout
    from zooplatform_statnn.learners import Budget, Table
    from zooplatform_statnn.settings import TreeSettings

__all__ = ["Trees"]


class Trees:
    """Regression trees on inputs as they are; rounds end when the validation error stops falling."""

    def __init__(self, settings: TreeSettings) -> None:
        self._settings = settings
        self._model: lightgbm.Booster | None = None
        self._text = ""
        self._scale = InputScale("none", torch.zeros(1, 0))

    def fit(
        self,
        train: Sequence[Table],
        validation: Sequence[Table],
        *,
        seed: int,
        budget: Budget,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        (learnt,), (judged,) = train, validation
        s = self._settings
        parameters = {
            "objective": "regression",
            "metric": "l2",
            "learning_rate": s.learning_rate,
            "num_leaves": s.leaves,
            "min_data_in_leaf": s.min_leaf,
            "feature_fraction": s.features,
            "bagging_fraction": s.rows,
            "bagging_freq": 1 if s.rows < 1 else 0,
            "lambda_l2": s.l2,
            # A thousand networks fill no 255 bins: 63 fit as well and take a third of the time.
            "max_bin": 63,
            "seed": seed,
            "deterministic": True,
            "force_col_wise": True,
            "num_threads": 1,
            "verbosity": -1,
        }
        data = lightgbm.Dataset(
            learnt.inputs.numpy(), learnt.targets.numpy(), params=parameters, free_raw_data=True
        )
        against = data.create_valid(judged.inputs.numpy(), judged.targets.numpy())

        def watch(env: Any) -> None:
            if progress is not None:
                progress("trees", env.iteration + 1, s.rounds)
            if budget.over:
                raise lightgbm.callback.EarlyStopException(
                    env.iteration, env.evaluation_result_list
                )

        model = lightgbm.train(
            parameters,
            data,
            num_boost_round=s.rounds,
            valid_sets=[against],
            callbacks=[lightgbm.early_stopping(s.patience, verbose=False), watch],
        )
        self._scale = InputScale.of(learnt.inputs, "robust")
        self._read(model.model_to_string(num_iteration=model.best_iteration or None))

    def _read(self, text: str) -> None:
        # The text is what is kept, so that predictions before and after saving are of one model.
        self._text = text
        self._model = lightgbm.Booster(model_str=text)

    def predict(self, inputs: torch.Tensor, vector: VectorLayout | None) -> torch.Tensor:
        assert self._model is not None
        return torch.from_numpy(self._model.predict(inputs.numpy(), num_threads=1)).double()

    def embed(self, inputs: torch.Tensor, vector: VectorLayout | None) -> torch.Tensor:
        return self._scale(inputs)

    def notes(self) -> Mapping[str, float]:
        assert self._model is not None
        return {"trees": float(self._model.num_trees())}

    def state(self) -> State:
        return State(scale_state(self._scale), {}, {"trees": self._text})

    def restore(self, state: State) -> None:
        self._scale = restored_scale(state)
        if "trees" not in state.texts:
            raise ArtifactError("the text of the trees is missing")
        text = state.texts["trees"]
        # LightGBM ends the process at some damaged texts; a whole one ends with its parameters.
        if not text.startswith("tree\n") or "end of trees" not in text:
            raise ArtifactError("the text of the trees is damaged")
        try:
            self._read(text)
        except lightgbm.basic.LightGBMError as exc:
            raise ArtifactError(f"the text of the trees is damaged ({exc})") from exc
