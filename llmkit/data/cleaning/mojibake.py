"""Text that was decoded by the wrong encoding ("schÃ¶n" for "schön"), mended by ftfy where ftfy suspects it.

ftfy (Speer 2019) looks at each line for sequences of characters that hardly any text has and that a wrong encoding
makes. That takes a while, and nearly all lines are as they should be, so a cheaper test comes first. It passes over no
line that ftfy would suspect.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from llmkit.data.cleaning.base import Verdict
from llmkit.data.cleaning.config import MojibakeConfig
from llmkit.errors import MissingDependencyError
from llmkit.store.documents import Document

_INNOCENT = ("common", "lower_accented", "lower_common", "upper_common")
"""Of ftfy's categories those of letters and signs that texts are full of: beside each other they prove nothing."""
_QUOTES = ("start_punctuation", "end_punctuation")


class Mojibake:
    """Mends lines by ftfy; drops nothing. ASCII, and lines that ftfy finds nothing wrong with, stay as they are.

    Raises:
        MissingDependencyError: ftfy is not installed.
    """

    name = "mojibake"

    def __init__(self, config: MojibakeConfig) -> None:
        try:
            import ftfy
            from ftfy import badness
        except ImportError:
            raise MissingDependencyError(
                "mending wrong encodings needs ftfy, which is not installed.", hint="pip install 'llmkit[data]'"
            ) from None
        self._least = config.min_signs
        self._is_bad, self._badness = badness.is_bad, badness.badness
        self._fix = ftfy.fix_text
        # Everything else that ftfy can do is left to the step `unicode`, or changes what is no mistake.
        self._fixes = ftfy.TextFixerConfig(
            unescape_html=False, remove_terminal_escapes=False, fix_latin_ligatures=False, fix_character_width=False,
            uncurl_quotes=False, fix_line_breaks=False, fix_surrogates=False, remove_control_chars=False,
            normalization=None, explain=False,
        )  # fmt: skip
        self._suspicious = _suspicion(badness.MOJIBAKE_CATEGORIES)

    def apply(self, batch: Sequence[Document]) -> list[Verdict]:
        """The documents, those whose text changes with the new text."""
        return [self._verdict(document) for document in batch]

    def _verdict(self, document: Document) -> Verdict:
        text = self.mend(document.text)
        return document if text == document.text else replace(document, text=text)

    def mend(self, text: str) -> str:
        """A text with its lines mended, each by itself, as `ftfy.fix_text` does it with its other repairs off."""
        if text.isascii():
            return text
        parts: list[str] = []
        end = 0
        for begin, after in self._lines(text):
            line = text[begin:after]
            if self._is_bad(line) and (self._least == 1 or self._badness(line) >= self._least):
                parts += [text[end:begin], self._fix(line, self._fixes)]
                end = after
        return "".join(parts) + text[end:] if parts else text

    def _lines(self, text: str) -> Iterator[tuple[int, int]]:
        """Begin and end of each line that may be wrong, its newline included."""
        match = self._suspicious.search(text)
        while match is not None:
            begin = text.rfind("\n", 0, match.start()) + 1
            end = text.find("\n", match.start()) + 1 or len(text)
            yield begin, end
            match = self._suspicious.search(text, end)


def _suspicion(categories: Mapping[str, str]) -> re.Pattern[str]:
    """What is in every sequence that ftfy suspects: of two characters beyond ASCII beside each other, one that is rare
    in plain text, or a quotation mark beside an accented letter; or one that is suspect alone or before a blank.

    Args:
        categories: characters by ftfy's names of what they are, as parts of regular expressions.
    """
    rare = f"[{''.join(value for name, value in categories.items() if name not in (*_INNOCENT, *_QUOTES))}]"
    quote = f"[{''.join(categories[name] for name in _QUOTES)}]"
    accented = f"[{categories['lower_accented']}]"
    pairs = (
        rf"(?<={rare})[^\x00-\x7f]|{rare}|(?<={quote}){accented}|(?<={accented}){quote}|(?<=[ВГРСΒΓΞΟ]){quote}|(?<=в)Ђ"
    )
    return re.compile(rf"[^\x00-\x7f](?:{pairs}|(?<=[\x80-\x9f])|(?<=[ÃÂ])[ ]|(?<=[Œœ])(?![A-Za-z]))")
