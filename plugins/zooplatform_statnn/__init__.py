"""Predictors from statistics of the weights, and from the weights as they are: the baselines."""

from __future__ import annotations

from zooplatform import hookimpl
from zooplatform.interfaces import PredictorSpec


def _spec(name: str, factory: str, summary: str, *, boosting: bool = False) -> PredictorSpec:
    return PredictorSpec(
        name=name,
        factory=f"zooplatform_statnn.{factory}",
        summary=summary,
        requires=("lightgbm", "torch") if boosting else ("torch",),
        install="pip install 'zooplatform[boosting]'" if boosting else "pip install torch",
    )


@hookimpl
def zoo_register_predictors() -> list[PredictorSpec]:
    return [
        _spec(
            "statnn",
            "boosted:StatNN",
            "Mean, variance and quantiles of every layer, boosted (Unterthiner et al., 2020).",
            boosting=True,
        ),
        _spec(
            "statnn-mlp",
            "perceptrons:StatNNMLP",
            "Mean, variance and quantiles of every layer, and a perceptron.",
        ),
        _spec(
            "rich",
            "boosted:Rich",
            "Statistics of every layer that no order of units changes, boosted.",
            boosting=True,
        ),
        _spec(
            "rich-mlp",
            "perceptrons:RichMLP",
            "Statistics of every layer that no order of units changes, and a perceptron.",
        ),
        _spec(
            "aggregate",
            "boosted:Aggregate",
            "Plain statistics over all layers, boosted; any mix of architectures.",
            boosting=True,
        ),
        _spec(
            "aggregate-rich",
            "boosted:AggregateRich",
            "Rich statistics over all layers, boosted; any mix of architectures.",
            boosting=True,
        ),
        _spec(
            "aggregate-mlp",
            "perceptrons:AggregateMLP",
            "Rich statistics over all layers, and a perceptron; any mix of architectures.",
        ),
        _spec("flat-linear", "flat:FlatLinear", "Ridge regression on the weights."),
        _spec("flat-mlp", "flat:FlatMLP", "A perceptron on the weights."),
        _spec(
            "deepsets",
            "deepsets:DeepSets",
            "Weights as sets, layer by layer (Zaheer et al., 2017); any mix of architectures.",
        ),
        _spec(
            "nfn",
            "nfn:NFN",
            "A permutation-equivariant network over weights (Zhou et al., 2023).",
        ),
    ]
