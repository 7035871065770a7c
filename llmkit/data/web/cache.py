"""What was fetched, in one SQLite file: pages, why others could not be had, and which pages a source consists of."""

from __future__ import annotations

import hashlib
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from llmkit.console import say
from llmkit.data.sources.base import Reason
from llmkit.data.web.robots import RobotsText
from llmkit.errors import ArtifactLockedError, DataError
from llmkit.store.files import canonical_json, locked

_FILE = "pages.sqlite"
_LOCK = "lock"
_TABLES = """
CREATE TABLE IF NOT EXISTS pages (
    url TEXT PRIMARY KEY, fetched TEXT NOT NULL, final TEXT NOT NULL, type TEXT NOT NULL, charset TEXT, modified TEXT,
    reason TEXT, detail TEXT NOT NULL, temporary INTEGER NOT NULL, size INTEGER NOT NULL, digest TEXT NOT NULL,
    body BLOB
);
CREATE TABLE IF NOT EXISTS robots (origin TEXT PRIMARY KEY, fetched REAL NOT NULL, text TEXT NOT NULL, problem TEXT);
CREATE TABLE IF NOT EXISTS lists (
    list TEXT NOT NULL, position INTEGER NOT NULL, url TEXT NOT NULL, problem TEXT, PRIMARY KEY (list, position)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a URL: a page, or why there is none.

    Args:
        final: where redirects led.
        type: content type.
        charset: encoding that the server named.
        modified: date of the last change, if the server told it.
        body: the page; None where there is none.
        reason: why there is none, as for broken records.
        detail: the same, as half of a sentence.
        temporary: whether there may be one another time.
        fetched: date ("2026-01-31").
    """

    final: str
    type: str = ""
    charset: str | None = None
    modified: str | None = None
    body: bytes | None = None
    reason: Reason | None = None
    detail: str = ""
    temporary: bool = False
    fetched: str = ""


@dataclass(frozen=True, slots=True)
class Listed:
    """An entry of a source's list.

    Args:
        url: in normal form, or as it was written where it has none.
        problem: what is wrong with the entry itself.
    """

    url: str
    problem: str | None = None


class PageCache:
    """The cache in a folder; a context manager.

    Args:
        folder: made where it is absent.

    Raises:
        DataError: (every method) the file is damaged or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with self._errors():
            folder.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(folder / _FILE, timeout=60.0)
            self._file.executescript(_TABLES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other crawls out, after waiting for one that is under way; what it fetched need not be fetched."""
        told = False
        while True:
            try:
                with locked(self._folder / _LOCK, "the cache of web pages"):
                    yield
                    return
            except ArtifactLockedError as error:
                if not told:
                    say(f"waiting: {error.message}")
                    told = True
                time.sleep(1.0)

    def missing(self, urls: Iterable[str], *, retry_failed: bool) -> list[str]:
        """Those of the URLs of which nothing is known, each once, in their order; with failures that may pass."""
        query = "SELECT temporary FROM pages WHERE url = ?"
        with self._errors():
            found: list[str] = []
            for url in dict.fromkeys(urls):
                row = self._file.execute(query, (url,)).fetchone()
                if row is None or (retry_failed and row[0]):
                    found.append(url)
            return found

    def put(self, url: str, stored: Stored) -> None:
        """Keep what became of a URL; durable on return."""
        body = None if stored.body is None else zlib.compress(stored.body, 6)
        facts = [stored.final, stored.type, stored.charset, stored.modified, stored.reason, stored.detail]
        content = hashlib.sha256(stored.body or b"").hexdigest()
        digest = hashlib.sha256(canonical_json([*facts, content]).encode("utf-8", "surrogatepass")).hexdigest()
        today = datetime.now(UTC).date().isoformat()
        row = (url, today, *facts, int(stored.temporary), len(stored.body or b""), digest, body)
        with self._errors(), self._file:
            self._file.execute(f"INSERT OR REPLACE INTO pages VALUES ({', '.join('?' * len(row))})", row)

    def get(self, url: str) -> Stored | None:
        """What became of a URL; None where nothing is known of it."""
        columns = "final, type, charset, modified, reason, detail, temporary, fetched, body"
        with self._errors():
            row = self._file.execute(f"SELECT {columns} FROM pages WHERE url = ?", (url,)).fetchone()
            if row is None:
                return None
            final, kind, charset, modified, reason, detail, temporary, fetched, body = row
            page = None if body is None else zlib.decompress(body)
        return Stored(final, kind, charset, modified, page, reason, detail, bool(temporary), fetched)

    def size_and_digest(self, url: str) -> tuple[int, str]:
        """Bytes of a page, and a digest of all that is known of it but its date."""
        with self._errors():
            row = self._file.execute("SELECT size, digest FROM pages WHERE url = ?", (url,)).fetchone()
        return (0, "") if row is None else (row[0], row[1])

    def put_robots(self, origin: str, robots: RobotsText) -> None:
        """Keep a robots.txt."""
        with self._errors(), self._file:
            row = (origin, time.time(), robots.text, robots.problem)
            self._file.execute("INSERT OR REPLACE INTO robots VALUES (?, ?, ?, ?)", row)

    def get_robots(self, origin: str, seconds: float) -> RobotsText | None:
        """The robots.txt of an origin, if it could be read and is no older than so many seconds."""
        query = "SELECT text FROM robots WHERE origin = ? AND problem IS NULL AND fetched >= ?"
        with self._errors():
            row = self._file.execute(query, (origin, time.time() - seconds)).fetchone()
        return None if row is None else RobotsText(row[0])

    def put_list(self, name: str, entries: Iterable[Listed]) -> None:
        """Keep the entries of a list, in place of those that were kept under its name."""
        with self._errors(), self._file:
            self._file.execute("DELETE FROM lists WHERE list = ?", (name,))
            rows = ((name, position, entry.url, entry.problem) for position, entry in enumerate(entries))
            self._file.executemany("INSERT INTO lists VALUES (?, ?, ?, ?)", rows)

    def get_list(self, name: str, begin: int = 0, end: int | None = None) -> list[Listed]:
        """The entries of a list from one position to another."""
        query = "SELECT url, problem FROM lists WHERE list = ? AND position >= ? AND position < ? ORDER BY position"
        with self._errors():
            rows = self._file.execute(query, (name, begin, 1 << 62 if end is None else end))
            return [Listed(*row) for row in rows]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, zlib.error) as error:
            raise DataError(
                f"the cache of web pages cannot be used: {error}.",
                where=str(self._folder / _FILE),
                hint="Make room or mend the rights; a damaged cache can be removed, and its pages are fetched again.",
            ) from None
