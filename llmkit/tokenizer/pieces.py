"""How many bytes of text a token stands for."""

from __future__ import annotations

import re
from functools import cache

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_SPACE_MARK = "▁"


@cache
def _byte_alphabet() -> frozenset[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return frozenset(ByteLevel.alphabet())


def byte_length(piece: str, algorithm: str, byte_level: bool) -> int | None:
    """Length in bytes of the text that the vocabulary entry `piece` stands for; None where that is not defined.

    Args:
        piece: the entry as `tokenizer.json` writes it.
        algorithm: "bpe", "unigram", "wordpiece" or "wordlevel".
        byte_level: whether each character of an entry stands for one byte (GPT-2's alphabet).
    """
    if algorithm not in ("bpe", "unigram"):
        return None
    if byte_level:
        return len(piece) if _byte_alphabet().issuperset(piece) else len(piece.encode())
    if _BYTE.fullmatch(piece):
        return 1
    return len(piece.replace(_SPACE_MARK, " ").encode())
