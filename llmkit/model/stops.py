"""Stop texts across token boundaries, and text that grows without showing what may yet be taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Decode = Callable[[list[int]], str]

# What decoders write for bytes that are no whole character yet.
_HALF = "\ufffd"


@dataclass(frozen=True)
class Cut:
    """Where an answer ends: its text before the stop text, and how many tokens that text takes."""

    text: str
    tokens: int


def tokens_before(decode: Decode, token_ids: list[int], text: str) -> int:
    """How many of the tokens the text at their beginning takes."""
    tokens = len(token_ids)
    while tokens and decode(token_ids[: tokens - 1]).startswith(text):
        tokens -= 1
    return tokens


class StopFinder:
    """Finds the first stop text in an answer, asked after each token."""

    def __init__(self, decode: Decode, stops: Sequence[str]) -> None:
        self.decode = decode
        self.stops = stops
        self.longest = max(len(stop.encode()) for stop in stops)
        self._last_characters = {stop[-1] for stop in stops}
        self._pieces: dict[int, str] = {}
        self._suspects: dict[int, bool] = {}

    def suspect(self, token: int) -> bool:
        """Whether a stop text may be complete with this token; cheap, for every token of every answer."""
        known = self._suspects.get(token)
        if known is None:
            piece = self._pieces[token] = self.decode([token])
            # Pieces of a character, and spaces that a decoder adds or takes away between tokens, show only in context.
            unclear = not piece or _HALF in piece or any(character.isspace() for character in self._last_characters)
            known = self._suspects[token] = unclear or any(character in piece for character in self._last_characters)
        return known

    def find(self, token_ids: list[int]) -> Cut | None:
        """The cut before the first stop text, if the last token completes one."""
        if not self.suspect(token_ids[-1]) or not self._in_tail(token_ids):
            return None
        text = self.decode(token_ids)
        starts = [start for start in (text.find(stop) for stop in self.stops) if start >= 0]
        if not starts:
            return None
        kept = text[: min(starts)]
        return Cut(kept, tokens_before(self.decode, token_ids, kept))

    def _in_tail(self, token_ids: list[int]) -> bool:
        needed = self.longest + len(self._pieces[token_ids[-1]])
        count = self.longest + 1
        while True:
            tail = self.decode(token_ids[-count:])
            if any(stop in tail for stop in self.stops):
                return True
            # Tokens without text, such as special ones, may have taken the window's room.
            if len(tail) >= needed or count >= len(token_ids):
                return False
            count *= 2


class TextStream:
    """The part of a growing answer that can be shown: whole characters, nothing that a stop text may begin with."""

    def __init__(self, decode: Decode, stops: Sequence[str]) -> None:
        self.decode = decode
        self.stops = stops
        self._released = 0
        self._held = ""
        self._context = 0
        self._read = 0

    def push(self, token_ids: list[int]) -> tuple[str, list[int]]:
        """Text and tokens that can be shown now, given all tokens so far."""
        before = self.decode(token_ids[self._context : self._read])
        after = self.decode(token_ids[self._context :])
        if after.endswith(_HALF):
            return "", []
        self._context, self._read = self._read, len(token_ids)
        self._held += after[len(before) :]
        safe = len(self._held) - self._begun()
        text, self._held = self._held[:safe], self._held[safe:]
        if self._held:
            return text, []
        tokens = token_ids[self._released :]
        self._released = len(token_ids)
        return text, tokens

    def _begun(self) -> int:
        """The length of the longest end of the held text with which a stop text begins."""
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self.stops):
                return length
        return 0
