"""Labels of words: which tokens carry them, what is minimised, and how well spans are found.

Shapes: B sequences, L tokens, N tokens that carry a label.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmkit.data.examples import TaggedText
from llmkit.errors import DataError
from llmkit.finetune.batches import Indices, pad
from llmkit.finetune.config import Overlong
from llmkit.finetune.encoding import Counts, Places, Sequences, fit, keep, pack
from llmkit.tokenizer.tokenizer import Tokenizer
from llmkit.train.contract import LossOutput

IGNORED = -100
"""In place of a label, at tokens that carry none."""

_PROBE = ("to", "be", "so")

Span = tuple[int, int, str]
"""First word, the word after the last, and what it is."""


class TagBatch(NamedTuple):
    """Texts [B, L], a mask that is 1 at real tokens, and the number of each token's label or -100."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


class WordEncoder:
    """Encodes words as the tokenizer does where they follow each other in a text.

    Raises:
        DataError: the tokens of a word depend on other words.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.before, self.after = tokenizer.frame_ids
        whole = tokenizer.encode(" ".join(_PROBE))
        for between in ("", " "):
            if [
                token for i, word in enumerate(_PROBE) for token in tokenizer.encode(between * (i > 0) + word)
            ] == whole:
                self._between = between
                return
        raise DataError("this tokenizer's tokens of a word depend on the words beside it, so words cannot be labelled.")

    def encode(self, words: Sequence[str]) -> list[list[int]]:
        """Ids of each word."""
        return [self._tokenizer.encode(self._between * (index > 0) + word) for index, word in enumerate(words)]


def encode_tags(
    texts: Iterable[tuple[int, TaggedText]],
    labels: Sequence[str],
    tokenizer: Tokenizer,
    max_length: int,
    overlong: Overlong,
    place: Places,
    *,
    causal: bool,
) -> Sequences:
    """Texts with labelled words, each with the number of its row, as ids and label numbers.

    The first token of a word carries its label, under a causal model the last, which alone sees all of the word. The
    others, and those that frame the text, carry -100.

    Raises:
        DataError: a label is not among `labels`, or a text is too long and that is to be an error; the message names
            the row.
    """
    counts, encoder = Counts(), WordEncoder(tokenizer)
    number = {label: index for index, label in enumerate(labels)}

    def rows() -> Iterator[tuple[list[int], list[int]]]:
        for index, text in texts:
            where = place(index, text.id)
            unknown = next((label for label in text.labels if label not in number), None)
            if unknown is not None:
                raise DataError(
                    f"the label {unknown!r} is not among those of the training split.",
                    where=where,
                    hint=f"Labels: {', '.join(labels)}.",
                )
            pieces = encoder.encode(text.words)
            ids = [token for piece in pieces for token in piece]
            marks = [
                mark
                for piece, label in zip(pieces, text.labels, strict=True)
                for mark in _marks(number[label], len(piece), last=causal)
            ]
            frame = len(encoder.before) + len(encoder.after)
            length = fit(len(ids) + frame, max_length, overlong, counts, where)
            room = max(0, length - frame)
            targets = sum(mark != IGNORED for mark in marks[:room])
            if length and not targets:
                counts.dropped_without_target += 1
            elif length:
                keep(counts, length, targets, cut=room < len(ids))
                framing = [IGNORED] * len(encoder.before), [IGNORED] * len(encoder.after)
                yield [*encoder.before, *ids[:room], *encoder.after], [*framing[0], *marks[:room], *framing[1]]

    return pack(rows(), counts)


def _marks(label: int, tokens: int, *, last: bool) -> list[int]:
    """What each token of a word carries."""
    marks = [IGNORED] * tokens
    if marks:
        marks[-1 if last else 0] = label
    return marks


def collate_tags(examples: Sequences, indices: Indices, pad_id: int) -> TagBatch:
    """A micro-batch of texts with labelled words."""
    spans = [examples.span(int(index)) for index in indices]
    ids, attention = pad([examples.tokens[span] for span in spans], pad_id)
    labels, _ = pad([examples.targets[span] for span in spans], IGNORED)
    return TagBatch(torch.from_numpy(ids), torch.from_numpy(attention), torch.from_numpy(labels))


class TagObjective:
    """Cross-entropy of the words' labels, in nats, summed over words; its weight is their number.

    Args:
        labels: their names, in the order of their numbers. Where they mark spans (B-, I-, O), validation gives F1 too.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self._marks_spans = any(label.startswith(("B-", "I-")) for label in labels)

    def loss(self, model: nn.Module, batch: TagBatch) -> LossOutput:
        """Loss of a micro-batch, with the share of words labelled rightly as `accuracy` and, in validation, `span_f1`:
        twice the spans found rightly, over those there are and those found (Tjong Kim Sang & De Meulder 2003)."""
        device = next(model.parameters()).device
        input_ids, attention_mask, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
        logits = model(input_ids, attention_mask)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        counted = labels != IGNORED
        chosen, wanted = logits.detach().argmax(-1), labels
        weight = int((batch.labels != IGNORED).sum())
        metrics: dict[str, tuple[Tensor | float, Tensor | float]] = {
            "accuracy": (((chosen == wanted) & counted).sum(), weight)
        }
        if self._marks_spans and not model.training:
            metrics["span_f1"] = self._count_spans(chosen.cpu(), wanted.cpu())
        total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        return LossOutput(total, weight, metrics, int(batch.attention_mask.sum()))

    def _count_spans(self, chosen_BL: Tensor, wanted_BL: Tensor) -> tuple[float, float]:
        right = count = 0
        for chosen, wanted in zip(chosen_BL, wanted_BL, strict=True):
            there = wanted != IGNORED
            found = spans([self._labels[number] for number in chosen[there].tolist()])
            real = spans([self._labels[number] for number in wanted[there].tolist()])
            right += len(found & real)
            count += len(found) + len(real)
        return 2.0 * right, float(count)


def spans(labels: Sequence[str]) -> set[Span]:
    """The spans that labels mark: B-X begins one, I-X goes on with one of X or begins one, all else ends it."""
    found: set[Span] = set()
    start, name = 0, ""
    for index, label in enumerate([*labels, "O"]):
        mark, _, kind = label.partition("-") if label.startswith(("B-", "I-")) else ("", "", "")
        if name and (mark != "I" or kind != name):
            found.add((start, index, name))
            name = ""
        if kind and not name:
            start, name = index, kind
    return found
