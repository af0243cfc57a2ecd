"""Noise that a network's function hardly feels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from zooplatform.errors import ConfigError
from zooplatform.interfaces import Condition
from zooplatform_igpg.config import IgpgConfig
from zooplatform_igpg.flatness import Flatness, LayerSpread, measure
from zooplatform_igpg.generator import IgpgGenerator
from zooplatform_igpg.preparing import prepare

if TYPE_CHECKING:
    from pathlib import Path

    from zooplatform.fitting import GeneratorData

CONFIG = {"base": "debug", "codec": "klt", "center": "basin", "klt_rank": 4, "klt_codes": 8}


@pytest.fixture(scope="module")
def fitted(stripes: GeneratorData) -> IgpgGenerator:
    generator = IgpgGenerator()
    generator.fit(stripes, config={**CONFIG, "epochs": 3}, seed=0)
    return generator


def drawn(generator: IgpgGenerator, **options: object) -> torch.Tensor:
    batches = generator.sample(
        12, condition=Condition(dataset="rows"), seed=3, temperature=0.0, options=options
    )
    return torch.cat([batch.weights for batch in batches])


def test_noise_is_as_long_as_it_says() -> None:
    """Catches a scale that counts layers instead of values."""
    draw = torch.Generator().manual_seed(0)
    factor = torch.randn((5, 5), generator=draw)
    flat = Flatness(
        [LayerSpread(0, 40, 10, factor), LayerSpread(50, -1, 6, factor[:4, :4])], unit=3.0
    )
    noise = flat.noise(80, list(range(400)))
    assert noise.square().sum(1).mean().sqrt().item() == pytest.approx(3.0, rel=0.03)
    assert not noise[:, 74:].any()  # what belongs to no layer stays
    assert torch.equal(noise[7:8], flat.noise(80, [7]))


def test_noise_changes_answers_less_than_any_noise_would(stripes: GeneratorData) -> None:
    """Catches factors of the wrong sign: the inverse of the inverse points where the function changes most."""
    preparation = prepare(IgpgConfig.parse(CONFIG), stripes, seed=0)
    number, spread = next(iter(measure(stripes, preparation).items()))
    table, blueprint = preparation.tables[number], stripes.blueprints[number]
    basin = next(iter(spread))
    assert table.means is not None
    middle = table.means[basin]
    module = stripes.build(blueprint).eval()
    images = stripes.images[table.datasets[basin]].x

    def answers(weights: torch.Tensor) -> torch.Tensor:
        state = module.state_dict()
        for field in blueprint.vector.fields:
            if not field.aside:
                part = weights[field.offset : field.offset + field.spec.num_elements]
                state[field.spec.name].copy_(part.view(field.spec.shape))
        with torch.no_grad():
            return torch.as_tensor(module(images)).softmax(1)

    noise = spread[basin].noise(len(middle), list(range(16)))
    touched = noise.abs().sum(0) > 0
    draw = torch.Generator().manual_seed(1)
    plain = torch.randn(noise.shape, generator=draw) * touched
    plain *= (noise.norm(dim=1) / plain.norm(dim=1))[:, None]
    before = answers(middle)
    changed = [
        torch.stack([(answers(middle + one) - before).abs().mean() for one in some]).mean().item()
        for some in (noise, plain)
    ]
    assert changed[0] < 0.8 * changed[1]


def test_networks_move_by_what_is_asked(fitted: IgpgGenerator) -> None:
    still = drawn(fitted)
    assert torch.equal(still, drawn(fitted, flat=0))
    one, two = drawn(fitted, flat=1.0) - still, drawn(fitted, flat=2.0) - still
    assert (one.norm(dim=1) > 0).all()
    torch.testing.assert_close(two, 2 * one, rtol=1e-3, atol=1e-5)
    assert not torch.equal(one[0], one[1])


def test_a_stored_generator_moves_networks_alike(fitted: IgpgGenerator, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    loaded = IgpgGenerator()
    loaded.load(tmp_path)
    assert torch.equal(drawn(loaded, flat=1.0), drawn(fitted, flat=1.0))


def test_without_images_nothing_is_flat(stripes: GeneratorData) -> None:
    from dataclasses import replace

    generator = IgpgGenerator()
    generator.fit(replace(stripes, images={}), config={**CONFIG, "epochs": 1, "flat": 1.0}, seed=0)
    assert torch.isfinite(drawn(generator)).all()
    with pytest.raises(ConfigError, match="no images at the fit"):
        drawn(generator, flat=1.0)
    with pytest.raises(ConfigError, match="flat is -1"):
        drawn(generator, flat=-1)
