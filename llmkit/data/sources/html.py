"""Web pages in files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmkit.config.base import Finding
from llmkit.data.extraction.config import ExtractionConfig
from llmkit.data.extraction.pages import Page, RawPage, Unreadable, extract_pages, missing_library
from llmkit.data.sources.base import Broken, Record, Slice, file_slices, make_record, readable_copy
from llmkit.data.sources.config import HtmlSource, SourceConfig
from llmkit.data.sources.files import SourceFile, check_files, find_files
from llmkit.data.sources.whole import read_whole

_ENDINGS = (".html", ".htm", ".xhtml")
_COPY_BYTES = 4096


class HtmlReader:
    """Reads each file as one document: its main text, with the title as metadata."""

    def __init__(self, config: HtmlSource) -> None:
        self._config = config

    def check(self) -> Iterator[Finding]:
        """A library that is missing, and patterns that mean no file."""
        yield from check_extraction(self._config.extraction)
        yield from check_files(self._config.files, _ENDINGS)

    def slices(self) -> list[Slice]:
        """Files together up to some size."""
        return file_slices(find_files(self._config.files, _ENDINGS))

    def read(self, piece: Slice) -> Iterator[Record]:
        """A document for each file, `Broken` for one that is too large or cannot be read or decoded."""
        pages = (self._open(file) for file in piece.files)
        for opened, found in extract_pages(self._config.extraction, pages):
            yield opened if isinstance(opened, Broken) else page_record(self._config, opened, found)

    def _open(self, file: SourceFile) -> tuple[OpenedPage | Broken, RawPage]:
        """A page as it stands in its file; or `Broken`, and an empty page in its place."""
        data = read_whole(self._config.label, file, self._config.max_bytes)
        if isinstance(data, Broken):
            return data, RawPage(b"")
        return OpenedPage(file.name, data[:_COPY_BYTES]), RawPage(data)


@dataclass(frozen=True, slots=True)
class OpenedPage:
    """What is kept of a page while its text is taken out elsewhere.

    Args:
        path: of its document.
        beginning: its first bytes.
        metadata: of its document, beside the title.
    """

    path: str
    beginning: bytes
    metadata: tuple[tuple[str, str], ...] = ()


def page_record(source: SourceConfig, opened: OpenedPage, found: Page | Unreadable) -> Record:
    """The document of a page, in the language that the source or else the page names; or `Broken`."""
    if isinstance(found, Unreadable):
        return Broken(source.label, opened.path, found.detail, readable_copy(opened.beginning), found.reason)
    metadata = dict(opened.metadata) | ({"title": found.title} if found.title else {})
    return make_record(source, found.text, opened.path, metadata, found.language)


def check_extraction(config: ExtractionConfig) -> Iterator[Finding]:
    """A finding where a library is missing."""
    missing = missing_library(config)
    if missing is not None:
        message = f"extracting the text of web pages needs {missing}, which is not installed."
        yield Finding(message, key="extraction.by", hint="pip install 'llmkit[web]'")
