"""Settings of extraction. No heavy imports."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from llmkit.config.base import Config


class ExtractionConfig(Config):
    """How text is taken out of web pages, and what that may cost. Needs the extra `web`."""

    by: Literal["resiliparse", "trafilatura"] = "resiliparse"
    """What extracts: `resiliparse` (fast), or `trafilatura`, which is careful about what belongs to the article and
    takes some twenty times as long."""
    part: Literal["main", "all"] = "main"
    """The main text, without menus, footers and the like; or `all` that is visible (resiliparse only)."""
    seconds: float = Field(default=5.0, gt=0)
    """Computing time that a page may take."""
    megabytes: int = Field(default=1024, ge=64)
    """Memory that a page may take, in MiB."""

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.by == "trafilatura" and self.part == "all":
            raise PydanticCustomError("part", "trafilatura finds the main text alone; set `part` to `main`")
        return self
