"""Which language a text is in, by the model that the package py3langid carries: for whole batches of texts at once.

The model is langid's (Lui & Baldwin 2012): an automaton walks over the UTF-8 bytes and meets features, n-grams of bytes
that tell languages apart; their counts go into a naive Bayes classifier. py3langid walks byte by byte in Python. Here
all texts of a batch take their n-th step together, as arrays. The result is that of `py3langid` with `norm_probs`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import MissingDependencyError

_TEXTS = 1024
"""Texts that walk together."""


class Identifier:
    """The model, opened, which takes 100 MB; one is shared by what a process does (`identifier`)."""

    def __init__(self) -> None:
        from py3langid import langid, modelio

        weights, prior, names, moves, rows, features = modelio.load_model(langid.MODEL_DIR / langid.MODEL_FILE)
        self.languages: list[str] = list(dict.fromkeys(names))
        """Codes of the languages, in the order of `probabilities`."""
        # A language that is written in two scripts has two columns.
        self._columns = np.array([self.languages.index(name) for name in names])
        self._weights: NDArray[np.float32] = np.asarray(weights, np.float32)
        self._prior: NDArray[np.float32] = np.asarray(prior, np.float32)
        self._moves: NDArray[Any] = np.frombuffer(moves, np.dtype(moves.typecode))
        self._rows: NDArray[np.int64] = np.asarray(rows, np.int64) << 8
        self._features: NDArray[np.int32] = np.asarray(features, np.int32)

    def probabilities(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Probability of each language for each text, [texts, languages]; all are 0 where nothing tells them apart.

        Scores are divided by the square root of the number of bytes before they become probabilities, without which
        every long text would be certain.
        """
        found = np.zeros((len(texts), len(self.languages)), np.float32)
        encoded = [_encode(text) for text in texts]
        # Texts of like length end together.
        order = sorted(range(len(texts)), key=lambda index: -len(encoded[index]))
        for first in range(0, len(order), _TEXTS):
            some = order[first : first + _TEXTS]
            features, lengths = self._walk([encoded[index] for index in some])
            for index, row, length in zip(some, features, lengths.tolist(), strict=True):
                found[index] = self._classify(row[:length], length)
        return found

    def _walk(self, texts: Sequence[bytes]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """The feature met at each byte, -1 for none, [texts, bytes]; and the bytes of each text, longest first."""
        lengths = np.array([len(text) for text in texts])
        longest = int(lengths[0])
        codes = np.zeros((len(texts), longest), np.uint8)
        for row, text in zip(codes, texts, strict=True):
            row[: len(text)] = np.frombuffer(text, np.uint8)
        steps = np.ascontiguousarray(codes.T)
        features = np.empty((longest, len(texts)), np.int32)
        states = np.zeros(len(texts), np.int64)
        walking = len(texts) - np.searchsorted(lengths[::-1], np.arange(longest), "right")
        for step, count in enumerate(walking.tolist()):
            states = self._moves[self._rows[states[:count]] + steps[step, :count]]
            features[step, :count] = self._features[states]
        return np.ascontiguousarray(features.T), lengths

    def _classify(self, features: NDArray[np.int32], length: int) -> NDArray[np.float32]:
        met, counts = np.unique(features[features >= 0], return_counts=True)
        if not len(met):
            return np.zeros(len(self.languages), np.float32)
        scores = np.log1p(counts.astype(np.float32)) @ self._weights[met] + self._prior
        scores *= np.float32(length**-0.5)
        odds = np.exp(scores - scores.max())
        return np.bincount(self._columns, odds / odds.sum(), len(self.languages)).astype(np.float32)


@cache
def identifier() -> Identifier:
    """The model that all filters of a process share."""
    return Identifier()


def model_version() -> str:
    """Version of the package that carries the model.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return version("py3langid")
    except PackageNotFoundError:
        raise MissingDependencyError(
            "identifying languages needs py3langid, which is not installed.", hint="pip install 'llmkit[data]'"
        ) from None


def sample(text: str, characters: int) -> str:
    """What a text is judged by: all of it, or as many characters from its beginning and from its middle, half each."""
    if len(text) <= characters:
        return text
    half = characters // 2
    middle = max(half, (len(text) - half) // 2)
    return f"{text[:half]}\n{text[middle : middle + half]}"


def _encode(text: str) -> bytes:
    """The bytes as the model was trained on: NFC, and texts in capitals in lower case."""
    text = text.lower() if text.isupper() else text
    return unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass")
