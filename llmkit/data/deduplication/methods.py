"""The methods of deduplication that settings ask for, in the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llmkit.data.deduplication.base import Method
from llmkit.data.deduplication.config import DeduplicationConfig
from llmkit.data.deduplication.exact import Exact
from llmkit.data.deduplication.minhash import MinHash
from llmkit.data.deduplication.substrings import Substrings
from llmkit.data.deduplication.units import Units

_METHODS: dict[str, Callable[..., Method]] = {
    "exact_duplicates": Exact,
    "minhash": MinHash,
    "paragraphs": Units,
    "lines": Units,
    "substrings": Substrings,
}


def methods(config: DeduplicationConfig) -> list[Method]:
    """Those that settings ask for, in their order."""
    found: list[Method] = []
    if config.exact:
        found.append(Exact())
    if config.minhash is not None:
        found.append(MinHash(config.minhash.keep))
    for name, units in (("paragraphs", config.paragraphs), ("lines", config.lines)):
        if units is not None:
            found.append(Units(name, units.min_documents, units.copies))
    if config.substrings is not None:
        found.append(Substrings(config.substrings.min_bytes))
    return found


def open_method(name: str, settings: Mapping[str, Any]) -> Method:
    """The method of that name with these `settings` of it: the same one in another process."""
    return _METHODS[name](**settings)
