"""The texts that models are measured on, with where each stands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from llmkit.data.decoding import decoded_texts
from llmkit.data.records import ENDINGS as ROWS
from llmkit.data.records import FileRecord, read_records
from llmkit.data.sources.base import surrogate_problem
from llmkit.data.sources.compression import COMPRESSIONS
from llmkit.data.sources.files import READ_ERRORS, ending_of, find_files, is_url, name_of, open_text
from llmkit.data.sources.text import ENDINGS as PLAIN
from llmkit.errors import DataError
from llmkit.store.documents import read_documents
from llmkit.store.stage import ResolvedInput

HELD_OUT = ("validation", "test")
ENDINGS = (*ROWS, *PLAIN)
"""Endings of files that are read, before that of a compression."""
_PIECE = 1 << 20

Row = tuple[str, Iterable[Iterable[str]]]
"""Where texts stand ("gsm8k/test.jsonl:12"), and the texts, each in pieces cut between words."""


def rows_of(name: str, source: ResolvedInput) -> Iterator[Row]:
    """The rows of an input: of files all, of what stages have made those that are held out.

    Args:
        name: what the input is called, for what a stage has made.
        source: the input.

    Raises:
        DataError: a file is of no known format, or something in it cannot be read.
        ArtifactError: a file of an artifact cannot be read.
    """
    kind = source.facts.kind
    if kind == "file":
        yield from _rows_of_files(source.value if is_url(source.value) else str(source.path))
        return
    for split in HELD_OUT:
        if kind == "documents":
            for document in read_documents(source.path, (split,)):
                yield f"{name}/{split}: {document.path}", [[document.text]]
        elif kind == "tokens":
            for number, text in enumerate(decoded_texts(source, split), start=1):
                yield f"{name}/{split}: document {number}", [[text]]
        else:
            file = source.path / f"{split}.jsonl"
            for record in read_records(file):
                yield f"{name}/{file.name}{record.place.removeprefix(str(file))}", _texts_of(record)


def _rows_of_files(place: str) -> Iterator[Row]:
    files = find_files([place], ENDINGS)
    known = f"Endings: {', '.join(ENDINGS)}, alone or before {', '.join(COMPRESSIONS)}."
    if not files:
        raise DataError("there is no file here whose texts can be read.", where=place, hint=known)
    for file in files:
        ending = ending_of(name_of(file.path))
        if ending in PLAIN:
            yield file.path, [_pieces(file.path)]
        elif ending in ROWS:
            for record in read_records(file.path):
                yield record.place, _texts_of(record)
        else:
            raise DataError("the file's name does not tell its format.", where=file.path, hint=known)


def _pieces(path: str) -> Iterator[str]:
    """The text of a file, cut behind lines."""
    try:
        with open_text(path, "utf-8") as stream:
            while piece := stream.read(_PIECE):
                piece += stream.readline()
                _refuse_broken(piece, path)
                yield piece
    except FileNotFoundError:
        raise DataError("there is no such file.", where=path) from None
    except READ_ERRORS as error:
        raise DataError(f"the file cannot be read: {error}.", where=path) from None


def _texts_of(record: FileRecord) -> Iterator[list[str]]:
    """Every text in a record, whatever its key and however deep."""
    if record.problem is not None:
        raise DataError(record.problem, where=record.place)
    values: list[Any] = [record.values]
    while values:
        value = values.pop()
        if isinstance(value, str):
            _refuse_broken(value, record.place)
            yield [value]
        elif isinstance(value, dict):
            values.extend(reversed(value.values()))
        elif isinstance(value, (list, tuple)):
            values.extend(reversed(value))
            if len(value) > 1 and all(isinstance(item, str) and len(item.split()) == 1 for item in value):
                # A text that comes as a list of its words.
                yield [" ".join(value)]


def _refuse_broken(text: str, place: str) -> None:
    problem = surrogate_problem(text)
    if problem is not None:
        raise DataError(f"a text here is broken: {problem.partition(': ')[2]}.", where=place)
