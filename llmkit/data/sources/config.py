"""Settings of sources: where text comes from. No heavy imports."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from llmkit.config.base import Config
from llmkit.data.extraction.config import ExtractionConfig


class SourceConfig(Config):
    """What every source can say."""

    kind: str
    """Kind of the source."""
    name: str | None = Field(default=None, min_length=1)
    """Name of the source in documents and reports; its kind by default."""
    license: str | None = None
    """Licence of the texts, as an SPDX name."""
    language: str | None = None
    """Language of the texts, as a BCP 47 tag."""
    limit: int | None = Field(default=None, ge=1)
    """Read no more than this many records."""
    split_key: str | None = None
    """Documents that agree in this go into the same split: `path`, or a name in the metadata. By default each document
    is put into a split by the digest of its own text."""

    @property
    def label(self) -> str:
        """The name, or the kind."""
        return self.name or self.kind

    def files_read(self) -> list[tuple[str, str]]:
        """Dotted key below the source, and path or pattern, of each file input."""
        return []


class PythonDocsSource(SourceConfig):
    """The text that every Python carries: language reference, docstrings and source of the standard library."""

    kind: Literal["python-docs"] = "python-docs"
    """The text that every Python carries: language reference, docstrings and source of the standard library."""
    parts: list[Literal["reference", "docstrings", "source"]] = Field(
        default=["reference", "docstrings", "source"], min_length=1
    )
    """Which of the three to read."""
    exclude: list[str] = Field(default=[])
    """Modules and packages to leave out, as patterns of dotted names (`tkinter`, `asyncio.*_events`); what is inside
    of one goes with it. Test suites and programs such as IDLE are never read."""
    strip_docstrings: bool = False
    """Take the docstrings out of the source, where they would stand a second time."""
    license: str | None = "PSF-2.0"
    """Licence of the texts, as an SPDX name."""
    language: str | None = "en"
    """Language of the texts, as a BCP 47 tag."""
    split_key: str | None = "module"
    """Documents that agree in this go into the same split. By default the module, since a docstring stands in its
    module's source as well; `object` divides more finely, and goes with `strip_docstrings`."""


class FileSource(SourceConfig):
    """A source that reads files."""

    files: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    """Files, glob patterns (`texts/**/*.txt`), or folders, of which every file with a fitting ending is read; local, or
    at any URL that fsspec opens (`s3://bucket/texts/*.txt`, `zip://*.txt::texts.zip`). Plain, or compressed as their
    names say (`.gz`, `.bz2`, `.xz`, `.zst`)."""
    max_bytes: int = Field(default=1 << 26, ge=1 << 10)
    """Bytes of the largest record (a line, a page, a book) that is read, decompressed. What is larger goes to the
    quarantine, so that no input can take all memory."""

    def files_read(self) -> list[tuple[str, str]]:
        """Each pattern."""
        return [(f"files.{index}", pattern) for index, pattern in enumerate(self.files)]


class DecodedFileSource(FileSource):
    """A source that reads files of text."""

    encoding: str = "utf-8"
    """Encoding of the files."""

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            "".encode(value)
        except LookupError:
            raise PydanticCustomError(
                "encoding", "`{encoding}` is no text encoding that Python knows", {"encoding": value}
            ) from None
        return value


class Columns(Config):
    """Which columns of a table hold what."""

    text: str = Field(default="text", min_length=1)
    """Column with the text."""
    id: str | None = None
    """Column with a name of the record, kept as `id` in the metadata."""
    date: str | None = None
    """Column with the date of the text, kept as `date` in the metadata; of a moment the day."""
    language_column: str | None = None
    """Column with the language of each text, for those for which `language` is not set."""
    license_column: str | None = None
    """Column with the licence of each text, for those for which `license` is not set."""
    metadata: list[str] = Field(default=[])
    """Columns to keep as metadata."""


class TextSource(DecodedFileSource):
    """Files of plain text, each one document."""

    kind: Literal["text"] = "text"
    """Files of plain text, each one document."""


class HtmlSource(FileSource):
    """Web pages, each one document: the main text without menus, scripts and styles."""

    kind: Literal["html"] = "html"
    """Web pages, each one document: the main text without menus, scripts and styles."""
    extraction: ExtractionConfig = ExtractionConfig()
    """How text is taken out of pages."""


class JsonlSource(Columns, DecodedFileSource):
    """Files with one JSON object on each line."""

    kind: Literal["jsonl"] = "jsonl"
    """Files with one JSON object on each line."""


class CsvSource(Columns, DecodedFileSource):
    """Tables as text, with the names of the columns in the first row."""

    kind: Literal["csv"] = "csv"
    """Tables as text, with the names of the columns in the first row."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """Character between cells; by default a tab in files named `.tsv` and a comma in others."""


class ParquetSource(Columns, FileSource):
    """Parquet files."""

    kind: Literal["parquet"] = "parquet"
    """Parquet files."""


class ArrowSource(Columns, FileSource):
    """Arrow files and streams (Feather, and what the `datasets` library keeps)."""

    kind: Literal["arrow"] = "arrow"
    """Arrow files and streams (Feather, and what the `datasets` library keeps)."""


class DatasetSource(Columns, SourceConfig):
    """A dataset of the `datasets` library."""

    kind: Literal["dataset"] = "dataset"
    """A dataset of the `datasets` library."""
    dataset: str = Field(min_length=1)
    """Name on the hub (`owner/name`), or a local folder, written with a leading `.` or `/`."""
    config: str | None = None
    """Configuration of the dataset, where it has several."""
    split: str = Field(default="train", min_length=1)
    """Split of the dataset to read."""
    streaming: bool = True
    """Read it as it comes, instead of downloading all of it into the library's cache first."""
    revision: str | None = None
    """Commit or tag of a dataset on the hub. Without one, the newest is read, and it may change."""

    @property
    def is_local(self) -> bool:
        """Whether a folder is meant and not a name on the hub."""
        return self.dataset.startswith((".", "/"))

    def files_read(self) -> list[tuple[str, str]]:
        """The folder, where one is meant."""
        return [("dataset", self.dataset)] if self.is_local else []


class WebSource(SourceConfig):
    """Pages of the web, by lists of URLs or sitemaps. Politely: each host's robots.txt is obeyed, and a host is asked
    for one thing at a time, with a pause before the next. What was fetched stays in a cache, and is not asked for
    again."""

    kind: Literal["web"] = "web"
    """Pages of the web, by lists of URLs or sitemaps. Politely: each host's robots.txt is obeyed, and a host is asked
    for one thing at a time, with a pause before the next. What was fetched stays in a cache, and is not asked for
    again."""
    contact: str = Field(min_length=1, max_length=200, pattern=r"^(https?://\S+|[^@\s]+@[^@\s]+)$")
    """How whoever runs a server can reach you, part of the user agent: an e-mail address, or the URL of a page about
    this crawl."""
    agent: str = Field(default="llmkit", pattern=r"^[A-Za-z][A-Za-z_-]{0,40}$")
    """Name of the crawler, in the user agent and in robots.txt."""
    urls: list[Annotated[str, Field(min_length=1)]] = Field(default=[])
    """Pages to read."""
    lists: list[Annotated[str, Field(min_length=1)]] = Field(default=[])
    """Files with one URL on each line; lines that begin with `#` are not read."""
    sitemaps: list[Annotated[str, Field(min_length=1)]] = Field(default=[])
    """URLs of sitemaps, or indexes of them, whose pages are read."""
    sitemap_pages: int = Field(default=100_000, ge=1)
    """Take no more pages than this from the sitemaps; the first ones, in their order."""
    cache: str = Field(default="web-cache", min_length=1)
    """Folder in which pages are kept. Machines that share the work need one folder that all of them see."""
    retry_failed: bool = False
    """Ask once more for what earlier runs did not get for reasons that may pass: no answer, an error of the server."""
    seconds_between: float = Field(default=1.0, ge=0)
    """Pause between two requests to one host. A longer one that its robots.txt wants is kept as well, up to
    `longest_wait`."""
    longest_wait: float = Field(default=120.0, ge=0)
    """Where a host wants a longer pause than this, its pages are given up."""
    connections: int = Field(default=8, ge=1, le=256)
    """Hosts that are asked at the same time."""
    attempts: int = Field(default=3, ge=1)
    """How often to ask for a page, where there is no answer or an error of the server; the pause doubles each time."""
    redirects: int = Field(default=5, ge=0)
    """Follow no more redirects than this from a page."""
    seconds: float = Field(default=30.0, gt=0)
    """A page must be there, whole, in this time."""
    megabytes: float = Field(default=10.0, gt=0)
    """Size of a page, decompressed, in MiB."""
    types: list[str] = Field(default=["text/html", "application/xhtml+xml", "text/plain"], min_length=1)
    """Content types to read; anything else is not downloaded. What is not HTML is read as plain text."""
    allow_addresses: list[str] = Field(default=[])
    """Networks that are asked though they are private, such as `10.1.0.0/16` for an intranet. All others that are not
    part of the public internet are refused, also when a public name or a redirect leads there."""
    extraction: ExtractionConfig = ExtractionConfig()
    """How text is taken out of pages."""

    @field_validator("allow_addresses")
    @classmethod
    def _networks(cls, value: list[str]) -> list[str]:
        for network in value:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise PydanticCustomError("network", "{problem}", {"problem": str(error)}) from None
        return value

    def files_read(self) -> list[tuple[str, str]]:
        """Each list of URLs."""
        return [(f"lists.{index}", path) for index, path in enumerate(self.lists)]


class WarcSource(FileSource):
    """Web archives (WARC, and WET with the text alone), as crawlers write them and Common Crawl gives away."""

    kind: Literal["warc"] = "warc"
    """Web archives (WARC, and WET with the text alone), as crawlers write them and Common Crawl gives away."""
    extraction: ExtractionConfig = ExtractionConfig()
    """How text is taken out of pages."""


class WikipediaSource(FileSource):
    """Dumps of Wikipedia, or of another wiki of MediaWiki (`pages-articles` in XML), each article one document. Needs
    the extra `data`."""

    kind: Literal["wikipedia"] = "wikipedia"
    """Dumps of Wikipedia, or of another wiki of MediaWiki (`pages-articles` in XML), each article one document. Needs
    the extra `data`."""
    namespaces: list[Annotated[int, Field(ge=0)]] = Field(default=[0], min_length=1)
    """Numbers of the namespaces to read; 0 is that of articles."""
    seconds: float = Field(default=10.0, gt=0)
    """Computing time that the conversion of an article may take."""
    megabytes: int = Field(default=1024, ge=64)
    """Memory that the conversion of an article may take, in MiB."""


class MarkdownSource(DecodedFileSource):
    """Files of Markdown, each one document: the text as it is, its front matter as metadata."""

    kind: Literal["markdown"] = "markdown"
    """Files of Markdown, each one document: the text as it is, its front matter as metadata."""


class EpubSource(FileSource):
    """Books in EPUB, each one document, their chapters in reading order. Needs the extra `web`."""

    kind: Literal["epub"] = "epub"
    """Books in EPUB, each one document, their chapters in reading order. Needs the extra `web`."""
    seconds: float = Field(default=30.0, gt=0)
    """Computing time that a book may take."""
    megabytes: int = Field(default=1024, ge=64)
    """Memory that a book may take, in MiB."""


class PdfSource(FileSource):
    """PDF files with a text layer, each one document. Needs the extra `data`."""

    kind: Literal["pdf"] = "pdf"
    """PDF files with a text layer, each one document. Needs the extra `data`."""
    seconds: float = Field(default=60.0, gt=0)
    """Computing time that a file may take."""
    megabytes: int = Field(default=1024, ge=64)
    """Memory that a file may take, in MiB."""


class CodeSource(SourceConfig):
    """Trees of source code, each file one document. Needs the extra `data`."""

    kind: Literal["code"] = "code"
    """Trees of source code, each file one document. Needs the extra `data`."""
    folders: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    """Folders of which every file of a known programming language is read, but for what a `.gitignore` leaves out."""
    generated: bool = False
    """Keep files that say that a program wrote them, and minified ones."""
    max_bytes: int = Field(default=1 << 20, ge=1 << 10)
    """Bytes of the largest file that is read."""

    def files_read(self) -> list[tuple[str, str]]:
        """Each folder."""
        return [(f"folders.{index}", folder) for index, folder in enumerate(self.folders)]


AnySource = Annotated[
    PythonDocsSource
    | TextSource
    | JsonlSource
    | CsvSource
    | ParquetSource
    | ArrowSource
    | HtmlSource
    | WebSource
    | WarcSource
    | WikipediaSource
    | MarkdownSource
    | EpubSource
    | PdfSource
    | CodeSource
    | DatasetSource,
    Field(discriminator="kind"),
]
