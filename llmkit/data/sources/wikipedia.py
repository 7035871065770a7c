"""Dumps of Wikipedia, and of any other wiki that MediaWiki runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec

from llmkit.config.base import Finding
from llmkit.data.guarded import GuardError, shared_guard
from llmkit.data.sources.base import (
    Broken,
    Damage,
    Reason,
    Record,
    Slice,
    day_of,
    file_slices,
    make_record,
    readable_copy,
)
from llmkit.data.sources.config import WikipediaSource
from llmkit.data.sources.files import SourceFile, check_files, find_files
from llmkit.data.sources.wikipedia_pages import (
    RawPage,
    Site,
    WikiPage,
    dump_pages,
    parse_page,
    part_bounds,
    read_site,
)
from llmkit.errors import MissingDependencyError

_ENDINGS = (".xml",)
_MISSING = "reading wikitext needs mwparserfromhell, which is not installed."
_HINT = "pip install 'llmkit[data]'"
_CONVERTER = "llmkit.data.extraction.wikitext:plain_text"


@dataclass(frozen=True, slots=True)
class _Article:
    """What is kept of an article while its text is made elsewhere."""

    site: Site
    page: WikiPage
    file: str
    place: str


class WikipediaReader:
    """Reads each article as one document: the plain text of its wikitext.

    Redirects, and pages of namespaces that are not wanted, are no records: neither is a text of the collection.
    A document's path is the article's URL; its metadata name the `title`, the `id` of the page, its `revision` and
    the `date` of that.
    """

    def __init__(self, config: WikipediaSource) -> None:
        self._config = config
        self._namespaces = frozenset(map(str, config.namespaces))

    def check(self) -> Iterator[Finding]:
        """A library that is missing, and patterns that mean no file."""
        if find_spec("mwparserfromhell") is None:
            yield Finding(_MISSING, key="kind", hint=_HINT)
        yield from check_files(self._config.files, _ENDINGS)

    def slices(self) -> list[Slice]:
        """Small files together; large ones in parts where they are plain, or bzip2 of several streams."""
        return file_slices(find_files(self._config.files, _ENDINGS), part_bounds)

    def read(self, piece: Slice) -> Iterator[Record]:
        """A record for each article, and `Broken` for each place that is damaged.

        Raises:
            MissingDependencyError: the library is not installed.
        """
        if find_spec("mwparserfromhell") is None:
            raise MissingDependencyError(_MISSING, hint=_HINT)
        config = self._config
        guard = shared_guard(_CONVERTER, seconds=config.seconds, megabytes=config.megabytes)
        waiting: deque[_Article | Broken] = deque()

        def arguments() -> Iterator[tuple[str, list[str]]]:
            for found in self._articles(piece):
                waiting.append(found)
                # In the place of what is settled already, an article without text.
                yield ("", []) if isinstance(found, Broken) else (found.page.text or "", list(found.site.hidden))

        for text in guard.map(arguments()):
            found = waiting.popleft()
            yield found if isinstance(found, Broken) else self._record(found, text)

    def _articles(self, piece: Slice) -> Iterator[_Article | Broken]:
        for file in piece.files:
            site, problem = read_site(file)
            if problem is not None and piece.begin == 0:
                yield self._damage(file, problem)
            for found in dump_pages(file, self._config.max_bytes, piece.begin, piece.end):
                article = self._damage(file, found) if isinstance(found, Damage) else self._article(file, site, found)
                if article is not None:
                    yield article

    def _damage(self, file: SourceFile, damage: Damage) -> Broken:
        return Broken(self._config.label, file.name, f"byte {damage.position:,}: {damage.detail}", reason=damage.reason)

    def _article(self, file: SourceFile, site: Site, raw: RawPage) -> _Article | Broken | None:
        """An article; what is wrong with it; or None for a page that is none."""
        label, most = self._config.label, self._config.max_bytes
        place = f"byte {raw.position:,}: "

        def broken(detail: str, reason: Reason) -> Broken:
            return Broken(label, file.name, place + detail, readable_copy(raw.data[:4096]), reason)

        if raw.size > most:
            return broken(f"the page has {raw.size:,} bytes, more than {most:,}", "too large")
        try:
            page = parse_page(raw.data)
        except UnicodeDecodeError as error:
            return broken(f"byte {error.start:,} of the page: not valid utf-8 ({error.reason})", "encoding")
        except ValueError as error:
            return broken(f"the page is {error}", "malformed")
        if page.redirect or page.namespace not in self._namespaces:
            return None
        place += f"{page.title}: "
        problem = _content_problem(page)
        return broken(problem, "no text") if problem else _Article(site, page, file.name, place)

    def _record(self, found: _Article, text: str | GuardError) -> Record:
        config, page = self._config, found.page
        beginning = readable_copy(page.text or "")
        if isinstance(text, GuardError):
            reason: Reason = "malformed" if text.kind == "error" else "limits"
            detail = f"{found.place}taking the text out of its wikitext {text.reason}"
            return Broken(config.label, found.file, detail, beginning, reason)
        if not text:
            return Broken(config.label, found.file, f"{found.place}its wikitext shows no text", beginning, "no text")
        metadata = {"title": page.title, "id": page.identity, "revision": page.revision, "date": day_of(page.timestamp)}
        metadata = {name: value for name, value in metadata.items() if value}
        url, site = found.site.url(page.title), found.site
        record = make_record(config, text, url, metadata, site.language, site.license)
        if isinstance(record, Broken):
            return replace(record, path=found.file, detail=found.place + record.detail)
        return record


def _content_problem(page: WikiPage) -> str | None:
    if page.text is None:
        return "the dump does not hold its text"
    return None if page.model in ("", "wikitext") else f"its content is {page.model[:100]}, and not wikitext"
