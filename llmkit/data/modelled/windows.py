"""What a sequence head says of texts that may be longer than its context."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmkit.inference import LoadedModel
from llmkit.model.scoring import score_sequences

Floats = NDArray[np.float64]


def window_outputs(
    opened: LoadedModel, texts: Sequence[str], max_length: int | None, *, every: bool, batch_size: int
) -> tuple[Floats, NDArray[np.int64]]:
    """The head's outputs of the windows of texts: probabilities of its classes, or its one score.

    Args:
        opened: a model with a classification or reward head.
        texts: the texts.
        max_length: tokens of a window; by default the model's context.
        every: whether a text is read in as many windows as it takes, or its beginning alone.
        batch_size: windows that go through the model at once.

    Returns:
        outputs [windows, classes], and the text that each window is of, ascending, [windows]. A text of no token has
        none.
    """
    length = max_length or opened.model.config.context
    windows: list[list[int]] = []
    owners: list[int] = []
    for owner, text in enumerate(texts):
        tokenizer = opened.tokenizer
        found = tokenizer.encode_windows(text, length) if every else [tokenizer.encode_single(text, length)]
        found = [ids for ids in found if ids]
        windows += found
        owners += [owner] * len(found)
    outputs = score_sequences(opened.model, windows, batch_size, lambda amount: None)
    if opened.model.config.head == "classification":
        outputs = np.exp(outputs - outputs.max(axis=1, keepdims=True, initial=-np.inf))
        outputs /= outputs.sum(axis=1, keepdims=True)
    return outputs, np.array(owners, np.int64)
