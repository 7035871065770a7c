from __future__ import annotations

import pytest

from llmkit.data.extraction.encoding import declared_encoding, decode_page


@pytest.mark.parametrize(
    ("data", "charset", "encoding"),
    [
        (b"<p>", None, "utf-8"),
        (b"\xef\xbb\xbf<p>", "shift_jis", "utf-8-sig"),
        (b"\xff\xfe<\x00", None, "utf-16"),
        (b'<meta charset="utf-8">', None, "utf-8"),
        (b"<META http-equiv=Content-Type content='text/html; charset=ISO-8859-1'>", None, "cp1252"),
        (b"<meta charset=koi8-r>", None, "koi8-r"),
        (b"<meta charset=koi8-r>", "euc-jp", "euc-jp"),
        (b"<meta charset=koi8-r>", "no-such-thing", "koi8-r"),
        (b"<meta charset=gb2312>", None, "gb18030"),
        (b"<meta charset=utf-16>", None, "utf-8"),
        (b"<meta charset=nonsense>", None, "utf-8"),
        (b"<meta charset=rot13>", None, "utf-8"),
        (b"<meta charset=unicode_escape>", None, "utf-8"),
        (b" " * 2000 + b"<meta charset=koi8-r>", None, "utf-8"),
    ],
)
def test_declared_encodings(data: bytes, charset: str | None, encoding: str) -> None:
    assert declared_encoding(data, charset) == encoding


def test_pages_are_decoded() -> None:
    assert decode_page("<meta charset=big5>中文".encode("big5")) == "<meta charset=big5>中文"
    assert decode_page("日本".encode("shift_jis"), "Shift_JIS") == "日本"
    # Windows-1252 has curly quotes where Latin-1 has control characters.
    assert decode_page(b"\x93x\x94", "iso-8859-1") == "“x”"


def test_a_page_that_is_not_in_the_encoding_it_declares_may_be_utf_8() -> None:
    text = "<meta charset=euc-kr>naïve – 文字"
    assert decode_page(text.encode()) == text
    with pytest.raises(UnicodeDecodeError, match="cp949"):
        decode_page(b"<meta charset=euc-kr>\xff\xff")
    with pytest.raises(UnicodeDecodeError, match="utf-8"):
        decode_page(b"abc \xff")
