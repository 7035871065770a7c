r"""What is a word: the rules that cut a run of characters between white space into words and punctuation.

The rules are those of spaCy's tokenizers, which datatrove counts words by, written anew: a run loses punctuation at its
beginning and end piece by piece until it is a word that stands in the exceptions or neither end changes; what is left
is one piece if it is a URL, and else is cut at the punctuation inside of it ("dog-eared", "and/or", "a=b"). Pieces that
make up an exception after all (":" and ")") are put together again. Letters are those of Unicode rather than of a list
of scripts. In runs of more than 2,000 characters nothing is put together, and URLs, which would take time quadratic in
length, are not looked for.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise

_PUNCTUATION = frozenset("…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪")
_QUOTES = frozenset("'\"”“`‘´’‚„»«「」『』（）〔〕【】《》〈〉⟦⟧")
_CURRENCIES = frozenset("$£€¥฿₽﷼₴₠₡₢₣₤₥₦₧₨₩₪₫₭₮₯₰₱₲₳₵₶₷₸₹₺₻₼₾₿")
_DOLLARS = ("US$", "C$", "A$")
_UNITS = """
    km km² km³ m m² m³ dm dm² dm³ cm cm² cm³ mm mm² mm³ ha µm nm yd in ft kg g mg µg t lb oz m/s km/h kmh mph hPa Pa
    mbar mb MB kb KB gb GB tb TB T G M K % км км² км³ м м² м³ дм дм² дм³ см см² см³ мм мм² мм³ нм кг г мг м/с км/ч кПа
    Па мбар Кб КБ кб Мб МБ мб Гб ГБ гб Тб ТБ тбكم كم² كم³ م م² م³ سم سم² سم³ مم مم² مم³ كم غرام جرام جم كغ ملغ كوب
    اكواب
"""
_UNIT_CHARACTERS = 8
_LONG_RUN = 2000
_PLAIN = re.compile(r"([(\"\[{]?)([A-Za-z]*[a-z]{3})([.,;:!?)\]}\"]?)")
"""A word with no more than one sign on either side: most runs, and what the rules do to them needs no looking for."""
_SYMBOLS = range(0xA0, 0x1FB00)
_IDEOGRAPHS = 0x20000
"""From here on there are only characters that are neither upper nor lower case."""


def _ranges(codes: Iterable[int]) -> str:
    """A character class of the code points given, which ascend."""
    spans: list[list[int]] = []
    for code in codes:
        if spans and spans[-1][1] == code - 1:
            spans[-1][1] = code
        else:
            spans.append([code, code])
    return "".join(f"{re.escape(chr(low))}-{re.escape(chr(high))}" for low, high in spans)


class _Characters:
    """Sets of characters, and patterns made of them."""

    def __init__(self) -> None:
        letters = [chr(code) for code in range(_IDEOGRAPHS) if chr(code).isalpha()]
        ideographs = f"{chr(_IDEOGRAPHS)}-{chr(sys.maxunicode)}"
        lower = _ranges(ord(letter) for letter in letters if not letter.isupper()) + ideographs
        upper = _ranges(ord(letter) for letter in letters if not letter.islower()) + ideographs
        quotes = re.escape("".join(sorted(_QUOTES)))
        symbols = frozenset(chr(c) for c in _SYMBOLS if unicodedata.category(chr(c)) == "So")
        icons = _ranges(sorted(map(ord, symbols)))
        self.closing = _PUNCTUATION | _QUOTES | symbols | {"—", "–"}
        self.opening = self.closing | _CURRENCIES | {"§", "%", "="}
        self.first = self.opening | frozenset(".+UCA")
        before_stop = _PUNCTUATION | _QUOTES | frozenset("0123456789%²-+|(?:)")
        self.before_stop = re.compile(f"[{lower}{re.escape(''.join(sorted(before_stop)))}]").match
        self.upper = re.compile(f"[{upper}]").match
        self.unit = re.compile(f"(?<=[0-9])(?:{'|'.join(map(re.escape, _UNITS.split()))})$").search
        self.unit_ends = frozenset(unit[-1] for unit in _UNITS.split())
        self.last = self.closing | _CURRENCIES | frozenset(".sS+") | self.unit_ends
        self.inside = _inside(lower, upper, quotes, f"…{icons}", "–—").finditer
        # The same where all characters are ASCII: classes of a few are searched twice as fast.
        self.inside_ascii = _inside("a-z", "A-Z", "'\"`", "", "").finditer
        byte = r"(?:1?\d{1,2}|2[0-4]\d|25[0-5])"
        self.url = re.compile(
            r"(?:[\w+\-.]{2,}://)?(?:\S+(?::\S*)?@)?(?:"
            r"(?!(?:10|127)(?:\.\d{1,3}){3})(?!(?:169\.254|192\.168)(?:\.\d{1,3}){2})"
            r"(?!172\.(?:1[6-9]|2\d|3[01])(?:\.\d{1,3}){2})"
            rf"(?:[1-9]\d?|1\d\d|2[01]\d|22[0-3])(?:\.{byte}){{2}}\.(?:[1-9]\d?|1\d\d|2[0-4]\d|25[0-4])"
            r"|(?:(?:[A-Za-z0-9\u00a1-\uffff][A-Za-z0-9\u00a1-\uffff_-]{0,62})?[A-Za-z0-9\u00a1-\uffff]\.)+"
            rf"[{lower}]{{2,63}}"
            r")(?::\d{2,5})?(?:[/?#]\S*)?"
        ).fullmatch


def _inside(lower: str, upper: str, quotes: str, icons: str, dashes: str) -> re.Pattern[str]:
    """What a piece is cut at, of classes of characters. One class comes first and what stands around it then: so the
    search skips to the few places where anything can be."""
    letter, sign = r"[^\W\d_]", r"[^\W_]"
    return re.compile(
        rf"[.{icons}+*^,{dashes}~:<>=/-](?:(?<=\.)\.+"
        + (rf"|(?<=[{icons}])" if icons else "")
        + r"|(?<=[0-9][+*^-])(?=[0-9-])"
        rf"|(?<=[{lower}{quotes}]\.)(?=[{upper}{quotes}])"
        rf"|(?<={letter},)(?={letter})"
        rf"|(?<={sign}[-{dashes}~])(?={letter})|(?<={sign}-)-{{1,2}}(?={letter})"
        + (rf"|(?<={sign}—)—(?={letter})" if dashes else "")
        + rf"|(?<={sign}[:<>=/])(?={letter}))"
    )


@cache
def _characters() -> _Characters:
    return _Characters()


class Rules:
    """Cuts runs of characters without white space into pieces.

    Args:
        exceptions: runs, and ends of runs, that are cut in a way of their own.
    """

    def __init__(self, exceptions: Mapping[str, tuple[str, ...]]) -> None:
        self._exceptions = {}
        self._longest = 0
        self._phrases: dict[tuple[str, str], list[tuple[str, ...]]] = {}
        self._characters = _characters()
        phrases = {}
        for word in exceptions:
            if self._prefix(word, 0, len(word)) or self._suffix(word, 0, len(word)) or self._infixes(word):
                phrases[word] = tuple(self._cut(word))
        self._exceptions = dict(exceptions)
        self._longest = max(map(len, exceptions), default=0)
        for phrase in sorted(phrases.values(), key=lambda pieces: (-len(pieces), pieces)):
            if len(phrase) > 1:
                self._phrases.setdefault((phrase[0], phrase[1]), []).append(phrase)

    def split(self, run: str) -> Sequence[str]:
        """The pieces of a run in order; they are the run again when put together. No piece is empty."""
        exception = self._exceptions.get(run)
        if exception is not None:
            return exception
        if run.isalpha():
            return (run,)
        plain = _PLAIN.fullmatch(run)
        if plain is not None and plain[2] not in self._exceptions and plain[2] + "." not in self._exceptions:
            return [part for part in plain.groups() if part]
        pieces = self._cut(run)
        return self._together(pieces) if len(pieces) > 1 and len(run) <= _LONG_RUN else pieces

    def _cut(self, run: str) -> list[str]:
        begin, end = 0, len(run)
        before: list[str] = []
        after: list[str] = []
        first, last = self._characters.first, self._characters.last
        while begin < end and not self._is_exception(run, begin, end):
            # Most runs begin and end with what no rule looks at.
            prefix = self._prefix(run, begin, end) if run[begin] in first else 0
            if prefix:
                before.append(run[begin : begin + prefix])
                if self._is_exception(run, begin + prefix, end):
                    begin += prefix
                    break
            suffix = self._suffix(run, begin + prefix, end) if run[end - 1] in last else 0
            if suffix and self._is_exception(run, begin, end - suffix):
                if prefix:
                    before.pop()
                after.append(run[end - suffix : end])
                end -= suffix
                break
            if not prefix and not suffix:
                break
            begin += prefix
            if suffix:
                after.append(run[end - suffix : end])
                end -= suffix
        if begin < end:
            before.extend(self._middle(run[begin:end]))
        before.extend(reversed(after))
        return before

    def _is_exception(self, run: str, begin: int, end: int) -> bool:
        return 0 < end - begin <= self._longest and run[begin:end] in self._exceptions

    def _prefix(self, run: str, begin: int, end: int) -> int:
        """Length of the punctuation that a run begins with."""
        first = run[begin]
        if first in self._characters.opening:
            return 1
        if first == ".":
            dots = begin + 1
            while dots < end and run[dots] == ".":
                dots += 1
            return dots - begin if dots - begin > 1 else 0
        if first == "+":
            return int(begin + 1 == end or run[begin + 1] not in "0123456789")
        if first in "UCA":
            return next((len(name) for name in _DOLLARS if run.startswith(name, begin, end)), 0)
        return 0

    def _suffix(self, run: str, begin: int, end: int) -> int:  # noqa: PLR0911 - one for each rule
        """Length of the punctuation or unit that a run ends with, nothing before `begin` being looked at."""
        if begin >= end:
            return 0
        last = run[end - 1]
        earlier = run[end - 2] if end - 2 >= begin else ""
        if last == ".":
            return self._stops(run, begin, end)
        if last in self._characters.closing:
            return 2 if last == earlier == "…" else 1
        if last in "sS" and earlier and earlier in "'’":
            return 2
        if earlier and earlier in "0123456789" and (last == "+" or last in _CURRENCIES):
            return 1
        if last == "$":
            return next(
                (len(n) for n in _DOLLARS if run.endswith(n, begin, end) and _digit_before(run, begin, end - len(n))), 0
            )
        if last in self._characters.unit_ends:
            found = self._characters.unit(run, max(begin, end - _UNIT_CHARACTERS), end)
            return found.end() - found.start() if found is not None else 0
        return 0

    def _stops(self, run: str, begin: int, end: int) -> int:
        first = end - 1
        while first > begin and run[first - 1] == ".":
            first -= 1
        if end - first > 1:
            return end - first
        if first == begin:
            return 0
        characters = self._characters
        if characters.before_stop(run[first - 1]):
            return 1
        if first - 2 >= begin:
            two = run[first - 2], run[first - 1]
            if all(map(characters.upper, two)) or (two[0] == "°" and two[1] in "FfCcKk"):
                return 1
        return 0

    def _infixes(self, middle: str) -> list[tuple[int, int]]:
        inside = self._characters.inside_ascii if middle.isascii() else self._characters.inside
        return [found.span() for found in inside(middle)]

    def _middle(self, middle: str) -> Sequence[str]:
        exception = self._exceptions.get(middle)
        if exception is not None:
            return exception
        if middle.isalnum():
            return (middle,)
        if "." in middle and len(middle) <= _LONG_RUN and self._characters.url(middle):
            return (middle,)
        pieces = []
        start = 0
        for begin, end in self._infixes(middle):
            if begin == 0:
                continue
            if begin > start:
                pieces.append(middle[start:begin])
            pieces.append(middle[begin:end])
            start = end
        if start < len(middle):
            pieces.append(middle[start:])
        return pieces

    def _together(self, pieces: list[str]) -> list[str]:
        """Pieces with those put together that make up an exception: the longest first, then the first."""
        if self._phrases.keys().isdisjoint(pairwise(pieces)):
            return pieces
        found = []
        for place, pair in enumerate(pairwise(pieces)):
            for phrase in self._phrases.get(pair, ()):
                if tuple(pieces[place : place + len(phrase)]) == phrase:
                    found.append((-len(phrase), place))
        if not found:
            return pieces
        taken: set[int] = set()
        chosen: dict[int, int] = {}
        for negative, place in sorted(found):
            span = range(place, place - negative)
            if span[0] not in taken and span[-1] not in taken:
                chosen[place] = -negative
            taken.update(span)
        out: list[str] = []
        place = 0
        while place < len(pieces):
            size = chosen.get(place, 1)
            out.extend(self._exceptions["".join(pieces[place : place + size])] if size > 1 else [pieces[place]])
            place += size
        return out


def _digit_before(run: str, begin: int, place: int) -> bool:
    return place > begin and run[place - 1] in "0123456789"
