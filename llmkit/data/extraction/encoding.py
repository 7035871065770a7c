"""The encoding of a web page."""

from __future__ import annotations

import codecs
import re

_CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([A-Za-z0-9._:-]+)", re.IGNORECASE)
_DECLARED_WITHIN_BYTES = 1024
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
# By the Encoding Standard these labels mean a superset of what they name.
_MEANT = {
    **dict.fromkeys(("iso-8859-1", "iso8859-1", "iso_8859-1", "latin1", "latin-1", "ascii", "us-ascii"), "cp1252"),
    **dict.fromkeys(("iso-8859-9", "iso8859-9", "latin5"), "cp1254"),
    **dict.fromkeys(("gb2312", "gbk", "gb_2312-80", "x-gbk", "chinese"), "gb18030"),
    **dict.fromkeys(("shift_jis", "shift-jis", "sjis", "x-sjis", "ms_kanji", "windows-31j"), "cp932"),
    **dict.fromkeys(("euc-kr", "ks_c_5601-1987", "ksc5601", "korean"), "cp949"),
    **dict.fromkeys(("iso-8859-11", "tis-620", "dos-874"), "cp874"),
    **dict.fromkeys(("big5", "x-x-big5", "cn-big5"), "big5hkscs"),
}


def declared_encoding(data: bytes, charset: str | None = None) -> str:
    """Python's name of the encoding of a page.

    By its byte order mark, by the `charset` that its server named, by what it declares in its first 1,024 bytes, else
    UTF-8: the order of the HTML standard. A label that is not known counts for nothing.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding
    if charset is not None and (known := _known(charset)) is not None:
        return known
    found = _CHARSET.search(data[:_DECLARED_WITHIN_BYTES])
    known = _known(found.group(1).decode()) if found else None
    # A declaration that could be read byte by byte cannot be in UTF-16.
    return "utf-8" if known is None or known.startswith("utf-16") else known


def decode_page(data: bytes, charset: str | None = None) -> str:
    """The markup of a page: by its declared encoding; or as UTF-8, where it is valid UTF-8 and not what it declares.

    Raises:
        UnicodeDecodeError: it is valid in neither; the error is that of the declared encoding.
    """
    encoding = declared_encoding(data, charset)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        if encoding in ("utf-8", "utf-8-sig"):
            raise
        try:
            return data.decode()
        except UnicodeDecodeError:
            pass
        raise


def _known(label: str) -> str | None:
    name = label.strip().strip("\"'").lower()
    name = _MEANT.get(name, name)
    try:
        # Codecs that make no text (rot13, base64) are refused by encode, unknown ones by lookup.
        "".encode(name)
    except (LookupError, ValueError):
        return None
    return None if name in ("idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "utf-7") else name
