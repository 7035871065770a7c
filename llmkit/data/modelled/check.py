"""What a look at the inputs of filters finds wrong, before any document is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from llmkit.config.base import Finding
from llmkit.data.cleaning.config import CleaningConfig
from llmkit.data.modelled.lexicon import read_lexicon
from llmkit.errors import DataError
from llmkit.store.stage import ResolvedInput

_LEXICON = "toxicity.lexicon"


def check_inputs(config: CleaningConfig, key: str, inputs: Mapping[str, ResolvedInput]) -> Iterator[Finding]:
    """Models as their own files describe them, which says more than what was known before they were there; and lists.

    Args:
        config: the filters.
        key: where they stand in the stage.
        inputs: those of the stage that are there, by dotted key.
    """
    yield from config.check(key, {name: found.facts for name, found in inputs.items()})
    lexicon = inputs.get(f"{key}.{_LEXICON}")
    if lexicon is not None:
        try:
            read_lexicon(lexicon.path)
        except DataError as error:
            yield Finding(f"{error.where}: {error.message}", key=f"{key}.{_LEXICON}", hint=error.hint)
