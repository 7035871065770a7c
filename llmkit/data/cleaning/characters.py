"""How many characters of a text are letters or digits."""

from __future__ import annotations

import string
from functools import cache

import numpy as np
from numpy.typing import NDArray

_LETTERS = string.ascii_letters.encode()
_DIGITS = string.digits.encode()
_CODES = 0x110000


def letters_and_digits(text: str) -> tuple[int, int]:
    """Letters of a text, and letters and digits, as `str.isalpha` and `str.isalnum` know them."""
    if text.isascii():
        rest = text.encode().translate(None, _LETTERS)
        others = len(rest.translate(None, _DIGITS))
        return len(text) - len(rest), len(text) - others
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    kinds = np.bincount(_kinds()[codes], minlength=3)
    return int(kinds[2]), int(kinds[1] + kinds[2])


@cache
def _kinds() -> NDArray[np.uint8]:
    """2 for the code of a letter, 1 for one of what else is a letter or digit, 0 for others."""
    return np.fromiter((chr(code).isalnum() + chr(code).isalpha() for code in range(_CODES)), np.uint8, _CODES)
