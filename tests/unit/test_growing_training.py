"""Stacks of networks train as the same networks do alone."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from zooplatform.growing.activations import activation_function
from zooplatform.growing.grow import ZooGrower
from zooplatform.growing.images import ImageData, read_images
from zooplatform.growing.initialise import INITIALISATIONS, initialise
from zooplatform.growing.optimizers import OPTIMIZERS, Rule, StackedOptimizer
from zooplatform.growing.recipe import DataRecipe, Recipe
from zooplatform.growing.runs import Run, Stack
from zooplatform.growing.train import Moment, StackTrainer, training_subset
from zooplatform.plugins import load_plugins

if TYPE_CHECKING:
    from types import ModuleType

    from zooplatform.registry import Registry

CPU = torch.device("cpu")
UNTERTHINER = {"family": "cnn", "preset": "unterthiner", "size": 16}
TINY_ZOO = {"family": "cnn", "preset": "tiny_zoo", "size": 28}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_plugins(strict=True)


@pytest.fixture(scope="module")
def benchmark_module() -> ModuleType:
    """tests/benchmarks/grow.py, whose plain loop is the reference here."""
    path = Path(__file__).parents[1] / "benchmarks" / "grow.py"
    spec = importlib.util.spec_from_file_location("benchmark_grow", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def digits(size: int) -> ImageData:
    pytest.importorskip("sklearn")
    recipe = DataRecipe(source=("sklearn:digits",), size=size, train=200)
    return read_images("sklearn:digits", recipe)


def make(architecture: dict[str, Any], *, size: int, registry: Registry, **keys: Any) -> ZooGrower:
    recipe = Recipe(
        name="grown",
        data=DataRecipe(source=("sklearn:digits",), size=size),
        architecture=architecture,
        **{"epochs": 3, "keep": (0, 1, 2, 3), "runs": 4, **keys},
    )
    return ZooGrower(recipe, digits(size), registry)


def together(grower: ZooGrower) -> dict[int, list[Moment]]:
    """Every stack trained; moments hold one network each, by run."""
    moments: dict[int, list[Moment]] = {}
    for stack in grower.stacks:
        trained = grower.train(stack, CPU)
        for place, run in enumerate(stack.runs):
            moments[run.index] = [_one(moment, place) for moment in trained]
    return moments


def _one(moment: Moment, place: int) -> Moment:
    return replace(moment, weights=moment.weights[place : place + 1], steps=(moment.steps[place],))


MIXED = {
    "activation": "tanh",
    "optimizer": ["adam", "sgd", "adamw"],
    "learning_rate": [0.01, 0.003],
    "momentum": 0.9,
    "weight_decay": [0.0, 0.1],
    "fraction": {"choice": [0.3, 0.51, 1.0]},
}


@pytest.mark.parametrize(
    ("architecture", "size", "hyperparameters"),
    [
        (UNTERTHINER, 16, MIXED),
        (TINY_ZOO, 28, {**MIXED, "activation": "relu"}),
        ({"family": "cnn", "preset": "sne_arch2", "size": 16}, 16, {**MIXED, "activation": "gelu"}),
        ({"family": "mlp", "hidden": [20, 12]}, 8, {**MIXED, "activation": "leaky_relu(0.1)"}),
    ],
    ids=["unterthiner", "tiny_zoo", "sne_arch2", "mlp"],
)
def test_the_loss_curves_are_those_of_a_plain_loop(
    architecture: dict[str, Any],
    size: int,
    hyperparameters: dict[str, Any],
    registry: Registry,
    benchmark_module: ModuleType,
) -> None:
    """Every rule and share of the data in one stack, batches that do not divide the images."""
    grower = make(
        architecture, size=size, registry=registry, runs=12, hyperparameters=hyperparameters
    )
    (stack,) = grower.stacks
    moments = grower.train(stack, CPU)
    data, plan = digits(size), grower.plan(stack.runs[0])
    for place, run in enumerate(stack.runs):
        for epochs in (0, 1, 3):
            module = initialise(plan.build, run.init, seed=run.init_seed, std=run.init_std)
            benchmark_module.plain_loop(run, module, data, epochs)
            moment = moments[epochs]
            assert moment.test.loss[place] == pytest.approx(
                benchmark_module.test_loss(module, data), abs=2e-5
            )
            seen = training_subset(run, len(data.train.y))
            with torch.no_grad():
                logits = module(data.train.x[seen])
            loss = F.cross_entropy(logits, data.train.y[seen])
            assert moment.train.loss[place] == pytest.approx(float(loss), abs=2e-5)
            accuracy = (logits.argmax(1) == data.train.y[seen]).double().mean()
            assert moment.train.accuracy[place] == pytest.approx(float(accuracy), abs=1e-9)
            vector = torch.cat([p.detach().flatten() for p in module.state_dict().values()])
            np.testing.assert_allclose(moment.weights[place], vector.numpy(), atol=2e-4)
    # The curves say something only if the networks learn.
    assert (moments[0].train.loss - moments[3].train.loss).max() > 0.1


@pytest.mark.parametrize("case", ["4,970 parameters, 16x16", "2,464 parameters, 28x28"])
def test_the_benchmark_compares_equals(case: str, benchmark_module: ModuleType) -> None:
    result = benchmark_module.measure(case, networks=4, rounds=1, plain_networks=2)
    assert result.difference < 1e-4
    assert result.stacked > 0
    assert result.plain > 0


def test_engines_agree(registry: Registry) -> None:
    """A stack of plain networks through each engine."""
    results = [
        together(
            make(
                UNTERTHINER,
                size=16,
                registry=registry,
                engine=engine,
                hyperparameters={"activation": "gelu", "learning_rate": [0.01, 0.001]},
            )
        )
        for engine in ("grouped", "vmap", "loop")
    ]
    for other in results[1:]:
        for run, moments in results[0].items():
            for moment, same in zip(moments, other[run], strict=True):
                np.testing.assert_allclose(moment.weights, same.weights, atol=2e-5)
                assert moment.steps == same.steps


def test_a_network_does_not_depend_on_its_stack(registry: Registry) -> None:
    keys = {"hyperparameters": MIXED, "runs": 6}
    large = together(make(UNTERTHINER, size=16, registry=registry, stack=6, **keys))
    small = together(make(UNTERTHINER, size=16, registry=registry, stack=1, **keys))
    assert large.keys() == small.keys() == set(range(6))
    for run in large:
        np.testing.assert_allclose(large[run][-1].weights, small[run][-1].weights, atol=2e-4)
        assert large[run][-1].steps == small[run][-1].steps


def test_the_same_recipe_gives_the_same_weights(registry: Registry) -> None:
    keys = {"hyperparameters": {**MIXED, "dropout": {"uniform": [0.0, 0.5]}}, "runs": 3}
    one, same, other = (
        together(make(TINY_ZOO, size=28, registry=registry, seed=seed, **keys))
        for seed in (5, 5, 6)
    )
    for run in range(3):
        np.testing.assert_array_equal(one[run][-1].weights, same[run][-1].weights)
        assert not np.array_equal(one[run][-1].weights, other[run][-1].weights)


def test_initialisations_are_shared_as_asked(registry: Registry) -> None:
    def firsts(initialisation: str | int) -> set[bytes]:
        grower = make(
            UNTERTHINER,
            size=16,
            registry=registry,
            runs=12,
            keep=(0,),
            initialisation=initialisation,
            hyperparameters={"activation": "relu"},
        )
        return {moments[0].weights.tobytes() for moments in together(grower).values()}

    assert len(firsts("independent")) == 12
    assert len(firsts("shared")) == 1
    assert len(firsts(3)) == 3


class _Sine(torch.nn.Linear):
    """A layer that every initialisation takes, `siren` too."""

    w0 = 30.0


@pytest.mark.parametrize("how", INITIALISATIONS)
def test_an_initialisation_depends_on_its_seed_alone(how: str) -> None:
    def made(seed: int) -> torch.Tensor:
        torch.rand(1)  # moves the global generator
        module = initialise(lambda: _Sine(40, 30), how, seed=seed, std=0.3)
        return module.weight.detach()

    torch.testing.assert_close(made(1), made(1), rtol=0, atol=0)
    assert not torch.equal(made(1), made(2))
    if how in ("uniform", "normal"):
        assert float(made(1).std()) == pytest.approx(0.3, rel=0.1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rules_are_those_of_torch(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 50, generator=generator)
    rule = Rule(name, 0.05, weight_decay=0.1, momentum=0.8)
    stacked = start.clone()
    # Another rule in the first row must not leak into the others.
    optimizer = StackedOptimizer([Rule("sgd", 0.1), rule, rule], stacked)
    single = torch.nn.Parameter(start[1].clone())
    kinds: dict[str, Any] = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.1, momentum=0.8),
        "adam": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.1),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    }
    reference = kinds[name]([single])
    for _ in range(20):
        gradient = torch.randn(3, 50, generator=generator)
        single.grad = gradient[1].clone()
        reference.step()
        optimizer.step(gradient[:2])
    torch.testing.assert_close(stacked[1], single.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stacked[2], start[2], rtol=0, atol=0)


def test_the_fast_tanh_is_tanh() -> None:
    function = activation_function("tanh")
    assert function is not None
    x = torch.linspace(-12, 12, 100_001, requires_grad=True)
    reference = x.detach().clone().requires_grad_()
    assert float((function(x) - torch.tanh(reference)).detach().abs().max()) <= 2e-7
    function(x).sum().backward()
    torch.tanh(reference).sum().backward()
    torch.testing.assert_close(x.grad, reference.grad, rtol=0, atol=5e-7)


def test_dropout_drops_by_each_networks_own_probability(registry: Registry) -> None:
    grower = make(
        TINY_ZOO,
        size=28,
        registry=registry,
        runs=3,
        hyperparameters={"activation": "relu", "dropout": [0.0, 0.25, 0.9]},
    )
    (stack,) = grower.stacks
    trainer = StackTrainer(
        stack, grower.plan(stack.runs[0]), "grouped", digits(28), device=CPU, train_metrics=0
    )
    factors = trainer._factors((3, 200, 500))
    assert (factors[0] == 1).all()
    for row, p in ((1, 0.25), (2, 0.9)):
        assert factors[row].unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])
        assert float((factors[row] == 0).float().mean()) == pytest.approx(p, abs=0.01)


def test_dropout_changes_only_the_networks_that_have_it(registry: Registry) -> None:
    def grown(dropout: list[float]) -> dict[int, list[Moment]]:
        return together(
            make(
                {"family": "mlp", "hidden": [12]},
                size=8,
                registry=registry,
                runs=2,
                hyperparameters={"activation": "relu", "dropout": dropout},
            )
        )

    without, mixed = grown([0.0, 0.0]), grown([0.0, 0.5])
    np.testing.assert_array_equal(without[0][-1].weights, mixed[0][-1].weights)
    assert not np.allclose(without[1][-1].weights, mixed[1][-1].weights, atol=1e-3)


RESIDUAL = {
    "family": "cnn",
    "preset": "resnet_small",
    "channels": 1,
    "size": 8,
    "blocks": [1, 1],
    "widths": [4, 6],
}
# Biases, pooling and padding channels before normalisations of images and of vectors.
NORMALISED = {
    "family": "cnn",
    "input": [1, 8, 8],
    "activation": "tanh",
    "layers": [
        {"type": "conv", "out": 5, "kernel": 3},
        {"type": "pool"},
        {"type": "batchnorm"},
        {"type": "activation"},
        {"type": "flatten"},
        {"type": "linear", "out": 7},
        {"type": "batchnorm"},
        {"type": "activation"},
        {"type": "linear", "out": 10},
    ],
}


@pytest.mark.parametrize("engine", ["grouped", "loop"])
@pytest.mark.parametrize("architecture", [RESIDUAL, NORMALISED], ids=["residual", "chain"])
def test_batch_normalisation_keeps_its_running_statistics(
    architecture: dict[str, Any],
    engine: str,
    registry: Registry,
    benchmark_module: ModuleType,
) -> None:
    """Networks with normalisation against the plain loop, buffers included."""
    grower = make(
        architecture,
        size=8,
        registry=registry,
        engine=engine,
        runs=3,
        epochs=2,
        keep=(2,),
        # Adam divides by the size of gradients, and blows up those that are rounding: of what lies before a
        # normalisation, on some processors more than on others.
        hyperparameters={"learning_rate": 0.01, "momentum": 0.9, "optimizer": "sgd"},
    )
    (stack,) = grower.stacks
    (moment,) = grower.train(stack, CPU)
    data, plan = digits(8), grower.plan(stack.runs[0])
    assert moment.aside is not None
    for place, run in enumerate(stack.runs):
        module = initialise(plan.build, run.init, seed=run.init_seed, std=run.init_std)
        benchmark_module.plain_loop(run, module, data, 2)
        floats = [v.flatten() for v in module.state_dict().values() if v.is_floating_point()]
        np.testing.assert_allclose(moment.weights[place], torch.cat(floats).numpy(), atol=1e-4)
        counters = moment.aside[place].view(np.int64)
        assert counters.tolist() == [moment.steps[place]] * len(counters)
        with torch.no_grad():
            outputs = module.eval()(data.test.x)
        loss = F.cross_entropy(outputs, data.test.y).item()
        assert moment.test.loss[place] == pytest.approx(loss, abs=1e-3)


def test_normalised_networks_are_stacked_by_the_images_that_they_see(registry: Registry) -> None:
    """Batches that are filled up for the sake of others would change their statistics."""
    hyperparameters = {"fraction": [0.5, 1.0], "activation": "relu"}
    keys = {"runs": 4, "hyperparameters": hyperparameters}
    grower = make(RESIDUAL, size=8, registry=registry, **keys)
    assert [[run.index for run in stack.runs] for stack in grower.stacks] == [[0, 2], [1, 3]]
    plain = make(UNTERTHINER, size=16, registry=registry, **keys)
    assert len(plain.stacks) == 1


def test_a_vision_transformer_of_timm_is_trained_by_vmap(registry: Registry) -> None:
    grower = make(
        {
            "family": "timm",
            "architecture": "vit_tiny_patch16_224",
            "num_classes": 10,
            "in_chans": 1,
            "model_args": {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1},
        },
        size=16,
        registry=registry,
        runs=2,
        epochs=1,
        hyperparameters={"fraction": 0.5, "learning_rate": 0.01},
        keep=(0, 1),
    )
    (stack,) = grower.stacks
    before, after = grower.train(stack, CPU)
    assert (after.train.loss < before.train.loss).all()


def test_training_loss_is_measured_on_the_networks_own_images(registry: Registry) -> None:
    grower = make(
        {"family": "mlp", "hidden": [32]},
        size=8,
        registry=registry,
        runs=1,
        epochs=60,
        keep=(60,),
        hyperparameters={"activation": "relu", "fraction": 0.05, "learning_rate": 0.02},
    )
    (moment,) = grower.train(grower.stacks[0], CPU)
    # Ten images learnt by heart: perfect on them and on nothing else.
    assert moment.train.accuracy[0] == 1.0
    assert moment.test.accuracy[0] < 0.9


def test_stacks_are_named_by_their_first_run_and_hold_alike_runs(registry: Registry) -> None:
    grower = make(
        UNTERTHINER,
        size=16,
        registry=registry,
        runs=10,
        stack=3,
        hyperparameters={"activation": ["relu", "tanh"], "batch_size": 16},
    )
    held: list[tuple[str, list[int]]] = [
        (stack.name, [run.index for run in stack.runs]) for stack in grower.stacks
    ]
    assert held == [
        ("00000", [0, 2, 4]),
        ("00001", [1, 3, 5]),
        ("00006", [6, 8]),
        ("00007", [7, 9]),
    ]
    assert all(isinstance(s, Stack) and isinstance(s.runs[0], Run) for s in grower.stacks)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() == 0, reason="needs a CUDA device")
def test_cuda_gives_the_curves_of_the_cpu(registry: Registry) -> None:
    grower = make(UNTERTHINER, size=16, registry=registry, runs=6, hyperparameters=MIXED)
    (stack,) = grower.stacks
    for cpu, cuda in zip(
        grower.train(stack, CPU), grower.train(stack, torch.device("cuda")), strict=True
    ):
        np.testing.assert_allclose(cpu.test.loss, cuda.test.loss, atol=1e-3)
