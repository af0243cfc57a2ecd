"""Rate and distortion: how many bits a weight held-out networks need to keep what they can do.

    results = measure_rates(catalog, load_rates("rates-igpg"), output=Path("rates.json"), data_folder="images")

Every setting of a tokenizer is fitted on the training networks of a split, and the networks of its role `test` go
through its codes and back. An accuracy after that stands beside agreement and diversity, and beside a decoder that
always emits one and the same network (`zooplatform.scorecard.reconstruction`). A setting that is in the output already,
with the same networks and configuration, is not measured again.
"""

from __future__ import annotations

import hashlib
import json
import time
import tomllib
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zooplatform.errors import ConfigError
from zooplatform.evaluation.records import machine, versions, write_json
from zooplatform.generation.images import task_images
from zooplatform.generation.stored_fits import generator_data
from zooplatform.scorecard.networks import Bench, Networks
from zooplatform.scorecard.reconstruction import compared, constant_decoder
from zooplatform.scorecard.sides import read_side
from zooplatform.scorecard.tokenizers import CodeUse, bits_per_weight, through_codes

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    import torch

    from zooplatform.catalog import Catalog
    from zooplatform.fitting import Blueprint, GeneratorData
    from zooplatform.interfaces import Progress

__all__ = ["FORMAT", "RatesProtocol", "load_rates", "measure_rates", "rates_page"]

FORMAT = 1
_KEYS = {"name", "title", "query", "split", "dataset", "n", "seed", "settings"}


@dataclass(frozen=True, kw_only=True)
class RatesProtocol:
    """What is compared.

    Attributes:
        name, title: of the results.
        query: SQL with a column `checkpoint_id`.
        split: fitted on its role train, measured on test.
        dataset: on whose test images; the only one by default.
        n: held-out networks at most.
        seed: of the fits and of the choice of networks.
        settings: by label, `backend` and `config`.
    """

    name: str
    title: str
    query: str
    split: str
    dataset: str | None = None
    n: int = 50
    seed: int = 0
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def load_rates(given: str | os.PathLike[str]) -> RatesProtocol:
    """A protocol from a TOML file, or one of those that come with the package by its name.

    Raises:
        ConfigError: there is no such protocol, or it cannot be read; the text says what is wrong.
    """
    path = Path(given)
    if not path.is_file():
        built_in = Path(str(resources.files("zooplatform.catalogs"))) / f"{given}.toml"
        if not built_in.is_file():
            raise ConfigError(
                f"{given}: there is no such protocol. Name a TOML file, or rates-igpg."
            )
        path = built_in
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path}: the protocol cannot be read: {exc}.") from exc
    unknown = sorted(set(table) - _KEYS)
    missing = sorted({"name", "query", "split", "settings"} - set(table))
    if unknown or missing:
        said = [f"unknown key {key!r}" for key in unknown] + [
            f"{key!r} is missing" for key in missing
        ]
        raise ConfigError(f"{path}: {', '.join(said)}. Known: {', '.join(sorted(_KEYS))}.")
    settings = table["settings"]
    if not isinstance(settings, dict) or not settings:
        raise ConfigError(f"{path}: settings is no table of settings by label.")
    for label, one in settings.items():
        if not isinstance(one, dict) or set(one) - {"backend", "config"}:
            raise ConfigError(
                f"{path}: settings.{label} holds `backend` and `config`, nothing else."
            )
    return RatesProtocol(**{"title": table["name"], **table})


def measure_rates(
    catalog: Catalog,
    protocol: RatesProtocol,
    *,
    output: Path | None = None,
    data_folder: str | os.PathLike[str] | None = None,
    sources: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fit and measure every setting.

    Args:
        catalog: holds the networks.
        protocol: what to compare.
        output: JSON file, written after every setting; settings that it holds already are taken from there.
        data_folder, sources: where images are, as for `task_images`.
        progress: told of settings.

    Raises:
        ConfigError: a setting is not usable, or images are missing.
        CatalogError: the split or its networks are missing.
    """
    data, about = generator_data(
        catalog, protocol.query, protocol.split, data_folder=data_folder, sources=sources
    )
    held = read_side(catalog, protocol.query, protocol.split, "test", protocol.dataset)
    train = read_side(catalog, protocol.query, protocol.split, "train", held.dataset)
    task = task_images(catalog, held.ids, folder=data_folder, sources=sources, names=[held.dataset])
    images = task[held.dataset]
    bench = Bench(data.build, images.image_data())
    chosen = held.last(held.own)
    if len(chosen) > protocol.n:
        draw = np.random.default_rng(protocol.seed)
        chosen = sorted(draw.choice(chosen, protocol.n, replace=False).tolist())
    originals = held.networks.take(chosen)
    known = _found(output, protocol)
    rows: list[dict[str, Any]] = []
    results: dict[str, Any] = {}
    networks = [about["train"]["sha256"], [held.ids[at] for at in chosen]]
    x, y = images.test.x, images.test.y
    learnt = train.networks.take(train.last(train.own))
    validated = bench.answers(learnt, images.validation.x).accuracy(images.validation.y)
    constant = constant_decoder(originals, learnt, validated)
    one = compared("one and the same network", originals, constant, bench=bench, x=x, y=y)
    for at, (label, setting) in enumerate(protocol.settings.items()):
        if progress is not None:
            progress(label, at, len(protocol.settings))
        config = dict(setting.get("config", {}))
        backend = str(setting.get("backend", "vq"))
        text = json.dumps([backend, config, protocol.seed, networks], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:24]
        if key in known:
            rows.append(known[key] | {"label": label})
        else:
            made, about_it = _through(catalog, backend, config, data, originals, protocol.seed)
            figures = compared(label, originals, made, bench=bench, x=x, y=y).to_json()
            row = {"key": key, "label": label, "backend": backend, "config": config}
            rows.append(row | about_it | figures)
        results = {
            "format": FORMAT,
            "kind": "rates",
            "name": protocol.name,
            "title": protocol.title,
            "query": protocol.query,
            "split": protocol.split,
            "dataset": held.dataset,
            "seed": protocol.seed,
            "train": about["train"],
            "num_test_images": len(y),
            "rows": rows,
            "constant": one.to_json(),
            "complete": len(rows) == len(protocol.settings),
            "versions": versions(),
            "machine": machine(1, "cpu"),
        }
        if output is not None:
            write_json(output, results)
    return results


def _found(output: Path | None, protocol: RatesProtocol) -> dict[str, dict[str, Any]]:
    """Rows that an earlier run wrote, by key."""
    if output is None or not output.is_file():
        return {}
    try:
        found = json.loads(output.read_text(encoding="utf-8"))
        if found["kind"] != "rates" or found["format"] != FORMAT:
            raise ConfigError(f"{output} holds other results. Name another file.")
        return {row["key"]: row for row in found["rows"]}
    except (ValueError, KeyError, TypeError) as exc:
        raise ConfigError(
            f"{output} holds no results of rates of {protocol.name} ({exc}). Name another file."
        ) from exc


def _through(
    catalog: Catalog,
    backend: str,
    config: Mapping[str, Any],
    data: GeneratorData,
    originals: Networks,
    seed: int,
) -> tuple[Networks, dict[str, Any]]:
    """Held-out networks through the codes of a setting and back, and what it cost."""
    tokenizer: Any = catalog.registry.tokenizers.create(backend)
    began = time.perf_counter()
    if hasattr(tokenizer, "fit_networks"):
        tokenizer.fit_networks(data, config=dict(config), seed=seed)
    else:
        states = (catalog.state_dict(one) for one in data.train.ids)
        tokenizer.fit(states, seed=seed, config=dict(config))
    fitted = time.perf_counter()
    use = CodeUse(tokenizer)
    tokens, bits = 0, 0.0
    made = []
    for part in originals.parts:
        shown = _images_of(part.blueprint, data)
        back, batches = through_codes(tokenizer, Networks((part,)), shown, data.build)
        made.append(back.parts[0].weights)
        for batch in batches:
            use.add(batch, part.blueprint.vector)
            tokens = max(tokens, batch.tokens.shape[1])
            bits = max(bits, bits_per_weight(tokenizer, batch, part.blueprint.vector))
    ended = time.perf_counter()
    return originals.with_weights(made), {
        "bits_per_weight": bits,
        "num_tokens": tokens,
        **use.figures(),
        "fit_seconds": round(fitted - began, 3),
        "code_seconds_per_network": round((ended - fitted) / len(originals), 5),
    }


def _images_of(blueprint: Blueprint, data: GeneratorData) -> torch.Tensor | None:
    """Training images of a data set that networks of a blueprint were trained on."""
    number = next(
        (at for at, one in enumerate(data.blueprints) if one.config == blueprint.config), 0
    )
    names = {fact.dataset for fact in data.facts.values() if fact.blueprint == number}
    return next((data.images[name].x for name in sorted(names) if name in data.images), None)


# --- the page ---------------------------------------------------------------------------------------------------------


def rates_page(results: Mapping[str, Any], folder: Path, *, figure: bool = True) -> list[Path]:
    """Write `<name>.md` and its figure from results alone; gives the files.

    Raises:
        NotInstalledError: matplotlib is missing, which the figure needs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    constant = results["constant"]
    head = (
        "setting", "bits a weight", "tokens", "relative error", "accuracy", "lost", "agrees with own",
        "with another", "distance in pairs", "fit, s", "coding, ms a network",
    )  # fmt: skip
    rows = [
        (
            row["label"], f"{row['bits_per_weight']:.2f}", f"{row['num_tokens']:,}",
            f"{row['relative_error']:.3f}", f"{row['accuracy']:.3f}",
            f"{row['original_accuracy'] - row['accuracy']:.3f}", f"{row['agreement_own']:.3f}",
            f"{row['agreement_other']:.3f}", f"{row['relative_distance']:.2f}",
            f"{row['fit_seconds']:.0f}", f"{1000 * row['code_seconds_per_network']:.0f}",
        )
        for row in sorted(results["rows"], key=lambda row: (-row["bits_per_weight"], row["label"]))
    ]  # fmt: skip
    rows.append(
        (
            constant["method"], "0", "0", f"{constant['relative_error']:.3f}",
            f"{constant['accuracy']:.3f}",
            f"{constant['original_accuracy'] - constant['accuracy']:.3f}",
            f"{constant['agreement_own']:.3f}", f"{constant['agreement_other']:.3f}",
            f"{constant['relative_distance']:.2f}", "", "",
        )
    )  # fmt: skip
    table = [
        f"| {' | '.join(head)} |",
        f"| {' | '.join('---' for _ in head)} |",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    lines = [
        f"# {results['title']}",
        "",
        f"{constant['n']} networks that no tokenizer was fitted on, accuracy {constant['original_accuracy']:.3f} on "
        f"{results['num_test_images']:,} test images of {results['dataset']}; fitted on "
        f"{results['train']['checkpoints']:,} networks. `agrees` is the share of images that are answered alike: as "
        "high with another network as with the own one means that the codes say nothing of the network. `distance in "
        "pairs` is that among reconstructions over that among originals. The last row is a decoder that ignores its "
        "codes.",
        "",
        *([f"![Accuracy by bits a weight]({results['name']}.svg)", ""] if figure else []),
        *table,
        "",
        "Made from the JSON file beside this page.",
    ]
    written = [folder / f"{results['name']}.md"]
    written[0].write_text("\n".join(lines) + "\n", encoding="utf-8")
    if figure:
        written.append(folder / f"{results['name']}.svg")
        from zooplatform.scorecard.figures import draw_rates

        written[-1].write_text(draw_rates(results), encoding="utf-8")
    return written
