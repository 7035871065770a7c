"""Programming languages by the names of files."""

from __future__ import annotations

from pathlib import PurePosixPath

_ENDINGS = {
    "Ada": "adb ads",
    "Assembly": "asm s",
    "C": "c h",
    "C#": "cs",
    "C++": "cc cpp cxx hh hpp hxx",
    "CMake": "cmake",
    "CSS": "css less sass scss",
    "CUDA": "cu cuh",
    "Clojure": "clj cljc cljs",
    "Dart": "dart",
    "Elixir": "ex exs",
    "Erlang": "erl hrl",
    "F#": "fs fsi fsx",
    "Fortran": "f f03 f08 f77 f90 f95 for",
    "Go": "go",
    "Groovy": "gradle groovy",
    "HTML": "htm html",
    "Haskell": "hs lhs",
    "Java": "java",
    "JavaScript": "cjs js jsx mjs",
    "Julia": "jl",
    "Kotlin": "kt kts",
    "Lisp": "cl el lisp scm",
    "Lua": "lua",
    "Nix": "nix",
    "OCaml": "ml mli",
    "Objective-C": "m mm",
    "PHP": "php",
    "Pascal": "pas",
    "Perl": "pl pm",
    "PowerShell": "ps1 psm1",
    "Protocol Buffers": "proto",
    "Python": "py pyi pyx",
    "R": "r",
    "Ruby": "rb",
    "Rust": "rs",
    "SQL": "sql",
    "Scala": "scala",
    "Shell": "bash fish sh zsh",
    "Swift": "swift",
    "TeX": "sty tex",
    "TypeScript": "cts mts ts tsx",
    "Verilog": "sv v",
    "VHDL": "vhd vhdl",
    "Zig": "zig",
}
_BY_ENDING = {f".{ending}": language for language, endings in _ENDINGS.items() for ending in endings.split()}
_BY_NAME = {"cmakelists.txt": "CMake", "dockerfile": "Dockerfile", "makefile": "Makefile", "gnumakefile": "Makefile"}


def language_of(name: str) -> str | None:
    """The programming language of a file, by its name; None where that is not known."""
    path = PurePosixPath(name.lower())
    return _BY_NAME.get(path.name) or _BY_ENDING.get(path.suffix)
