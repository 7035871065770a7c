"""Keys, tokens, private keys and passwords."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

from llmkit.data.personal.base import Draw, Found, joins

_W = "[A-Za-z0-9_-]"
_KNOWN = {
    "aws": (r"A(?:KIA|SIA|ROA|IDA)", r"[A-Z2-7]{16}"),
    "github": (r"gh[pousr]_", r"[A-Za-z0-9]{36,251}"),
    "github_fine": (r"github_pat_", r"[A-Za-z0-9_]{50,255}"),
    "gitlab": (r"gl(?:pat|dt|rt|ptt)-", rf"{_W}{{20,64}}"),
    "slack": (r"xox[abeoprs]-", r"[A-Za-z0-9-]{10,250}"),
    "stripe": (r"[sr]k_(?:live|test)_", r"[A-Za-z0-9]{16,247}"),
    "google": (r"AIza", rf"{_W}{{35}}"),
    "google_oauth": (r"ya29\.", rf"{_W}{{30,500}}"),
    "anthropic": (r"sk-ant-(?:api|admin)[0-9]{2}-", rf"{_W}{{80,120}}"),
    "openai": (r"sk-(?:proj-|svcacct-|admin-)?", r"[A-Za-z0-9][A-Za-z0-9_-]{30,200}"),
    "hugging_face": (r"hf_", r"[A-Za-z]{34}"),
    "npm": (r"npm_", r"[A-Za-z0-9]{36}"),
    "pypi": (r"pypi-AgE", rf"{_W}{{50,500}}"),
    "sendgrid": (r"SG\.", rf"{_W}{{16,32}}\.{_W}{{32,64}}"),
    "twilio": (r"SK", r"[0-9a-f]{32}"),
    "telegram": (r"[0-9]{8,10}:AA", rf"{_W}{{33}}"),
    "digitalocean": (r"do[opr]_v1_", r"[0-9a-f]{64}"),
    "databricks": (r"dapi", r"[0-9a-f]{32}"),
    "shopify": (r"shp(?:at|ca|pa|ss)_", r"[0-9a-fA-F]{32}"),
    "mailgun": (r"key-", r"[0-9a-f]{32}"),
    "jwt": (r"eyJ", rf"{_W}{{10,2000}}\.eyJ{_W}{{10,4000}}\.{_W}{{10,1000}}"),
}
"""Prefix and body of the keys that services give out."""
_KNOWN_FORM = re.compile("|".join(f"(?P<{name}>(?:{prefix})(?:{body}))" for name, (prefix, body) in _KNOWN.items()))
_PREFIX = re.compile("|".join(f"(?:{prefix})" for prefix, _ in _KNOWN.values()))
_BLOCK = re.compile(
    r"-----BEGIN ((?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?)-----([A-Za-z0-9+/=\s:,.()\\-]{40,20000}?)-----END \1-----"
)
_USER = re.compile(r"[a-z][a-z0-9+.-]{1,20}://[^\s/:@'\"<>]{0,64}:([^\s/@'\"<>]{3,128})@[\w.-]", re.IGNORECASE)
_NAME = (
    r"(?:[A-Za-z0-9]{1,24}[_.-]){0,4}"
    r"(?P<name>pass(?:word|wd|phrase)|pwd|secret(?:[_-]?(?:access[_-]?)?key)?|api[_-]?key|access[_-]?key|auth[_-]?token"
    r"|access[_-]?token|private[_-]?key|client[_-]?secret|account[_-]?key|token)"
)
_ASSIGNED = re.compile(
    rf"(?<![A-Za-z0-9]){_NAME}[\"']?\s{{0,3}}(?:[:=]|=>|:=| is )\s{{0,3}}"
    r"(?:(?P<quote>[\"'`])(?P<quoted>[^\"'`\s]{6,200})(?P=quote)|(?P<plain>[^\s\"'`,;<>(){}\[\]]{6,200}))",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(
    r"^[\[<({$%*&]|example|your|changeme|placeholder|redacted|dummy|sample|insert|xxx|\.\.\.|\*\*\*|^(?:none|null|true|false|"
    r"undefined|string|password|secret|token|required|optional|default)\W*$|[(\[{]|^[\w.]+\.\w+$|://|^/|==",
    re.IGNORECASE,
)
_PASSWORD_NAMES = ("pass", "pwd")
_MARK = "EXAMPLE"


def entropy(text: str) -> float:
    """Shannon entropy of a text's characters in bits a character."""
    return -sum(count / len(text) * math.log2(count / len(text)) for count in Counter(text).values())


class Secrets:
    """What services issue in known forms, private keys in PEM, passwords in URLs, and values that are called a
    password, key or token and look random. Values with `example` in them and placeholders stay."""

    kind = "secret"
    hint = (
        r"A(?:KIA|SIA|ROA|IDA)[A-Z2-7]{12}|gh[pousr]_[A-Za-z0-9]{12}|github_pat_|gl(?:pat|dt|rt|ptt)-|xox[abeoprs]-"
        r"|[sr]k_(?:live|test)_|AIza[A-Za-z0-9_\-]{12}|ya29\.|sk-[A-Za-z0-9][A-Za-z0-9_\-]{12}|hf_[A-Za-z]{12}"
        r"|npm_[A-Za-z0-9]{12}|pypi-AgE|SG\.[A-Za-z0-9_\-]{12}|SK[0-9a-f]{12}|:AA[A-Za-z0-9_\-]{12}|do[opr]_v1_"
        r"|dapi[0-9a-f]{12}|shp(?:at|ca|pa|ss)_|key-[0-9a-f]{12}|eyJ[A-Za-z0-9_\-]{10}|PRIVATE KEY|://[^\s/:@]{0,64}:[^\s/@]{3}"
        r"|(?i:(?:passw(?:or)?d|passphrase|pwd|secret|api[_\-]?key|access[_\-]?key|token|private[_\-]?key|account[_\-]?key)"
        r"(?:[_\-](?:access[_\-])?key)?[\"']?\s{0,3}(?:[:=]| is )\s{0,3}[\"'`]?[^\s\"'`]{6})"
    )

    def find(self, text: str) -> Iterator[Found]:
        """Blocks, known forms, passwords in URLs, then named values."""
        if "PRIVATE KEY" in text:
            for match in _BLOCK.finditer(text):
                if _MARK not in match[2]:
                    yield Found(match.start(), match.end(), "".join(match[2].split()), "private_key")
        for match in _KNOWN_FORM.finditer(text):
            if (
                _is_apart(text, match)
                and (match.lastgroup == "aws" or _looks_random(match[0]))
                and _MARK not in match[0]
            ):
                yield Found(match.start(), match.end(), match[0], match.lastgroup or "")
        if "://" in text:
            for match in _USER.finditer(text):
                if not _PLACEHOLDER.search(match[1]):
                    yield Found(match.start(1), match.end(1), match[1], "password")
        for match in _ASSIGNED.finditer(text):
            found = _assigned(match)
            if found is not None:
                yield found

    def surrogate(self, text: str, found: Found, draw: Draw) -> str:
        """The same prefix and form with other letters and digits, and `EXAMPLE` in it."""
        if found.form == "private_key":
            head, _, rest = text.partition("-----\n")
            body, _, tail = rest.rpartition("\n-----END")
            return f"{head}-----\n{_MARK}{draw.like(body[len(_MARK) :])}\n-----END{tail}"
        prefix = _PREFIX.match(text) if found.form in _KNOWN else None
        kept = prefix.end() if prefix else 0
        body = draw.like(text[kept:])
        return text[:kept] + body[: max(0, len(body) - len(_MARK))] + _MARK


def _is_apart(text: str, match: re.Match[str]) -> bool:
    before, after = text[max(0, match.start() - 1) : match.start()], text[match.end() : match.end() + 1]
    return not (joins(before) or joins(after))


def _looks_random(text: str) -> bool:
    """Whether there are digits or changes of case: `sk-learn-some-long-name` has neither."""
    return entropy(text) > 3 and (any(map(str.isdigit, text)) or (text.lower() != text and text.upper() != text))


def _assigned(match: re.Match[str]) -> Found | None:
    group = "quoted" if match["quoted"] is not None else "plain"
    value = match[group].rstrip(".,;:") if group == "plain" else match[group]
    if len(value) < 6 or _PLACEHOLDER.search(value):
        return None
    is_password = match["name"].lower().startswith(_PASSWORD_NAMES)
    classes = sum(any(map(test, value)) for test in (str.isdigit, str.islower, str.isupper))
    classes += any(not character.isalnum() for character in value)
    if is_password:
        fits = classes >= 3 or (classes == 2 and any(map(str.isdigit, value)))
    else:
        fits = len(value) >= 16 and any(map(str.isdigit, value)) and entropy(value) > 3
    if not fits:
        return None
    begin = match.start(group)
    return Found(begin, begin + len(value), value, "password" if is_password else "key")
