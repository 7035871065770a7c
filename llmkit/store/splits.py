"""Which part of the data something belongs to: a pure function of its key, for documents and examples alike."""

from __future__ import annotations

import hashlib
from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from llmkit.config.base import Config

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Splits(Config):
    """Fractions of the data that are held out; the rest is for training."""

    validation: float = Field(default=0.05, ge=0, lt=1)
    """Fraction for validation, used while training."""
    test: float = Field(default=0.05, ge=0, lt=1)
    """Fraction for the final evaluation."""

    @model_validator(mode="after")
    def _leave_some_for_training(self) -> Splits:
        if self.validation + self.test >= 1:
            raise PydanticCustomError(
                "splits",
                "validation and test take {held_out} of the data, which leaves nothing for training",
                {"held_out": self.validation + self.test},
            )
        return self

    def names(self) -> list[Split]:
        """The splits whose fraction is not zero, in the order of `SPLITS`."""
        held_out = {"train": True, "validation": self.validation > 0, "test": self.test > 0}
        return [name for name in SPLITS if held_out[name]]


def split_of(key: str, fractions: Splits, seed: int = 0) -> Split:
    """The split of whatever has the key `key` (a document's digest, a module's name).

    The first 64 bits of sha256("<seed>:<key>") are a point in [0, 1): the interval from 0 is for testing, the next one
    for validation. So a key stays where it is whatever else is in the data, the same key falls into the same split in
    every stage that uses the same seed and fractions, and enlarging `validation` moves nothing out of `test`.
    """
    digest = hashlib.sha256(f"{seed}:{key}".encode("utf-8", "surrogatepass")).digest()
    point = int.from_bytes(digest[:8], "big")
    if point < int(fractions.test * 2**64):
        return "test"
    if point < int((fractions.test + fractions.validation) * 2**64):
        return "validation"
    return "train"
