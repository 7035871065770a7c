"""Settings of the stage `tokens`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from llmkit.config.base import Facts, Input, StageConfig
from llmkit.data.execution.config import ExecutorConfig, WorkConfig


class TokensConfig(StageConfig):
    """Turns documents into shards of token ids for one tokenizer."""

    kind: ClassVar[str] = "tokens"

    stage: Literal["tokens"] = "tokens"
    """Kind of the stage."""
    data: str = Field(min_length=1)
    """The documents: a stage of kind `data`, or the folder of one."""
    tokenizer: str = Field(min_length=1)
    """The tokenizer: a stage, a folder with `tokenizer.json`, or a model whose tokenizer is taken."""
    sources: Annotated[list[str], Field(min_length=1)] | None = None
    """Names of the corpus' sources whose documents are taken; by default all. Shards of one source each can be mixed by
    weight in pretraining."""
    shard_tokens: int = Field(default=2**27, ge=1)
    """A new shard begins after this many tokens (256 MiB with 16-bit ids)."""
    executor: ExecutorConfig = ExecutorConfig()
    """Who does the work: processes of this machine, or a Ray cluster. The shards are the same."""
    work: WorkConfig = WorkConfig(keep=False)
    """Where results of tasks are kept until the stage is done, so that a killed run goes on."""

    without_effect: ClassVar[frozenset[str]] = frozenset({"executor", "work"})

    def inputs(self) -> list[Input]:
        """The documents and the tokenizer."""
        return [
            Input("data", self.data, ("documents",)),
            Input("tokenizer", self.tokenizer, ("tokenizer", "model", "tokens")),
        ]

    def facts(self, inputs: Mapping[str, Facts]) -> Facts:
        """Tokens, with the splits of the documents and what is known of the tokenizer."""
        given = inputs["tokenizer"]
        known = {name: given.get(name) for name in ("vocab_size", "mask_token", "chat_template")}
        known["splits"] = inputs["data"].get("splits")
        return Facts("tokens", {name: value for name, value in known.items() if value is not None})
