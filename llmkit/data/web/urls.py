"""URLs in one form: what is the same page has the same URL."""

from __future__ import annotations

from urllib.parse import SplitResult, quote, urljoin, urlsplit, urlunsplit

_PORTS = {"http": 80, "https": 443}
_KEPT = "!#$%&'()*+,/:;=?@[]~-._"
_LONGEST = 8192


def normal_url(text: str, base: str | None = None) -> str:
    """A URL with its scheme and host in lower case, without fragment and default port, in ASCII.

    Args:
        text: the URL, or one relative to the base.
        base: URL of the page that names it.

    Raises:
        ValueError: it is no URL of the web; the message is half of a sentence.
    """
    text = text.strip()
    if len(text) > _LONGEST:
        raise ValueError(f"it is longer than {_LONGEST:,} characters")
    try:
        parts = urlsplit(urljoin(base, text) if base else text)
        port = parts.port
        host = (parts.hostname or "").rstrip(".")
        host = host if ":" in host else host.encode("idna").decode("ascii")
    except (ValueError, UnicodeError) as error:
        raise ValueError(f"it is no URL ({error})") from None
    if parts.scheme not in _PORTS:
        raise ValueError("it does not begin with http:// or https://")
    if not host or any(character.isspace() or ord(character) < 33 for character in host):
        raise ValueError("it names no host")
    if parts.username is not None or parts.password is not None:
        raise ValueError("it holds a user name or a password")
    place = f"[{host}]" if ":" in host else host
    if port is not None and port != _PORTS[parts.scheme]:
        place = f"{place}:{port}"
    path, query = (quote(part.encode("utf-8", "replace"), safe=_KEPT) for part in (parts.path or "/", parts.query))
    return urlunsplit((parts.scheme, place, path, query, ""))


def origin_of(url: str) -> str:
    """Scheme, host and port of a URL in normal form: what one robots.txt speaks for."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def host_of(url: str) -> str:
    """The host of a URL: what is asked for one thing at a time."""
    return urlsplit(url).hostname or ""


def port_of(parts: SplitResult) -> int:
    """The port of a URL that is taken apart, the scheme's own where it names none."""
    return parts.port or _PORTS[parts.scheme]
