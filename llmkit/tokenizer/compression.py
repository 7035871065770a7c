"""How many bytes of text a token stands for, by source and by language, for one tokenizer beside others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmkit.store.documents import Document, count_documents, read_documents
from llmkit.tokenizer.tokenizer import Tokenizer

MEASURED_BYTES = 10_000_000
"""Text of each source that is measured, at most."""
UNKNOWN_LANGUAGE = "unknown"
_BATCH = 256


@dataclass
class Compression:
    """What a tokenizer makes of some text."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    unknown: int = 0

    def add(self, size: int, ids: list[int], unknown: int | None) -> None:
        """Count one document of some bytes."""
        self.documents += 1
        self.bytes += size
        self.tokens += len(ids)
        self.unknown += ids.count(unknown) if unknown is not None else 0

    def row(self) -> dict[str, Any]:
        """The counts and their ratio."""
        return asdict(self) | {"bytes_per_token": self.bytes / self.tokens if self.tokens else None}


class Measured:
    """Counts of one tokenizer: of all text, by source and by language."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._total = Compression()
        self._sources: dict[str, Compression] = defaultdict(Compression)
        self._languages: dict[str, Compression] = defaultdict(Compression)

    def add(self, documents: list[Document], sizes: list[int]) -> None:
        """Count documents, whose texts have these bytes."""
        encoded = self._tokenizer.encode_batch([document.text for document in documents])
        for document, size, ids in zip(documents, sizes, encoded, strict=True):
            language = self._languages[document.language or UNKNOWN_LANGUAGE]
            for counted in (self._total, self._sources[document.source], language):
                counted.add(size, ids, self._tokenizer.unk_id)

    def report(self) -> dict[str, Any]:
        """The counts as JSON."""
        return {
            "all": self._total.row(),
            "sources": {name: counted.row() for name, counted in self._sources.items()},
            "languages": {name: counted.row() for name, counted in sorted(self._languages.items())},
        }


def measure(tokenizers: Mapping[str, Tokenizer], directory: Path) -> tuple[str, dict[str, dict[str, Any]]]:
    """Bytes per token of each tokenizer, on held-out documents where there are any.

    Returns:
        the split that was measured, and the counts by the tokenizers' names.
    """
    split = next((name for name in ("validation", "test") if count_documents(directory, name)), "train")
    measured = {name: Measured(tokenizer) for name, tokenizer in tokenizers.items()}
    taken: dict[str, int] = defaultdict(int)
    documents: list[Document] = []
    sizes: list[int] = []

    def flush() -> None:
        for each in measured.values():
            each.add(documents, sizes)
        documents.clear()
        sizes.clear()

    for document in read_documents(directory, [split]):
        if taken[document.source] < MEASURED_BYTES:
            documents.append(document)
            sizes.append(len(document.text.encode()))
            taken[document.source] += sizes[-1]
        if len(documents) == _BATCH:
            flush()
    flush()
    return split, {name: each.report() for name, each in measured.items()}


def comparison_rows(reports: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """The same as a table: a row for each part of the text, a column of bytes per token for each tokenizer."""
    first = next(iter(reports.values()))
    parts = [("all", None), *((kind, name) for kind in ("sources", "languages") for name in first[kind])]
    rows: list[list[Any]] = []
    for kind, name in parts:
        found = [report[kind] if name is None else report[kind][name] for report in reports.values()]
        label = "all text" if name is None else f"{kind[:-1]} {name}"
        rows.append([label, found[0]["bytes"], *(part["bytes_per_token"] for part in found)])
    return ["text", "bytes", *reports], rows
