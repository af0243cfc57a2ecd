"""Generators that every other is to be compared with."""

from __future__ import annotations

from zooplatform import hookimpl
from zooplatform.interfaces import GeneratorSpec

_BACKENDS = (
    ("random-init", "simple:RandomInit", "Untrained networks, drawn as their constructor draws them."),
    ("zoo-mean", "simple:ZooMean", "The mean of all training networks, always."),
    ("cluster-mean", "clusters:ClusterMean", "The mean of a cluster of training networks."),
    ("pca", "gaussian:PcaGaussian", "A normal distribution on the principal components of all weights."),
    ("activation-pca", "activations:ActivationPca", "A normal distribution on what networks do with images."),
    ("cluster-pca", "gaussian:ClusterPca", "The same within each cluster of training networks."),
    ("layer-bootstrap", "resampling:LayerBootstrap", "Every layer from another training network."),
    ("chunk-kde", "resampling:ChunkKde", "Chunks by kernel density estimates, in the manner of SANE."),
    ("subsample", "resampling:Subsample", "Chunks near those of the best training networks, as SANE's subsampling."),
    ("noise", "simple:Noise", "A training network with noise."),
    ("diffusion", "diffusion:LatentDiffusion", "A diffusion model on principal components, after p-diff."),
    ("retrieval", "simple:Retrieval", "A training network that fits the instruction, unchanged."),
)  # fmt: skip


@hookimpl
def zoo_register_generators() -> list[GeneratorSpec]:
    return [
        GeneratorSpec(
            name=name,
            factory=f"zooplatform_kde.{target}",
            summary=summary,
            requires=("numpy", "safetensors", "torch"),
            install="pip install numpy safetensors torch",
        )
        for name, target, summary in _BACKENDS
    ]
