"""Which entries of a vocabulary begin a word."""

from __future__ import annotations

from collections.abc import Sequence

_CONTINUES = "##"
_SPACE_MARK = "▁"
# How GPT-2's alphabet writes a space, a line feed, a carriage return and a tab.
_WHITE = ("Ġ", "Ċ", "č", "ĉ")


def begins_word(pieces: Sequence[str], algorithm: str) -> list[bool] | None:
    """For each entry whether it begins a word; None where entries do not show it.

    In WordPiece all do but those with "##" in front. Where spaces are parts of entries, words are what stands between
    them: the entries that begin with white space do.

    Args:
        pieces: the entries as `tokenizer.json` writes them.
        algorithm: "bpe", "unigram", "wordpiece" or "wordlevel".
    """
    if algorithm in ("wordpiece", "wordlevel"):
        return [not piece.startswith(_CONTINUES) for piece in pieces]
    marks = (_SPACE_MARK,) if any(_SPACE_MARK in piece for piece in pieces) else _WHITE
    found = [piece.startswith(marks) for piece in pieces]
    return found if any(found) else None
