"""The step `personal_data`: finds personal data, and masks it, replaces it, or drops the document."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from llmkit.data.cleaning.base import Dropped, Verdict
from llmkit.data.personal.base import Detector, Draw, Found
from llmkit.data.personal.config import KINDS, PersonalDataConfig
from llmkit.data.personal.identity import Identities
from llmkit.data.personal.network import Addresses, Emails
from llmkit.data.personal.payment import Cards, Ibans
from llmkit.data.personal.phones import Phones
from llmkit.data.personal.plugins import Plugin
from llmkit.data.personal.secrets import Secrets
from llmkit.store.documents import Document

METADATA = "personal_data"
"""Key in a changed document's metadata: how many pieces of each kind were masked or replaced ("email 2, phone 1")."""

_DRAWS = 32
"""How often a replacement is drawn anew that would be found again, mostly as another kind."""


class Piece(NamedTuple):
    """A piece of personal data of one kind."""

    kind: str
    found: Found


class PersonalData:
    """Masks or replaces what is found, or drops the document (the reason is the kind).

    Args:
        config: what becomes of each kind.

    Raises:
        MissingDependencyError: a kind needs a package that is not installed.
        ConfigError: a function of `others` is not there.
    """

    name = "personal_data"

    def __init__(self, config: PersonalDataConfig) -> None:
        self._config = config
        self._actions = config.actions()
        self._ranks = {kind: rank for rank, kind in enumerate(self._actions)}
        self._detectors = detectors(config)
        self._known = [detector for kind, detector in self._detectors.items() if kind in KINDS]

    def apply(self, batch: Sequence[Document]) -> list[Verdict]:
        """One verdict for each document; `personal_data` in the metadata of changed ones counts what was found."""
        found = self.find([document.text for document in batch])
        return [self._verdict(document, pieces) for document, pieces in zip(batch, found, strict=True)]

    def find(self, texts: Sequence[str]) -> list[list[Piece]]:
        """What is found in each text: pieces that do not overlap, in their order.

        Args:
            texts: any number of texts.
        """
        found: list[list[Piece]] = [[] for _ in texts]
        for kind, detector in self._detectors.items():
            for index in _hinted(texts, detector.hint):
                found[index] += [Piece(kind, piece) for piece in detector.find(texts[index])]
        return [_apart(pieces, self._ranks) if pieces else pieces for pieces in found]

    def _verdict(self, document: Document, pieces: Sequence[Piece]) -> Verdict:
        if not pieces:
            return document
        counts = Counter(piece.kind for piece in pieces)
        for kind, action in self._actions.items():
            if action == "drop" and counts[kind]:
                places = [f"{piece.found.begin:,}" for piece in pieces if piece.kind == kind]
                return Dropped(kind, f"at character {', '.join(places[:5])}{' ...' if len(places) > 5 else ''}")
        parts: list[str] = []
        end = 0
        for piece in pieces:
            parts += [document.text[end : piece.found.begin], self._instead(document.text, piece)]
            end = piece.found.end
        metadata = {**document.metadata, METADATA: ", ".join(f"{kind} {counts[kind]}" for kind in sorted(counts))}
        return replace(document, text="".join(parts) + document.text[end:], metadata=metadata)

    def _instead(self, text: str, piece: Piece) -> str:
        if self._actions[piece.kind] == "mask":
            return self._config.mask.replace("{kind}", piece.kind)
        found = piece.found
        draw = Draw(self._config.seed, piece.kind, found.value)
        instead = ""
        for _ in range(_DRAWS):
            instead = self._detectors[piece.kind].surrogate(text[found.begin : found.end], found, draw)
            if not any(next(iter(detector.find(instead)), None) for detector in self._known):
                break
        return instead


def detectors(config: PersonalDataConfig) -> dict[str, Detector]:
    """A detector for each kind that is looked for, in the order in which they claim characters."""
    made: dict[str, Callable[[], Detector]] = {
        "secret": Secrets,
        "email": Emails,
        "iban": Ibans,
        "card": Cards,
        "identity": Identities,
        "ip": Addresses,
        "phone": lambda: Phones(config.regions),
    }
    others = {other.kind: other for other in config.others}
    return {kind: made[kind]() if kind in made else Plugin(others[kind]) for kind in config.actions()}


def _hinted(texts: Sequence[str], hint: str | None) -> list[int]:
    """Indices of the texts that match a hint: one pass of a finite automaton, several times as fast as `re`."""
    if hint is None:
        return list(range(len(texts)))
    import pyarrow as pa
    import pyarrow.compute as pc

    array = pa.array(texts, pa.large_string())
    hits: list[int] = pc.indices_nonzero(pc.match_substring_regex(array, hint)).to_pylist()
    return hits


def _apart(pieces: Sequence[Piece], ranks: dict[str, int]) -> list[Piece]:
    """Pieces that do not overlap: of two that do, that of the earlier kind stays, of one kind the one found first."""
    taken: list[Piece] = []
    for piece in sorted(pieces, key=lambda piece: ranks[piece.kind]):
        place = bisect_left(taken, piece.found.begin, key=lambda other: other.found.begin)
        before, after = taken[max(0, place - 1) : place], taken[place : place + 1]
        if all(other.found.end <= piece.found.begin for other in before) and all(
            other.found.begin >= piece.found.end for other in after
        ):
            taken.insert(place, piece)
    return taken
