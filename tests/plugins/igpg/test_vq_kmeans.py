"""k-means: centres where the vectors are, the same for the same seed, no code left dead."""

from __future__ import annotations

import pytest
import torch

from zooplatform.errors import ConfigError
from zooplatform_igpg.kmeans import kmeans, nearest, residual_tables
from zooplatform_igpg.quantizers import TableCoder, mask_groups


def _error(vectors: torch.Tensor, table: torch.Tensor) -> float:
    return float((vectors - table[nearest(vectors, table)]).square().mean())


@pytest.mark.parametrize("size", [1, 3])
def test_the_nearest_is_what_all_distances_say(size: int) -> None:
    draw = torch.Generator().manual_seed(0)
    vectors, table = (torch.randn(n, size, generator=draw) for n in (500, 17))
    wanted = torch.cdist(vectors.double(), table.double()).argmin(1)
    assert torch.equal(nearest(vectors, table), wanted)


def test_clusters_are_found() -> None:
    draw = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(8, 3, generator=draw)
    vectors = centres.repeat(50, 1) + 0.01 * torch.randn(400, 3, generator=draw)
    found = kmeans(vectors, 8, seed=1)
    assert torch.cdist(centres, found).min(1).values.max() < 0.02


def test_a_normal_distribution_is_cut_as_lloyd_and_max_did() -> None:
    """Errors of 2, 4 and 8 levels for a unit normal (Max 1960): .3634, .1175, .03454."""
    numbers = torch.special.ndtri((torch.arange(20_000) + 0.5) / 20_000).unsqueeze(1).float()
    for number, wanted in {2: 0.3634, 4: 0.1175, 8: 0.03454}.items():
        assert _error(numbers, kmeans(numbers, number, seed=0, iterations=200)) == pytest.approx(
            wanted, rel=0.02
        )


def test_the_seed_decides() -> None:
    vectors = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    first = kmeans(vectors, 32, seed=5)
    torch.manual_seed(2)
    assert torch.equal(first, kmeans(vectors, 32, seed=5))
    assert not torch.equal(first, kmeans(vectors, 32, seed=6))


def test_dead_codes_begin_anew() -> None:
    # Most vectors are one and the same: seeds that fall on it are used by none.
    vectors = torch.cat([torch.zeros(1000, 2), torch.randn(60, 2)])
    table = kmeans(vectors, 32, seed=0, iterations=30)
    assert len(nearest(vectors, table).unique()) >= 30


def test_levels_code_what_is_left() -> None:
    vectors = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
    tables = residual_tables(vectors, 16, 3, seed=0)
    assert tables.shape == (3, 16, 4)
    rest, errors = vectors, []
    for table in tables:
        rest = rest - table[nearest(rest, table)]
        errors.append(float(rest.square().mean()))
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]


def test_too_few_vectors_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 chunks of weights are too few for a codebook of 16"):
        kmeans(torch.randn(5, 2), 16, seed=0)


# --- tables as quantiser ----------------------------------------------------------------------------------------------


def test_padding_has_no_part_in_what_is_nearest() -> None:
    tables = torch.tensor([[[1.0, 9.0], [-1.0, 0.0]]])
    coder = TableCoder(tables)
    chunks = torch.tensor([[[0.9, 9.0], [0.9, 0.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    codes = coder.encode(chunks, mask, torch.zeros(2, 6, dtype=torch.int64))
    assert codes[0, :, 0].tolist() == [0, 0]
    whole = coder.encode(chunks, torch.ones_like(mask), torch.zeros(2, 6, dtype=torch.int64))
    assert whole[0, :, 0].tolist() == [0, 1]


def test_decoding_adds_up_the_levels() -> None:
    tables = torch.randn(3, 8, 5)
    codes = torch.randint(8, (4, 7, 3))
    found = TableCoder(tables).decode(codes, torch.zeros(7, 6, dtype=torch.int64))
    wanted = tables[0][codes[..., 0]] + tables[1][codes[..., 1]] + tables[2][codes[..., 2]]
    assert torch.equal(found, wanted)


def test_chunks_are_grouped_by_their_padding() -> None:
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    found = {tuple(real.tolist()): rows.tolist() for real, rows in mask_groups(mask)}
    assert found == {(True, True): [0, 2], (True, False): [1]}
