"""Text of EPUB books (EPUB 3.3, Open Container Format); runs in a guarded worker."""

from __future__ import annotations

import io
import posixpath
import zipfile
import zlib
from typing import Any
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

from llmkit.data.extraction.resiliparse import all_text

_CONTAINER = "META-INF/container.xml"
_MOST_TIMES = 1000
_FREE_BYTES = 1 << 26
_DRM = "META-INF/encryption.xml"
_PAGES = ("application/xhtml+xml", "text/html", "application/html+xml")
_FIELDS = {"title": "title", "creator": "author", "language": "language", "date": "date", "rights": "rights"}


class _Problem(Exception):
    """A book that cannot be read: kind of damage, and what it is."""


def book(argument: tuple[bytes, int]) -> dict[str, Any]:
    """The text of a book, its chapters in the order of the spine, and its metadata.

    Args:
        argument: the file, and how many bytes its chapters may hold together.

    Returns:
        `text` and `metadata`; or `reason` and `detail` where the book cannot be read.
    """
    data, max_bytes = argument
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _read(archive, max_bytes)
    except _Problem as problem:
        reason, detail = problem.args
        return {"reason": reason, "detail": detail}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        return {"reason": "unreadable", "detail": f"the archive is damaged: {error}"}


def _read(archive: zipfile.ZipFile, max_bytes: int) -> dict[str, Any]:
    root = _xml(archive, _CONTAINER, max_bytes).find(".//{*}rootfile")
    place = "" if root is None else root.get("full-path", "")
    package = _xml(archive, place, max_bytes)
    chapters = _spine(package, posixpath.dirname(place))
    if not chapters:
        raise _Problem("malformed", f"{place}: the spine names no chapter")
    if _DRM in archive.namelist():
        encrypted = {
            _path("", node.get("URI", "")) for node in _xml(archive, _DRM, max_bytes).iterfind(".//{*}CipherReference")
        }
        if encrypted & set(chapters):
            raise _Problem("unreadable", "its chapters are encrypted")
    texts: list[str] = []
    room = max_bytes
    for name in chapters:
        page = _bytes(archive, name, room)
        room -= len(page)
        found = all_text((page, None))
        if isinstance(found, str):
            raise _Problem("encoding", f"{name}: {found}")
        texts.append(found[0].strip())
    text = "\n\n".join(filter(None, texts))
    if not text:
        raise _Problem("no text", "its chapters hold no text")
    return {"text": text, "metadata": _metadata(package)}


def _spine(package: ElementTree.Element, folder: str) -> list[str]:
    """Names of the chapters in the archive, in reading order, each once."""
    items = {item.get("id"): item for item in package.iterfind("{*}manifest/{*}item")}
    found: dict[str, None] = {}
    for reference in package.iterfind("{*}spine/{*}itemref"):
        item = items.get(reference.get("idref"))
        if item is None:
            raise _Problem("malformed", f"the spine names `{reference.get('idref')}`, which the manifest does not have")
        if item.get("media-type") in _PAGES:
            found[_path(folder, item.get("href", ""))] = None
    return list(found)


def _path(folder: str, reference: str) -> str:
    return posixpath.normpath(posixpath.join(folder, unquote(urlsplit(reference).path)))


def _metadata(package: ElementTree.Element) -> dict[str, str]:
    found: dict[str, str] = {}
    for field, name in _FIELDS.items():
        values = (" ".join((node.text or "").split()) for node in package.iterfind(f"{{*}}metadata/{{*}}{field}"))
        known = list(filter(None, values))
        found[name] = ", ".join(known) if field == "creator" else (known or [""])[0]
    return found


def _xml(archive: zipfile.ZipFile, name: str, max_bytes: int) -> ElementTree.Element:
    data = _bytes(archive, name, max_bytes)
    # A declaration of entities can make a short text long, and none of these files needs one.
    if b"<!ENTITY" in data:
        raise _Problem("malformed", f"{name}: declares entities")
    try:
        return ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise _Problem("malformed", f"{name}: not XML ({error})") from None


def _bytes(archive: zipfile.ZipFile, name: str, room: int) -> bytes:
    """A file of the archive, read no further than there is room: what the archive says of its size may be untrue."""
    try:
        entry = archive.getinfo(name)
    except KeyError:
        raise _Problem("malformed", f"the archive holds no `{name}`") from None
    if entry.flag_bits & 1:
        raise _Problem("unreadable", f"{name}: encrypted")
    most = min(room, _FREE_BYTES + _MOST_TIMES * entry.compress_size)
    with archive.open(entry) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise _Problem("too large", f"{name}: more than {most:,} bytes")
    return data
