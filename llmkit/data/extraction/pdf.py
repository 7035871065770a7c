"""The text layer of PDF files; runs in a guarded worker."""

from __future__ import annotations

import io
from typing import Any

from pypdf import PdfReader
from pypdf.errors import PdfReadError, PyPdfError

_FIELDS = {"/Title": "title", "/Author": "author"}


def book(argument: tuple[bytes, int]) -> dict[str, Any]:
    """The text of all pages, an empty line between two, and title, author, date and language.

    Args:
        argument: the file, and how many characters its text may have.

    Returns:
        `text` and `metadata`; or `reason` and `detail` where the file cannot be read.
    """
    data, most = argument
    if not data:
        return {"reason": "malformed", "detail": "the file is empty"}
    try:
        reader = PdfReader(io.BytesIO(data), strict=False)
        # Many files are encrypted against changes alone, with an empty password to read them.
        if reader.is_encrypted and not reader.decrypt(""):
            return {"reason": "unreadable", "detail": "encrypted with a password"}
        return _read(reader, most)
    except PdfReadError as error:
        return {"reason": "malformed", "detail": f"not a whole PDF: {_line(error)}"}
    except (PyPdfError, RecursionError) as error:
        return {"reason": "malformed", "detail": f"not a valid PDF: {_line(error)}"}


def _read(reader: PdfReader, most: int) -> dict[str, Any]:
    texts: list[str] = []
    characters = 0
    for page in reader.pages:
        texts.append(page.extract_text().strip())
        characters += len(texts[-1])
        if characters > most:
            return {"reason": "too large", "detail": f"page {len(texts):,}: more than {most:,} characters of text"}
    text = "\n\n".join(filter(None, texts))
    if not text:
        return {"reason": "no text", "detail": f"none of its {len(texts):,} pages has a text layer"}
    # Fonts without a table of characters give halves of pairs.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return {"text": text, "metadata": _metadata(reader)}


def _metadata(reader: PdfReader) -> dict[str, str]:
    info = reader.metadata or {}
    found = {name: _line(info.get(field) or "") for field, name in _FIELDS.items()}
    written = str(info.get("/CreationDate") or "").removeprefix("D:")[:8]
    if len(written) == 8 and written.isascii() and written.isdigit():
        found["date"] = f"{written[:4]}-{written[4:6]}-{written[6:]}"
    found["language"] = _line(reader.trailer["/Root"].get("/Lang") or "")
    return {name: value.encode("utf-8", "replace").decode() for name, value in found.items()}


def _line(value: object) -> str:
    return " ".join(str(value).split())[:400]
