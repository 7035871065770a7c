"""Servers and pages that mean harm: each costs one record, which says what was wrong; nothing hangs or is lost."""

from __future__ import annotations

import gzip
import itertools
import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pyarrow.parquet as pq
import pytest
from local_server import LocalServer, Reply, answer, local_server, redirect

from llmkit.data import stage
from llmkit.data.config import DataConfig
from llmkit.data.sources.base import Broken, Record, read_all
from llmkit.data.sources.config import WebSource
from llmkit.data.sources.web import WebReader
from llmkit.data.web.addresses import networks
from llmkit.data.web.request import Answer, Limits, RequestError, get
from llmkit.store.stage import Context

SECONDS = 3.0
GOOD = "<html><body><main><p>A page like any other, with a sentence in it.</p></main></body></html>"
TEXT = "A page like any other, with a sentence in it."


def endless(start: bytes, piece: bytes, pause: float = 0.0) -> Callable[[socket.socket], None]:
    def send(link: socket.socket) -> None:
        link.sendall(start)
        while True:
            link.sendall(piece)
            time.sleep(pause)

    return send


def silence(link: socket.socket) -> None:
    time.sleep(3 * SECONDS)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
ZIPPED = gzip.compress(GOOD.encode())

# What each server answers, and then the reason and a part of the detail; or None, where the page is read.
PAGES: dict[str, tuple[Reply, str | None, str]] = {
    "redirect to a private address": (redirect("http://127.0.0.2:{port}/secret"), "refused", "127.0.0.2 is no address"),
    "redirect into a private network": (redirect("http://10.0.0.1/"), "refused", "10.0.0.1 is no address"),
    "redirect to the metadata of a cloud": (redirect("http://169.254.169.254/latest"), "refused", "169.254.169.254"),
    "redirect to IPv6 loopback": (redirect("http://[::1]:{port}/secret"), "refused", "::1 is no address"),
    "redirect to mapped IPv4": (redirect("http://[::ffff:127.0.0.2]:{port}/secret"), "refused", "no address"),
    "redirect to a number": (redirect("http://2130706434:{port}/secret"), "refused", "(127.0.0.2) is no address"),
    "redirect to hexadecimal": (redirect("http://0x7f.2:{port}/secret"), "refused", "(127.0.0.2) is no address"),
    "redirect to any address": (redirect("http://0.0.0.0:{port}/secret"), "refused", "0.0.0.0 is no address"),
    "redirect to a file": (redirect("file:///etc/passwd"), "malformed", "does not begin with http:// or https://"),
    "redirect to a script": (redirect("javascript:alert(1)"), "malformed", "does not begin with http"),
    "redirect with a password": (redirect("http://me:secret@127.0.1.1:{port}/"), "malformed", "or a password"),
    "redirect to a port out of range": (redirect("http://127.0.1.1:99999/"), "malformed", "it is no URL"),
    "redirect to encryption that is none": (redirect("https://127.0.1.1:{port}/page"), "refused", "cannot be read (no"),
    "redirect to nothing": (answer(status="302 Found"), "no text", "HTTP status 302"),
    "redirect to a very long URL": (redirect("/" + "x" * 20_000), "malformed", "longer than 8,192"),
    "redirect to itself": (redirect("/page"), "no text", "go round in a circle"),
    "redirects without end": (redirect("/r0"), "no text", "more than 5 redirects"),
    "body without end": (endless(HEAD + b"\r\n", b"x" * 65536), "too large", "longer than 104,858 bytes"),
    "chunks without end": (
        endless(CHUNKED, b"1000\r\n" + b"x" * 4096 + b"\r\n"),
        "too large",
        "longer than 104,858 bytes",
    ),
    "body that drips": (endless(HEAD + b"\r\n", b"x", 0.05), "limits", "no whole answer in 3 s"),
    "headers that drip": (endless(b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.05), "limits", "no whole answer in 3 s"),
    "headers without end": (endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), "unreadable", "more than 100 headers"),
    "a header without end": (endless(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 4096), "unreadable", "LineTooLong"),
    "continue without end": (endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01), "limits", "no whole answer"),
    "silence": (silence, "limits", "no whole answer in 3 s"),
    "closed at once": (b"", "unreadable", "RemoteDisconnected"),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "unreadable", "BadStatusLine"),
    "an impossible status": (b"HTTP/1.1 9999999 X\r\n\r\n", "unreadable", "BadStatusLine"),
    "a picture": (answer(b"\x89PNG", type="image/png"), "no text", "its content type is image/png"),
    "no content type": (answer(GOOD, type=None), "no text", "its content type is not given"),
    "not found": (answer("none", status="404 Not Found"), "no text", "HTTP status 404"),
    "an error of the server": (answer("none", status="500 Oops"), "unreadable", "HTTP status 500"),
    "a length too long": (answer(GOOD, Content_Length=5000), "unreadable", "cut off"),
    "a length over the limit": (answer("x", Content_Length=10**15), "too large", "longer than 104,858 bytes"),
    "a length too short": (answer(GOOD, Content_Length=GOOD.index("</p>")), None, TEXT),
    "a negative length": (answer(GOOD, Content_Length=-5), None, TEXT),
    "a length that is no number": (answer(GOOD, Content_Length="many"), None, TEXT),
    "a gzip bomb": (answer(gzip.compress(bytes(50_000_000)), Content_Encoding="gzip"), "too large", "104,858 bytes"),
    "gzip cut off": (answer(ZIPPED[:-20], Content_Encoding="gzip"), "unreadable", "cut off"),
    "gzip that is none": (answer(GOOD, Content_Encoding="gzip"), "malformed", "incorrect header check"),
    "gzip in gzip": (answer(gzip.compress(ZIPPED), Content_Encoding="gzip"), "encoding", "not valid utf-8"),
    "gzip in pieces": (answer(ZIPPED + gzip.compress(b"<p>More.</p>") + b"junk", Content_Encoding="gzip"), None, TEXT),
    "another compression": (answer(GOOD, Content_Encoding="br"), "malformed", "compressed as `br`"),
    "chunks cut off": (CHUNKED + b"ff\r\nabc", "unreadable", "cut off"),
    "chunks of nonsense": (CHUNKED + b"zz\r\nabc\r\n", "unreadable", "cut off"),
    "a wrong charset": (answer(b"<p>\xff\xfe\xfa</p>", type="text/html; charset=utf-8"), "encoding", "byte 3"),
    "an unknown charset": (answer(b"<p>\xff</p>", type="text/html; charset=x-secret"), "encoding", "not valid utf-8"),
    "a charset that runs": (answer(GOOD, type='text/html; charset="unicode_escape'), None, TEXT),
    "plain text that is none": (answer(b"abc \xff", type="text/plain"), "encoding", "byte 4: not valid utf-8"),
    "deep markup": (answer("<div>" * 20_000), "limits", "took more than 0.3 s of computing time"),
    "one long line": (answer(GOOD + "<!--" + "x" * 100_000 + "-->"), None, TEXT),
    "markup that never closes": (answer("<p>" + TEXT + "<b" * 20_000), None, TEXT),
    "NUL bytes": (answer(b"\0<p>\0" + TEXT.encode() + b"\0</p>"), None, TEXT),
    "nothing": (answer(b""), None, ""),
}

# What is answered to the question for robots.txt, and whether pages may be asked for after that.
ROBOTS: dict[str, tuple[Reply, str | None]] = {
    "an error": (answer(status="500 Oops"), "HTTP status 500"),
    "forbidden": (answer(status="403 Forbidden"), "HTTP status 403"),
    "silence": (silence, "no whole answer"),
    "closed": (b"", "RemoteDisconnected"),
    "without end": (endless(HEAD + b"\r\n", b"Allow: /\n" * 5000), "longer than 524,288 bytes"),
    "redirect to a private address": (redirect("http://127.0.0.2:{port}/robots.txt"), "127.0.0.2 is no address"),
    "redirect in a circle": (redirect("/robots.txt"), "more than 5 redirects"),
    "gzip cut off": (answer(ZIPPED[:-20], Content_Encoding="gzip"), "cut off"),
    "binary": (answer(bytes(range(256)) * 100), None),
    "patterns that multiply": (answer("User-agent: *\nDisallow: /" + "*a" * 50 + "$"), None),
    "odd pauses": (answer("User-agent: *\nCrawl-delay: -1\nCrawl-delay: nan\nCrawl-delay: 1e-9"), None),
    "pauses of years": (answer("User-agent: *\nCrawl-delay: 99999999"), "wants a pause of 99,999,999 s"),
    "not there": (answer(status="404 Not Found"), None),
    "all forbidden": (answer("User-agent: *\nDisallow: /"), "robots.txt forbids it to llmkit"),
}


def placed(reply: Reply, port: int) -> Reply:
    return reply if callable(reply) else reply.replace(b"{port}", str(port).encode())


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with local_server("0.0.0.0") as server:
        # Each case is a host of its own, so that all of them are asked at the same time.
        for number, (reply, _, _) in enumerate(PAGES.values(), start=1):
            server.replies[f"127.0.1.{number}/page"] = placed(reply, server.port)
        for number, (reply, _) in enumerate(ROBOTS.values(), start=1):
            server.replies[f"127.0.2.{number}/robots.txt"] = placed(reply, server.port)
            server.replies[f"127.0.2.{number}/page"] = answer(GOOD)
        for number in range(20):
            server.replies[f"/r{number}"] = redirect(f"/r{number + 1}")
        server.replies["/good"] = server.replies["/secret"] = answer(GOOD)
        yield server


def check_stage(source: WebSource, records: list[Record], out: Path) -> None:
    """The whole stage keeps, drops, or has in quarantine each record that the reader gives."""
    stage.run(
        DataConfig.model_validate({"sources": [source.model_dump()], "executor": {"processes": 1}}),
        Context("corpus", 1, out),
    )
    total = json.loads((out / "report.json").read_text(encoding="utf-8"))["total"]
    reasons = Counter(record.reason for record in records if isinstance(record, Broken))
    assert (total["in"], total["quarantined"]) == (len(records), dict(reasons))
    assert total["in"] == total["kept"] + sum(total["dropped"].values()) + sum(total["quarantined"].values())
    rows = [row for file in sorted((out / "quarantine").iterdir()) for row in pq.read_table(file).to_pylist()]
    assert [(row["path"], row["reason"], row["detail"]) for row in rows] == [
        (record.path, record.reason, record.detail) for record in records if isinstance(record, Broken)
    ]


@pytest.fixture(scope="module")
def records(server: LocalServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    hosts = [f"127.0.1.{number + 1}" for number in range(len(PAGES))]
    hosts += [f"127.0.2.{number + 1}" for number in range(len(ROBOTS))]
    pages = [f"http://{host}:{server.port}/page" for host in hosts]
    good = f"http://127.0.1.250:{server.port}/good"
    source = WebSource.model_validate({
        "contact": "tests@example.org",
        "urls": [good, *pages, f"{good}?again"],
        "cache": str(tmp_path_factory.mktemp("cache")),
        "allow_addresses": ["127.0.1.0/24", "127.0.2.0/24"],
        "seconds_between": 0.0,
        "connections": 100,
        "attempts": 1,
        "seconds": SECONDS,
        "megabytes": 0.1,
        "extraction": {"seconds": 0.3},
    })  # fmt: skip
    server.replies["/good?again"] = answer(GOOD)
    found = list(read_all(WebReader(source)))
    assert [record.path for record in found] == [good, *pages, f"{good}?again"]
    asked = len(server.requests)
    check_stage(source, found, tmp_path_factory.mktemp("out"))
    assert len(server.requests) == asked
    return dict(zip(["good", *hosts, "good again"], found, strict=True))


@pytest.mark.parametrize("case", PAGES)
def test_hostile_pages(records: dict[str, Record], case: str) -> None:
    _, reason, expected = PAGES[case]
    record = records[f"127.0.1.{list(PAGES).index(case) + 1}"]
    if reason is None:
        assert not isinstance(record, Broken), record
        assert record.text.replace("\ufffd", "").split("\n")[0] == expected
    else:
        assert isinstance(record, Broken)
        assert (record.reason, expected in record.detail) == (reason, True), record.detail
        record.text.encode()


@pytest.mark.parametrize("case", ROBOTS)
def test_hostile_rules(records: dict[str, Record], server: LocalServer, case: str) -> None:
    _, problem = ROBOTS[case]
    host = f"127.0.2.{list(ROBOTS).index(case) + 1}"
    record = records[host]
    if problem is None:
        assert not isinstance(record, Broken), record
    else:
        assert isinstance(record, Broken)
        assert problem in record.detail, record.detail
        assert f"{host}/page" not in server.paths()


def test_what_is_around_them_is_read(records: dict[str, Record]) -> None:
    for name in ("good", "good again"):
        record = records[name]
        assert not isinstance(record, Broken)
        assert record.text == TEXT


def test_private_addresses_are_never_connected_to(records: dict[str, Record], server: LocalServer) -> None:
    assert not [path for path in server.paths() if "secret" in path or path.startswith("127.0.0.2")]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        # A name server that gives a permitted address first and a private one then.
        (itertools.chain(["127.0.1.1"], itertools.repeat("127.0.0.2")), "rebound.test (127.0.0.2) is no address"),
        (itertools.repeat(("127.0.1.1", "127.0.0.2")), "rebound.test (127.0.0.2) is no address"),
        (itertools.repeat("::ffff:7f00:2"), "rebound.test (::ffff:7f00:2) is no address"),
    ],
)
def test_names_that_lead_elsewhere_later(
    answers: Iterator[str | tuple[str, ...]],
    expected: str,
    server: LocalServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lookup = socket.getaddrinfo

    def resolve(host: str, port: int, *args: object, **kwargs: object) -> object:
        if host != "rebound.test":
            return lookup(host, port, *args, **kwargs)  # type: ignore[arg-type]
        found = next(answers)
        addresses = (found,) if isinstance(found, str) else found
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    source = WebSource(
        contact="tests@example.org",
        urls=[f"http://rebound.test:{server.port}/good"],
        cache=str(tmp_path),
        allow_addresses=["127.0.1.0/24"],
        seconds_between=0.0,
        attempts=1,
    )
    (record,) = read_all(WebReader(source))
    assert isinstance(record, Broken)
    assert expected in record.detail
    assert record.reason == "refused"
    assert "rebound.test/good" not in server.paths()


def mutated(random: Random, reply: bytes) -> bytes:
    """A reply with a few changes: bytes that are others, pieces that are gone, doubled or put in."""
    data = bytearray(reply)
    pieces = [b"\r\n", b"\n", b"\0", b"\xff", b":", b"-1", b"9" * 30, b"gzip", b"chunked", b"charset*=utf-8''%ff"]
    for _ in range(random.choice([1, 1, 2, 4, 10])):
        start = random.randrange(len(data))
        change = random.randrange(4)
        if change == 0:
            data[start] = random.randrange(256)
        elif change == 1:
            data[start:start] = random.choice(pieces)
        elif change == 2 and len(data) > 40:
            del data[start : start + random.randrange(1, 20)]
        else:
            data[start:start] = data[start : start + 30]
    return bytes(data)


def test_answers_with_random_damage(server: LocalServer) -> None:
    random = Random(5)
    replies = [
        answer(GOOD, Last_Modified="Wed, 01 May 2024 10:00:00 GMT"),
        answer(ZIPPED, Content_Encoding="gzip"),
        redirect("http://a.example/c?d#e"),
        CHUNKED + b"5\r\nhello\r\n5;x=y\r\nworld\r\n0\r\nTrailer: x\r\n\r\n",
        answer("x", status="429 No", Retry_After="Wed, 99 May 2024 10:00:00 GMT"),
    ]
    limits = Limits(SECONDS, 100_000, ["text/html"], networks(["127.0.1.0/24"]), "test")
    outcomes = {"answers": 0, "errors": 0}
    for _ in range(300):
        server.replies["/damaged"] = mutated(random, random.choice(replies))
        try:
            assert isinstance(get(f"http://127.0.1.1:{server.port}/damaged", limits), Answer)
            outcomes["answers"] += 1
        except RequestError:
            outcomes["errors"] += 1
    assert min(outcomes.values()) > 50
