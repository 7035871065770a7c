"""Books written by hand, for tests."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping

from pypdf import PdfWriter

CONTAINER = b'<container><rootfiles><rootfile full-path="o/p.opf"/></rootfiles></container>'
PACKAGE = b"""<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>
<dc:title>A  Book</dc:title><dc:creator>Ann</dc:creator><dc:creator>Bob</dc:creator><dc:language>fr</dc:language>
<dc:date>1901-02-03</dc:date></metadata><manifest>
<item id="1" href="one%20x.xhtml" media-type="application/xhtml+xml"/>
<item id="2" href="../two.xhtml" media-type="application/xhtml+xml"/>
<item id="p" href="p.png" media-type="image/png"/></manifest>
<spine><itemref idref="2"/><itemref idref="p"/><itemref idref="1"/></spine></package>"""
BOOK = {
    "META-INF/container.xml": CONTAINER,
    "o/p.opf": PACKAGE,
    "o/one x.xhtml": b"<html><body><p>Last words.</p></body></html>",
    "two.xhtml": b"<html><body><h1>First</h1><p>words.</p></body></html>",
}


def epub(changes: Mapping[str, bytes | None] | None = None) -> bytes:
    """A book of two chapters; files of it that are others, or, by None, not there."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**BOOK, **(changes or {})}.items():
            if data is not None:
                archive.writestr(name, data)
    return stream.getvalue()


def pdf(*pages: str, info: str = "", root: str = "") -> bytes:
    """A PDF written by hand, each page one line of text."""
    kids = " ".join(f"{4 + 2 * index} 0 R" for index in range(len(pages)))
    objects = [
        f"<</Type/Catalog/Pages 2 0 R{root}>>",
        f"<</Type/Pages/Count {len(pages)}/Kids[{kids}]>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for index, text in enumerate(pages):
        content = f"BT /F 12 Tf 9 9 Td ({text}) Tj ET"
        resources = f"/Resources<</Font<</F 3 0 R>>>>/MediaBox[0 0 99 99]/Contents {5 + 2 * index} 0 R"
        objects.append(f"<</Type/Page/Parent 2 0 R{resources}>>")
        objects.append(f"<</Length {len(content)}>>stream\n{content}\nendstream")
    objects.append(f"<<{info}>>")
    body = "%PDF-1.4\n"
    places: list[int] = []
    for number, text in enumerate(objects, 1):
        places.append(len(body))
        body += f"{number} 0 obj\n{text}\nendobj\n"
    rows = "".join(f"{place:010} 00000 n \n" for place in places)
    size = len(objects) + 1
    table = f"xref\n0 {size}\n0000000000 65535 f \n{rows}trailer<</Size {size}/Root 1 0 R/Info {size - 1} 0 R>>\n"
    return f"{body}{table}startxref\n{len(body)}\n%%EOF".encode("latin-1")


def encrypted_pdf(password: str) -> bytes:
    """A PDF that needs a password to be read, or, by an empty one, is only protected against changes."""
    writer = PdfWriter(clone_from=io.BytesIO(pdf("Secret")))
    writer.encrypt(password, "owner", algorithm="RC4-128")
    stream = io.BytesIO()
    writer.write(stream)
    return stream.getvalue()
