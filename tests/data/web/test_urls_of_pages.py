from __future__ import annotations

import pytest

from llmkit.data.web.urls import host_of, normal_url, origin_of


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://Example.ORG", "http://example.org/"),
        ("HTTPS://example.org:443/a?b=c#d", "https://example.org/a?b=c"),
        ("http://example.org:8080/%7Ea b", "http://example.org:8080/%7Ea%20b"),
        ("http://example.org./x", "http://example.org/x"),
        ("http://bücher.example/straße?q=ä", "http://xn--bcher-kva.example/stra%C3%9Fe?q=%C3%A4"),
        ("http://[2001:DB8::1]:80/", "http://[2001:db8::1]/"),
        (" http://example.org/a\n", "http://example.org/a"),
    ],
)
def test_one_form(url: str, expected: str) -> None:
    assert normal_url(url) == expected
    assert normal_url(expected) == expected


@pytest.mark.parametrize(
    ("location", "expected"),
    [("/b", "http://a.example/b"), ("c?d", "http://a.example/x/c?d"), ("//b.example", "http://b.example/")],
)
def test_relative_urls(location: str, expected: str) -> None:
    assert normal_url(location, "http://a.example/x/y") == expected


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("example.org", "does not begin with http"),
        ("file:///etc/passwd", "does not begin with http"),
        ("gopher://example.org/", "does not begin with http"),
        ("http://", "names no host"),
        ("http:///path", "names no host"),
        ("http://a b/", "names no host"),
        ("http://me@example.org/", "user name"),
        ("http://me:you@example.org/", "password"),
        ("http://example.org:99999/", "no URL"),
        ("http://example.org:x/", "no URL"),
        ("http://[::1/", "no URL"),
        ("http://" + "a" * 100 + ".example/", "no URL"),
        ("http://example.org/" + "x" * 9000, "longer than"),
        ("", "does not begin"),
    ],
)
def test_what_is_no_page(url: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        normal_url(url)


def test_parts() -> None:
    url = "https://example.org:8443/a"
    assert (origin_of(url), host_of(url)) == ("https://example.org:8443", "example.org")
