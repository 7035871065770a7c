"""Web pages."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import replace

from llmkit.config.base import Finding
from llmkit.data.sources.base import Broken, Record, Slice, file_slices, make_record, readable_copy
from llmkit.data.sources.config import HtmlSource
from llmkit.data.sources.files import READ_ERRORS, SourceFile, check_files, find_files, open_bytes
from llmkit.data.sources.html_text import extract_page
from llmkit.store.documents import Document

_ENDINGS = (".html", ".htm", ".xhtml")
_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([A-Za-z0-9._-]+)", re.IGNORECASE)
_DECLARED_WITHIN_BYTES = 1024
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


class HtmlReader:
    """Reads each file as one document: its main text, with the title as metadata."""

    def __init__(self, config: HtmlSource) -> None:
        self._config = config

    def check(self) -> Iterator[Finding]:
        """Patterns that mean no file."""
        return check_files(self._config.files, _ENDINGS)

    def slices(self) -> list[Slice]:
        """Files together up to some size."""
        return file_slices(find_files(self._config.files, _ENDINGS))

    def read(self, piece: Slice) -> Iterator[Record]:
        """A document for each file, `Broken` for one that cannot be read or decoded."""
        for file in piece.files:
            yield self._read_file(file)

    def _read_file(self, file: SourceFile) -> Record:
        config = self._config
        data = b""
        encoding = ""
        try:
            with open_bytes(file.path) as stream:
                data = stream.read()
            encoding = declared_encoding(data)
            page = extract_page(data.decode(encoding))
        except UnicodeDecodeError as error:
            detail = f"byte {error.start:,}: not valid {encoding} ({error.reason})"
            return Broken(config.label, file.name, detail, readable_copy(data))
        except READ_ERRORS as error:
            return Broken(config.label, file.name, f"the file cannot be read: {error}")
        record = make_record(config, page.text, file.name, {"title": page.title} if page.title else {})
        if isinstance(record, Document) and record.language is None:
            return replace(record, language=page.language)
        return record


def declared_encoding(data: bytes) -> str:
    """The encoding of a page: by its byte order mark, by what it declares in its first 1,024 bytes, else UTF-8."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding
    found = _CHARSET.search(data[:_DECLARED_WITHIN_BYTES])
    if found:
        name = found.group(1).decode().lower()
        # By the HTML standard, pages that declare Latin-1 are in Windows-1252, and ones whose declaration could be read
        # byte by byte cannot be in UTF-16.
        name = {"iso-8859-1": "cp1252", "latin1": "cp1252", "ascii": "cp1252", "us-ascii": "cp1252"}.get(name, name)
        try:
            "".encode(name)
        except LookupError:
            return "utf-8"
        return "utf-8" if name.startswith("utf-16") else name
    return "utf-8"
