"""E-mail and IP addresses."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from llmkit.data.personal.base import Draw, Found, joins

_LOCAL = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._%+-"
_LOCAL_LENGTH = 64
_LETTER = r"A-Za-z\u00c0-\u024f"
_DOMAIN = re.compile(
    rf"(?:[0-9{_LETTER}](?:[0-9{_LETTER}-]{{0,61}}[0-9{_LETTER}])?\.){{1,8}}([{_LETTER}]{{2,24}}|xn--[a-z0-9-]{{2,30}})"
    rf"(?![0-9{_LETTER}_@])"
)
_AUTHORITY = re.compile(r"//[^\s/@]{0,60}$")
"""What stands before the user or password of a URL."""
_RESERVED = ("example", "test", "invalid", "localhost", "local", "internal", "lan")
"""Top-level names that are nobody's (RFC 2606, RFC 6762)."""
_RESERVED_DOMAINS = ("example.com", "example.org", "example.net")
_FILE_ENDING = re.compile(
    "png|jpe?g|gif|svg|webp|bmp|ico|[jt]sx?|s?css|html?|json|xml|ya?ml|txt|csv|pdf|exe|dll|so|jar|class|java|cpp|conf|"
    "cfg|ini|log|lock|tar|gz|tgz|whl|deb|rpm|service|socket|timer|target|mount|device",
    re.IGNORECASE,
)
_REPOSITORY_USERS = ("git", "hg", "svn")
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


class Emails:
    """E-mail addresses with a domain that can exist; not those of reserved names, files (`logo@2x.png`), packages
    (`react@18.2`) or repositories (`git@host:path`)."""

    kind = "email"
    hint = r"[A-Za-z0-9._%+\-]@[^\s@]{1,64}\.[^\s@]"

    def find(self, text: str) -> Iterator[Found]:
        """Addresses in their order."""
        at = text.find("@")
        while at >= 0:
            found = self._at(text, at)
            if found is not None:
                yield found
            at = text.find("@", at + 1)

    def _at(self, text: str, at: int) -> Found | None:
        domain = _DOMAIN.match(text, at + 1)
        if domain is None:
            return None
        before = text[max(0, at - _LOCAL_LENGTH - 1) : at]
        kept = len(before.rstrip(_LOCAL))
        while kept and "\u00c0" <= before[kept - 1] <= "\u024f":
            kept = len(before[: kept - 1].rstrip(_LOCAL))
        local = before[kept:].lstrip(".%-+")
        if not local or len(local) > _LOCAL_LENGTH or local.endswith(".") or ".." in local:
            return None
        if _AUTHORITY.search(text, max(0, at - len(local) - _LOCAL_LENGTH), at - len(local)):
            return None
        name = domain[0].lower()
        if _FILE_ENDING.fullmatch(domain[1]) or is_reserved(name):
            return None
        if local in _REPOSITORY_USERS and text[domain.end() : domain.end() + 1] in (":", "/"):
            return None
        return Found(at - len(local), domain.end(), f"{local.lower()}@{name}")

    def surrogate(self, text: str, found: Found, draw: Draw) -> str:
        """A pronounceable name at one of the reserved domains."""
        local = ("".join(_SYLLABLES[draw.below(len(_SYLLABLES))] for _ in range(3)) for _ in range(2))
        return f"{'.'.join(local)}@{_RESERVED_DOMAINS[draw.below(len(_RESERVED_DOMAINS))]}"


def is_reserved(domain: str) -> bool:
    """Whether a domain, in lower case, is one that nobody can have."""
    last = domain.rpartition(".")[2]
    return last in _RESERVED or any(domain == name or domain.endswith("." + name) for name in _RESERVED_DOMAINS)


_V4 = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![A-Za-z0-9_]|\.[0-9]|-[0-9A-Za-z])")
_V6_PART = re.compile(r"[0-9A-Fa-f:]{0,39}(?:(?<=:)[0-9]{1,3}(?:\.[0-9]{1,3}){3})?")
_HEXADECIMAL = "0123456789abcdefABCDEF"
_VERSION_BEFORE = re.compile(
    r"(?:\bv|[Vv]er\.?|[Vv]ersions?|[Rr]eleases?|[Bb]uild|[Rr]evision|[A-Za-z]/|==|>=|<=|~=)\s*$"
)
_ADDRESS_NEAR = re.compile(r"\b(?:ip|ips|address|addresses|host|hosts|server|client|from|dns|ping|gateway)\b|://", re.I)
_NEAR = 24
_SMALL = 32


class Addresses:
    """Public IP addresses; not versions with four parts, section numbers, times, or `::` of programs."""

    kind = "ip"
    hint = r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|[23][0-9A-Fa-f]{3}:[0-9A-Fa-f]{0,4}:"

    def find(self, text: str) -> Iterator[Found]:
        """Version 4, then version 6."""
        for match in _V4.finditer(text):
            if self._is_v4(text, match):
                yield Found(match.start(), match.end(), match[0], "v4")
        colon = text.find(":")
        while colon >= 0:
            found = self._v6_at(text, colon)
            if found is not None:
                yield found
            # A run of hexadecimal groups is judged once, at its first colon.
            part = _V6_PART.match(text, colon)
            colon = text.find(":", max(colon + 1, part.end() if part else 0))

    def _is_v4(self, text: str, match: re.Match[str]) -> bool:
        begin = match.start()
        before = text[max(0, begin - _NEAR) : begin]
        if joins(before[-1:]) or before[-1:] in (".", "-", "+"):
            return False
        parts = match[0].split(".")
        if any(len(part) > 1 and part[0] == "0" for part in parts) or not _is_public(match[0]):
            return False
        if _VERSION_BEFORE.search(before) and not before.endswith("://"):
            return False
        # Numbers of sections and versions are small; an address of small numbers must be called one.
        return max(map(int, parts)) >= _SMALL or bool(_ADDRESS_NEAR.search(before))

    def _v6_at(self, text: str, colon: int) -> Found | None:
        begin = colon
        while begin > max(0, colon - 4) and text[begin - 1] in _HEXADECIMAL:
            begin -= 1
        if begin == colon or text[begin] not in "23" or (begin and (joins(text[begin - 1]) or text[begin - 1] == ":")):
            return None
        part = _V6_PART.match(text, begin)
        written = part[0].rstrip(":") if part else ""
        if part and part[0].endswith("::"):
            written = part[0]
        after = text[begin + len(written) : begin + len(written) + 1]
        if written.count(":") < 2 or joins(after) or not _is_public(written):
            return None
        return Found(begin, begin + len(written), ipaddress.ip_address(written).compressed, "v6")

    def surrogate(self, text: str, found: Found, draw: Draw) -> str:
        """A private address (10.0.0.0/8) or one for documentation (2001:db8::/32, RFC 3849)."""
        if found.form == "v4":
            return f"10.{draw.below(256)}.{draw.below(256)}.{draw.below(256)}"
        return "2001:db8:" + ":".join(f"{draw.below(65536):x}" for _ in range(6))


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False
