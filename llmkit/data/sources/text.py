"""Files of plain text."""

from __future__ import annotations

from collections.abc import Iterator

from llmkit.config.base import Finding
from llmkit.data.sources.base import Broken, Record, Slice, file_slices, make_record
from llmkit.data.sources.config import TextSource
from llmkit.data.sources.files import SourceFile, check_files, find_files
from llmkit.data.sources.whole import decode_whole, read_whole

ENDINGS = (".txt", ".text", ".md", ".markdown", ".rst")


class TextReader:
    """Reads each file as one document."""

    def __init__(self, config: TextSource) -> None:
        self._config = config

    def check(self) -> Iterator[Finding]:
        """Patterns that mean no file."""
        return check_files(self._config.files, ENDINGS)

    def slices(self) -> list[Slice]:
        """Files together up to some size."""
        return file_slices(find_files(self._config.files, ENDINGS))

    def read(self, piece: Slice) -> Iterator[Record]:
        """A document for each file, `Broken` for one that is too large or cannot be read or decoded."""
        return map(self._record, piece.files)

    def _record(self, file: SourceFile) -> Record:
        config = self._config
        data = read_whole(config.label, file, config.max_bytes)
        text = data if isinstance(data, Broken) else decode_whole(config.label, file, data, config.encoding)
        return text if isinstance(text, Broken) else make_record(config, text, file.name, {})
