"""Small models with routed experts of the reference, and specs of ours: for `test_reference_families`."""

from __future__ import annotations

from typing import Any

REFERENCES: dict[str, tuple[str, dict[str, Any]]] = {}
"""For each name the reference's class and its settings. Rows of up to 40 tokens go through each."""

SPECS: dict[str, dict[str, Any]] = {}
"""Settings of a ModelSpec besides layers, width, heads and context."""
