from __future__ import annotations

import pytest

from llmkit.data.extraction.config import ExtractionConfig
from llmkit.data.extraction.pages import Page, RawPage, Unreadable, extract_pages

SENTENCES = [f"This is sentence number {number} of the article, and it is not short." for number in range(12)]
PAGE = f"""<!DOCTYPE html>
<html lang="en-GB"><head><title>A &amp; B
 in short</title><style>p {{ color: red }}</style><script>document.write("<p>no</p>")</script></head>
<body><nav><ul><li><a href="/">Home</a></li><li><a href="/about">About us</a></li></ul></nav>
<main><article><h1>Heading</h1>{"".join(f"<p>{sentence}</p>" for sentence in SENTENCES)}</article></main>
<footer><a href="/imprint">Imprint</a></footer></body></html>"""


def extract(pages: list[bytes], **settings: object) -> list[Page | Unreadable]:
    config = ExtractionConfig.model_validate(settings)
    found = list(extract_pages(config, [(index, RawPage(page)) for index, page in enumerate(pages)]))
    assert [index for index, _ in found] == list(range(len(pages)))
    return [page for _, page in found]


@pytest.mark.parametrize("by", ["resiliparse", "trafilatura"])
def test_the_main_text_of_a_page(by: str) -> None:
    (page,) = extract([PAGE.encode()], by=by)
    assert isinstance(page, Page)
    assert (page.title, page.language) == ("A & B in short", "en-GB")
    assert [line for line in page.text.split("\n") if line] == ["Heading", *SENTENCES]


def test_all_that_is_visible() -> None:
    (page,) = extract([PAGE.encode()], part="all")
    assert isinstance(page, Page)
    lines = [line.strip() for line in page.text.split("\n") if line.strip()]
    assert [line.removeprefix("• ") for line in lines] == ["Home", "About us", "Heading", *SENTENCES, "Imprint"]


@pytest.mark.parametrize("by", ["resiliparse", "trafilatura"])
@pytest.mark.parametrize(
    "markup",
    [
        "",
        "<",
        "<p",
        "</",
        "<!--",
        "<![CDATA[",
        "<script>",
        "&#xffffffff;",
        "<p " + "a=" * 50 + ">x",
        "\x00<p>\x00",
        "<html lang>",
        "<title>",
        "<frameset>",
        "<svg><title>x",
        "<table><tr><p>x",
        "<p>&#xd800;</p>",
        "{json: 1}",
    ],
)
def test_broken_markup_is_read_as_far_as_it_goes(by: str, markup: str) -> None:
    (page,) = extract([markup.encode()], by=by)
    assert isinstance(page, Page)
    page.text.encode()


def test_what_cannot_be_read_costs_one_page() -> None:
    pages = [b"<p>one</p>", b"not \xff good", b"<p>two</p>", b"<div>" * 100_000 + b"deep", b"<p>three</p>"]
    one, wrong, two, deep, three = extract(pages, seconds=0.3)
    assert [page.text for page in (one, two, three) if isinstance(page, Page)] == ["one", "two", "three"]
    assert wrong == Unreadable("encoding", "byte 4: not valid utf-8 (invalid start byte)")
    assert deep == Unreadable("limits", "extracting its text took more than 0.3 s of computing time")


def test_the_encoding_that_a_server_named() -> None:
    page = RawPage("<p>слово</p>".encode("koi8-r"), "KOI8-R")
    ((_, found),) = extract_pages(ExtractionConfig(), [(0, page)])
    assert isinstance(found, Page)
    assert found.text == "слово"
