"""Pages of the web."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from llmkit.config.base import Finding
from llmkit.console import progress
from llmkit.data.extraction.encoding import decode_page
from llmkit.data.extraction.pages import RawPage, extract_pages
from llmkit.data.sources.base import SLICE_BYTES, Broken, Record, Slice, make_record, readable_copy
from llmkit.data.sources.config import WebSource
from llmkit.data.sources.files import READ_ERRORS, open_text
from llmkit.data.sources.html import OpenedPage, check_extraction, page_record
from llmkit.data.web.cache import Listed, PageCache, Stored
from llmkit.data.web.crawl import Crawler
from llmkit.data.web.sitemaps import Sitemap, parse_sitemap
from llmkit.data.web.urls import normal_url
from llmkit.errors import DataError, MissingDependencyError
from llmkit.store.files import sha256_json

_SLICE_PAGES = 1000
_COPY_BYTES = 4096
_MARKUP = ("text/html", "application/xhtml+xml")
_SITEMAP_BYTES = 50 << 20
"""What the protocol of sitemaps allows for one."""
_SITEMAPS = 1000
_SITEMAP_DEPTH = 3


class WebReader:
    """Fetches what is not in the cache when it is asked for its slices, and reads from the cache alone.

    Each URL is one record, in the order of `urls`, `lists` and `sitemaps`: the page's document, or `Broken` with why
    there is none. A document's path is the URL; its metadata name the `title`, the date of the last change (`date`)
    where the server told it, that of the download (`fetched`), and where redirects led (`final_url`).
    """

    def __init__(self, config: WebSource) -> None:
        self._config = config

    def check(self) -> Iterator[Finding]:
        """Nothing to fetch, lists that cannot be read, URLs that are none, and libraries that are missing."""
        config = self._config
        if not (config.urls or config.lists or config.sitemaps):
            yield Finding("no page is named.", key="urls", hint="Set `urls`, `lists` or `sitemaps`.")
        for key, urls in (("urls", config.urls), ("sitemaps", config.sitemaps)):
            for index, url in enumerate(urls):
                problem = _listed(url).problem
                if problem:
                    yield Finding(f"`{url}` cannot be fetched: {problem}.", key=f"{key}.{index}")
        for index, path in enumerate(config.lists):
            try:
                next(_lines(path), None)
            except DataError as error:
                yield Finding(error.message, key=f"lists.{index}")
        if _protego_is_missing():
            yield Finding(_NEEDS_PROTEGO, hint=_INSTALL)
        yield from check_extraction(config.extraction)

    def slices(self) -> list[Slice]:
        """Up to 1,000 pages each. What the cache does not hold is fetched before.

        Raises:
            DataError: a list of URLs cannot be read, or the cache cannot be used.
            MissingDependencyError: an extra is not installed.
        """
        if _protego_is_missing():
            raise MissingDependencyError(_NEEDS_PROTEGO, hint=_INSTALL)
        config = self._config
        with PageCache(Path(config.cache)) as cache:
            entries = [_listed(url) for url in config.urls]
            entries += [_listed(line) for path in config.lists for line in _lines(path)]
            entries += self._sitemap_entries(cache)
            entries = entries[: config.limit]
            self._fetch(cache, [entry.url for entry in entries if entry.problem is None])
            if cache.get_list(self._list) != entries:
                cache.put_list(self._list, entries)
            return self._cut(cache, entries)

    def read(self, piece: Slice) -> Iterator[Record]:
        """A record for each URL.

        Raises:
            DataError: the cache does not hold what was fetched any more.
        """
        with PageCache(Path(self._config.cache)) as cache:
            entries = cache.get_list(self._list, piece.begin, piece.end)
            if piece.end is None or len(entries) != piece.end - piece.begin:
                raise self._gone(piece.name)
            pages = (self._open(cache, entry) for entry in entries)
            for opened, found in extract_pages(self._config.extraction, pages):
                yield page_record(self._config, opened, found) if isinstance(opened, OpenedPage) else opened

    @property
    def _list(self) -> str:
        """The name of the source's list in the cache: what decides which pages it has."""
        config = self._config
        return sha256_json([config.urls, config.lists, config.sitemaps, config.sitemap_pages, config.limit])

    def _fetch(self, cache: PageCache, urls: list[str], *, sitemap: bool = False) -> None:
        retry = self._config.retry_failed
        if not cache.missing(urls, retry_failed=retry):
            return
        with cache.writing():
            missing = cache.missing(urls, retry_failed=retry)
            crawler = Crawler(self._config, cache)
            limits = replace(crawler.limits, types=None, size=_SITEMAP_BYTES) if sitemap else None
            with progress(f"{self._config.label}: {'sitemaps' if sitemap else 'pages'}", len(missing)) as bar:
                crawler.fetch(missing, bar, limits)

    def _sitemap_entries(self, cache: PageCache) -> list[Listed]:
        """The pages of all sitemaps in their order, and an entry with a problem for each sitemap that gives none."""
        entries: list[Listed] = []
        seen: set[str] = set()
        wanted = [(url, 0) for url in reversed(self._config.sitemaps)]
        while wanted and len(entries) < self._config.sitemap_pages:
            url, depth = wanted.pop()
            listed = _listed(url)
            if listed.problem is None and listed.url in seen:
                continue
            seen.add(listed.url)
            found = self._sitemap(cache, listed, depth) if len(seen) <= _SITEMAPS else _too_many(listed)
            if isinstance(found, Listed):
                entries.append(found)
                if len(seen) > _SITEMAPS:
                    break
            elif found.is_index:
                wanted += [(child, depth + 1) for child in reversed(found.urls)]
            else:
                room = self._config.sitemap_pages - len(entries)
                entries += [_listed(page) for page in found.urls[:room]]
        return entries

    def _sitemap(self, cache: PageCache, listed: Listed, depth: int) -> Sitemap | Listed:
        if listed.problem is not None:
            return listed
        if depth >= _SITEMAP_DEPTH:
            return Listed(listed.url, f"a sitemap below {_SITEMAP_DEPTH} indexes is not read")
        self._fetch(cache, [listed.url], sitemap=True)
        stored = cache.get(listed.url)
        if stored is None:
            raise self._gone(listed.url)
        if stored.body is None:
            return Listed(listed.url, f"the sitemap cannot be had: {stored.detail}")
        try:
            return parse_sitemap(stored.body, _SITEMAP_BYTES)
        except ValueError as error:
            return Listed(listed.url, f"the sitemap cannot be read: {error}")

    def _cut(self, cache: PageCache, entries: list[Listed]) -> list[Slice]:
        slices: list[Slice] = []
        content: list[list[str]] = []
        begin = size = 0
        for position, entry in enumerate(entries):
            length, digest = cache.size_and_digest(entry.url)
            if content and (len(content) == _SLICE_PAGES or size + length > SLICE_BYTES):
                slices.append(self._slice(begin, position, content))
                begin, size, content = position, 0, []
            content.append([entry.url, entry.problem or digest])
            size += length
        return [*slices, self._slice(begin, len(entries), content)] if content else slices

    def _slice(self, begin: int, end: int, content: list[list[str]]) -> Slice:
        name = f"{self._config.label}, pages {begin + 1:,} to {end:,}"
        return Slice(name, (), begin, end, sha256_json(content))

    def _open(self, cache: PageCache, entry: Listed) -> tuple[OpenedPage | Record, RawPage]:
        """A page as it was fetched; or a record that is settled already, and an empty page in its place."""
        label = self._config.label
        if entry.problem is not None:
            return Broken(label, entry.url, entry.problem), RawPage(b"")
        stored = cache.get(entry.url)
        if stored is None:
            raise self._gone(entry.url)
        if stored.body is None:
            return Broken(label, entry.url, stored.detail, reason=stored.reason or "unreadable"), RawPage(b"")
        metadata = {"fetched": stored.fetched}
        if stored.modified:
            metadata["date"] = stored.modified
        if stored.final != entry.url:
            metadata["final_url"] = stored.final
        if stored.type in _MARKUP:
            opened = OpenedPage(entry.url, stored.body[:_COPY_BYTES], tuple(metadata.items()))
            return opened, RawPage(stored.body, stored.charset)
        return self._plain_text(entry, stored, stored.body, metadata), RawPage(b"")

    def _plain_text(self, entry: Listed, stored: Stored, body: bytes, metadata: dict[str, str]) -> Record:
        try:
            text = decode_page(body, stored.charset)
        except UnicodeDecodeError as error:
            detail = f"byte {error.start:,}: not valid {error.encoding} ({error.reason})"
            return Broken(self._config.label, entry.url, detail, readable_copy(body), "encoding")
        return make_record(self._config, text, entry.url, metadata)

    def _gone(self, what: str) -> DataError:
        return DataError(
            f"the cache of web pages does not hold {what} any more.",
            where=self._config.cache,
            hint="Run the stage again: what is missing is fetched.",
        )


_NEEDS_PROTEGO = "reading robots.txt needs protego, which is not installed."
_INSTALL = "pip install 'llmkit[web]'"


def _protego_is_missing() -> bool:
    try:
        __import__("protego")
    except ImportError:
        return True
    return False


def _listed(url: str) -> Listed:
    try:
        return Listed(normal_url(url))
    except ValueError as error:
        return Listed(url, str(error))


def _too_many(listed: Listed) -> Listed:
    return Listed(listed.url, f"only {_SITEMAPS:,} sitemaps are read; this one and what follows is not")


def _lines(path: str) -> Iterator[str]:
    """The URLs of a list.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with open_text(path, "utf-8") as stream:
            for line in stream:
                if line.strip() and not line.lstrip().startswith("#"):
                    yield readable_copy(line.strip())
    except READ_ERRORS as error:
        raise DataError(f"the list of URLs `{path}` cannot be read: {error}.") from None
