"""Settings of who does the tasks and where their results are kept. No heavy imports."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from llmkit.config.base import Config


class ExecutorConfig(Config):
    """Who does the work; the result is the same to the byte whoever does it."""

    kind: Literal["local", "ray"] = "local"
    """`local`: processes of this machine. `ray`: a Ray cluster, whose machines share the folder of the work."""
    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Tasks done at the same time. `auto` is one for each processor that may be used, and fewer where there is so
    little to do that starting processes would take longer; on a Ray cluster, all of its processors."""
    address: str | None = None
    """Address of the Ray cluster (`auto`, `ray://host:10001`, `host:6379`); by default one is started here."""

    @model_validator(mode="after")
    def _address_is_rays(self) -> ExecutorConfig:
        if self.address is not None and self.kind != "ray":
            raise PydanticCustomError("executor", "address belongs to an executor of the kind `ray`")
        return self


class WorkConfig(Config):
    """Where results of tasks are kept, so that what was done once is not done again."""

    folder: Annotated[str, Field(min_length=1)] | None = None
    """Folder for them, which several stages may share; by default `.<stage>.work` beside the artifact."""
    keep: bool = True
    """Keep what the stage was made from when it is done: another threshold then does not measure again. It takes about
    the room of the artifact."""
