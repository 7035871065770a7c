"""A crawl of a local server: what is asked for, when, in which order, and what is asked for again."""

from __future__ import annotations

import gzip
import itertools
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from local_server import LocalServer, answer, local_server, redirect

from llmkit import __version__
from llmkit.data.sources.base import Broken, Record, read_all
from llmkit.data.sources.config import WebSource
from llmkit.data.sources.web import WebReader
from llmkit.errors import DataError
from llmkit.store.documents import Document


@pytest.fixture
def server() -> Iterator[LocalServer]:
    with local_server("0.0.0.0") as server:
        yield server


def page(text: str, **headers: Any) -> bytes:
    return answer(f"<html lang='de'><title>Title</title><main><p>{text}</p></main></html>", **headers)


def source(server: LocalServer, tmp_path: Path, urls: list[str], **settings: Any) -> WebSource:
    """A source of URLs, which may be paths at the server."""
    defaults = {
        "contact": "tests@example.org",
        "cache": str(tmp_path / "cache"),
        "allow_addresses": ["127.0.0.0/8"],
        "seconds_between": 0.0,
        "seconds": 10.0,
    }
    return WebSource.model_validate({**defaults, "urls": [at(server, url) for url in urls], **settings})


def at(server: LocalServer, path: str, host: str = "127.0.0.1") -> str:
    return f"http://{host}:{server.port}{path}" if path.startswith("/") else path


def read(config: WebSource) -> list[Record]:
    return list(read_all(WebReader(config)))


def texts(records: list[Record]) -> list[str]:
    return [record.text if isinstance(record, Document) else f"{record.reason}: {record.detail}" for record in records]


def test_documents_of_pages(server: LocalServer, tmp_path: Path) -> None:
    modified = "Wed, 01 May 2024 10:00:00 GMT"
    server.replies |= {
        "/a": page("One.", Last_Modified=modified),
        "/b": redirect("/c"),
        "/c": answer("<main>Two – plain</main>".encode("utf-16"), type="application/xhtml+xml"),
        "/d": answer("Drei – ä".encode("cp1252"), type="text/plain; charset=windows-1252"),
        "/e": answer(gzip.compress(b"<p>Four.</p>"), Content_Encoding="gzip"),
    }
    first, second, third, fourth = read(source(server, tmp_path, ["/a", "/b", "/d", "/e"], license="CC0-1.0"))
    assert isinstance(first, Document)
    assert isinstance(second, Document)
    assert isinstance(third, Document)
    assert (first.text, first.path, first.language, first.license) == ("One.", at(server, "/a"), "de", "CC0-1.0")
    assert {key: first.metadata[key] for key in ("title", "date")} == {"title": "Title", "date": "2024-05-01"}
    assert len(first.metadata["fetched"]) == len("2026-01-31")
    assert (second.text, second.path) == ("Two – plain", at(server, "/b"))
    assert second.metadata["final_url"] == at(server, "/c")
    assert (third.text, fourth.text) == ("Drei – ä", "Four.")


def test_the_crawler_says_who_it_is(server: LocalServer, tmp_path: Path) -> None:
    read(source(server, tmp_path, ["/a"], agent="ourbot", contact="https://example.org/bot"))
    assert server.paths() == ["127.0.0.1/robots.txt", "127.0.0.1/a"]
    for _, _, headers in server.requests:
        assert headers["User-Agent"] == f"ourbot/{__version__} (+https://example.org/bot)"
        assert headers["Host"] == f"127.0.0.1:{server.port}"


def test_rules_are_obeyed(server: LocalServer, tmp_path: Path) -> None:
    server.replies["/robots.txt"] = answer(
        "User-agent: *\nDisallow: /\n\n"
        "User-agent: llmkit\nDisallow: /private\nAllow: /private/open\nDisallow: /*.pdf$\n",
        type="text/plain",
    )
    paths = ["/a", "/private/b", "/private/open/c", "/d.pdf", "/d.pdf?x"]
    server.replies |= {path: page(path) for path in paths}
    records = read(source(server, tmp_path, paths))
    assert [isinstance(record, Broken) for record in records] == [False, True, False, True, False]
    assert "refused: its robots.txt forbids it to llmkit" in texts(records)
    assert server.paths() == [f"127.0.0.1{path}" for path in ("/robots.txt", "/a", "/private/open/c", "/d.pdf?x")]
    # Another crawler is meant by other lines.
    assert all(isinstance(record, Broken) for record in read(source(server, tmp_path / "b", paths, agent="other")))


def test_rules_of_the_place_that_a_redirect_leads_to(server: LocalServer, tmp_path: Path) -> None:
    server.replies |= {
        "127.0.0.1/a": redirect(at(server, "/secret/b", "127.0.0.2")),
        "127.0.0.1/c": redirect(at(server, "/open", "127.0.0.2")),
        "127.0.0.2/robots.txt": answer("User-agent: *\nDisallow: /secret", type="text/plain"),
        "127.0.0.2/secret/b": page("Secret."),
        "127.0.0.2/open": page("Open."),
    }
    refused, found = texts(read(source(server, tmp_path, ["/a", "/c"])))
    assert refused == f"refused: {at(server, '/secret/b', '127.0.0.2')}: its robots.txt forbids it to llmkit"
    assert found == "Open."
    assert "127.0.0.2/secret/b" not in server.paths()


def test_robots_elsewhere(server: LocalServer, tmp_path: Path) -> None:
    server.replies |= {
        "127.0.0.1/robots.txt": redirect(at(server, "/rules", "127.0.0.2")),
        "127.0.0.2/rules": answer("User-agent: *\nDisallow: /a", type="text/plain"),
        "/b": page("B."),
    }
    assert texts(read(source(server, tmp_path, ["/a", "/b"]))) == ["refused: its robots.txt forbids it to llmkit", "B."]


def test_a_host_is_asked_for_one_thing_at_a_time_with_pauses(server: LocalServer, tmp_path: Path) -> None:
    hosts = ["127.0.0.1", "127.0.0.2"]
    urls = [at(server, f"/{number}", host) for number in range(4) for host in hosts]
    server.replies |= {f"/{number}": page(str(number)) for number in range(4)}
    server.replies["127.0.0.2/robots.txt"] = answer("User-agent: *\nCrawl-delay: 0.3", type="text/plain")
    found = texts(read(source(server, tmp_path, urls, seconds_between=0.1)))
    assert found == ["0", "0", "1", "1", "2", "2", "3", "3"]
    for host, pause in zip(hosts, (0.1, 0.3), strict=True):
        moments = [moment for moment, path, _ in server.requests if path.startswith(host)]
        assert len(moments) == 5
        assert min(later - earlier for earlier, later in itertools.pairwise(moments)) >= pause - 0.02


def test_nothing_is_asked_twice(server: LocalServer, tmp_path: Path) -> None:
    server.replies |= {"/a": page("A."), "/b": answer(status="503 Busy"), "/c": page("C.")}
    config = source(server, tmp_path, ["/a", "/b", "/a", "/c"], attempts=1)
    first = read(config)
    assert texts(first) == ["A.", "unreadable: HTTP status 503", "A.", "C."]
    assert sorted(server.paths()) == [f"127.0.0.1/{name}" for name in ("a", "b", "c", "robots.txt")]
    server.replies |= {"/a": page("Changed."), "/b": page("B.")}
    assert read(config) == first
    assert len(server.requests) == 4
    # A page that is added is asked for, alone: what robots.txt says holds for a day.
    assert texts(read(source(server, tmp_path, ["/a", "/d"])))[0] == "A."
    assert server.paths()[4:] == ["127.0.0.1/d"]
    # What failed for a reason that may pass is asked for where the settings say so.
    again = source(server, tmp_path, ["/a", "/b", "/c"], retry_failed=True)
    assert texts(read(again)) == ["A.", "B.", "C."]
    assert server.paths()[5:] == ["127.0.0.1/b"]


def test_errors_that_may_pass_are_tried_again(server: LocalServer, tmp_path: Path) -> None:
    replies = iter([answer(status="503 Busy", Retry_After="1"), answer(status="500 Oops"), page("At last.")])
    server.replies["/a"] = lambda link: link.sendall(next(replies))
    (text,) = texts(read(source(server, tmp_path, ["/a"])))
    assert text == "At last."
    moments = [moment for moment, path, _ in server.requests if path.endswith("/a")]
    assert len(moments) == 3
    assert moments[1] - moments[0] >= 0.98


def test_hosts_that_do_not_want_us_are_given_up(server: LocalServer, tmp_path: Path) -> None:
    server.replies["/0"] = answer(status="429 Too Many", Retry_After="100000")
    server.replies["/1"] = page("One.")
    first, second = texts(read(source(server, tmp_path, ["/0", "/1"])))
    assert first == "unreadable: HTTP status 429"
    assert second == "unreadable: its host wants to be left alone for 100,000 s, longer than `longest_wait`"
    assert server.paths() == ["127.0.0.1/robots.txt", "127.0.0.1/0"]


def test_hosts_that_keep_failing_are_given_up(server: LocalServer, tmp_path: Path) -> None:
    paths = [f"/{number}" for number in range(9)]
    server.replies |= dict.fromkeys(paths, answer(status="500 Oops"))
    found = texts(read(source(server, tmp_path, paths, attempts=1)))
    assert found[:5] == ["unreadable: HTTP status 500"] * 5
    assert found[5:] == ["unreadable: its host was given up after 5 pages in a row that could not be had"] * 4
    assert len(server.requests) == 6


def test_lists_and_sitemaps(server: LocalServer, tmp_path: Path) -> None:
    server.replies |= {f"/{number}": page(str(number)) for number in range(6)}
    locations = "".join(f"<url><loc>{at(server, f'/{number}')}</loc></url>" for number in (3, 4))
    inner = gzip.compress(f"<urlset>{locations}</urlset>".encode())
    sitemaps = [f"<loc>{at(server, path)}</loc>" for path in ("/inner.xml.gz", "/index.xml", "/gone")]
    index = f"<sitemapindex>{''.join(sitemaps)}</sitemapindex>"
    server.replies |= {
        "/inner.xml.gz": answer(inner, type="application/x-gzip"),
        "/index.xml": answer(index, type="application/xml"),
        "/more.txt": answer(f"{at(server, '/5')}\nnot a page\n", type="text/plain"),
    }
    (tmp_path / "list.txt").write_text(f"# pages\n{at(server, '/1')}\n\n  {at(server, '/2')}\nmailto:me\n")
    config = source(
        server,
        tmp_path,
        ["/0"],
        lists=[str(tmp_path / "list.txt")],
        sitemaps=[at(server, "/index.xml"), at(server, "/more.txt")],
    )
    assert texts(read(config)) == [
        "0", "1", "2", "malformed: it does not begin with http:// or https://", "3", "4",
        "malformed: the sitemap cannot be had: HTTP status 404", "5",
        "malformed: it does not begin with http:// or https://",
    ]  # fmt: skip
    asked = len(server.requests)
    assert len(read(config)) == 9
    assert len(server.requests) == asked
    assert texts(read(config.model_copy(update={"sitemap_pages": 1, "urls": [], "lists": []}))) == ["3"]
    assert texts(read(config.model_copy(update={"limit": 2}))) == ["0", "1"]


def test_slices_follow_from_the_pages_alone(
    server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmkit.data.sources.web._SLICE_PAGES", 3)
    server.replies |= {f"/{number}": page(str(number)) for number in range(8)}
    config = source(server, tmp_path, [f"/{number}" for number in range(8)])
    slices = WebReader(config).slices()
    assert [(piece.begin, piece.end) for piece in slices] == [(0, 3), (3, 6), (6, 8)]
    assert texts(list(WebReader(config).read(slices[1]))) == ["3", "4", "5"]
    again = WebReader(source(server, tmp_path / "other", [f"/{number}" for number in range(8)], connections=1)).slices()
    assert again == slices
    server.replies["/4"] = page("four")
    changed = WebReader(source(server, tmp_path / "third", [f"/{number}" for number in range(8)])).slices()
    assert [piece.version == other.version for piece, other in zip(slices, changed, strict=True)] == [True, False, True]


def test_a_crawl_that_was_stopped_goes_on(server: LocalServer, tmp_path: Path) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    server.replies |= {f"/{number}": page(str(number)) for number in range(6)}
    config = source(server, tmp_path, [f"/{number}" for number in range(6)])
    with pytest.MonkeyPatch.context() as patch:
        counted = itertools.count()
        put = "llmkit.data.web.cache.PageCache.put"
        from llmkit.data.web.cache import PageCache

        original = PageCache.put
        patch.setattr(put, lambda *args: original(*args) if next(counted) < 3 else stop(args))
        with pytest.raises(KeyboardInterrupt):
            read(config)
    kept = server.paths()[1:4]
    assert texts(read(config)) == ["0", "1", "2", "3", "4", "5"]
    assert all(server.paths().count(path) == 1 for path in kept)
    assert server.paths().count("127.0.0.1/robots.txt") == 1


def test_a_damaged_cache_is_told(server: LocalServer, tmp_path: Path) -> None:
    config = source(server, tmp_path, ["/a"])
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "pages.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(DataError, match="the cache of web pages cannot be used"):
        WebReader(config).slices()


def test_a_cache_that_goes_away(server: LocalServer, tmp_path: Path) -> None:
    config = source(server, tmp_path, ["/a"])
    (piece,) = WebReader(config).slices()
    (tmp_path / "cache" / "pages.sqlite").unlink()
    with pytest.raises(DataError, match="does not hold"):
        list(WebReader(config).read(piece))


def test_checks(tmp_path: Path) -> None:
    config = WebSource(contact="me@example.org", urls=["http://ok.example/", "ftp://x"], lists=[str(tmp_path / "none")])
    found = {finding.key: finding.message for finding in WebReader(config).check()}
    assert set(found) == {"urls.1", "lists.0"}
    (nothing,) = WebReader(WebSource(contact="me@example.org")).check()
    assert nothing.message == "no page is named."


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"contact": "nobody"},
        {"contact": "a b@example.org"},
        {"contact": "x@y\r\nX: z"},
        {"contact": "a@b.example", "agent": "bad name"},
        {"contact": "a@b.example", "allow_addresses": ["10.0.0.1/8"]},
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"contact|agent|allow_addresses"):
        WebSource.model_validate({"urls": ["http://a.example/"], **settings})


def test_sitemaps_that_lead_on_and_on(server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def index(*paths: str) -> bytes:
        return answer(f"<sitemapindex>{''.join(f'<loc>{at(server, path)}</loc>' for path in paths)}</sitemapindex>")

    server.replies |= {f"/deep{level}": index(f"/deep{level + 1}") for level in range(5)}
    server.replies["/wide"] = index(*(f"/empty{number}" for number in range(50)))
    server.replies |= {f"/empty{number}": answer("<urlset></urlset>") for number in range(50)}
    deep = texts(read(source(server, tmp_path, [], sitemaps=[at(server, "/deep0")])))
    assert deep == ["malformed: a sitemap below 3 indexes is not read"]
    assert server.paths()[1:] == [f"127.0.0.1/deep{level}" for level in range(3)]
    monkeypatch.setattr("llmkit.data.sources.web._SITEMAPS", 10)
    wide = texts(read(source(server, tmp_path, [], sitemaps=[at(server, "/wide")])))
    assert wide[:9] == ["malformed: the sitemap cannot be read: it is no sitemap, or one that lists nothing"] * 9
    assert wide[9:] == ["malformed: only 10 sitemaps are read; this one and what follows is not"]
    assert len(server.requests) == 14


def test_two_crawls_into_one_cache(server: LocalServer, tmp_path: Path) -> None:
    """The second waits for the first, and then finds its pages."""
    held, go_on = threading.Event(), threading.Event()

    def reply(link: socket.socket) -> None:
        held.set()
        go_on.wait(20)
        link.sendall(page("A."))

    server.replies |= {"/a": reply, "/b": page("B.")}
    config = source(server, tmp_path, ["/a", "/b"])
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(read, config)
        assert held.wait(20)
        second = pool.submit(read, config)
        time.sleep(0.3)
        go_on.set()
        assert texts(first.result()) == texts(second.result()) == ["A.", "B."]
    assert len(server.requests) == 3
