"""Data that is written down as text: Base64, hexadecimal numbers, escaped characters, tables of numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence

_BASE64 = r"[a-zA-Z0-9+/\n=]{64,}"
_BYTES = r"(?:(?:\b(?:0x)?|\\x)[0-9a-fA-F]{2}(?:,\s*|\b\s*)){8,}"
_ESCAPED = r"(?:\\u[0-9a-fA-F]{4}){8,}"
_ENCODED = f"{_BASE64}|{_BYTES}|{_ESCAPED}"
_PIECES = re.compile(_ENCODED, re.ASCII)
_NUMBER = r"(?>0[xX][0-9a-fA-F]++|[0-9][0-9_]*+(?:[eE][0-9]*+)?+)[uUlLfF]*+(?!\w)"
_DATA_LINE = re.compile(rf"^[^\w\n]*+(?:{_NUMBER}[^\w\n]*+)++$", re.MULTILINE)


def encoded_pieces(texts: Sequence[str]) -> list[list[int]]:
    """Lengths in characters of the pieces of encoded data in each text.

    They are those of StarCoder2 (Lozhkov et al. 2024, arXiv:2402.19173, 3): at least 64 characters of Base64, over one
    line or several; eight bytes as hexadecimal numbers, with or without a comma and blanks between them; eight escaped
    characters.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    # Arrow's finite automaton passes over texts without any several times as fast as `re`.
    having = pc.match_substring_regex(pa.array(texts, pa.large_string()), _ENCODED).to_pylist()
    return [
        [match.end() - match.start() for match in _PIECES.finditer(text)] if has else []
        for text, has in zip(texts, having, strict=True)
    ]


def data_lines(text: str) -> int:
    """How many lines of a text are nothing but numbers and signs between them, with one number at least.

    Numbers are decimal or hexadecimal, with exponents and the suffixes of C.
    """
    return sum(1 for _ in _DATA_LINE.finditer(text))
