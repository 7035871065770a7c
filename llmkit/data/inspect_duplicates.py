"""Documents that were dropped as duplicates, beside those that stayed for them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from llmkit.console import Marked
from llmkit.data.inspect import Table, matching_rows, visible
from llmkit.data.stage import DROPPED
from llmkit.store.documents import DOCUMENTS

_COMPARED_WORDS = 1000
"""Of each text: comparing takes time with their square."""
_SHOWN_WORDS = 40
_WORDS_BEFORE = 8
_OF = re.compile(r"of ([0-9a-f]{32})")
"""The detail of a document that was dropped for another one."""
_COLUMNS = ("id", "source", "path", "text")


def duplicates_beside(directory: Path, samples: int) -> Table:
    """Some duplicates that each method dropped, beside the documents that stayed, with the words that differ marked.

    Args:
        directory: an artifact of documents.
        samples: pairs of each method.
    """
    dropped = _dropped(directory, samples)
    stayed = _by_id(directory, {_for(row) for row in dropped})
    rows = [_row(row, stayed.get(_for(row))) for row in dropped]
    return Table("Duplicates beside what stayed", ["step", "dropped", "stayed"], rows)


def _for(row: Mapping[str, Any]) -> str:
    """The id of the document for which one was dropped."""
    found = _OF.fullmatch(row["detail"])
    assert found is not None
    return found[1]


def _dropped(directory: Path, samples: int) -> list[dict[str, Any]]:
    files = sorted((directory / DROPPED).glob("*.parquet"))
    counts: dict[str, int] = defaultdict(int)

    def wanted(row: Mapping[str, Any]) -> bool:
        if counts[row["step"]] >= samples or not _OF.fullmatch(row["detail"] or ""):
            return False
        counts[row["step"]] += 1
        return True

    found = list(matching_rows(files, ["step", "detail"], wanted, ["step", "detail", *_COLUMNS]))
    return sorted(found, key=lambda row: list(counts).index(row["step"]))


def _by_id(directory: Path, ids: set[str]) -> dict[str, dict[str, Any]]:
    """The documents with these ids; of those that went later by another step, what was dropped."""
    found: dict[str, dict[str, Any]] = {}

    def missing(row: Mapping[str, Any]) -> bool:
        # A copy to the byte, which was dropped for another one, has the id of that one.
        return row["id"] in ids and row["id"] not in found and row.get("detail") != f"of {row['id']}"

    for folder in (DOCUMENTS, DROPPED):
        files = sorted((directory / folder).glob("*.parquet")) if ids - found.keys() else []
        keys, extra = (["id", "detail"], ["step"]) if folder == DROPPED else (["id"], [])
        for row in matching_rows(files, keys, missing, [*_COLUMNS, *extra]):
            found.setdefault(row["id"], row)
    return found


def _row(dropped: Mapping[str, Any], stayed: Mapping[str, Any] | None) -> list[Any]:
    if stayed is None:
        # Its text is another one by now, and so is its id.
        gone = "a document of an earlier corpus, or one of which something was cut later"
        return [dropped["step"], _cell(dropped, [(_begin(dropped["text"]), "")]), gone]
    left, right, alike = compare(dropped["text"], stayed["text"])
    share = f"{dropped['step']}: {alike:.0%} alike"
    note = f", dropped later by {stayed['step']}" if "step" in stayed else ""
    return [share, _cell(dropped, left), _cell(stayed, right, note)]


def _cell(row: Mapping[str, Any], pieces: Sequence[tuple[str, str]], note: str = "") -> Marked:
    place = f"{visible(row['source'])}: {visible(row['path'])}{note}\n"
    return Marked(((place, "place"), *pieces))


def _begin(text: str) -> str:
    return _joined(text.split(maxsplit=_SHOWN_WORDS)[:_SHOWN_WORDS])


def _joined(words: Sequence[str]) -> str:
    return visible(" ".join(words))


Pieces = list[tuple[str, str]]


def compare(dropped: str, stayed: str) -> tuple[Pieces, Pieces, float]:
    """Two texts from shortly before the first difference on, with the words that only one of them has marked.

    Returns:
        pieces of the first ("gone") and of the second ("new"), and the share of words that both have, of their first
        1,000 each (twice those in common by all).
    """
    left, right = (text.split(maxsplit=_COMPARED_WORDS)[:_COMPARED_WORDS] for text in (dropped, stayed))
    matcher = SequenceMatcher(None, left, right, autojunk=False)
    changes = [(code[1:3], code[3:5]) for code in matcher.get_opcodes() if code[0] != "equal"]
    first = changes[0] if changes else ((0, 0), (0, 0))
    sides = zip((left, right), range(2), ("gone", "new"), strict=True)
    one, other = (
        _window(words, [change[side] for change in changes], first[side][0], mark) for words, side, mark in sides
    )
    return one, other, matcher.ratio()


def _window(words: Sequence[str], marked: Sequence[tuple[int, int]], first: int, mark: str) -> Pieces:
    """Some words around the first difference; stretches [begin, end) of them are marked."""
    begin = max(first - _WORDS_BEFORE, 0)
    end = min(begin + _SHOWN_WORDS, len(words))
    pieces: Pieces = [("…", "")] if begin else []
    position = begin
    for stretch in [*marked, (end, end)]:
        low, high = (min(max(place, position), end) for place in stretch)
        pieces += [(_joined(words[position:low]), ""), (_joined(words[low:high]), mark)]
        position = high
    pieces += [("…", "")] if end < len(words) else []
    # A blank between neighbours, outside of the marks.
    return [piece for text, sign in pieces if text for piece in ((text, sign), (" ", ""))][:-1]
