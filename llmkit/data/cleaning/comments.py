"""How much of a program is comments, by the signs of its language."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

_DOUBLE, _SINGLE, _BACKTICK = r'"(?:[^"\\\n]|\\[\s\S])*+"', r"'(?:[^'\\\n]|\\[\s\S])*+'", r"`(?:[^`\\]|\\[\s\S])*+`"
_CHARACTER = r"'(?:[^'\\\n]|\\[^\n]{1,8}?)'"
_DOUBLED = r"'[^']*+'"
_PYTHON_STRINGS = (r'"""(?:[^"\\]|\\[\s\S]|"(?!""))*+"""', r"'''(?:[^'\\]|\\[\s\S]|'(?!''))*+'''")


@dataclass(frozen=True)
class Syntax:
    """Regular expressions of what a comment is, and of strings, inside of which none begins.

    Args:
        comments: of comments, which are tried first.
        strings: of strings.
    """

    comments: tuple[str, ...]
    strings: tuple[str, ...] = (_DOUBLE, _SINGLE)


def _block(begin: str, end: str) -> str:
    """From one sign to the next other one, or to the end of the text."""
    return rf"{begin}(?s:.*?)(?:{end}|\Z)"


_SLASHES, _STARS, _HASH = r"//[^\n]*+", _block(r"/\*", r"\*/"), r"#[^\n]*+"
_C = Syntax((_SLASHES, _STARS), (_DOUBLE, _CHARACTER))
# A sign in the middle of a word is none: `$#` and `${#a}` in shells.
_WORD_HASH = r"(?<![^\s;])#[^\n]*+"
# What stands alone at the beginning of a line is a docstring.
_PYTHON = Syntax((_HASH, *(rf"(?m:^)[ \t]*+[rRuU]?{string}" for string in _PYTHON_STRINGS)),
                 (*_PYTHON_STRINGS, _DOUBLE, _SINGLE))  # fmt: skip
_SYNTAX = {
    "Ada VHDL": Syntax((r"--[^\n]*+",), (_DOUBLE,)),
    "C C# C++ CUDA Dart Groovy Java Kotlin Objective-C Protocol_Buffers Rust Scala Swift Verilog Zig": _C,
    "CSS": Syntax((_STARS,)),
    "Clojure Lisp": Syntax((r";[^\n]*+", _block(r"#\|", r"\|#")), (_DOUBLE,)),
    "Elixir Julia Nix R Ruby": Syntax((_HASH,)),
    "CMake Dockerfile Makefile Perl Shell": Syntax((_WORD_HASH,)),
    "Erlang": Syntax((r"%[^\n]*+",)),
    "F#": Syntax((_SLASHES, _block(r"\(\*", r"\*\)")), (_DOUBLE, _CHARACTER)),
    "Fortran": Syntax((r"![^\n]*+",)),
    "Go": Syntax((_SLASHES, _STARS), (_DOUBLE, _CHARACTER, r"`[^`]*+`")),
    "JavaScript TypeScript": Syntax((_SLASHES, _STARS), (_DOUBLE, _SINGLE, _BACKTICK)),
    "HTML": Syntax((_block("<!--", "-->"),), ()),
    "Haskell": Syntax((r"--[^\n]*+", _block(r"\{-", r"-\}")), (_DOUBLE,)),
    "Lua": Syntax((_block(r"--\[\[", r"\]\]"), r"--[^\n]*+")),
    "OCaml": Syntax((_block(r"\(\*", r"\*\)"),), (_DOUBLE,)),
    "PHP": Syntax((_SLASHES, _STARS, _HASH)),
    "Pascal": Syntax((_SLASHES, _block(r"\{", r"\}"), _block(r"\(\*", r"\*\)")), (_DOUBLED,)),
    "PowerShell": Syntax((_block("<#", "#>"), _WORD_HASH)),
    "Python": _PYTHON,
    "SQL": Syntax((r"--[^\n]*+", _STARS), (_DOUBLED,)),
    "TeX": Syntax((r"(?<!\\)%[^\n]*+",), ()),
}
_BY_NAME = {
    name.replace("_", " ").lower(): syntax for names, syntax in _SYNTAX.items() for name in names.split()
}  # fmt: skip


def comment_characters(text: str, language: str) -> int | None:
    """Characters of a program's comments, their signs included; None for a language whose comments are not known.

    Strings are passed over, so that "http://..." is no comment. Nothing else is parsed: what looks like a comment
    inside of a regular expression of JavaScript counts as one. Docstrings of Python are comments.

    Args:
        text: the program.
        language: name of the language, in any case.
    """
    pattern = _pattern(language.lower())
    if pattern is None:
        return None
    return sum(match.end() - match.start() for match in pattern.finditer(text) if match.lastgroup)


@cache
def _pattern(language: str) -> re.Pattern[str] | None:
    syntax = _BY_NAME.get(language)
    if syntax is None:
        return None
    strings = "".join(f"|{string}" for string in syntax.strings)
    return re.compile(f"(?P<comment>{'|'.join(syntax.comments)}){strings}")
