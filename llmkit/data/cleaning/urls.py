"""Documents of addresses that are blocked: by lists of domains and URLs, and by words in the URL.

After the URL filter of FineWeb (Penedo et al. 2024, arXiv:2406.17557, 3.2) as datatrove has it. Other than there, a
domain blocks all domains below it and not two levels alone, a URL also what lies below it, and case never counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmkit.data.cleaning.base import ColumnType, Dropped, Values
from llmkit.data.cleaning.block_lists import BlockList, read_entries
from llmkit.data.cleaning.config import UrlsConfig
from llmkit.store.documents import Document

_PATH = "path"
_URL = re.compile(r"(?:[a-z][a-z0-9+.-]*:(?=//))?(?://)?(?:[^/?#@]*@)?(\[[^]/?#]*\]|[^/?#:]*)(?::[0-9]*)?([^#]*)")
_DOMAIN = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)+")
_BETWEEN_WORDS = re.compile(r"[\W_]+")
_HOST_CHARACTERS = 253
_SEGMENTS = 32
"""Of a path that are looked at one by one."""


class Address(NamedTuple):
    """Where a URL leads: its host, and all of it without scheme, user, port, `www.`, fragment and slash at its end."""

    host: str
    place: str


def address_of(url: str) -> Address:
    """Of a URL with or without its scheme, in lower case; hosts in ASCII (punycode)."""
    match = _URL.match(url.strip().lower())
    assert match is not None, "the pattern matches nothing, too"
    host, rest = match[1].strip("."), match[2].rstrip("/")
    if not host.isascii():
        # A name that has no such form is in no list.
        with suppress(UnicodeError):
            host = host.encode("idna").decode("ascii")
    return Address(host, host.removeprefix("www.") + rest)


def domains_of(host: str) -> list[str]:
    """A host and the domains that it is below, from the longest on."""
    labels = host[-_HOST_CHARACTERS:].split(".")
    return [".".join(labels[first:]) for first in range(len(labels))]


def places_of(place: str) -> list[str]:
    """A place and those that it is below, from the shortest on."""
    path, question, _ = place.partition("?")
    segments = path.split("/")
    above = ["/".join(segments[:count]) for count in range(1, min(len(segments), _SEGMENTS) + 1)]
    return [*dict.fromkeys([*above, path, *([place] if question else [])])]


def plain(word: str) -> str:
    """A word as it is compared: letters and digits in lower case."""
    return _BETWEEN_WORDS.sub("", word).lower()


class Urls:
    """Drops documents whose URL is blocked: `no_url`, `domain`, `url`, `banned_word`, `soft_banned_words`,
    `banned_subword`, in this order.

    Measuring raises `DataError` where a list cannot be read.
    """

    name = "urls"
    columns: Mapping[str, ColumnType] = {
        "host": "string",
        "domain": "string",
        "url": "string",
        "banned_word": "string",
        "soft_banned_words": "int32",
        "banned_subword": "string",
    }

    def __init__(self, config: UrlsConfig) -> None:
        self.measuring: Mapping[str, Any] = {"url": config.url}
        self._config = config

    def measure(self, batch: Sequence[Document]) -> dict[str, Values]:
        """The host, none where a document has no URL; the longest domain and the shortest URL of the lists that block
        it; the first banned word in it, how many of the soft banned words, and the first banned piece of a word."""
        urls = [self._url(document) for document in batch]
        addresses = [None if url is None else address_of(url) for url in urls]
        found: dict[str, Values] = {
            "host": [address and address.host for address in addresses],
            "domain": _first(self._domains, [domains_of(address.host) if address else [] for address in addresses]),
            "url": _first(self._places, [places_of(address.place) if address else [] for address in addresses]),
        }
        words = [self._words(url) for url in urls]
        return {**found, **dict(zip(list(self.columns)[3:], map(list, zip(*words, strict=True)), strict=True))}

    def judge(self, measured: Mapping[str, NDArray[np.generic]]) -> list[Dropped | None]:
        """Keep what nothing blocks."""
        rows = zip(*(measured[name].tolist() for name in self.columns), strict=True)
        return [self._verdict(dict(zip(self.columns, row, strict=True))) for row in rows]

    def _verdict(self, row: Mapping[str, Any]) -> Dropped | None:
        if row["host"] is None and self._config.without_url == "drop":
            return Dropped("no_url")
        for name in ("domain", "url", "banned_word"):
            if row[name] is not None:
                return Dropped(name, row[name])
        if row["soft_banned_words"] >= self._config.soft_word_threshold:
            return Dropped("soft_banned_words", f"{row['soft_banned_words']} of them")
        return None if row["banned_subword"] is None else Dropped("banned_subword", row["banned_subword"])

    def _url(self, document: Document) -> str | None:
        key = self._config.url
        url = document.path if key == _PATH else document.metadata.get(key, "")
        return url if url[:8].lower().startswith(("http://", "https://")) else None

    def _words(self, url: str | None) -> tuple[str | None, int, str | None]:
        """The first banned word, the number of soft banned words, the first banned piece of a word."""
        if url is None:
            return None, 0, None
        pieces = _BETWEEN_WORDS.split(url.lower())
        words = frozenset(pieces)
        joined = "".join(pieces)
        return (
            next((piece for piece in pieces if piece in self._banned), None),
            len(words & self._soft),
            next((piece for piece in self._pieces if piece in joined), None),
        )

    @cached_property
    def _domains(self) -> BlockList:
        return BlockList(read_entries(self._config.domains, _domain))

    @cached_property
    def _places(self) -> BlockList:
        return BlockList(read_entries(self._config.urls, lambda entry: address_of(entry).place, blanks=True))

    @cached_property
    def _banned(self) -> frozenset[str]:
        return frozenset(read_entries(self._config.banned_words, plain))

    @cached_property
    def _soft(self) -> frozenset[str]:
        return frozenset(read_entries(self._config.soft_banned_words, plain))

    @cached_property
    def _pieces(self) -> list[str]:
        return list(dict.fromkeys(read_entries(self._config.banned_subwords, plain)))


def _domain(entry: str) -> str:
    # Nearly all entries of lists that have millions are in their form already.
    if _DOMAIN.fullmatch(entry):
        return entry
    host, place = address_of(entry.removeprefix("*."))
    if "/" in place or "?" in place:
        raise ValueError("a URL and no domain")
    return host


def _first(blocked: BlockList, candidates: Sequence[Sequence[str]]) -> list[str | None]:
    """Of each document the first of its candidates that is in a list."""
    flat = [candidate for some in candidates for candidate in some]
    held = iter(blocked.holds(flat).tolist())
    hits = [[candidate for candidate in some if next(held)] for some in candidates]
    return [some[0] if some else None for some in hits]
