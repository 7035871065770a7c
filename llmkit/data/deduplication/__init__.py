"""Deduplication: finding what is there already, within bounded memory, by keys that are sorted on disk."""

from llmkit.data.deduplication.exact import ExactDuplicates, content_key

__all__ = ["ExactDuplicates", "content_key"]
