"""What tokenizing costs, against a copy of the same weights.

    python tests/benchmarks/tokenizing.py [--networks 10000] [--rounds 9]

One thread. The networks are those of the `tiny_zoo` preset (2,464 parameters) with random weights. Times are CPU
milliseconds of this process, so that other work on the machine counts little. The rounds alternate between the copy
and every way of tokenizing, and the middle of the rounds' ratios is given. `size` is how much larger the tokens are
than the weights: units of 26 and of 201 weights in tokens of one width are mostly padding, and writing that alone
takes as many copies. Exits with 1 when chunks cost more than 3 copies of the weights, or neurons more than 3 of their
tokens.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

import torch

from zooplatform.layout import layout_of
from zooplatform.plugins import load_plugins

if TYPE_CHECKING:
    from collections.abc import Callable

    from zooplatform.interfaces import Config

MOST = 3.0
CASES: dict[str, tuple[str, Config]] = {
    "chunk": ("chunk", {}),
    "chunk of 16": ("chunk", {"chunk_size": 16}),
    "chunk, std": ("chunk", {"scaling": "std"}),
    "chunk, asinh": ("chunk", {"scaling": "asinh"}),
    "chunk, rows and kernels": (
        "chunk",
        {"chunk_size": 32, "neuron_rows": True, "kernels": True},
    ),
    "neuron": ("neuron", {}),
    "neuron, std": ("neuron", {"scaling": "std"}),
    "neuron, asinh": ("neuron", {"scaling": "asinh"}),
}


class Result(NamedTuple):
    """Middle CPU milliseconds, the middle of the ratios to a copy, and token values per weight."""

    milliseconds: float
    ratio: float
    size: float


def measure(networks: int, rounds: int) -> tuple[float, dict[str, Result]]:
    """Milliseconds of the copy, and the result of every case."""
    registry = load_plugins()
    adapter = registry.architectures.create("cnn")
    network = adapter.build({"preset": "tiny_zoo", "activation": "tanh"})
    layout = layout_of(network.state_dict())
    number = sum(spec.num_elements for spec in layout)
    draw = torch.Generator().manual_seed(0)
    weights = torch.randn(networks, number, generator=draw) / 10

    def encoder(name: str, config: Config) -> Callable[[], torch.Tensor]:
        tokenizer = registry.tokenizers.create(name)
        tokenizer.fit([network.state_dict()], seed=0, config=config)
        encode = tokenizer.encode_population  # type: ignore[attr-defined]
        return lambda: encode(weights, layout=layout).tokens  # type: ignore[no-any-return]

    encoders = {case: encoder(*given) for case, given in CASES.items()}
    sizes = {case: encode().numel() / weights.numel() for case, encode in encoders.items()}
    copies: list[float] = []
    times: dict[str, list[float]] = {case: [] for case in CASES}
    ratios: dict[str, list[float]] = {case: [] for case in CASES}
    for _ in range(rounds):
        for case, encode in encoders.items():
            copies.append(milliseconds(weights.clone))
            times[case].append(milliseconds(encode))
            ratios[case].append(times[case][-1] / copies[-1])
    return statistics.median(copies), {
        case: Result(statistics.median(times[case]), statistics.median(ratios[case]), sizes[case])
        for case in CASES
    }


def milliseconds(work: Callable[[], torch.Tensor]) -> float:
    """CPU milliseconds of one call, the memory of its result included, its release not."""
    begun = time.process_time()
    result = work()
    spent = time.process_time() - begun
    del result
    return 1000 * spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    copy, results = measure(options.networks, options.rounds)
    print(f"{options.networks} networks of 2464 parameters, {options.rounds} rounds, one thread")
    print(f"{'':26}{'ms':>8}{'ratio':>8}{'size':>8}")
    print(f"{'copy':26}{copy:8.1f}{1:8.2f}{1:8.2f}")
    for case, (spent, ratio, size) in results.items():
        print(f"{case:26}{spent:8.1f}{ratio:8.2f}{size:8.2f}")
    slow = [
        case
        for case, result in results.items()
        if result.ratio > MOST * (result.size if CASES[case][0] == "neuron" else 1)
    ]
    if slow:
        sys.exit(f"more than {MOST:g} copies: {', '.join(slow)}")


if __name__ == "__main__":
    main()
