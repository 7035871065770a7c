"""Numbers of payment cards and of bank accounts."""

from __future__ import annotations

import re
from collections.abc import Iterator

from llmkit.data.personal.base import Draw, Found, joins
from llmkit.errors import MissingDependencyError

_CARD = re.compile(
    r"(?<![0-9A-Za-z])[2-6][0-9]{3}"
    r"(?:[0-9]{9,15}|([ -])(?:[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{3})?|[0-9]{6}\1[0-9]{4,5}))(?![0-9])"
)
_ISSUERS = (
    (re.compile(r"4"), (13, 16, 19)),
    (re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),
    (re.compile(r"3[47]"), (15,)),
    (re.compile(r"6011|64[4-9]|65"), (16, 19)),
    (re.compile(r"35(?:2[89]|[3-8])"), (16, 19)),
    (re.compile(r"30[0-5]|36|38|39"), (14,)),
    (re.compile(r"62|81"), (16, 17, 18, 19)),
    (re.compile(r"50|5[6-9]|6[0-9]"), (12, 13, 14, 15, 16, 17, 18, 19)),
)
"""Visa, Mastercard, American Express, Discover, JCB, Diners Club, UnionPay, Maestro (ISO/IEC 7812 ranges)."""
_NEEDS_NAME = (12, 13, 14, 17, 18)
"""Lengths at which more other numbers than cards pass the check digit."""
_CARD_NAME = re.compile(
    r"\b(?:cards?|visa|master ?card|maestro|amex|american express|diners|discover|jcb|union ?pay|credit|debit|pan)\b",
    re.IGNORECASE,
)
_GROUP_BEFORE = re.compile(r"(?<![0-9A-Za-z])(?:[0-9]{4}|[A-Z]{2}[0-9]{2})([ -])$")
_GROUP_AFTER = re.compile(r"([ -])[0-9]{3,4}(?![0-9])")
_NEAR = 40


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of those before it (ISO/IEC 7812-1, annex B)."""
    total = sum(map(int, digits[-1::-2]))
    total += sum(2 * int(digit) - 9 * (digit > "4") for digit in digits[-2::-2])
    return total % 10 == 0


class Cards:
    """Card numbers by issuer, length, Luhn's check digit and grouping."""

    kind = "card"
    hint = r"[2-6][0-9]{3}(?:[ \-][0-9]{4,6}[ \-][0-9]|[0-9]{9})"

    def find(self, text: str) -> Iterator[Found]:
        """Numbers in their order."""
        for match in _CARD.finditer(text):
            digits = "".join(filter(str.isdigit, match[0]))
            if luhn(digits) and self._is_card(text, match.start(), match.end(), digits, match[1]):
                yield Found(match.start(), match.end(), digits)

    def _is_card(self, text: str, begin: int, end: int, digits: str, separator: str | None) -> bool:
        before, after = text[max(0, begin - _NEAR) : begin], text[end : end + 2]
        if joins(before[-1:]) or before[-1:] in (".", "-", "+") or joins(after[:1]):
            return False
        if after[:1] in ("-", ".", ",") and after[1:].isdigit():
            return False
        if not any(begins.match(digits) and len(digits) in lengths for begins, lengths in _ISSUERS):
            return False
        named = bool(_CARD_NAME.search(before))
        if separator is not None:
            # Groups that go on are an account number's or a table's.
            beside = (_GROUP_BEFORE.search(before), _GROUP_AFTER.match(text, end))
            return named or not any(group is not None and group[1] == separator for group in beside)
        needs_name = len(digits) in _NEEDS_NAME or (digits[0] == "6" and not digits.startswith(("6011", "65", "64")))
        return named or not needs_name

    def surrogate(self, text: str, found: Found, draw: Draw) -> str:
        """The same form with other digits, of which the last is no check digit."""
        digits = found.value[0] + "".join(str(draw.below(10)) for _ in found.value[1:-1])
        wrong = [digit for digit in "0123456789" if not luhn(digits + digit)]
        return _written_like(text, digits + wrong[draw.below(len(wrong))])


def _written_like(text: str, characters: str) -> str:
    """The characters with the separators of a text that holds as many letters and digits."""
    drawn = iter(characters)
    return "".join(next(drawn) if character.isalnum() else character for character in text)


_IBAN = re.compile(r"[A-Z]{2}[0-9]{2}(?:(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,4})?|[A-Z0-9]{11,30})(?![A-Za-z0-9])")


class Ibans:
    """International bank account numbers: a country, its length and structure, and check digits (ISO 13616)."""

    kind = "iban"
    hint = r"[A-Z]{2}[0-9]{2} ?[A-Z0-9]{4} ?[A-Z0-9]{4}"

    def __init__(self) -> None:
        try:
            from stdnum import iban
        except ImportError:
            raise MissingDependencyError(
                "bank account numbers need python-stdnum, which is not installed.", hint="pip install 'llmkit[data]'"
            ) from None
        self._is_valid = iban.is_valid

    def find(self, text: str) -> Iterator[Found]:
        """Numbers in their order; a group of capitals after one, set apart by a space, does not hide it."""
        for match in _IBAN.finditer(text):
            if match.start() and joins(text[match.start() - 1]):
                continue
            written = match[0]
            # The rules of ISO 13616 alone: lists of the banks that exist would age.
            while len(written) > 14:
                value = written.replace(" ", "")
                if self._is_valid(value, check_country=False):
                    yield Found(match.start(), match.start() + len(written), value)
                    break
                written = written.rpartition(" ")[0]

    def surrogate(self, text: str, found: Found, draw: Draw) -> str:
        """The same country and form with check digits 00, which no account has (ISO 7064 gives 02 to 98)."""
        return _written_like(text, found.value[:2] + "00" + draw.like(found.value[4:]))
