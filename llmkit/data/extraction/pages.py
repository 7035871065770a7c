"""Text of web pages, page after page, in a guarded worker."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from llmkit.data.extraction.config import ExtractionConfig
from llmkit.data.guarded import GuardError, shared_guard
from llmkit.errors import MissingDependencyError

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class RawPage:
    """A page as it was found.

    Args:
        data: its bytes.
        charset: the encoding that the server named, if it did.
    """

    data: bytes
    charset: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """What was found in a page.

    Args:
        text: the text; may be empty.
        title: text of its `title`.
        language: the `lang` that it declares.
    """

    text: str
    title: str | None
    language: str | None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A page without text.

    Args:
        reason: "encoding" (its bytes are not valid), "limits" (it took too much time or memory, or crashed the
            extractor) or "malformed" (the extractor gave up).
        detail: what happened, as half of a sentence.
    """

    reason: Literal["encoding", "limits", "malformed"]
    detail: str


def missing_library(config: ExtractionConfig) -> str | None:
    """The library that these settings need and that is not installed."""
    try:
        __import__("resiliparse")
        if config.by == "trafilatura":
            __import__("trafilatura")
    except ImportError as error:
        return (error.name or config.by).partition(".")[0]
    return None


def extract_pages(
    config: ExtractionConfig, pages: Iterable[tuple[Key, RawPage]]
) -> Iterator[tuple[Key, Page | Unreadable]]:
    """The text of each page, in their order, each with the key it came with. Some pages are taken ahead.

    Raises:
        MissingDependencyError: the library is not installed.
    """
    missing = missing_library(config)
    if missing is not None:
        raise MissingDependencyError(
            f"extracting the text of web pages needs {missing}, which is not installed.",
            hint="pip install 'llmkit[web]'",
        )
    function = f"llmkit.data.extraction.{config.by}:{'main_text' if config.part == 'main' else 'all_text'}"
    guard = shared_guard(function, seconds=config.seconds, megabytes=config.megabytes)
    keys: deque[Key] = deque()

    def arguments() -> Iterator[tuple[bytes, str | None]]:
        for key, page in pages:
            keys.append(key)
            yield page.data, page.charset

    for result in guard.map(arguments()):
        yield keys.popleft(), _page(result)


def _page(result: Any) -> Page | Unreadable:
    if isinstance(result, GuardError):
        return Unreadable("malformed" if result.kind == "error" else "limits", f"extracting its text {result.reason}")
    if isinstance(result, str):
        return Unreadable("encoding", result)
    return Page(*result)
