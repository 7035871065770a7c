"""Files of plain text."""

from __future__ import annotations

from collections.abc import Iterator

from llmkit.config.base import Finding
from llmkit.data.sources.base import Broken, Record, Slice, file_slices, make_record, readable_copy
from llmkit.data.sources.config import TextSource
from llmkit.data.sources.files import READ_ERRORS, check_files, find_files, open_bytes

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
        """A document for each file, `Broken` for one that cannot be read or decoded."""
        config = self._config
        for file in piece.files:
            data = b""
            try:
                with open_bytes(file.path) as stream:
                    data = stream.read()
                text = data.decode(config.encoding)
            except UnicodeDecodeError as error:
                detail = f"byte {error.start:,}: not valid {config.encoding} ({error.reason})"
                yield Broken(config.label, file.name, detail, readable_copy(data))
            except READ_ERRORS as error:
                yield Broken(config.label, file.name, f"the file cannot be read: {error}")
            else:
                yield make_record(config, text.removeprefix("\ufeff"), file.name, {})
