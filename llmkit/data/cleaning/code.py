"""Whether source code is written by people and for people: limits of Codex, StarCoder and StarCoder2."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.cleaning.base import ColumnType, Dropped, Values
from llmkit.data.cleaning.characters import letters_and_digits
from llmkit.data.cleaning.comments import comment_characters
from llmkit.data.cleaning.config import CodeConfig
from llmkit.data.cleaning.encoded import data_lines, encoded_pieces
from llmkit.data.cleaning.limits import Limit, judge_by
from llmkit.data.sources.code import generated_problem
from llmkit.store.documents import Document

_UNSEEN = re.compile(
    r"<!--(?s:.*?)(?:-->|\Z)|<(script|style|template|noscript)\b(?s:.*?)(?:</\1\s*>|\Z)|<[/!?a-z][^>]*+>?",
    re.IGNORECASE,
)
_HTML = "html"


class Code:
    """Drops source code that is data, generated, or hardly code: `long_line`, `long_lines`, `few_alphanumeric`,
    `few_letters`, `encoded`, `encoded_piece`, `data_lines`, `few_comments`, `many_comments`, `generated`,
    `little_visible_text`, in this order. Documents that name no programming language are kept."""

    name = "code"
    columns: Mapping[str, ColumnType] = {
        "language": "string",
        "longest_line": "int64",
        "mean_line": "float64",
        "alphanumeric": "float64",
        "alphabetic": "float64",
        "encoded": "float64",
        "longest_encoded": "int64",
        "data_lines": "float64",
        "comments": "float64",
        "generated": "bool",
        "visible_text": "float64",
        "visible_characters": "float64",
    }

    def __init__(self, config: CodeConfig) -> None:
        self.measuring: Mapping[str, Any] = {"language": config.language}
        self._key = config.language
        self._long_lines = frozenset(language.lower() for language in config.long_line_languages)
        characters = "{:,} characters"
        average = "{:.1f} characters on average"
        self._limits = (
            Limit("longest_line", "long_line", characters, most=config.max_line_characters_ever),
            Limit("limited_line", "long_line", characters, most=config.max_line_characters),
            Limit("limited_mean", "long_lines", average, most=config.max_mean_line_characters),
            Limit("alphanumeric", "few_alphanumeric", "{:.0%} letters and digits", least=config.min_alphanumeric),
            Limit("alphabetic", "few_letters", "{:.0%} letters", least=config.min_alphabetic),
            Limit("encoded", "encoded", "{:.0%} of the characters are encoded data", most=config.max_encoded),
            Limit("longest_encoded", "encoded_piece", characters, most=config.max_encoded_characters),
            Limit("data_lines", "data_lines", "{:.0%} of the lines are numbers", most=config.max_data_lines),
            Limit("comments", "few_comments", "{:.1%} of the characters", least=config.min_comments),
            Limit("comments", "many_comments", "{:.0%} of the characters", most=config.max_comments),
            Limit("generated", "generated", "", most=None if config.generated else 0),
            Limit("visible_text", "little_visible_text", "{:.0%} of the file", least=config.min_visible_text),
            Limit(
                "visible_characters", "little_visible_text", "{:.0f} characters", least=config.min_visible_characters
            ),
        )

    def measure(self, batch: Sequence[Document]) -> dict[str, Values]:
        """The language; characters of the longest line, and of a line on average; fractions of the characters that are
        letters or digits, letters, and encoded data, and the longest piece of that; the fraction of lines of numbers;
        the fraction of characters in comments; whether it is generated; fraction and number of characters of an HTML
        file that can be seen. NaN where a measure is not for a language; of what is no code, nothing is measured."""
        languages = [document.metadata.get(self._key) or None for document in batch]
        encoded = iter(encoded_pieces([d.text for d, language in zip(batch, languages, strict=True) if language]))
        rows = [
            _measures(document, language, next(encoded)) if language else _NOTHING
            for document, language in zip(batch, languages, strict=True)
        ]
        types = {"int64": np.int64, "float64": np.float64, "bool": np.bool_}
        values = zip(*rows, strict=True) if rows else [()] * len(_NOTHING)
        columns = dict(zip(list(self.columns)[1:], values, strict=True))
        return {
            "language": languages,
            **{name: np.array(column, types[self.columns[name]]) for name, column in columns.items()},
        }

    def judge(self, measured: Mapping[str, NDArray[np.generic]]) -> list[Dropped | None]:
        """Keep what is inside all limits, which are themselves inside; what is not measured is."""
        languages = measured["language"].tolist()
        limited = np.array(
            [language is not None and language.lower() not in self._long_lines for language in languages]
        )
        verdicts = judge_by(
            self._limits,
            {
                **measured,
                "limited_line": np.where(limited, measured["longest_line"], 0),
                "limited_mean": np.where(limited, measured["mean_line"], 0),
            },
        )
        return [verdict if language else None for verdict, language in zip(verdicts, languages, strict=True)]


_NOTHING = (0, 0.0, 0.0, 0.0, 0.0, 0, 0.0, math.nan, False, math.nan, math.nan)


def _measures(document: Document, language: str, encoded: Sequence[int]) -> tuple[Any, ...]:
    """Of one file, in the order of the columns."""
    text = document.text
    characters = max(1, len(text))
    lines = text.removesuffix("\n").split("\n")
    written = sum(1 for line in lines if line and not line.isspace())
    letters, alphanumeric = letters_and_digits(text)
    comments = comment_characters(text, language)
    visible = visible_characters(text) if language.lower() == _HTML else math.nan
    return (
        max(map(len, lines)),
        sum(map(len, lines)) / len(lines),
        alphanumeric / characters,
        letters / characters,
        sum(encoded) / characters,
        max(encoded, default=0),
        data_lines(text) / max(1, written),
        math.nan if comments is None else comments / characters,
        generated_problem(document.path, text) is not None,
        visible / characters,
        visible,
    )


def visible_characters(page: str) -> int:
    """Characters of an HTML page that are no mark-up, script or comment, a run of white space counted as one."""
    return len(" ".join(_UNSEEN.sub(" ", page).split()))
