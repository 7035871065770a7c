"""Forward passes over many sequences of different lengths: token likelihoods, and scores of whole sequences.

Shapes: B sequences, L tokens, W width, V vocabulary, T scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmkit.errors import ModelError
from llmkit.model.transformer import Transformer

# Logits of so many values are held at once, beside a copy in float32.
_LOGITS = 1 << 24

Floats = NDArray[np.float64]
Advance = Callable[[int], None]
"""Told how many sequences are done."""


@dataclass(frozen=True)
class Window:
    """Tokens that go through a model together, and which of them are scored.

    Args:
        inputs: token ids.
        positions: places in `inputs` whose logits are scored, ascending.
        targets: the right token for each of them.
    """

    inputs: Sequence[int]
    positions: Sequence[int]
    targets: Sequence[int]


def sliding_windows(ids: Sequence[int], context: int, stride: int) -> Iterator[Window]:
    """Windows of at most `context` inputs, `stride` apart, that together score every token but the first once.

    A token is scored in the first window that holds the token before it.
    """
    begin, scored = 0, 0
    while scored < len(ids) - 1:
        end = min(begin + context, len(ids) - 1)
        yield Window(ids[begin:end], range(scored - begin, end - begin), ids[scored + 1 : end + 1])
        scored = end
        begin += stride


def length_batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Places of sequences in batches of like length, the longest first."""
    order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def score_windows(
    model: Transformer, windows: Sequence[Window], batch_size: int, advance: Advance
) -> tuple[Floats, Floats]:
    """Negative log-likelihood of the targets and how many of them are the argmax, summed over each window.

    Args:
        model: with a language-model head, in evaluation mode.
        windows: of any lengths.
        batch_size: windows that go through the model at once.
        advance: called after each batch.

    Returns:
        nats [windows] and hits [windows].

    Raises:
        ModelError: the model gives logits that are no numbers.
    """
    nats, hits = np.zeros(len(windows)), np.zeros(len(windows))
    with torch.inference_mode():
        for places in length_batches([len(window.inputs) for window in windows], batch_size):
            batch = [windows[place] for place in places]
            nll_T, hit_T = _score_batch(model, batch)
            owner = np.repeat(places, [len(window.targets) for window in batch])
            np.add.at(nats, owner, nll_T.double().cpu().numpy())
            np.add.at(hits, owner, hit_T.double().cpu().numpy())
            advance(len(places))
    _require_finite(nats)
    return nats, hits


def score_sequences(
    model: Transformer, sequences: Sequence[Sequence[int]], batch_size: int, advance: Advance
) -> Floats:
    """What a sequence head says of each sequence: logits [N, labels], or rewards [N, 1].

    Raises:
        ModelError: the model gives scores that are no numbers.
    """
    scores = np.zeros((len(sequences), len(model.config.labels) or 1))
    with torch.inference_mode():
        for places in length_batches([len(sequence) for sequence in sequences], batch_size):
            input_ids_BL, attention_mask_BL = _padded(model, [sequences[place] for place in places])
            given = model(input_ids_BL, attention_mask_BL)
            scores[places] = given.double().reshape(len(places), -1).cpu().numpy()
            advance(len(places))
    _require_finite(scores)
    return scores


def _score_batch(model: Transformer, batch: Sequence[Window]) -> tuple[Tensor, Tensor]:
    """Of each scored token of a batch, window by window: nats [T], and whether it is the argmax [T]."""
    input_ids_BL, attention_mask_BL = _padded(model, [window.inputs for window in batch])
    device = input_ids_BL.device
    rows_T = torch.tensor([row for row, window in enumerate(batch) for _ in window.positions], device=device)
    columns_T = torch.tensor([place for window in batch for place in window.positions], device=device)
    targets_T = torch.tensor([target for window in batch for target in window.targets], device=device)
    hidden_TW = model.hidden(input_ids_BL, attention_mask_BL)[rows_T, columns_T]
    nll, hit = [], []
    step = max(1, _LOGITS // model.config.vocab_size)
    for start in range(0, len(targets_T), step):
        logits_TV = model.head(hidden_TW[start : start + step]).float()
        targets = targets_T[start : start + step]
        nll.append(torch.nn.functional.cross_entropy(logits_TV, targets, reduction="none"))
        hit.append(logits_TV.argmax(dim=-1) == targets)
    return torch.cat(nll), torch.cat(hit)


def _padded(model: Transformer, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, L], padding on the right."""
    longest = max(len(sequence) for sequence in sequences)
    pad = model.config.pad_id or 0
    ids = [[*sequence, *[pad] * (longest - len(sequence))] for sequence in sequences]
    mask = [[1] * len(sequence) + [0] * (longest - len(sequence)) for sequence in sequences]
    device = model.device
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _require_finite(values: Floats) -> None:
    if not np.isfinite(values).all():
        raise ModelError(
            "the model's outputs are not finite numbers.",
            hint="Its training has diverged, or its weights overflow in this precision: try `precision: fp32`.",
        )
