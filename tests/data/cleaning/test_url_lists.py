from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filter_support import make_filter
from pydantic import ValidationError

from llmkit.config.base import Input
from llmkit.data.cleaning.base import Dropped, Filter
from llmkit.data.cleaning.block_lists import BlockList
from llmkit.data.cleaning.config import CleaningConfig, UrlsConfig
from llmkit.data.cleaning.urls import address_of, domains_of, places_of
from llmkit.errors import DataError
from llmkit.store.documents import Document

LISTS = {
    "domains": "# a comment\nbad.example\n\n*.Worse.Example\nnews.good.example\nbücher.example\n",
    "urls": "good.example/private\nhttps://www.good.example/a/b.html\nother.example/?id=7\n",
    "banned_words": "casino\nPoker-Room\n",
    "soft_banned_words": "win\nfree\nbonus\n",
    "banned_subwords": "xyzzy\n",
}


@pytest.fixture
def lists(tmp_path: Path) -> dict[str, list[str]]:
    for name, text in LISTS.items():
        (tmp_path / name).write_text(text, "utf-8")
    return {name: [str(tmp_path / name)] for name in LISTS}


def judged(found: Filter, urls: list[str], key: str | None = None) -> list[Dropped | None]:
    documents = [
        Document("", "t", "s", url) if key is None else Document("", "t", "s", "p", metadata={key: url}) for url in urls
    ]
    measured = found.measure(documents)
    assert list(measured) == list(found.columns)
    return found.judge(
        {name: np.array(v, object if found.columns[name] == "string" else np.int32) for name, v in measured.items()}
    )


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://good.example/", None),
        ("http://bad.example/", ("domain", "bad.example")),
        ("https://a.b.bad.example:8080/x", ("domain", "bad.example")),
        ("https://user@BAD.example./", ("domain", "bad.example")),
        ("http://notbad.example/", None),
        ("http://example/", None),
        ("http://x.worse.example/", ("domain", "worse.example")),
        ("http://bücher.example/", ("domain", "xn--bcher-kva.example")),
        ("http://xn--bcher-kva.example/", ("domain", "xn--bcher-kva.example")),
        ("http://www.news.good.example/", ("domain", "news.good.example")),
        ("http://good.example/private", ("url", "good.example/private")),
        ("http://www.good.example/private/a?b#c", ("url", "good.example/private")),
        ("http://good.example/Private/", ("url", "good.example/private")),
        ("http://good.example/privateer", None),
        ("http://good.example/a/b.html?page=2", ("url", "good.example/a/b.html")),
        ("http://good.example/a/", None),
        ("http://other.example/?id=7", ("url", "other.example/?id=7")),
        ("http://other.example/?id=77", None),
        ("http://good.example/online-CASINO/", ("banned_word", "casino")),
        ("http://good.example/casinos", None),
        ("http://good.example/pokerroom", ("banned_word", "pokerroom")),
        ("http://good.example/free", None),
        ("http://good.example/free-free", None),
        ("http://good.example/free/win", ("soft_banned_words", "2 of them")),
        ("http://good.example/ab-xyz/zy", ("banned_subword", "xyzzy")),
        ("casino/win-free.txt", None),
        ("ftp://bad.example/", None),
    ],
)
def test_what_is_blocked(lists: dict[str, list[str]], url: str, expected: tuple[str, str] | None) -> None:
    (verdict,) = judged(make_filter("urls", **lists), [url])
    assert (verdict and (verdict.reason, verdict.detail)) == expected


def test_urls_in_the_metadata_and_documents_without_one(lists: dict[str, list[str]]) -> None:
    found = make_filter("urls", **lists, url="link", without_url="drop")
    verdicts = judged(found, ["http://bad.example", "http://good.example", ""], "link")
    assert verdicts == [Dropped("domain", "bad.example"), None, Dropped("no_url")]
    assert judged(make_filter("urls", **lists), ["http://bad.example"], "link") == [None]


def test_thresholds_do_not_measure_again(lists: dict[str, list[str]]) -> None:
    one, two = make_filter("urls", **lists), make_filter("urls", **lists, soft_word_threshold=3, without_url="drop")
    assert one.measuring == two.measuring
    assert judged(two, ["http://good.example/free/win"]) == [None]
    assert judged(two, ["http://good.example/free/win/bonus"]) == [Dropped("soft_banned_words", "3 of them")]


def datatrove_says(url: str, lists: dict[str, set[str]], threshold: int) -> str | None:
    """The rules of datatrove's URLFilter (0.10.1), for hosts of which the last two labels are the registered domain."""
    host = re.sub(r"^https?://([^/]*).*$", r"\1", url)
    if ".".join(host.split(".")[-2:]) in lists["domains"] or host in lists["domains"]:
        return "domain"
    if url in lists["urls"]:
        return "url"
    words = set(re.split(r"[^a-zA-Z0-9]+", url))
    if lists["banned_words"] & words:
        return "banned_word"
    if sum(word in words for word in lists["soft_banned_words"]) >= threshold:
        return "soft_banned_words"
    joined = re.sub(r"[^a-zA-Z0-9]+", "", url).lower()
    return "banned_subword" if any(word in joined for word in lists["banned_subwords"]) else None


@pytest.mark.parametrize("threshold", [1, 2, 3])
def test_decisions_are_those_of_datatrove(tmp_path: Path, threshold: int) -> None:
    rng = np.random.default_rng(threshold)
    words = ["alpha", "beta", "gamma", "delta", "eps", "zeta", "eta", "theta", "iota", "kappa", "alphabet", "x"]

    def some(count: int) -> list[str]:
        return [str(word) for word in rng.choice(words, count)]

    # Domains of three labels and no more, and a list of whole URLs of leaves: what both rules mean alike.
    urls = [
        f"http://{'.'.join(some(int(rng.integers(1, 3))))}.org/{'-'.join(some(3))}/{'_'.join(some(2))}.html"
        for _ in range(800)
    ]
    chosen = {
        "domains": {"alpha.org", "beta.org", "gamma.delta.org"},
        "urls": {str(url) for url in rng.choice(urls, 60)},
        "banned_words": {"theta"},
        "soft_banned_words": {"zeta", "iota", "kappa", "x"},
        "banned_subwords": {"talpha", "epseta"},
    }
    for name, entries in chosen.items():
        (tmp_path / name).write_text("\n".join(sorted(entries)), "utf-8")
    found = make_filter(
        "urls", **{name: [str(tmp_path / name)] for name in chosen}, soft_word_threshold=threshold, without_url="drop"
    )
    expected = [datatrove_says(url, chosen, threshold) for url in urls]
    assert set(expected) == {None, "domain", "url", "banned_word", "soft_banned_words", "banned_subword"}
    assert [verdict and verdict.reason for verdict in judged(found, urls)] == expected


def test_a_block_list_holds_what_it_was_given() -> None:
    rng = np.random.default_rng(1)
    entries = [f"d{number}.example" for number in rng.integers(0, 10**6, 150_000)]
    asked = [f"d{number}.example" for number in range(0, 10**6, 37)]
    held = BlockList(entries)
    expected = set(entries)
    assert len(held) == len(expected)
    assert held.holds(asked).tolist() == [name in expected for name in asked]
    assert BlockList([]).holds(["a"]).tolist() == [False]


def test_parts_of_addresses() -> None:
    assert address_of("HTTPS://u:p@www.Example.org:443/A//b/?Q=1#f") == ("www.example.org", "example.org/a//b/?q=1")
    assert address_of("example.org:80/x/") == ("example.org", "example.org/x")
    assert address_of("http://[::1]/x").host == "[::1]"
    assert domains_of("a.b.c") == ["a.b.c", "b.c", "c"]
    assert places_of("h/a/b?x/y") == ["h", "h/a", "h/a/b", "h/a/b?x/y"]
    assert len(places_of("h" + "/a" * 10_000)) < 100


def test_compressed_lists(tmp_path: Path) -> None:
    (tmp_path / "domains.gz").write_bytes(gzip.compress(b"bad.example\r\nworse.example\r\n"))
    found = make_filter("urls", domains=[str(tmp_path / "domains.gz")])
    assert judged(found, ["http://worse.example/"]) == [Dropped("domain", "worse.example")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"good.example\n0.0.0.0 bad.example\n", "domains, line 2: `0.0.0.0 bad.example` is more than one entry"),
        (b"# list\n\nhttp://bad.example/page\n", "domains, line 3: `http://bad.example/page` is a URL and no domain"),
        (b"bad.example\n\xff\xfe.example\n", "domains, line 2: the list is no UTF-8"),
    ],
)
def test_lists_of_another_form_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "domains").write_bytes(data)
    with pytest.raises(DataError, match=re.escape(message)):
        judged(make_filter("urls", domains=[str(tmp_path / "domains")]), ["http://a.example"])


def test_broken_lists_are_refused(tmp_path: Path) -> None:
    (tmp_path / "domains.gz").write_bytes(gzip.compress(b"bad.example\n" * 1000)[:-9])
    for name in ("domains.gz", "absent"):
        with pytest.raises(DataError, match="the list cannot be read"):
            judged(make_filter("urls", domains=[str(tmp_path / name)]), ["http://a.example"])


def test_lists_are_inputs_of_the_stage() -> None:
    settings: dict[str, Any] = {"domains": ["a", "b.gz"], "banned_words": ["c"]}
    config = CleaningConfig.model_validate({"urls": settings})
    assert config.inputs("cleaning") == [
        Input("cleaning.urls.domains.0", "a", ("file",)),
        Input("cleaning.urls.domains.1", "b.gz", ("file",)),
        Input("cleaning.urls.banned_words.0", "c", ("file",)),
    ]
    with pytest.raises(ValidationError, match="no list is named"):
        UrlsConfig.model_validate({})
