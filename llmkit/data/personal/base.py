"""The contract of a detector, and the keyed stream that replacements are drawn from."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

_UNSPACED = "\u2e80"
_CLASSES = (string.digits, string.ascii_lowercase, string.ascii_uppercase)


@dataclass(frozen=True, slots=True)
class Found:
    """A piece of personal data in a text.

    Args:
        begin: its first character.
        end: the character after its last.
        value: its normal form, by which the same value is known wherever and however it is written.
        form: the variety, where a kind has several ("us_ssn", "github").
    """

    begin: int
    end: int
    value: str
    form: str = ""


def joins(character: str) -> bool:
    """Whether a character (or none) beside a piece makes it a part of a longer word. One of a script that sets no
    spaces between words does not."""
    return character == "_" or (character.isalnum() and character < _UNSPACED)


class Draw:
    """A stream of numbers that depends on a seed and a value alone (BLAKE2b in counter mode, keyed by the seed).

    Args:
        seed: of the settings.
        kind: kind of personal data; equal values of two kinds have different streams.
        value: normal form of the value.
    """

    def __init__(self, seed: int, kind: str, value: str) -> None:
        self._key = seed.to_bytes(8, "little")
        self._name = f"{kind}\0{value}".encode("utf-8", "surrogatepass")
        self._blocks = 0
        self._pool = 0
        self._left = 1

    def below(self, limit: int) -> int:
        """A number from 0 to `limit` - 1; the bias is below 2^-60 for the limits used here."""
        if self._left < limit << 64:
            salt = self._blocks.to_bytes(16, "little")
            digest = hashlib.blake2b(self._name, key=self._key, salt=salt, digest_size=64).digest()
            self._blocks += 1
            self._pool = int.from_bytes(digest, "little")
            self._left = 1 << 512
        self._pool, found = divmod(self._pool, limit)
        self._left //= limit
        return found

    def like(self, text: str) -> str:
        """A text of the same form: each ASCII digit and letter is drawn anew from its class, the rest stays."""
        return "".join(self._character(character) for character in text)

    def _character(self, character: str) -> str:
        for letters in _CLASSES:
            if character in letters:
                return letters[self.below(len(letters))]
        return character


class Detector(Protocol):
    """Finds one kind of personal data."""

    @property
    def kind(self) -> str:
        """Name of the kind."""
        ...

    @property
    def hint(self) -> str | None:
        """Regular expression (RE2) that matches every text in which there may be something, and few others; None where
        each text must be looked at."""
        ...

    def find(self, text: str) -> Iterator[Found]:
        """What is found in a text; pieces may overlap, the first of two that do is taken."""
        ...

    def surrogate(self, text: str, found: Found, draw: Draw) -> str:
        """Something of the same form that belongs to nobody; another one when called again with the same stream.

        Args:
            text: the piece as it is written.
            found: what was found.
            draw: the stream of this value.
        """
        ...
