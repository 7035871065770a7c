"""The texts that a model of n-grams is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from llmkit.data.records import ENDINGS as ROWS
from llmkit.data.records import read_records
from llmkit.data.sources.base import surrogate_problem
from llmkit.data.sources.files import READ_ERRORS, ending_of, find_files, name_of, open_text
from llmkit.data.sources.text import ENDINGS as PLAIN
from llmkit.data.words import Words, words_of
from llmkit.errors import DataError
from llmkit.store.documents import document_id, read_texts

COLUMN = "text"
_CHARACTERS = 1 << 22


def training_texts(kind: str, place: str) -> Iterator[str]:
    """The texts of an input: the training part of documents; of files each one, or each row's.

    Args:
        kind: "documents", or "file".
        place: where it is.

    Raises:
        DataError: a file is of no known format, or something in it cannot be read.
        ArtifactError: a file of an artifact cannot be read.
    """
    if kind == "documents":
        yield from read_texts(Path(place), ("train",))
        return
    known = f"Endings: {', '.join((*PLAIN, *ROWS))}."
    files = find_files([place], (*PLAIN, *ROWS))
    if not files:
        raise DataError("there is no file here whose text can be read.", where=place, hint=known)
    for file in files:
        ending = ending_of(name_of(file.path))
        if ending not in (*PLAIN, *ROWS):
            raise DataError("the file's name does not tell its format.", where=file.path, hint=known)
        for where, text in [(file.path, _whole(file.path))] if ending in PLAIN else _rows(file.path):
            if surrogate_problem(text) is not None:
                raise DataError("the text is no UTF-8.", where=where)
            yield text


def sampled_words(texts: Callable[[], Iterable[str]], max_bytes: int) -> tuple[Words, int, int]:
    """The words of texts; where they are more than `max_bytes` in UTF-8, of a part of about this size.

    Whether a text is in that part depends on its own digest and on the size of all alone.

    Returns:
        the words, and how many texts and bytes they are of.
    """
    total = sum(len(text.encode()) for text in texts())
    below = 2**64 if total <= max_bytes else max_bytes * 2**64 // total
    parts: list[Words] = []
    waiting: list[str] = []
    characters = documents = size = 0
    for text in texts():
        if int.from_bytes(hashlib.sha256(f"ngram:{document_id(text)}".encode()).digest()[:8], "big") >= below:
            continue
        waiting.append(text)
        characters += len(text)
        documents += 1
        size += len(text.encode())
        if characters > _CHARACTERS:
            parts.append(words_of(waiting))
            waiting, characters = [], 0
    return _joined([*parts, words_of(waiting)]), documents, size


def _joined(parts: Sequence[Words]) -> Words:
    before = np.cumsum([0, *(len(part.hashes) for part in parts)])
    begins = [part.begins[:-1] + start for part, start in zip(parts, before, strict=False)]
    return Words(np.concatenate([part.hashes for part in parts]), np.concatenate([*begins, before[-1:]]))


def _whole(path: str) -> str:
    try:
        with open_text(path, "utf-8") as stream:
            return stream.read()
    except READ_ERRORS as error:
        raise DataError(f"the file cannot be read: {error}.", where=path) from None


def _rows(path: str) -> Iterator[tuple[str, str]]:
    for record in read_records(path):
        text = record.values.get(COLUMN)
        if record.problem is not None:
            raise DataError(record.problem, where=record.place)
        if not isinstance(text, str):
            raise DataError(f"there is no text in the column `{COLUMN}`.", where=record.place)
        yield record.place, text
