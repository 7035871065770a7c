"""The model of a filter: opened when something is measured for the first time, and used with one thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from llmkit.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from llmkit.data.modelled.config import ModelFilterConfig
    from llmkit.inference import LoadedModel


class FilterModel:
    """A model with its tokenizer that is opened by the first use.

    Args:
        place: a model directory, a stage's directory, or "hf:owner/name".
        config: how it computes.
        heads: which of them it may have.
    """

    def __init__(self, place: str, config: ModelFilterConfig, heads: Sequence[str]) -> None:
        self._place = place
        self._config = config
        self._heads = heads

    @contextmanager
    def at_work(self) -> Iterator[LoadedModel]:
        """The model, for as long as one thread computes: so many processes share the machine, and sums of matrix
        products are made in the same order in each.

        Raises:
            ModelError: there is no such model, it is damaged, or its head is none of those wanted.
            ConfigError: there is no GPU.
        """
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield self._loaded
        finally:
            torch.set_num_threads(before)

    @cached_property
    def _loaded(self) -> LoadedModel:
        import torch

        from llmkit.inference import load

        if self._config.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("there is no CUDA device here, and `device` is cuda.", hint="Set `device: cpu`.")
        found = load(self._place, dtype=self._config.precision, device=self._config.device)
        head, rows = found.model.config.head, found.model.config.vocab_size
        if head not in self._heads:
            wanted = " or ".join(self._heads)
            raise ModelError(f"the model has a {head} head, and {wanted} is wanted here.", where=self._place)
        if found.tokenizer.vocab_size > rows:
            raise ModelError(
                f"the tokenizer has {found.tokenizer.vocab_size:,} tokens, and the model {rows:,}.", where=self._place
            )
        return found


def how_it_computes(config: ModelFilterConfig) -> dict[str, Any]:
    """The settings on which the last digits depend."""
    return {"precision": config.precision, "device": config.device, "batch_size": config.batch_size}
