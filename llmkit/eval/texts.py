"""Held-out text, from documents, token shards or plain files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from llmkit.data.decoding import decoded_texts
from llmkit.data.sources.files import READ_ERRORS, find_files, open_bytes
from llmkit.data.sources.text import ENDINGS
from llmkit.errors import DataError
from llmkit.store.documents import document_id, read_documents
from llmkit.store.splits import SPLITS
from llmkit.store.stage import ResolvedInput

Item = TypeVar("Item")


@dataclass(frozen=True)
class Text:
    """A text and the digest that names it."""

    id: str
    text: str

    @property
    def bytes(self) -> int:
        """Length in UTF-8."""
        return len(self.text.encode())


def held_out_texts(source: ResolvedInput, split: str, limit: int | None) -> list[Text]:
    """The texts of one split that are more than white space.

    Args:
        source: documents; tokens of a tokenizer that loses nothing, which are turned back into text; or files of plain
            text, each one text; of a folder in which files are named after splits (`test.txt`), those of this split.
        split: "train", "validation", "test" or "all".
        limit: take no more than this many.

    Raises:
        DataError: there is no text, or the tokens do not give back the text that they were made of.
    """
    wanted = SPLITS if split == "all" else (split,)
    if source.facts.kind == "documents":
        found = [Text(document.id, document.text) for document in read_documents(source.path, wanted)]
    elif source.facts.kind == "tokens":
        found = [Text(document_id(text), text) for part in wanted for text in decoded_texts(source, part)]
    else:
        found = [Text(document_id(text), text) for text in _plain_files(source.path, split)]
    texts = limited([text for text in found if text.text.strip()], limit, lambda text: text.id)
    if not texts:
        raise DataError(f"there is no text in {name_of_split(split)}.", where=str(source.path))
    return texts


def read_split(read: Callable[[ResolvedInput, str], list[Item]], source: ResolvedInput, split: str) -> list[Item]:
    """Examples of one split, or of all.

    Raises:
        DataError: there are none.
    """
    examples = [example for part in (SPLITS if split == "all" else (split,)) for example in read(source, part)]
    if not examples:
        hint = None if split == "all" else "`split: all` takes every row."
        raise DataError(f"there is no example in {name_of_split(split)}.", where=str(source.path), hint=hint)
    return examples


def name_of_split(split: str) -> str:
    """A split in a sentence."""
    return "all splits" if split == "all" else f"the {split} split"


def limited(items: Sequence[Item], limit: int | None, key: Callable[[Item], str]) -> list[Item]:
    """At most `limit` items, those with the lowest sha256 of their keys, in the order given."""
    if limit is None or len(items) <= limit:
        return list(items)
    order = sorted(range(len(items)), key=lambda place: (hashlib.sha256(key(items[place]).encode()).digest(), place))
    return [items[place] for place in sorted(order[:limit])]


def _plain_files(path: Path, split: str) -> Iterator[str]:
    files = [Path(found.path) for found in find_files([str(path)], ENDINGS)]
    if path.is_dir():
        named: dict[str, list[Path]] = {
            name: [file for file in files if file.name.partition(".")[0] == name] for name in SPLITS
        }
        if any(named.values()) and split != "all":
            files = named[split]
    for file in files:
        try:
            with open_bytes(file) as stream:
                yield stream.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"the file is not UTF-8 text ({error.reason}).", where=str(file)) from None
        except READ_ERRORS as error:
            raise DataError(f"the file cannot be read: {error}.", where=str(file)) from None
