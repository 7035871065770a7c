"""Classification of docstrings: which package, or which part of the library, a text comes from.

The name of the object's package is replaced by "module" wherever it stands in the text, in any case: it would be the
answer written into the question, and finding it no more than a search for a string.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from llmkit.data.examples import LabelledText
from llmkit.data.examples_build import Candidate
from llmkit.data.python_objects import PythonObject
from llmkit.data.tasks.chat import order_key
from llmkit.data.tasks.prose import plain

MASK = "module"
_CODE = re.compile(r"^\s*(\.\. |@|:\w+|[-=~^*]{3,})|::\s*$")
_LEAST_WORDS = 5


def text_of(docstring: str, max_words: int) -> str:
    """The first words of a docstring's prose on one line; doctests, fields, directives and rules are left out."""
    lines = []
    in_doctest = False
    for line in docstring.splitlines():
        # What a doctest prints goes on to the next blank line.
        in_doctest = bool(line.strip()) and (in_doctest or line.lstrip().startswith(">>>"))
        if not in_doctest and not _CODE.search(line):
            lines.append(line)
    return " ".join(plain("\n".join(lines)).split()[:max_words])


def mask_name(text: str, package: str) -> str:
    """The text with the package's name replaced by `MASK`."""
    return re.sub(rf"(?<![a-z0-9]){re.escape(package)}(?![a-z0-9])", MASK, text, flags=re.IGNORECASE)


def classify_candidates(
    objects: Iterable[PythonObject],
    group_of: Callable[[PythonObject], str],
    labels: Mapping[str, Sequence[str]],
    *,
    per_label: int,
    max_words: int,
    mask_names: bool,
) -> list[Candidate]:
    """Docstrings with their labels, in shuffled order.

    Args:
        objects: the objects.
        group_of: key of the split of an object.
        labels: packages of each label.
        per_label: how many texts a label may have, so that none is right by default.
        max_words: words of a text.
        mask_names: whether the name of the package is masked.
    """
    label_of = {package: label for label, packages in labels.items() for package in packages}
    given = dict.fromkeys(labels, 0)
    taken: set[str] = set()
    candidates = []
    for item in sorted(objects, key=lambda item: order_key(f"classify:{item.name}")):
        label = label_of.get(item.package)
        text = text_of(item.docstring, max_words)
        if mask_names:
            text = mask_name(text, item.package)
        reason = ""
        if label is None:
            reason = "of no label's packages"
        elif len(text.split()) < _LEAST_WORDS:
            reason = f"fewer than {_LEAST_WORDS} words"
        elif text in taken:
            reason = "the same text as another object's"
        elif given[label] >= per_label:
            reason = f"label given {per_label} times already"
        if label is None or reason:
            candidates.append(Candidate(group_of(item), None, reason))
            continue
        taken.add(text)
        given[label] += 1
        example = LabelledText(f"classify:{item.name}", text, label, metadata={"object": item.name})
        candidates.append(Candidate(group_of(item), example))
    return candidates


PACKAGES: Mapping[str, Sequence[str]] = {
    name: (name,)
    for name in (
        "asyncio", "builtins", "decimal", "email", "logging", "multiprocessing", "os", "tkinter", "unittest", "xml",
    )
}  # fmt: skip

TOPICS: Mapping[str, Sequence[str]] = {
    "concurrency": (
        "_thread", "asynchat", "asyncio", "asyncore", "concurrent", "multiprocessing", "queue", "sched", "select",
        "selectors", "signal", "subprocess", "threading",
    ),
    "data types": (
        "abc", "array", "bisect", "builtins", "calendar", "collections", "contextvars", "copy", "dataclasses",
        "datetime", "enum", "functools", "graphlib", "heapq", "itertools", "operator", "time", "types", "weakref",
        "zoneinfo",
    ),
    "development": (
        "bdb", "cProfile", "dis", "doctest", "faulthandler", "inspect", "logging", "pdb", "profile", "pstats", "pydoc",
        "symtable", "timeit", "trace", "traceback", "tracemalloc", "unittest", "warnings",
    ),
    "files": (
        "bz2", "csv", "configparser", "dbm", "fcntl", "filecmp", "fileinput", "fnmatch", "glob", "gzip", "io", "lzma",
        "mmap", "os", "pathlib", "pickle", "posix", "pwd", "shelve", "shutil", "sqlite3", "stat", "tarfile", "tempfile",
        "zipfile", "zlib",
    ),
    "graphics": ("curses", "tkinter", "turtle"),
    "internet": (
        "base64", "email", "ftplib", "http", "imaplib", "ipaddress", "mailbox", "mimetypes", "netrc", "poplib",
        "smtplib", "socket", "socketserver", "ssl", "urllib", "webbrowser", "wsgiref", "xmlrpc",
    ),
    "language": (
        "ast", "code", "codeop", "compileall", "ctypes", "gc", "importlib", "keyword", "modulefinder",
        "pickletools", "pkgutil", "py_compile", "pyclbr", "runpy", "site", "sys", "sysconfig", "tabnanny", "token",
        "tokenize", "typing", "venv", "zipapp", "zipimport",
    ),
    "markup": ("html", "json", "plistlib", "pyexpat", "tomllib", "xml"),
    "mathematics": ("cmath", "decimal", "fractions", "math", "numbers", "random", "secrets", "statistics"),
    "text": (
        "codecs", "difflib", "encodings", "gettext", "locale", "pprint", "re", "readline", "reprlib", "shlex", "string",
        "struct", "textwrap", "unicodedata",
    ),
}  # fmt: skip

LABELS: Mapping[str, Mapping[str, Sequence[str]]] = {"packages": PACKAGES, "topics": TOPICS}
