"""Deduplication: finding what is there already, within bounded memory, by keys that are sorted on disk."""
