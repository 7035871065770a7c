"""Texts by which filters are held against others: real ones of this machine, and small generated ones.

The generated ones are what a test keeps with the decisions of datatrove. They are made of phrases with what the rules
of the filters look at, in amounts around the limits.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import random
import sysconfig
from collections.abc import Iterator, Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path

from llmkit.data.extraction.config import ExtractionConfig
from llmkit.data.extraction.pages import Page, RawPage, extract_pages

LARGEST = 200_000
_TEXT_NAMES = ("*.txt", "*.txt.gz", "*.md", "*.rst", "README*", "NEWS*", "copyright", "changelog*")

SUBJECTS = "The gardener|An old engine|Nobody|Our neighbour's cat|The committee|Dr. Moreau|A river|She|The U.S. envoy"
VERBS = "has never seen|would have preferred|is fond of|won't repair|keeps away from|couldn't find|gave to the museum"
OBJECTS = "that bridge|the 3rd volume|a well-known painting|£12.50 in coins|10km of rope|the e-mail|its own shadow"
TAILS = "with great care|before 10a.m.|in spite of the rain|as we've all heard|to be honest|and that was it|in N.Y."
STRANGE = [
    "Это простое предложение о погоде, и в нём есть слова.",
    "今天的天气很好。我们去公园散步,然后回家吃饭!",
    "これは文です。もう一つの文です？",
    "يوم جميل، أليس كذلك؟ نعم هو كذلك.",
    "Voilà l'été : « il fait beau », dit-elle… n'est-ce pas ?",
    "See https://example.org/a/b.html?c=d#e or mail to someone@example.org; it's 20°C :-) today 🎉🎉.",
    "x = foo(bar)[3] -- and/or a=b; C++ isn't C#, 5+5=10, 50%/60% of 3,000.75 units (approx.)",
    "CamelCase.Word and word.Word, re-enter -- dash—dash, 'quoted' \"words\" …and... so on!!!",
    "Can't, cannot, I'd've, y'all, o'clock, rock'n'roll, 90's, Jan. 5th, e.g. this i.e. that.",
]
LINE_BREAKS = ["\n", "\n", "\n", "\n", "\r\n", "\x0b", "\u2028", "\n\n", "\n\n\n"]


def real_texts(pages: Sequence[Path], texts: Sequence[Path], tables: Sequence[str], count: int) -> list[str]:
    """Texts of HTML pages, of plain text files, of the documentation strings of Python's own modules, and of JSON
    lines, as many of each as there are; files in the order of the digests of their names.

    Args:
        pages: folders of HTML pages.
        texts: folders of plain texts.
        tables: `file=column` of JSON lines; a column that holds several texts gives one, of a line each.
        count: how many.
    """
    kinds = [_pages(pages), _plain(texts), _docstrings(), _rows(tables)]
    turns = chain.from_iterable(zip_longest(*kinds))
    return list(islice((text for text in turns if text and text.strip() and len(text) <= LARGEST), count))


def generated_texts(count: int, seed: int = 0) -> list[str]:
    """Small texts; equal numbers and seeds give equal ones."""
    draw = random.Random(seed)
    return [_generated(draw) for _ in range(count)]


def _files(folders: Sequence[Path], names: Sequence[str]) -> list[Path]:
    found = {path for folder in folders for name in names for path in folder.rglob(name) if path.is_file()}
    return sorted(found, key=lambda path: hashlib.sha256(str(path).encode()).digest())


def _pages(folders: Sequence[Path]) -> Iterator[str]:
    raw = ((file, RawPage(file.read_bytes())) for file in _files(folders, ("*.html", "*.htm")))
    return (page.text for _, page in extract_pages(ExtractionConfig(), raw) if isinstance(page, Page))


def _plain(folders: Sequence[Path]) -> Iterator[str]:
    for file in _files(folders, _TEXT_NAMES):
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        yield data.decode(errors="replace")


def _docstrings() -> Iterator[str]:
    for file in _files([Path(sysconfig.get_paths()["stdlib"])], ("*.py",)):
        try:
            nodes = list(ast.walk(ast.parse(file.read_text())))
        except (SyntaxError, ValueError):
            continue
        documented = [node for node in nodes if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
        yield "\n\n".join(text for text in map(ast.get_docstring, documented) if text)


def _rows(tables: Sequence[str]) -> Iterator[str]:
    for table in tables:
        file, _, column = table.rpartition("=")
        with (gzip.open if file.endswith(".gz") else open)(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                value = json.loads(line)[column]
                yield value if isinstance(value, str) else "\n".join(map(str, value))


def _generated(draw: random.Random) -> str:
    def one(choices: str) -> str:
        return draw.choice(choices.split("|"))

    def sentence() -> str:
        return f"{one(SUBJECTS)} {one(VERBS)} {one(OBJECTS)} {one(TAILS)}"

    lines = []
    for _ in range(draw.randint(1, 8)):
        end = draw.choice([".", ".", ".", "!", "?", "", ":", "...", "…", '."', " "])
        lines.append(" ".join(sentence() + "." for _ in range(draw.randint(0, 1))) + " " + sentence() + end)
    for change in draw.sample(_CHANGES, draw.randint(0, 3)):
        lines = change(draw, lines)
    if draw.random() < 0.3:
        lines.insert(draw.randrange(len(lines) + 1), draw.choice(STRANGE))
    mixed = draw.random() < 0.3
    text = "".join(line + (draw.choice(LINE_BREAKS) if mixed else "\n") for line in lines)
    return text.strip() if draw.random() < 0.5 else draw.choice(["", "\n", "  "]) + text


def _repeat_lines(draw: random.Random, lines: list[str]) -> list[str]:
    return lines + draw.choices(lines, k=max(1, round(len(lines) * draw.uniform(0.02, 0.6))))


def _repeat_paragraphs(draw: random.Random, lines: list[str]) -> list[str]:
    paragraphs = ["\n".join(lines[begin : begin + 2]) + "\n" for begin in range(0, len(lines), 2)]
    return paragraphs + draw.choices(paragraphs, k=max(1, round(len(paragraphs) * draw.uniform(0.1, 0.6))))


def _loop(draw: random.Random, lines: list[str]) -> list[str]:
    words = " ".join(lines).split()
    begin = draw.randrange(max(1, len(words) - 10))
    piece = " ".join(words[begin : begin + draw.randint(1, 10)])
    return [*lines, " ".join([piece] * draw.randint(2, 8))]


def _signs(draw: random.Random, lines: list[str]) -> list[str]:
    sign = draw.choice(["#", "# # # ", "... … ...", "…", "- ", "• ", " -", "***", "1234", "| 7 |", "==="])
    behind = draw.random() < 0.5
    share = draw.choice([draw.random(), 0.95])
    return [(line + sign if behind else sign + line) if draw.random() < share else line for line in lines]


def _numbers(draw: random.Random, lines: list[str]) -> list[str]:
    rows = [" ".join(str(draw.randint(0, 10**6)) for _ in range(6)) for _ in range(draw.randint(1, 6))]
    return lines + rows


def _other_words(draw: random.Random, lines: list[str]) -> list[str]:
    word = draw.choice(["a", "Rindfleischetikettierung", "supercalifragilistic", "zu", "xylophone", "i"])
    return [" ".join(word if draw.random() < 0.7 else other for other in line.split()) for line in lines]


def _web(draw: random.Random, lines: list[str]) -> list[str]:
    additions = [
        "Please enable JavaScript to see { this page }.",
        "Lorem ipsum dolor sit amet and so on.",
        "We use cookies, see our privacy policy for more.",
        "The house was built in 1900[1] and sold[citation needed] later.[edit]",
        "A single { stands in this line.",
        "Home",
        "Terms of use[2] apply to all of this.",
        "word" * 251 + " and two more.",
    ]
    for addition in draw.sample(additions, draw.randint(1, 2)):
        lines.insert(draw.randrange(len(lines) + 1), addition)
    return lines


def _short_lines(draw: random.Random, lines: list[str]) -> list[str]:
    width = draw.randint(8, 40)
    words = " ".join(lines)
    return [words[begin : begin + width] for begin in range(0, len(words), width)]


_CHANGES = (_repeat_lines, _repeat_paragraphs, _loop, _signs, _numbers, _other_words, _web, _short_lines)
