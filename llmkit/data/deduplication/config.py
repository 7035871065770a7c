"""Settings of deduplication: what is found, and which of several copies stays. No heavy imports."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from llmkit.config.base import Config, Input

_STEPS = 1000
_MEASURE = r"(highest|lowest) [A-Za-z0-9_]+\.[A-Za-z0-9_.]+"


class MinHashConfig(Config):
    """Near duplicates by MinHash and locality-sensitive hashing (Broder 1997; Leskovec et al., "Mining of Massive
    Datasets", 3.4).

    Two documents whose sets of word n-grams have the Jaccard similarity s fall into a common bucket with the
    probability 1 - (1 - s^rows)^bands. All documents that are linked by buckets, directly or through others, are a
    cluster, of which one stays.
    """

    threshold: float = Field(default=0.75, gt=0, lt=1)
    """Similarity from which documents are to be found. It chooses `bands` and `rows`: those that make the sum of misses
    above it and of finds below it least, were every similarity as likely as any other."""
    permutations: int = Field(default=128, ge=8, le=4096)
    """Values of a signature: more find more exactly, at a proportional cost."""
    bands: int | None = Field(default=None, ge=1)
    """Buckets of each document; with `rows` instead of `threshold`."""
    rows: int | None = Field(default=None, ge=1)
    """Values of a signature that two documents of a bucket have in common."""
    ngram: int = Field(default=5, ge=1, le=50)
    """Words in an n-gram. Case, punctuation and white space do not count; a character of a script without spaces
    (Chinese, Japanese, Thai) is a word. A shorter document is a single n-gram."""
    keep: str = Field(default="longest", pattern=rf"^(longest|first|{_MEASURE})$")
    """Which document of a cluster stays: `longest` (most characters), `first`, or `highest <filter>.<column>` or
    `lowest <filter>.<column>` of what a filter of `cleaning` measured, a value that is missing being the worst. Ties go
    to the earlier one in the order of the sources. Documents of earlier corpora win over all."""

    @model_validator(mode="after")
    def _bands_with_rows(self) -> MinHashConfig:
        if (self.bands is None) != (self.rows is None):
            raise PydanticCustomError("bands", "bands and rows are given together or not at all", {})
        if self.bands is not None and "threshold" in self.model_fields_set:
            raise PydanticCustomError("bands", "bands and rows take the place of threshold: give one or the other", {})
        if self.bands is not None and self.rows is not None and self.bands * self.rows > self.permutations:
            raise PydanticCustomError(
                "bands",
                "{bands} bands of {rows} rows need {needed} permutations, and there are {given}",
                {
                    "bands": self.bands,
                    "rows": self.rows,
                    "needed": self.bands * self.rows,
                    "given": self.permutations,
                },
            )
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """Bands and rows."""
        if self.bands is not None and self.rows is not None:
            return self.bands, self.rows
        return best_shape(self.threshold, self.permutations)

    def probability(self, similarity: float) -> float:
        """Probability that two documents of this similarity fall into a common bucket."""
        bands, rows = self.shape
        return 1 - (1 - similarity**rows) ** bands


class ParagraphsConfig(Config):
    """Paragraphs (text between blank lines) that several documents have, differences in white space aside."""

    min_characters: int = Field(default=100, ge=1)
    """Shorter paragraphs are left alone."""
    min_documents: int = Field(default=2, ge=2)
    """Paragraphs found in fewer documents are left alone."""
    copies: int = Field(default=1, ge=0)
    """In how many documents, the first ones in the order of the sources, such a paragraph stays."""


class LinesConfig(Config):
    """Lines that several documents have, differences in white space aside: menus, notices, headers."""

    min_characters: int = Field(default=20, ge=1)
    """Shorter lines are left alone."""
    min_documents: int = Field(default=6, ge=2)
    """Lines found in fewer documents are left alone."""
    copies: int = Field(default=1, ge=0)
    """In how many documents, the first ones in the order of the sources, such a line stays."""


class SubstringsConfig(Config):
    """Stretches of text that have come before, to the byte, found by a suffix array (Lee et al., "Deduplicating
    Training Data Makes Language Models Better", ACL 2022)."""

    min_bytes: int = Field(default=400, ge=64, le=65_536)
    """Shorter repetitions are left alone. In UTF-8; 200 bytes of English are about 50 tokens."""


class DeduplicationConfig(Config):
    """What is removed because it is there already, in the order in which it is looked for; `null` leaves one out."""

    exact: bool = True
    """Drop a document whose text, differences in white space aside, has come before in this or an earlier source."""
    minhash: MinHashConfig | None = None
    """Near duplicates: of a cluster of documents alike one stays."""
    paragraphs: ParagraphsConfig | None = None
    """Paragraphs that several documents share are cut out of all but the first."""
    lines: LinesConfig | None = None
    """Lines that many documents share are cut out of all but the first."""
    substrings: SubstringsConfig | None = None
    """Long stretches of text that have come before are cut out, wherever they begin."""
    min_characters: int = Field(default=20, ge=1)
    """A document of which the cuts leave less, white space around it not counted, is dropped."""
    earlier: list[Annotated[str, Field(min_length=1)]] = Field(default=[])
    """Corpora that were made before: stages of kind `data` or their folders. Their documents come before all sources,
    and what they hold is a duplicate here; nothing of them is written."""

    def key_settings(self) -> dict[str, Any]:
        """What the keys of a document depend on, and nothing else: thresholds that only compare them are not in it."""
        found: dict[str, Any] = {}
        if self.exact:
            found["exact"] = True
        if self.minhash is not None:
            bands, rows = self.minhash.shape
            permutations = self.minhash.permutations
            found["minhash"] = {
                "permutations": permutations,
                "bands": bands,
                "rows": rows,
                "ngram": self.minhash.ngram,
                "rensa": _version("rensa"),
            }
        for name, units in (("paragraphs", self.paragraphs), ("lines", self.lines)):
            if units is not None:
                found[name] = {"min_characters": units.min_characters}
        if self.substrings is not None:
            found["substrings"] = {"min_bytes": self.substrings.min_bytes}
        return found

    def inputs(self, key: str) -> list[Input]:
        """The earlier corpora as inputs of a stage, `key` being where these settings stand in it."""
        return [Input(f"{key}.earlier.{index}", value, ("documents",)) for index, value in enumerate(self.earlier)]

    def missing_filter(self, filters: Iterable[str]) -> str | None:
        """The filter whose column decides which document stays, where it is not among those that run."""
        if self.minhash is None or " " not in self.minhash.keep:
            return None
        name = self.minhash.keep.split()[1].partition(".")[0]
        return None if name in filters else name


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@lru_cache
def best_shape(threshold: float, permutations: int) -> tuple[int, int]:
    """Bands and rows, no more than `permutations` in all, whose curve steps nearest to a threshold.

    They make the integral of the chance of a find below the threshold, plus that of a miss above it, least (Zhu et al.,
    "LSH Ensemble", VLDB 2016, 5.1 with both errors of equal weight); of equals those with fewer bands.
    """
    import numpy as np

    # By the midpoint rule.
    similarity = (np.arange(_STEPS) + 0.5) / _STEPS
    below = similarity < threshold
    best = (math.inf, 1, 1)
    for bands in range(1, permutations + 1):
        rows = np.arange(1, permutations // bands + 1)
        missed = (1 - similarity ** rows[:, None]) ** bands
        errors = np.where(below, 1 - missed, missed).mean(axis=1).round(12)
        least = int(errors.argmin())
        best = min(best, (float(errors[least]), bands, least + 1))
    return best[1], best[2]
