"""Examples as token sequences: which ids, which of them count, and what was left out and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.examples import Conversation, LabelledText
from llmkit.errors import DataError
from llmkit.finetune.config import Overlong
from llmkit.tokenizer.tokenizer import Tokenizer


@dataclass
class Counts:
    """What became of the rows of a split.

    Args:
        rows: rows read.
        kept: rows that are trained on.
        dropped_overlong: rows left out because they are too long.
        dropped_without_target: rows left out because cutting them left nothing to learn.
        truncated: rows kept whose end was cut.
        tokens: tokens of the rows kept.
        targets: tokens of the rows kept that count in the loss (chat), or labels.
        longest: tokens of the longest row, before anything was cut.
    """

    rows: int = 0
    kept: int = 0
    dropped_overlong: int = 0
    dropped_without_target: int = 0
    truncated: int = 0
    tokens: int = 0
    targets: int = 0
    longest: int = 0

    def row(self) -> dict[str, int]:
        """The counts by name."""
        return asdict(self)

    def dropped(self) -> int:
        """Rows left out."""
        return self.rows - self.kept


@dataclass(frozen=True)
class Sequences:
    """Token sequences behind one another, and what is learned of each.

    Args:
        tokens: ids of all sequences, [T].
        starts: where each sequence starts, and the end of the last, [n + 1].
        targets: chat: whether each token counts in the loss, bool [T]; classification: label of each sequence, [n];
            token-classification: label of each token, -100 where it has none, [T].
        counts: what was kept and what was not.
    """

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    targets: NDArray[Any]
    counts: Counts

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, [n]."""
        return np.diff(self.starts)

    def span(self, index: int) -> slice:
        """Where the tokens of a sequence stand."""
        return slice(int(self.starts[index]), int(self.starts[index + 1]))


class Places:
    """Names rows for messages: "data/train.jsonl: row 12 (id x)"."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, index: int, identity: str) -> str:
        """The row at `index`, which is named `identity`."""
        return f"{self._name}: row {index + 1} (id {identity})"


def encode_conversations(
    conversations: Iterable[tuple[int, Conversation]],
    tokenizer: Tokenizer,
    max_length: int,
    overlong: Overlong,
    place: Places,
) -> Sequences:
    """Conversations, each with the number of its row, as ids and masks.

    The mask is 1 on what the assistant says and its end-of-turn tokens. The first token of a sequence never counts:
    there is nothing to predict it from.

    Raises:
        DataError: the chat template refuses a conversation, or one is too long and that is to be an error; the message
            names the row.
    """
    counts = Counts()

    def rows() -> Iterator[tuple[list[int], list[int]]]:
        for index, conversation in conversations:
            where = place(index, conversation.id)
            try:
                ids, mask = tokenizer.render_conversation(conversation.messages)
            except DataError as error:
                raise DataError(error.message, where=where, hint=error.hint) from None
            length = fit(len(ids), max_length, overlong, counts, where)
            targets = sum(mask[1:length])
            if length and not targets:
                counts.dropped_without_target += 1
            elif length:
                keep(counts, length, targets, cut=length < len(ids))
                yield ids[:length], [0, *mask[1:length]]

    return pack(rows(), counts, np.bool_)


def encode_texts(
    texts: Iterable[tuple[int, LabelledText]],
    labels: Sequence[str],
    tokenizer: Tokenizer,
    max_length: int,
    overlong: Overlong,
    place: Places,
) -> Sequences:
    """Labelled texts, each with the number of its row, as ids, and numbers of labels.

    The ids are framed as the tokenizer frames a text that stands alone.

    Raises:
        DataError: a label is not among `labels`, or a text is too long and that is to be an error; the message names
            the row.
    """
    counts = Counts()
    number = {label: index for index, label in enumerate(labels)}

    def rows() -> Iterator[tuple[list[int], list[int]]]:
        for index, text in texts:
            where = place(index, text.id)
            if text.label not in number:
                raise DataError(
                    f"the label {text.label!r} is not among those of the training split.",
                    where=where,
                    hint=f"Labels: {', '.join(labels)}.",
                )
            ids = tokenizer.encode_single(text.text, 2**31)
            length = fit(len(ids), max_length, overlong, counts, where)
            if length:
                keep(counts, length, 1, cut=length < len(ids))
                yield ids if length == len(ids) else tokenizer.encode_single(text.text, length), [number[text.label]]

    return pack(rows(), counts)


def fit(length: int, max_length: int, overlong: Overlong, counts: Counts, where: str) -> int:
    """Tokens of a row to use: all, `max_length`, or 0 where it is left out.

    Raises:
        DataError: it is too long, and that is to be an error.
    """
    counts.rows += 1
    counts.longest = max(counts.longest, length)
    if length <= max_length:
        return length
    if overlong == "error":
        raise DataError(
            f"the example has {length:,} tokens, and at most {max_length:,} fit.",
            where=where,
            hint="Raise `max_length`, or set `overlong` to drop or truncate.",
        )
    if overlong == "drop":
        counts.dropped_overlong += 1
        return 0
    return max_length


def keep(counts: Counts, tokens: int, targets: int, *, cut: bool) -> None:
    """Count a row that is trained on."""
    counts.kept += 1
    counts.truncated += cut
    counts.tokens += tokens
    counts.targets += targets


def pack(rows: Iterable[tuple[list[int], list[int]]], counts: Counts, kind: type[np.generic] = np.int64) -> Sequences:
    """Ids and targets of rows behind one another; `kind` is the targets' type."""
    tokens: list[NDArray[np.int32]] = []
    targets: list[NDArray[Any]] = []
    for ids, marks in rows:
        tokens.append(np.asarray(ids, dtype=np.int32))
        targets.append(np.asarray(marks, dtype=kind))
    starts = np.cumsum([0, *map(len, tokens)], dtype=np.int64)
    return Sequences(
        np.concatenate(tokens) if tokens else np.zeros(0, np.int32),
        starts,
        np.concatenate(targets) if targets else np.zeros(0, kind),
        counts,
    )
