"""Phone numbers: candidates by their form, judged by the numbering plans of the package `phonenumbers`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from llmkit.data.personal.base import Draw, Found, joins
from llmkit.errors import MissingDependencyError

_INTERNATIONAL = re.compile(r"\+[0-9](?:[ .\-/\u00a0]{0,2}\(?[0-9]+\)?){1,9}")
_NATIONAL = re.compile(r"\(?[0-9]{1,6}\)?(?:(?:[ .\-/\u00a0]| - )?\(?[0-9]{2,8}\)?){1,9}")
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
_MOST_GROUPS = 8
_FEWEST_DIGITS, _MOST_DIGITS = 7, 15


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
            digits = sum(map(str.isdigit, match[0]))
            if digits >= _FEWEST_DIGITS and not _touches(text, match.start(), match.end()):
                yield from self._national(text, match, digits)

    def _international(self, match: re.Match[str]) -> Iterator[Found]:
        # A number that goes on in a list ("+49 30 123456 2 pieces") is shorter than what matched.
        for end in _ends(match):
            number = self._parsed(match[0][: end - match.start()], None)
            if number is not None and self._library.is_valid_number(number):
                yield Found(match.start(), end, self._normal(number))
                return

    def _national(self, text: str, match: re.Match[str], digits: int) -> Iterator[Found]:
        groups = list(_DIGITS.finditer(match[0]))
        if digits <= _MOST_DIGITS and _NAMED.search(text[max(0, match.start() - _NEAR) : match.start()]):
            for region in self._regions:
                number = self._parsed(match[0], region)
                if number is not None and self._library.is_valid_number_for_region(number, region):
                    yield Found(match.start(), match.end(), self._normal(number))
                    return
        if 2 <= len(groups) <= _MOST_GROUPS:
            yield from self._grouped(match, groups)

    def _grouped(self, match: re.Match[str], groups: Sequence[re.Match[str]]) -> Iterator[Found]:
        """The numbers inside of a run of groups, cut at white space only."""
        run = match[0]
        starts = [0, *(index for index in range(1, len(groups)) if _is_gap(run, groups[index - 1], groups[index]))]
        for start in starts:
            for stop in (*starts[1:], len(groups)):
                if stop - start < 2:
                    continue
                for region in self._regions:
                    found = self._in_region(run, groups[start:stop], region)
                    if found is not None:
                        begin = _opened(run, groups[start].start())
                        yield Found(match.start() + begin, match.start() + groups[stop - 1].end(), found)
                        return

    def _in_region(self, run: str, groups: Sequence[re.Match[str]], region: str) -> str | None:
        digits = "".join(group[0] for group in groups)
        trunk = self._trunks[region]
        if not _FEWEST_DIGITS + 2 <= len(digits) <= _MOST_DIGITS or (trunk == "0" and digits[0] != "0"):
            return None
        if trunk == "1" and [len(group[0]) for group in groups][-3:] != [3, 3, 4]:
            return None
        number = self._parsed(digits, region)
        if number is None or not self._library.is_valid_number_for_region(number, region):
            return None
        written = self._library.format_number(number, self._library.PhoneNumberFormat.NATIONAL)
        expected = _DIGITS.findall(written)
        found = [group[0] for group in groups]
        return self._normal(number) if found in (expected, [trunk, *expected]) else None

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
        national = found.value[1 + len(country) :]
        while True:
            drawn = "".join(str(draw.below(10)) for _ in national)
            if not self._library.is_valid_number(self._library.parse(f"+{country}{drawn}")):
                break
        own = _DIGITS.findall(text)
        total = sum(map(len, own))
        # What stands before the national number (country code, trunk prefix) stays.
        kept = "".join(own)[: max(0, total - len(national))]
        characters = iter(kept + drawn[-(total - len(kept)) :])
        return "".join(next(characters) if "0" <= character <= "9" else character for character in text)


def _touches(text: str, begin: int, end: int) -> bool:
    """Whether a run is part of something longer: a word, an amount, a decimal, a path, a time."""
    last, before = text[max(0, begin - 2) : begin - 1], text[max(0, begin - 1) : begin]
    after, further = text[end : end + 1], text[end + 1 : end + 2]
    if joins(before) or before in _PREFIXES or joins(after):
        return True
    if (before in _JOINTS and last.isalnum()) or (before == ":" and last.isdigit()):
        return True
    return (after in _JOINTS or after == ":") and further.isdigit()


def _ends(match: re.Match[str]) -> list[int]:
    """Where a number may end: at each group, the longest first."""
    return [match.start() + group.end() for group in reversed(list(_DIGITS.finditer(match[0])))]


def _is_gap(run: str, one: re.Match[str], other: re.Match[str]) -> bool:
    return run[one.end() : other.start()].strip("()") in (" ", "\u00a0")


def _opened(run: str, begin: int) -> int:
    return begin - 1 if begin and run[begin - 1] == "(" else begin
