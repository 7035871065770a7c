from __future__ import annotations

import ast
import io
import re
import string
import sysconfig
import tokenize
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filter_support import make_filter, verdicts
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.cleaning.base import Filter
from llmkit.data.cleaning.characters import letters_and_digits
from llmkit.data.cleaning.code import visible_characters
from llmkit.data.cleaning.comments import comment_characters
from llmkit.data.cleaning.encoded import data_lines, encoded_pieces
from llmkit.store.documents import Document

MODULES = [
    "bisect",
    "heapq",
    "csv",
    "textwrap",
    "keyword",
    "shlex",
    "json/decoder",
    "json/encoder",
    "token",
    "stringprep",
]
PROGRAM = 'def add(a, b):\n    """Sum of two."""\n    return a + b  # exact\n'


def measured(found: Filter, text: str, language: str | None = "Python", path: str = "a.py") -> dict[str, Any]:
    metadata = {} if language is None else {"programming_language": language}
    values = found.measure([Document("", text, "s", path, metadata=metadata)])
    assert list(values) == list(found.columns)
    return {name: np.asarray(column).tolist()[0] for name, column in values.items()}


def reason(text: str, language: str | None = "Python", path: str = "a.py", **settings: Any) -> str | None:
    found = make_filter("code", **settings)
    (verdict,) = verdicts(found, {name: [value] for name, value in measured(found, text, language, path).items()})
    return verdict and verdict.reason


@given(st.text(st.characters(exclude_categories=()), max_size=50))
def test_letters_and_digits_are_those_of_str(text: str) -> None:
    assert letters_and_digits(text) == (sum(map(str.isalpha, text)), sum(map(str.isalnum, text)))


@pytest.mark.parametrize("module", MODULES)
def test_python_comments_are_those_of_the_tokenizer(module: str) -> None:
    text = (Path(sysconfig.get_path("stdlib")) / f"{module}.py").read_text("utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = sum(len(token.string) for token in tokens if token.type == tokenize.COMMENT)
    lines = text.split("\n")
    docstrings = 0
    for node in ast.walk(ast.parse(text)):
        # Strings that stand alone, triple-quoted ones, with the white space before them.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            value = node.value
            assert value.end_lineno is not None and value.end_col_offset is not None
            block = "\n".join(lines[value.lineno - 1 : value.end_lineno])
            after = len(lines[value.end_lineno - 1].encode()) - value.end_col_offset
            if block.lstrip().lstrip("rR").startswith(('"""', "'''")):
                docstrings += len(block) - after
    assert comment_characters(text, "Python") == comments + docstrings


@pytest.mark.parametrize(
    ("language", "text", "comments"),
    [
        ("C", 'char *s = "// no"; // yes\n/* a\nb */ char c = \'"\'; // "\n', ["// yes", "/* a\nb */", '// "']),
        ("Rust", "fn f<'a>(x: &'a str) {} // it's\n", ["// it's"]),
        ("Go", "s := `// no\n` // yes", ["// yes"]),
        ("JavaScript", "const a = '/* no */', b = `// ${no}`; /* yes */ // too", ["/* yes */", "// too"]),
        ("CSS", "a { b: url(http://x) } /* yes */", ["/* yes */"]),
        ("Shell", 'echo "# no" ${#a} $# # yes\n#!too', ["# yes", "#!too"]),
        ("Ruby", "x = '#{1}' # yes", ["# yes"]),
        ("PHP", "<?php // a\n# b\n/* c */ $x = '# no';", ["// a", "# b", "/* c */"]),
        ("SQL", "select '--no''s' -- yes\n/* too */", ["-- yes", "/* too */"]),
        ("Lua", "--[[ a\nb ]] x = '--no' -- c", ["--[[ a\nb ]]", "-- c"]),
        ("Haskell", '{- a -} x = "-- no" -- b', ["{- a -}", "-- b"]),
        ("OCaml", 'let x = "(* no *)" (* yes *)', ["(* yes *)"]),
        ("Lisp", '(f ";no") ; yes\n#| too |#', ["; yes", "#| too |#"]),
        ("TeX", r"50\% % yes", ["% yes"]),
        ("HTML", "<p>a</p><!-- b\nc --><!-- d", ["<!-- b\nc -->", "<!-- d"]),
        ("Fortran", "x = '! no' ! yes", ["! yes"]),
        ("F#", 'let x = "(* no *)" // yes\n(* too *)', ["// yes", "(* too *)"]),
        ("Erlang", 'x = "% no". % yes', ["% yes"]),
        ("VHDL", 'x <= "--no"; -- yes', ["-- yes"]),
        ("Pascal", "x := '{no}' { yes } // too\n(* more *)", ["{ yes }", "// too", "(* more *)"]),
        ("PowerShell", '"# no" <# yes #> # too', ["<# yes #>", "# too"]),
        ("c++", "int a; // case of the name does not count", ["// case of the name does not count"]),
        ("C", "/* never closed", ["/* never closed"]),
        ("C", '"never closed // yes\n', ["// yes"]),
    ],
)
def test_comments_by_language(language: str, text: str, comments: list[str]) -> None:
    assert comment_characters(text, language) == sum(map(len, comments))


def test_comments_of_other_languages_are_not_known() -> None:
    assert comment_characters("# a", "Brainfuck") is None
    assert np.isnan(measured(make_filter("code"), "# a", "Brainfuck")["comments"])
    assert reason(PROGRAM, "Brainfuck", min_comments=0.9) is None


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("A" * 63, []),
        ("A" * 64, [64]),
        (f"x = '{'Ab0+' * 20}=='; y", [82]),
        (f"'{'ab/=' * 10}\n{'cd09' * 10}'", [81]),
        ("0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0", [46]),
        ("0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde", []),
        (r"'\x12\x34\x56\x78\x9a\xbc\xde\xf0'", [32]),
        ("12 34 56 78 9a bc de f0!", [23]),
        (r"\u0041" * 8, [48]),
        (r"\u0041" * 7, []),
        ("nothing here, and é", []),
    ],
)
def test_encoded_pieces(text: str, pieces: list[int]) -> None:
    assert encoded_pieces(["", text, "some words"]) == [[], pieces, []]


@pytest.mark.parametrize(
    ("line", "is_data"),
    [
        ("1, 2, 3", True),
        ("  -1.5e-3 ; +2E5,", True),
        ("{0x1F, 0xffUL, 10u, 1.5f},", True),
        ("1_000_000", True),
        ("|12|", True),
        ("a = 1", False),
        ("1a", False),
        ("0x", False),
        ("---", False),
        ("", False),
        ("x[1]", False),
        ("1 2 three", False),
        ("1 " * 10_000 + "x", False),
        ("1." * 10_000 + "x", False),
    ],
)
def test_lines_of_numbers(line: str, is_data: bool) -> None:
    assert data_lines(f"first\n{line}\nlast") == is_data


class Visible(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.hidden += tag in ("script", "style")
        self.parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("script", "style")
        self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


@pytest.mark.parametrize(
    "page",
    [
        "<!DOCTYPE html><html><head><title>T</title><style>p { a: b }</style></head><body>"
        "<p class='x'>One <b>two</b></p>"
        "<script>if (a < b) { c() }</script><!-- gone --> three</body></html>",
        "plain text, no tags",
        "<p>a\n\n  b</p>\n<SCRIPT type=module>x</SCRIPT >c",
        "<div><div></div></div>",
    ],
)
def test_visible_text_is_what_a_parser_leaves(page: str) -> None:
    parser = Visible()
    parser.feed(page)
    parser.close()
    assert visible_characters(page) == len(" ".join("".join(parser.parts).split()))


def test_visible_text_of_broken_pages() -> None:
    assert visible_characters("a <script>b") == 1
    assert visible_characters("a <!-- b") == 1
    assert visible_characters("a <p class=") == 1
    assert visible_characters("1 < 2") == 5
    assert visible_characters("<" * 100_000) == 100_000


def test_every_measure_of_a_program() -> None:
    found = measured(make_filter("code"), PROGRAM)
    lines = PROGRAM.splitlines()
    assert found == {
        "language": "Python",
        "longest_line": 25,
        "mean_line": pytest.approx(sum(map(len, lines)) / 3),
        "alphanumeric": pytest.approx(len(re.sub("[^a-z0-9]", "", PROGRAM.lower())) / len(PROGRAM)),
        "alphabetic": pytest.approx(len(re.sub("[^a-z]", "", PROGRAM.lower())) / len(PROGRAM)),
        "encoded": 0.0,
        "longest_encoded": 0,
        "data_lines": 0.0,
        "comments": pytest.approx((len('    """Sum of two."""') + len("# exact")) / len(PROGRAM)),
        "generated": False,
        "visible_text": pytest.approx(np.nan, nan_ok=True),
        "visible_characters": pytest.approx(np.nan, nan_ok=True),
    }
    page = measured(make_filter("code"), "<p>ab cd</p>", "HTML")
    assert (page["visible_characters"], page["visible_text"]) == (5, pytest.approx(5 / 12))


def test_what_is_dropped() -> None:
    table = "x = [\n" + "1, 2, 3,\n" * 20 + "]\nabcdefghijklmnopqrstuvwxyz = 'abcdefghijklmnopqrstuvwxyz'\n" * 3
    page = "<p>" + "words " * 50 + "</p>"
    blob = string.ascii_letters * 21
    assert reason(PROGRAM) is None
    assert reason("x = 1\n" + "zy " * 400) == "long_line"
    assert reason("x = 1\n" + "zy " * 400, "text") is None
    assert reason("zy " * 40_000, "Text") == "long_line"
    assert reason("zy xw " * 20) == "long_lines"
    assert reason("zy xw " * 20, max_mean_line_characters=120) is None
    assert reason("((((((((()))))))))ab12") == "few_alphanumeric"
    assert reason("((((((((()))))))))ab12", min_alphanumeric=0.18) == "few_letters"
    assert reason("((((((((()))))))))ab12", min_alphanumeric=0.18, min_alphabetic=0.09) is None
    assert reason(f"x = '{blob[:80]}'") == "encoded"
    assert reason("\n".join(["some words"] * 200) + f"\nx = '{blob}'", max_line_characters=2000) == "encoded_piece"
    assert reason(table) == "data_lines"
    assert reason(table, max_data_lines=0.9) is None
    assert reason("x = 1 + value\n" * 9, min_comments=0.01) == "few_comments"
    assert reason("# all of it is a comment\n" * 9) == "many_comments"
    assert reason(f"# Code generated by protoc. DO NOT EDIT.\n{PROGRAM}") == "generated"
    assert reason(f"# Code generated by protoc. DO NOT EDIT.\n{PROGRAM}", generated=True) is None
    assert reason("value = 1;", "JavaScript", "a/b.min.js") == "generated"
    assert reason(page, "HTML") is None
    assert reason("<p>few</p>", "HTML") == "little_visible_text"
    assert reason(page + "<script>" + "code();" * 400 + "</script>", "HTML") == "little_visible_text"
    assert reason(page + "<script>" + "code();" * 400 + "</script>", "HTML", min_visible_text=0.05) is None


def test_what_is_no_code_is_kept_and_not_measured() -> None:
    text = "A" * 5000
    assert reason(text, None) is None
    found = measured(make_filter("code"), text, None)
    assert (found["language"], found["longest_line"], found["longest_encoded"]) == (None, 0, 0)
    assert make_filter("code").measure([])["language"] == []


def test_thresholds_do_not_measure_again() -> None:
    one = make_filter("code")
    assert one.measuring == make_filter("code", max_comments=0.1, long_line_languages=[], generated=True).measuring
    assert one.measuring != make_filter("code", language="lang").measuring
