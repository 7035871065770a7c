"""National identity, tax and social security numbers, their check digits judged by the package `python-stdnum`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module

from llmkit.data.personal.base import Draw, Found, joins
from llmkit.errors import MissingDependencyError

_NEAR = 48


@dataclass(frozen=True, slots=True)
class _Number:
    """One country's number.

    Args:
        form: name of the number; its first part is the country.
        written: how it is written, as a regular expression without borders.
        module: what judges it in `stdnum`.
        names: what it is called, as a regular expression. Where it is given, one of the names must stand before the
            number: its form and check digits alone would let too many other numbers through (one in 1,000 or more).
    """

    form: str
    written: str
    module: str
    names: str | None = None


_NUMBERS = (
    _Number("us_ssn", r"[0-8][0-9]{2}-[0-9]{2}-[0-9]{4}", "us.ssn"),
    _Number("us_ssn", r"[0-8][0-9]{2} ?[0-9]{2} ?[0-9]{4}", "us.ssn", r"ssn|social security"),
    _Number("gb_nhs", r"[0-9]{3}[ -]?[0-9]{3}[ -]?[0-9]{4}", "gb.nhs", r"nhs"),
    _Number("de_idnr", r"[1-9][0-9] ?[0-9]{3} ?[0-9]{3} ?[0-9]{3}", "de.idnr", r"steuer-?\w*|tax|tin|idnr"),
    _Number("fr_nir", r"[12] [0-9]{2} [0-9]{2} [0-9][0-9AB] [0-9]{3} [0-9]{3}(?: [0-9]{2})", "fr.nir"),
    _Number("fr_nir", r"[12][0-9]{5}[0-9AB][0-9]{8}", "fr.nir", r"nir|s[ée]curit[ée] sociale|insee|num[ée]ro"),
    _Number("es_dni", r"[0-9]{8}-?[A-Z]", "es.dni", r"dni|nif|documento"),
    _Number("es_nie", r"[XYZ]-?[0-9]{7}-?[A-Z]", "es.nie"),
    _Number(
        "it_cf",
        r"[A-Z]{6}[0-9LMNPQRSTUV]{2}[ABCDEHLMPRST][0-9LMNPQRSTUV]{2}[A-Z][0-9LMNPQRSTUV]{3}[A-Z]",
        "it.codicefiscale",
    ),
    _Number("nl_bsn", r"[0-9]{9}|[0-9]{4}\.[0-9]{2}\.[0-9]{3}", "nl.bsn", r"bsn|burgerservicenummer|sofi\w*"),
    _Number("be_nn", r"[0-9]{2}\.[0-9]{2}\.[0-9]{2}-[0-9]{3}\.[0-9]{2}", "be.nn"),
    _Number("be_nn", r"[0-9]{11}", "be.nn", r"rijksregister\w*|registre national|niss|insz|national number"),
    _Number("pl_pesel", r"[0-9]{11}", "pl.pesel", r"pesel"),
    _Number("se_personnummer", r"(?:19|20)?[0-9]{6}[-+][0-9]{4}", "se.personnummer", r"person\w*|pnr|id"),
    _Number("no_fodselsnummer", r"[0-9]{6} ?[0-9]{5}", "no.fodselsnummer", r"f[øo]dsels\w*|fnr|person\w*|d-nummer"),
    _Number("fi_hetu", r"[0-3][0-9][01][0-9]{3}[-+ABCDEFYXWVU][0-9]{3}[0-9A-Y]", "fi.hetu"),
    _Number("br_cpf", r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}", "br.cpf"),
    _Number("br_cpf", r"[0-9]{11}", "br.cpf", r"cpf"),
    _Number("cn_ric", r"[1-9][0-9]{5}(?:19|20)[0-9]{2}[01][0-9][0-3][0-9]{4}[0-9X]", "iso7064.mod_11_2"),
    _Number("in_aadhaar", r"[2-9][0-9]{3} ?[0-9]{4} ?[0-9]{4}", "in_.aadhaar", r"aadh?aar|uidai|uid"),
    _Number("kr_rrn", r"[0-9]{6}-[0-9]{7}", "kr.rrn"),
    _Number("tr_tckimlik", r"[1-9][0-9]{10}", "tr.tckimlik", r"t\.?c\.?|kimlik\w*"),
    _Number("ca_sin", r"[1-9][0-9]{2}[ -]?[0-9]{3}[ -]?[0-9]{3}", "ca.sin", r"sin|social insurance|nas"),
    _Number("au_tfn", r"[0-9]{3} ?[0-9]{3} ?[0-9]{3}", "au.tfn", r"tfn|tax file"),
    _Number("za_idnr", r"[0-9]{6} ?[0-9]{4} ?[0-9]{3}", "za.idnr", r"id|identity"),
    _Number("ro_cnp", r"[1-9][0-9]{12}", "ro.cnp", r"cnp|cod numeric\w*"),
    _Number("cz_rc", r"[0-9]{6}/[0-9]{3,4}", "cz.rc", r"r\.? ?[čc]\.?|rodn[ée]\w*"),
    _Number("mx_curp", r"[A-Z]{4}[0-9]{6}[HM][A-Z]{5}[0-9A-Z][0-9]", "mx.curp"),
    _Number("ch_ahv", r"756\.[0-9]{4}\.[0-9]{4}\.[0-9]{2}", "ch.ssn"),
)


class Identities:
    """Numbers of persons by their form and check digits, and, where these say little, by what they are called."""

    kind = "identity"
    hint = (
        r"[0-9]{9}|[0-9]{3}[ \-.][0-9]{2,3}[ \-.][0-9]{3}|[0-9]{4}[. ][0-9]{2,4}[. ][0-9]{3}|[0-9]{6}[\-+/ ][0-9]{3}"
        r"|[12] [0-9]{2} [0-9]{2} |[0-9]{2} ?[0-9]{3} ?[0-9]{3} ?[0-9]{3}|[0-9]{2}\.[0-9]{2}\.[0-9]{2}-|756\."
        r"|[0-9]{8}-?[A-Z]|[XYZ]-?[0-9]{7}|[A-Z]{4}[0-9]{6}[HM]|[A-Z]{6}[0-9LMNPQRSTUV]{2}[A-Z]|[0-9]{6}[A-FU-Y][0-9]{3}"
    )

    def __init__(self) -> None:
        try:
            self._rules = [_Rule(number) for number in _NUMBERS]
        except ImportError:
            raise MissingDependencyError(
                "national numbers need python-stdnum, which is not installed.", hint="pip install 'llmkit[data]'"
            ) from None

    def find(self, text: str) -> Iterator[Found]:
        """Numbers, country after country."""
        for rule in self._rules:
            yield from rule.find(text)

    def surrogate(self, text: str, found: Found, draw: Draw) -> str:
        """The same form with other letters and digits, which no country's rules allow."""
        while True:
            drawn = draw.like(text)
            if not any(rule.allows(drawn) for rule in self._rules):
                return drawn


class _Rule:
    def __init__(self, number: _Number) -> None:
        self._form = number.form
        self._written = re.compile(number.written)
        self._names = None if number.names is None else re.compile(rf"\b(?:{number.names})\b", re.IGNORECASE)
        self._is_valid: Callable[[str], bool] = import_module(f"stdnum.{number.module}").is_valid

    def find(self, text: str) -> Iterator[Found]:
        if self._names is not None and not self._names.search(text):
            return
        for match in self._written.finditer(text):
            begin, end = match.span()
            if _is_apart(text, begin, end) and self._is_named(text, begin) and self._is_valid(match[0]):
                yield Found(begin, end, "".join(filter(str.isalnum, match[0])), self._form)

    def allows(self, text: str) -> bool:
        return self._written.fullmatch(text) is not None and self._is_valid(text)

    def _is_named(self, text: str, begin: int) -> bool:
        return self._names is None or self._names.search(text, max(0, begin - _NEAR), begin) is not None


def _is_apart(text: str, begin: int, end: int) -> bool:
    before, after, further = text[max(0, begin - 1) : begin], text[end : end + 1], text[end + 1 : end + 2]
    if joins(before) or (before and before in ".-+/") or joins(after):
        return False
    return not (after and after in "-/." and further.isalnum())
