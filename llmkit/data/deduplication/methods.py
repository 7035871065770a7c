"""The methods of deduplication that settings ask for, in the order in which they run."""

from __future__ import annotations

from llmkit.data.deduplication.base import Method
from llmkit.data.deduplication.config import DeduplicationConfig
from llmkit.data.deduplication.exact import Exact


def methods(config: DeduplicationConfig) -> list[Method]:
    """Those that settings ask for, in their order."""
    found: list[Method] = []
    if config.exact:
        found.append(Exact())
    return found
