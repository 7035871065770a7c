"""One request, within limits of time, size and type, to an address that may be asked."""

from __future__ import annotations

import io
import socket
import ssl
import time
import zlib
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPResponse, IncompleteRead
from typing import Any
from urllib.parse import urlsplit

from llmkit.data.sources.base import Reason
from llmkit.data.web.addresses import Network, RefusedAddressError, permitted_addresses
from llmkit.data.web.urls import port_of

_CHUNK = 1 << 16
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_OR_ZLIB = 47
"""zlib's code for: either format, by the header."""
_REDIRECTS = (301, 302, 303, 307, 308)
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)


class RequestError(Exception):
    """There is no answer that can be used.

    Args:
        reason: what kind of reason, as for broken records.
        detail: what happened, as half of a sentence.
        temporary: whether it may be otherwise another time.
        retry_after: seconds after which the server wants to be asked again.
        status: HTTP status, where there was one.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str,
        *,
        temporary: bool = False,
        retry_after: float | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.temporary = temporary
        self.retry_after = retry_after
        self.status = status


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may cost, and whom it may ask.

    Args:
        seconds: from the first step to the last byte.
        size: bytes of the answer, decompressed.
        types: content types that are read; None for all.
        allowed: private networks that may be asked.
        user_agent: how the request presents itself.
    """

    seconds: float
    size: int
    types: Collection[str] | None
    allowed: tuple[Network, ...]
    user_agent: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered.

    Args:
        url: what was asked.
        location: where it sends us instead, as it is written there; None for an answer with a body.
        type: content type in lower case, without parameters.
        charset: encoding that the content type names.
        modified: date of the last change ("2024-05-01"), if it is told.
        body: decompressed.
    """

    url: str
    location: str | None
    type: str = ""
    charset: str | None = None
    modified: str | None = None
    body: bytes = b""


def get(url: str, limits: Limits) -> Answer:
    """Ask for a URL in normal form. No cookies, no proxies, and no redirect is followed.

    Raises:
        RequestError: there is no answer within the limits, or one that says there is no such page.
    """
    deadline = time.monotonic() + limits.seconds
    try:
        return _get(url, limits, deadline)
    except RefusedAddressError as error:
        raise RequestError("refused", str(error)) from None
    except TimeoutError:
        raise RequestError("limits", f"no whole answer in {limits.seconds:g} s", temporary=True) from None
    except ssl.SSLCertVerificationError as error:
        raise RequestError("unreadable", f"its certificate is not valid ({error.verify_message})") from None
    except (IncompleteRead, EOFError):
        raise RequestError("unreadable", "the answer is cut off", temporary=True) from None
    except (OSError, HTTPException) as error:
        detail = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise RequestError("unreadable", f"no answer ({detail})", temporary=True) from None
    except (ValueError, zlib.error) as error:
        raise RequestError("malformed", f"the answer breaks the rules of HTTP ({error})"[:200]) from None


def _get(url: str, limits: Limits, deadline: float) -> Answer:
    parts = urlsplit(url)
    host = parts.hostname or ""
    with closing(_connect(host, port_of(parts), limits, deadline)) as raw:
        raw.settimeout(_left(deadline))
        link = _tls().wrap_socket(raw, server_hostname=host) if parts.scheme == "https" else raw
        with closing(link):
            connection = HTTPConnection(host, port_of(parts))
            connection.sock = _TimedSocket(link, deadline)
            headers = {
                "Host": parts.netloc,
                "User-Agent": limits.user_agent,
                "Accept": ", ".join(limits.types) if limits.types else "*/*",
                "Accept-Encoding": "gzip",
                "Connection": "close",
            }
            path = parts.path + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", path, headers=headers)
            with closing(connection.getresponse()) as response:
                return _answer(url, response, limits)


@cache
def _tls() -> ssl.SSLContext:
    """The certificates of this machine, which take a while to load."""
    return ssl.create_default_context()


def _connect(host: str, port: int, limits: Limits, deadline: float) -> socket.socket:
    problem: OSError | None = None
    for address in permitted_addresses(host, port, limits.allowed):
        try:
            return socket.create_connection((address, port), timeout=_left(deadline))
        except TimeoutError:
            raise
        except OSError as error:
            problem = error
    raise problem or OSError(f"{host} has no address")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class _TimedSocket:
    """The parts of a socket that `http.client` uses, all of them under one deadline.

    A socket's own time limit is for one read; a server that sends a byte a minute keeps within it for ever.
    """

    def __init__(self, link: socket.socket, deadline: float) -> None:
        self._link = link
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        self._link.settimeout(_left(self._deadline))
        self._link.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedStream(self._link, self._deadline))

    def close(self) -> None:
        """The connection closes itself before its answer is read; the socket is closed by whoever opened it."""


class _TimedStream(io.RawIOBase):
    def __init__(self, link: socket.socket, deadline: float) -> None:
        super().__init__()
        self._link = link
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._link.settimeout(_left(self._deadline))
        return self._link.recv_into(buffer)


def _answer(url: str, response: HTTPResponse, limits: Limits) -> Answer:
    status = response.status
    location = response.getheader("Location")
    if status in _REDIRECTS and location:
        # http.client gives bytes of headers as Latin-1; locations are UTF-8 where they are not ASCII.
        return Answer(url, location.encode("latin-1", "replace").decode("utf-8", "replace"))
    if status != 200:
        raise RequestError(
            "no text" if 300 <= status < 500 and status not in _TEMPORARY else "unreadable",
            f"HTTP status {status}",
            temporary=status in _TEMPORARY,
            retry_after=_retry_after(response.getheader("Retry-After")),
            status=status,
        )
    kind, charset = _content_type(response.getheader("Content-Type") or "")
    if limits.types is not None and kind not in limits.types:
        raise RequestError("no text", f"its content type is {kind or 'not given'}", status=status)
    length = response.length
    encoding = (response.getheader("Content-Encoding") or "identity").strip().lower()
    if length is not None and length > limits.size:
        raise _too_large(limits)
    body = _body(response, encoding, limits)
    return Answer(url, None, kind, charset, _date(response.getheader("Last-Modified")), body)


def _content_type(header: str) -> tuple[str, str | None]:
    message = Message()
    message["Content-Type"] = header
    kind = header.partition(";")[0].strip().lower()
    charset = message.get_param("charset")
    return kind, charset if isinstance(charset, str) else None


def _body(response: HTTPResponse, encoding: str, limits: Limits) -> bytes:
    if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
        raise RequestError("malformed", f"it is compressed as `{encoding[:40]}`, which was not asked for")
    body = bytearray()
    inflater = None if encoding == "identity" else zlib.decompressobj(_GZIP_OR_ZLIB)
    while chunk := response.read(_CHUNK):
        while chunk:
            if inflater is None:
                body += chunk
                break
            if inflater.eof:
                if not chunk.startswith(_GZIP_MAGIC):
                    break
                inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
            body += inflater.decompress(chunk, limits.size + 1 - len(body))
            chunk = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
            if len(body) > limits.size:
                break
        if len(body) > limits.size:
            raise _too_large(limits)
    if response.length or (inflater is not None and not inflater.eof):
        raise EOFError
    return bytes(body)


def _too_large(limits: Limits) -> RequestError:
    return RequestError("too large", f"it is longer than {limits.size:,} bytes")


def _retry_after(header: str | None) -> float | None:
    """Seconds until a server wants to be asked again: it says how many, or when."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header.strip()[:9])
    moment = _moment(header)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds()) if moment else None


def _date(header: str | None) -> str | None:
    moment = _moment(header) if header else None
    return moment.date().isoformat() if moment else None


def _moment(header: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(header)
    except (ValueError, TypeError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
