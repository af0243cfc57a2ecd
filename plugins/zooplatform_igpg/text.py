"""Text encoders by name: `hash`, which needs no download, and `hf:NAME`, any text model that transformers can load.

An encoder turns texts into fixed vectors; what they mean for weights is learnt from them by `understanding`.

Legend for shapes: N texts, D size of a vector.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
import xxhash

from zooplatform.errors import ArtifactError, ConfigError, NotInstalledError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["HashText", "HubText", "TextEncoder", "text_encoder"]

_WORDS = re.compile(r"[a-z]+|\d+(?:\.\d+)?")
_BATCH = 64


class TextEncoder(Protocol):
    """Texts to vectors, always the same ones."""

    name: str
    dim: int

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """(N, D) float32."""

    def describe(self) -> dict[str, Any]:
        """What an artifact keeps to make sure that it meets the same encoder again."""


def text_encoder(name: str, described: Mapping[str, Any] | None = None) -> TextEncoder:
    """The encoder of this name.

    Args:
        name: `hash`, `hash:BUCKETS`, or `hf:` with the name of a model on the Hub (`@revision` behind it) or a folder.
        described: what `describe` said when it was used for fitting; the encoder must still be the same.

    Raises:
        ConfigError: there is no such encoder, or the model cannot be loaded.
        ArtifactError: the model behind the name has changed.
        NotInstalledError: transformers is missing.
    """
    if name == "hash":
        return HashText()
    kind, colon, rest = name.partition(":")
    if kind == "hash" and rest.isdecimal() and 16 <= int(rest) <= 65536:
        return HashText(int(rest))
    if kind == "hf" and colon and rest:
        encoder = HubText(rest)
        if described is not None and described != encoder.describe():
            raise ArtifactError(
                f"The text model {rest} is another one than the generator was fitted with "
                f"({encoder.describe()} instead of {dict(described)}). Put that one there, or fit again."
            )
        return encoder
    raise ConfigError(
        f"Unknown text encoder {name!r}. Known: hash, hash:BUCKETS (16 to 65536), "
        "hf:NAME (a model on the Hub, or its folder)."
    )


class HashText:
    """Words, pairs of words and the letters within words, each hashed into a bucket.

    Every kind of part has a third of the vector and length 1 in it, so that long texts weigh as much as short ones.
    With a linear layer on top this is an embedding bag over hashed n-grams (Joulin et al. 2016, arXiv 1607.01759).

    Args:
        buckets: for every kind.
    """

    name = "hash"

    def __init__(self, buckets: int = 1024) -> None:
        self.buckets = buckets
        self.dim = 3 * buckets

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "buckets": self.buckets}

    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        parts = [
            self._counted(texts[at : at + _BATCH]).float() for at in range(0, len(texts), _BATCH)
        ]
        if not parts:
            return torch.zeros((0, self.dim))
        found = torch.cat(parts).sqrt()  # a word said twice is not twice as true
        lengths = found.square().sum(dim=2, keepdim=True).sqrt()
        return (found / lengths.clamp_min(1)).flatten(1)

    def _counted(self, texts: Sequence[str]) -> torch.Tensor:
        """(N, 3, buckets) how often each part occurs."""
        at = []
        for row, text in enumerate(texts):
            words = normal_words(text)
            for kind, listed in enumerate((words, _pairs(words), _grams(words))):
                start = (3 * row + kind) * self.buckets
                at += [start + _hashed(kind, part) % self.buckets for part in listed]
        counts = torch.bincount(
            torch.tensor(at, dtype=torch.int64), minlength=len(texts) * self.dim
        )
        return counts.view(len(texts), 3, self.buckets)


@lru_cache(maxsize=1 << 16)
def _hashed(kind: int, part: str) -> int:
    return xxhash.xxh3_64_intdigest(f"{kind} {part}".encode())


def normal_words(text: str) -> list[str]:
    """Words and numbers in lower case, without accents and without the commas of large numbers."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    plain = re.sub(r"(?<=\d),(?=\d{3})", "", plain)
    return _WORDS.findall(plain)


def _pairs(words: Sequence[str]) -> list[str]:
    return [f"{one} {two}" for one, two in pairwise(words)]


def _grams(words: Sequence[str]) -> list[str]:
    return [gram for word in words for gram in _grams_of(word)]


@lru_cache(maxsize=1 << 14)
def _grams_of(word: str) -> tuple[str, ...]:
    marked = f"<{word}>"
    return tuple(
        marked[at : at + size] for size in (3, 4, 5) for at in range(max(1, len(marked) - size + 1))
    )


class HubText:
    """A text model from the Hub or a folder, frozen; the mean over the tokens of its last layer, of length 1.

    Its weights are not part of artifacts: they are named, with the commit or the hash of the file.

    Args:
        reference: `org/name`, `org/name@revision` or a folder.
    """

    def __init__(self, reference: str) -> None:
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError as exc:
            raise NotInstalledError(
                "A text encoder of the Hub", ("transformers",), "pip install 'zooplatform[text]'"
            ) from exc
        self.name = f"hf:{reference}"
        folder = Path(reference).expanduser()
        where, _, revision = (str(folder), "", "") if folder.is_dir() else reference.partition("@")
        more = {"revision": revision} if revision else {}
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(where, **more)
            self._model = AutoModel.from_pretrained(where, use_safetensors=True, **more)
        except (OSError, ValueError, KeyError, ImportError) as exc:
            reason = str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
            raise ConfigError(
                f"The text model {reference!r} cannot be loaded: {reason} Give the folder of a model with "
                "model.safetensors, or the name of one on the Hub."
            ) from exc
        self._model.eval().requires_grad_(False)
        self.dim = int(self._model.config.hidden_size)
        commit = getattr(self._model.config, "_commit_hash", None)
        self._hash = str(commit) if commit and not folder.is_dir() else _hash_of(folder)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "dim": self.dim, "hash": self._hash}

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        parts = []
        for start in range(0, len(texts), _BATCH):
            given = self._tokenizer(
                list(texts[start : start + _BATCH]), padding=True, truncation=True,
                max_length=256, return_tensors="pt",
            )  # fmt: skip
            states = self._model(**given).last_hidden_state
            mask = given["attention_mask"][:, :, None].to(states.dtype)
            mean = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)
            parts.append(torch.nn.functional.normalize(mean, dim=1).float())
        return torch.cat(parts) if parts else torch.zeros((0, self.dim))


def _hash_of(folder: Path) -> str:
    """Of the weights in a folder."""
    hasher = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                hasher.update(part)
    return hasher.hexdigest()
