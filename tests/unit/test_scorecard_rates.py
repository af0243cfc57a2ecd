"""Bits a weight against what is left of held-out networks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from zooplatform.catalog import open_catalog
from zooplatform.errors import ConfigError
from zooplatform.growing import grow, load_recipe
from zooplatform.scorecard.rates import RatesProtocol, load_rates, measure_rates, rates_page
from zooplatform.splits import create_split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from click.testing import Result

    from zooplatform.catalog import Catalog

QUERY = "select checkpoint_id from wide"
SETTINGS = {
    "exact": {"backend": "chunk", "config": {"chunk_size": 16}},
    "fine": {"backend": "vq", "config": {"base": "scalar", "codebook_size": 64}},
    "coarse": {"backend": "vq", "config": {"base": "scalar", "codebook_size": 2}},
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    """Sixteen digit networks of independent seeds, a quarter of them held out."""
    settings = ("name=small", "runs=16", "epochs=4", "initialisation=independent", "stack=16")
    with open_catalog(tmp_path_factory.mktemp("rates") / "zoo", create=True) as catalog:
        grow(load_recipe("digits-shared", settings), catalog)
        create_split(catalog, "main", QUERY, by="model", seed=0, ratio="50/25/25")
        yield catalog


def protocol(settings: dict[str, dict[str, object]]) -> RatesProtocol:
    return RatesProtocol(name="r", title="R", query=QUERY, split="main", settings=settings)


def test_fewer_bits_lose_more(zoo: Catalog) -> None:
    """Catches bits that are not those of the codes, and reconstructions that are the originals."""
    found = measure_rates(zoo, protocol(SETTINGS))
    exact, fine, coarse = found["rows"]
    assert exact["relative_error"] == 0
    assert exact["accuracy"] == exact["original_accuracy"]
    assert exact["bits_per_weight"] == 32
    assert fine["bits_per_weight"] == pytest.approx(6, rel=0.02)
    assert coarse["bits_per_weight"] == pytest.approx(1, rel=0.02)
    assert 0 < fine["relative_error"] < 0.01 < coarse["relative_error"]
    assert fine["accuracy"] > coarse["accuracy"] + 0.1
    # One network in place of all has its accuracy and nothing of the others.
    constant = found["constant"]
    assert constant["agreement_own"] == pytest.approx(constant["agreement_other"], abs=0.05)
    assert constant["relative_distance"] == 0
    assert constant["accuracy"] > coarse["accuracy"]
    assert fine["agreement_own"] > fine["agreement_other"]


def test_what_is_there_is_not_measured_again(
    zoo: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rates.json"
    first = measure_rates(zoo, protocol({"fine": SETTINGS["fine"]}), output=path)
    assert json.loads(path.read_text()) == first
    from zooplatform.scorecard import rates

    asked: list[str] = []
    through = rates._through

    def counted(*given: object) -> object:
        asked.append(str(given[2]))
        return through(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(rates, "_through", counted)
    again = measure_rates(zoo, protocol(SETTINGS), output=path)
    assert len(asked) == 2  # not the one that the file held
    assert again["rows"][1] == first["rows"][0]
    assert again["complete"]


def test_the_page_has_every_row_and_the_decoder_that_ignores_codes(
    zoo: Catalog, tmp_path: Path
) -> None:
    found = measure_rates(zoo, protocol({"coarse": SETTINGS["coarse"]}))
    page, figure = rates_page(found, tmp_path)
    text = page.read_text()
    assert f"| coarse | {found['rows'][0]['bits_per_weight']:.2f} |" in text
    assert (
        f"| one and the same network | 0 | 0 | {found['constant']['relative_error']:.3f} |" in text
    )
    assert figure.name in text
    assert figure.read_text().rstrip().endswith("</svg>")


def test_protocols_are_checked(tmp_path: Path) -> None:
    assert len(load_rates("rates-igpg").settings) > 20
    with pytest.raises(ConfigError, match=r"nothing-here: there is no such protocol"):
        load_rates("nothing-here")
    path = tmp_path / "p.toml"
    path.write_text('name = "x"\nquery = "from wide"\nsplits = "main"\n')
    with pytest.raises(ConfigError, match=r"unknown key 'splits', 'settings' is missing, 'split'"):
        load_rates(path)
    path.write_text(
        'name = "x"\nquery = "from wide"\nsplit = "main"\n[settings.a]\nbackend = "vq"\nsize = 3\n'
    )
    with pytest.raises(ConfigError, match=r"settings\.a holds `backend` and `config`"):
        load_rates(path)


def test_the_command_prints_a_table(
    zoo: Catalog, tmp_path: Path, cli: Callable[..., Result]
) -> None:
    path = tmp_path / "p.toml"
    path.write_text(
        f'name = "p"\nquery = "{QUERY}"\nsplit = "main"\n'
        '[settings.two]\nbackend = "vq"\nconfig = { base = "scalar", codebook_size = 4 }\n'
    )
    out = tmp_path / "p.json"
    said = cli("tokenizer", "rates", path, "-c", zoo.path, "-o", out, "--pages", tmp_path)
    assert said.exit_code == 0, said.stderr
    assert "two" in said.stdout
    assert "one network" in said.stdout
    as_json = cli("tokenizer", "rates", path, "-c", zoo.path, "-o", out, "--json")
    assert json.loads(as_json.stdout) == json.loads(out.read_text())
    assert (tmp_path / "p.md").is_file()
