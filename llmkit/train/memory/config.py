"""Settings of what a micro-batch keeps in memory. No torch."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from llmkit.config.base import Config


class PartialCheckpointing(Config):
    """Some of the blocks are recomputed, the first ones of the model."""

    budget: Annotated[float, Field(gt=0)] | str | None = None
    """As many as are needed for the activations of a micro-batch to take no more than this: bytes, a size such as 6GiB,
    or, up to 1, a share of what they take where nothing is recomputed."""
    blocks: int | None = Field(default=None, ge=1)
    """So many."""

    @field_validator("budget")
    @classmethod
    def _is_size(cls, budget: float | str | None) -> float | str | None:
        """A size is a number and a unit."""
        if isinstance(budget, str):
            size_in_bytes(budget)
        return budget

    @model_validator(mode="after")
    def _either(self) -> Self:
        """One of the two says how many."""
        if (self.budget is None) == (self.blocks is None):
            raise ValueError("give either a budget or a number of blocks")
        return self


def size_in_bytes(text: str) -> float:
    """Bytes of a size such as `6GiB`; raises ValueError where it is none."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT])iB", text)
    if found is None:
        raise ValueError(f"{text!r} is no size: write a number and KiB, MiB, GiB or TiB, such as 6GiB")
    return float(found[1]) * 1024.0 ** ("KMGT".index(found[2]) + 1)


def _checkpointing_kind(value: Any) -> str:
    return "some" if isinstance(value, (dict, PartialCheckpointing)) else "name"


ActivationCheckpointing = Annotated[
    Annotated[Literal["none", "selective", "full"], Tag("name")] | Annotated[PartialCheckpointing, Tag("some")],
    Discriminator(_checkpointing_kind),
]
