from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data.sources.html import declared_encoding
from llmkit.data.sources.html_text import extract_page

PAGE = """<!DOCTYPE html>
<html lang="en"><head><title>A &amp; B</title><style>p { color: red }</style>
<script>if (a < b) document.write("<p>no</p>")</script></head>
<body>
<header><h1>Site</h1><nav><a href="/">Home</a></nav></header>
<nav>Menu<ul><li>One</li></ul></nav>
<p>First <b>bold</b>, a&nbsp;space &lt;tag&gt;
and a broken line.<br>After the break.</p>
<!-- not shown -->
<ul><li>one<li>two</ul>
<table><tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr></table>
<pre>
def f():
    return 1
</pre>
<aside>Advertisement</aside>
<footer>Imprint</footer>
</body></html>"""


def test_a_page() -> None:
    page = extract_page(PAGE)
    assert page.title == "A & B"
    assert page.language == "en"
    assert page.text.split("\n") == [
        "First bold, a space <tag> and a broken line.",
        "After the break.",
        "",
        "one",
        "two",
        "",
        "a\tb",
        "c\td",
        "",
        "def f():",
        "    return 1",
    ]


def test_the_marked_main_part_is_taken_alone() -> None:
    html = (
        "<body><p>around</p><main><header><h1>Heading</h1></header><p>Body.</p><nav>x</nav></main><p>after</p></body>"
    )
    assert extract_page(html).text == "Heading\n\nBody."
    assert extract_page("<p>only</p><main> </main>").text == "only"


def test_an_unclosed_menu_hides_no_more_than_its_parent() -> None:
    assert extract_page("<div><nav>menu</div><p>text</p>").text == "text"
    assert extract_page("<p>a</nav></div>b").text == "a\nb"


def test_spaces_and_breaks() -> None:
    assert extract_page("<b>a</b> <i>b</i><i>c</i>\n<p> d <br> e<br><br>f</p>g").text == "a bc\n\nd\ne\n\nf\n\ng"
    assert extract_page("<ul><li>a</li><li> b</li></ul><div>c</div><div>d</div>").text == "a\nb\n\nc\nd"
    assert extract_page("x<pre>  a\n\n    <b>b</b>  c\n</pre>y").text == "x\n\n  a\n\n    b  c\n\ny"


@pytest.mark.parametrize(
    "html",
    ["", "<", "<p", "</", "<!--", "<![CDATA[", "<script>", "&#xffffffff;", "<p " + "a=" * 50 + ">x", "\x00<p>\x00"],
)
def test_broken_markup_is_read_as_far_as_it_goes(html: str) -> None:
    extract_page(html)


@given(
    st.lists(st.sampled_from(["<p>", "</p>", "<nav>", "</nav>", "<div>", "</div>", "<pre>", "a", " ", "<br/>", "<"]))
)
@settings(max_examples=100)
def test_any_soup_of_tags(parts: list[str]) -> None:
    assert "<p>" not in extract_page("".join(parts)).text


def test_deep_and_unbalanced_markup_takes_linear_work() -> None:
    deep = "<div>" * 50_000 + "text" + "</b></div>" * 50_000
    # Quadratic work would not end before the tests' time limit.
    assert extract_page(deep).text == "text"


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (b"<p>", "utf-8"),
        (b"\xef\xbb\xbf<p>", "utf-8-sig"),
        (b"\xff\xfe<\x00", "utf-16"),
        (b'<meta charset="utf-8">', "utf-8"),
        (b"<META http-equiv=Content-Type content='text/html; charset=ISO-8859-1'>", "cp1252"),
        (b"<meta charset=shift_jis>", "shift_jis"),
        (b"<meta charset=utf-16>", "utf-8"),
        (b"<meta charset=nonsense>", "utf-8"),
        (b" " * 2000 + b"<meta charset=shift_jis>", "utf-8"),
    ],
)
def test_declared_encodings(data: bytes, encoding: str) -> None:
    assert declared_encoding(data) == encoding
