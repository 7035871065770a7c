"""Books: EPUB, and PDF with a text layer. They are parsed in a guarded worker."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from llmkit.config.base import Finding
from llmkit.data.guarded import GuardError, shared_guard
from llmkit.data.sources.base import Broken, Reason, Record, Slice, day_of, file_slices, make_record, readable_copy
from llmkit.data.sources.config import EpubSource, PdfSource
from llmkit.data.sources.files import SourceFile, check_files, find_files
from llmkit.data.sources.whole import read_whole
from llmkit.errors import MissingDependencyError

_LIBRARIES = {"epub": ("resiliparse", "web"), "pdf": ("pypdf", "data")}
"""What a kind needs, and the extra that brings it."""


class BookReader:
    """Reads each file as one document; title, author and date are metadata."""

    def __init__(self, config: EpubSource | PdfSource) -> None:
        self._config = config
        self._endings = (f".{config.kind}",)
        self._library, self._extra = _LIBRARIES[config.kind]

    def check(self) -> Iterator[Finding]:
        """A library that is missing, and patterns that mean no file."""
        if find_spec(self._library) is None:
            yield Finding(self._missing(), key="kind", hint=f"pip install 'llmkit[{self._extra}]'")
        yield from check_files(self._config.files, self._endings)

    def slices(self) -> list[Slice]:
        """Files together up to some size."""
        return file_slices(find_files(self._config.files, self._endings))

    def read(self, piece: Slice) -> Iterator[Record]:
        """A document for each file; `Broken` for one that is damaged, encrypted, without text or beyond the limits.

        Raises:
            MissingDependencyError: the library is not installed.
        """
        if find_spec(self._library) is None:
            raise MissingDependencyError(self._missing(), hint=f"pip install 'llmkit[{self._extra}]'")
        return map(self._record, piece.files)

    def _missing(self) -> str:
        return f"reading {self._config.kind.upper()} needs {self._library}, which is not installed."

    def _record(self, file: SourceFile) -> Record:
        config = self._config
        data = read_whole(config.label, file, config.max_bytes)
        if isinstance(data, Broken):
            return data
        guard = shared_guard(
            f"llmkit.data.extraction.{config.kind}:book", seconds=config.seconds, megabytes=config.megabytes
        )
        beginning = readable_copy(data[:256])
        try:
            found: dict[str, Any] = guard.call((data, config.max_bytes))
        except GuardError as error:
            reason: Reason = "malformed" if error.kind == "error" else "limits"
            return Broken(config.label, file.name, f"reading it {error.reason}", beginning, reason)
        if "reason" in found:
            return Broken(config.label, file.name, found["detail"], beginning, found["reason"])
        metadata = {key: value for key, value in found["metadata"].items() if value}
        language = metadata.pop("language", None)
        if "date" in metadata:
            metadata["date"] = day_of(metadata["date"])
        return make_record(config, found["text"], file.name, metadata, language)
