"""Phone numbers: candidates by their form, judged by the numbering plans of the package `phonenumbers`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from llmkit.data.personal.base import Draw, Found, joins
from llmkit.errors import MissingDependencyError

_INTERNATIONAL = re.compile(r"\+[0-9](?:[ .\-/\u00a0]{0,2}\(?[0-9]+\)?){1,9}")
_NATIONAL = re.compile(r"(?:\([0-9]{1,6}\)|[0-9]{1,6})(?:(?:[ .\-/\u00a0]| - )?(?:\([0-9]{2,8}\)|[0-9]{2,8})){1,30}")
_DIGITS = re.compile(r"[0-9]+")
_NAMED = re.compile(
    r"\b(?:phones?|tel|telephone|telefon|t[ée]l[ée]phone|tel[ée]fono|call|calls|called|dial|mobile|mobil|cell|cellphone|"
    r"fax|whatsapp|sms|text|texts|texted|ring|rang|handy|portable|contact|ph|hotline|reach me)\b"
    r"(?:[\s:.#=(-]|number|no|nr|is|at|me|us|on|or|to|her|him)*$",
    re.IGNORECASE,
)
_NEAR = 40
_PREFIXES = tuple("+#$€£")
_JOINTS = tuple(".,-/")
_FEWEST_DIGITS, _MOST_DIGITS = 7, 15
_MOST_CHARACTERS = 24
_DRAWS = 32
"""How often digits are drawn anew before a zero is put in front."""


class Phones:
    """Numbers that a country's plan assigns. With `+` that is enough; without it, the number must be written in the
    groups that its country uses, or a word like "phone" must stand before it.

    Args:
        regions: countries whose numbers are found without `+`, tried in this order.
    """

    kind = "phone"
    hint = r"\+[0-9]|[0-9]{2}\)?[ .\-/\x{a0}]{0,3}\(?[0-9]{2,4}\)?[ .\-/\x{a0}]{0,3}[0-9]{2}"

    def __init__(self, regions: Sequence[str]) -> None:
        try:
            import phonenumbers
        except ImportError:
            raise MissingDependencyError(
                "phone numbers need phonenumbers, which is not installed.", hint="pip install 'llmkit[data]'"
            ) from None
        self._library: Any = phonenumbers
        self._regions = tuple(regions)
        self._trunks = {region: self._trunk(region) for region in regions}

    def _trunk(self, region: str) -> str:
        plan = self._library.PhoneMetadata.metadata_for_region(region, None)
        return (plan.national_prefix or "") if plan is not None else ""

    def find(self, text: str) -> Iterator[Found]:
        """Numbers with `+`, then the others."""
        if "+" in text:
            for match in _INTERNATIONAL.finditer(text):
                if not _touches(text, match.start(), match.end()):
                    yield from self._international(match)
        for match in _NATIONAL.finditer(text):
            if sum(map(str.isdigit, match[0])) >= _FEWEST_DIGITS and not _touches(text, match.start(), match.end()):
                named = _NAMED.search(text[max(0, match.start() - _NEAR) : match.start()]) is not None
                yield from self._national(match, named)

    def _international(self, match: re.Match[str]) -> Iterator[Found]:
        # A number that goes on in a list ("+49 30 123456 2 pieces") is shorter than what matched.
        for group in reversed(list(_DIGITS.finditer(match[0]))):
            number = self._parsed(match[0][: group.end()], None)
            if number is not None and self._library.is_valid_number(number):
                yield Found(match.start(), match.start() + group.end(), self._normal(number))
                return

    def _national(self, match: re.Match[str], named: bool) -> Iterator[Found]:
        """Numbers inside of a run of groups, which may be a table's: cut at white space only, the longest first."""
        run = match[0]
        groups = list(_DIGITS.finditer(run))
        ends = [index for index in range(1, len(groups)) if _is_gap(run, groups[index - 1], groups[index])]
        cuts = [0, *ends, len(groups)]
        start = 0
        while start < len(cuts) - 1:
            for stop in range(len(cuts) - 1, start, -1):
                chosen = groups[cuts[start] : cuts[stop]]
                if chosen[-1].end() - chosen[0].start() > _MOST_CHARACTERS:
                    continue
                found = self._in_regions(run, chosen, named and start == 0)
                if found is not None:
                    begin = _opened(run, chosen[0].start())
                    yield Found(match.start() + begin, match.start() + chosen[-1].end(), found)
                    start = stop - 1
                    break
            start += 1

    def _in_regions(self, run: str, groups: Sequence[re.Match[str]], named: bool) -> str | None:
        between = run[groups[0].end() : groups[-1].start()]
        if not named and (len(groups) < 2 or between == "."):
            return None
        for region in self._regions:
            found = self._in_region([group[0] for group in groups], region, named)
            if found is not None:
                return found
        return None

    def _in_region(self, groups: Sequence[str], region: str, named: bool) -> str | None:
        digits = "".join(groups)
        trunk = self._trunks[region]
        if not (_FEWEST_DIGITS if named else _FEWEST_DIGITS + 2) <= len(digits) <= _MOST_DIGITS:
            return None
        # Two cheap looks before the library's.
        if trunk == "0" and digits[0] != "0":
            return None
        if not named and trunk == "1" and [len(group) for group in groups[-3:]] != [3, 3, 4]:
            return None
        number = self._parsed(digits, region)
        if number is None or not self._library.is_valid_number(number):
            return None
        if not named:
            written = self._library.format_number(number, self._library.PhoneNumberFormat.NATIONAL)
            expected = _DIGITS.findall(written)
            if groups not in (expected, [trunk, *expected]):
                return None
        return self._normal(number)

    def _parsed(self, text: str, region: str | None) -> Any:
        try:
            return self._library.parse(text, region)
        except self._library.NumberParseException:
            return None

    def _normal(self, number: Any) -> str:
        return str(self._library.format_number(number, self._library.PhoneNumberFormat.E164))

    def surrogate(self, text: str, found: Found, draw: Draw) -> str:
        """The same form and country with other digits, which no plan assigns."""
        country = str(self._library.parse(found.value).country_code)
        national = len(found.value) - 1 - len(country)
        digits = "".join(_DIGITS.findall(text))
        # What stands before the national number (country code, trunk prefix) stays.
        kept = digits[: max(0, len(digits) - national)]
        regions = () if text.startswith("+") else self._regions
        drawn = ""
        for zeros in range(len(digits) - len(kept) + 1):
            # Some plans assign nearly everything but numbers that begin with zeros.
            for _ in range(_DRAWS):
                drawn = "0" * zeros + "".join(str(draw.below(10)) for _ in digits[len(kept) + zeros :])
                if not self._is_assigned(f"+{country}{drawn}", None) and not any(
                    self._is_assigned(kept + drawn, region) for region in regions
                ):
                    return _in_form(text, kept + drawn)
        return _in_form(text, kept + drawn)

    def _is_assigned(self, text: str, region: str | None) -> bool:
        number = self._parsed(text, region)
        return number is not None and bool(self._library.is_valid_number(number))


def _in_form(text: str, digits: str) -> str:
    """A text with other digits in the place of its own."""
    drawn = iter(digits)
    return "".join(next(drawn) if "0" <= character <= "9" else character for character in text)


def _touches(text: str, begin: int, end: int) -> bool:
    """Whether a run is part of something longer: a word, an amount, a decimal, a path, a time."""
    last, before = text[max(0, begin - 2) : begin - 1], text[max(0, begin - 1) : begin]
    after, further = text[end : end + 1], text[end + 1 : end + 2]
    if joins(before) or before in _PREFIXES or joins(after):
        return True
    if (before in _JOINTS and last.isalnum()) or (before == ":" and last.isdigit()):
        return True
    return (after in _JOINTS and further.isdigit()) or (after == ":" and further.isalnum())


def _is_gap(run: str, one: re.Match[str], other: re.Match[str]) -> bool:
    return run[one.end() : other.start()].strip("()") in (" ", "\u00a0")


def _opened(run: str, begin: int) -> int:
    return begin - 1 if begin and run[begin - 1] == "(" else begin
