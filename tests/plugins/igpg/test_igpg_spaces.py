"""Before there are codes: units in order, basins, differences from their means, principal components."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from zooplatform.errors import ConfigError
from zooplatform_igpg.basins import Viewer, find_basins
from zooplatform_igpg.config import IgpgConfig
from zooplatform_igpg.prepared import Aligner, Centring, Networks, PreparedNetworks, variances
from zooplatform_igpg.preparing import prepare
from zooplatform_igpg.resolving import Cell
from zooplatform_igpg.spaces import KltCodec

if TYPE_CHECKING:
    from zooplatform.fitting import GeneratorData


def _clouds(number: int, each: int, seed: int, wide: int = 200) -> torch.Tensor:
    """Networks that began at so many points."""
    centres = torch.randn(number, wide, generator=torch.Generator().manual_seed(7))
    draw = torch.Generator().manual_seed(seed)
    return torch.cat([c + 0.4 * torch.randn(each, wide, generator=draw) for c in centres])


# --- basins -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 5, 8])
def test_the_number_of_initialisations_is_found_and_who_began_where(number: int) -> None:
    found = find_basins(_clouds(number, 12, 0), _clouds(number, 5, 1), "auto", seed=0)
    assert len(found.centres) == number
    for basins, each in ((found.train, 12), (found.validation, 5)):
        rows = basins.reshape(number, each)
        assert (rows == rows[:, :1]).all()
        assert len(set(rows[:, 0].tolist())) == number


def test_independent_networks_are_one_basin_even_with_several_checkpoints_each() -> None:
    """Checkpoints of one run lie together, but validation networks are of other runs."""
    train = torch.randn(40, 200).repeat_interleave(3, dim=0)
    train += 0.1 * torch.randn_like(train)
    assert len(find_basins(train, torch.randn(20, 200), "auto", seed=0).centres) == 1


def test_a_number_can_be_given_and_validation_networks_be_missing() -> None:
    points = _clouds(3, 12, 0)
    assert len(find_basins(points, points[:0], 6, seed=0).centres) == 6
    assert len(find_basins(points, points[:0], "auto", seed=0).centres) == 3
    assert len(find_basins(points[:2], points[:0], 6, seed=0).centres) == 2


def test_tensors_count_alike_whatever_their_size(kinds: GeneratorData) -> None:
    vector = kinds.blueprints[0].vector
    sample = torch.randn(20, vector.width)
    field = vector.fields[0]
    sample[:, field.offset : field.offset + field.spec.num_elements] *= 1000
    seen = Viewer.of(vector, sample, seed=0)(sample)
    own = seen[:, field.offset : field.offset + field.spec.num_elements]
    assert own.square().mean().sqrt() == pytest.approx(1, abs=0.1)


def test_long_networks_are_projected_and_keep_their_distances() -> None:
    viewer = Viewer(torch.ones(9000), seed=3)
    points = torch.randn(6, 9000)
    seen = viewer(points)
    assert seen.shape == (6, 256)
    ratio = torch.pdist(seen) / torch.pdist(points)
    assert ratio.min() > 0.8
    assert ratio.max() < 1.2
    assert torch.equal(Viewer(torch.ones(9000), seed=3)(points), seen)


# --- preparation ------------------------------------------------------------------------------------------------------


def test_differences_from_basins_are_put_back_exactly(kinds: GeneratorData) -> None:
    config = IgpgConfig.parse({"base": "debug", "center": "basin"})
    found = prepare(config, kinds, 0)
    cnn = next(b for b, one in enumerate(kinds.blueprints) if one.name == "kinds-cnn")
    own = found.train.of_blueprint(cnn)
    differences = found.train.read(own).weights
    vector = kinds.blueprints[cnn].vector
    ratio = variances(vector)
    assert ratio.sum() == 2
    plain = PreparedNetworks(found.train.networks).read(own).weights
    assert differences[:, ~ratio].mean(dim=0).abs().max() < 1e-5
    assert (differences[:, ratio] > 0).all()  # variances stay what can be a variance
    assert differences.std(dim=0).mean() < plain.std(dim=0).mean()
    table = found.tables[cnn]
    assert table.means is not None
    assert found.train.basins is not None
    back = Centring(table.means, vector).put_back(
        differences, torch.from_numpy(found.train.basins[own])
    )
    torch.testing.assert_close(back, plain)
    assert table.least is not None
    assert (table.least[ratio] < plain[:, ratio].min(dim=0).values).all()
    assert (table.least[~ratio] == -torch.inf).all()


def test_kinds_of_networks_are_counted_and_graded(kinds: GeneratorData) -> None:
    found = prepare(IgpgConfig.parse({"base": "debug"}), kinds, 0)
    assert found.cells == {Cell(b, d): 8 for b in range(3) for d in ("rows", "columns")}
    for cell in found.cells:
        own = [
            place
            for place, fact in enumerate(found.train.networks.facts)
            if Cell(fact.blueprint, fact.dataset) == cell
        ]
        assert sorted(found.train_levels[own].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
        best = max(own, key=lambda p: found.train.networks.facts[p].metrics["test_accuracy"])
        assert found.train_levels[best] == 3


def test_networks_with_nan_are_left_out_and_said_so(kinds: GeneratorData) -> None:
    class Broken(PreparedNetworks):
        def read(self, indices):  # type: ignore[no-untyped-def]
            batch = super().read(indices)
            for at, row in enumerate(np.asarray(indices).tolist()):
                if row in (3, 5):
                    batch.weights[at, 0] = torch.nan
            return batch

    whole = Networks(kinds.train, kinds.facts)
    data = replace(kinds, train=Broken(whole))
    found = prepare(IgpgConfig.parse({"base": "debug"}), data, 0)
    assert len(found.train) == 46
    assert found.notes == ["2 training networks left out: NaN or infinite weights."]
    assert not {whole.data.ids[3], whole.data.ids[5]} & set(found.train.ids)


def test_aligned_networks_compute_the_same_and_lie_nearer(kinds: GeneratorData) -> None:
    networks = Networks(kinds.train, kinds.facts)
    shuffled = PreparedNetworks(networks, shuffle=5)
    aligner = Aligner.choose(networks, kinds)
    mlp = next(b for b, one in enumerate(kinds.blueprints) if one.name == "kinds-mlp")
    blueprint = kinds.blueprints[mlp]
    own = shuffled.of_blueprint(mlp)
    mixed, plain = shuffled.read(own).weights, PreparedNetworks(networks).read(own).weights
    assert (mixed - plain).norm(dim=1).min() > 0.1
    images = torch.rand(5, 1, 6, 6)
    for one, other in zip(mixed[:3], plain[:3], strict=True):
        load = kinds.build.load  # type: ignore[attr-defined]  # the builder of the platform
        with torch.no_grad():
            torch.testing.assert_close(load(blueprint, one)(images), load(blueprint, other)(images))
    aligned = aligner(mixed, blueprint.vector, blueprint.architecture_id)
    reference = aligner.references[blueprint.architecture_id]
    assert ((aligned - reference).norm(dim=1) <= (mixed - reference).norm(dim=1) + 1e-5).all()
    assert torch.equal(shuffled.read(own[2:4]).weights, mixed[2:4])  # whatever the batch


# --- principal components ---------------------------------------------------------------------------------------------


def test_components_give_networks_back_but_for_the_steps_of_their_codes(
    kinds: GeneratorData,
) -> None:
    errors = {}
    for codes in (8, 512):
        config = IgpgConfig.parse({"codec": "klt", "center": "mean", "klt_codes": codes})
        found = prepare(config, kinds, 0)
        codec = KltCodec(kinds.blueprints, config.space.klt_rank, codes)
        assert codec.fit(kinds, found.train, 0)["klt_explained"] == pytest.approx(1)
        own = found.train.of_blueprint(0)
        weights = found.train.read(own).weights
        assert found.train.basins is not None
        basins = torch.from_numpy(found.train.basins[own])
        tokens = codec.encode(weights, 0, basins)
        assert tokens.shape == (16, 7)  # 8 networks of a data set have 7 components
        assert tokens.min() >= 0
        assert tokens.max() < codes
        centred = weights - variances(kinds.blueprints[0].vector).float()
        back = codec.decode(tokens, 0, basins) - weights
        errors[codes] = float(back.square().sum() / centred.square().sum())
    assert errors[512] < 0.01 < errors[8] < 0.3


def test_codes_of_components_are_used_alike(kinds: GeneratorData) -> None:
    codec = KltCodec(kinds.blueprints, 4, 16, "likely")
    vectors = codec.code_vectors()
    assert vectors.shape == (1, 16, 1)
    torch.testing.assert_close(vectors.flip(1), -vectors)
    drawn = torch.bucketize(torch.randn(20_000), codec._edges)
    assert torch.bincount(drawn, minlength=16).float().div(20_000).std() < 0.01
    assert (vectors[0, :, 0].diff() > 0).all()


def test_the_likeliest_codes_of_an_even_grid_lie_in_the_middle(kinds: GeneratorData) -> None:
    """So that a low temperature draws networks near the mean of a basin."""
    codec = KltCodec(kinds.blueprints, 4, 16)
    widths = codec.code_vectors()[0, :, 0].diff()
    torch.testing.assert_close(widths, widths.mean().expand(15))
    drawn = torch.bucketize(torch.randn(20_000), codec._edges)
    counts = torch.bincount(drawn, minlength=16)
    assert (counts[1:8].diff() > 0).all()
    assert (counts[8:15].diff() < 0).all()


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_that_do_not_go_together_are_refused() -> None:
    for wrong, text in (
        ({"center": "basin", "basins": 0}, "needs basins"),
        ({"codec": "klt"}, "center to mean or basin"),
        ({"augment": 2, "center": "mean"}, "augment"),
        ({"encode": "functional", "center": "mean"}, "encode functional"),
        ({"basins": "many"}, "basins is 'many'"),
        ({"centre": "mean"}, "Did you mean 'center'"),
        ({"epochs": 0}, "epochs is 0"),
        ({"dim": "large"}, "dim is 'large'"),
        ({"drop": 1.0}, "drop is 1"),
        ({"schedule": "up"}, "schedule is 'up'"),
        ({"base": "huge"}, "Unknown base 'huge'"),
        ({"tokenizer": "vq"}, "tokenizer is 'vq'"),
    ):
        with pytest.raises(ConfigError, match=text):
            IgpgConfig.parse(wrong)


def test_a_configuration_is_written_out_and_read_again() -> None:
    for base in ("debug", "paper", "best", "klt", "aligned"):
        parsed = IgpgConfig.parse({"base": base})
        assert IgpgConfig.parse(parsed.describe()) == parsed
    assert IgpgConfig.parse({}) == IgpgConfig.parse({"base": "best"})
