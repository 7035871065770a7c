"""Windows of tokens for training and evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llmkit.data.sampling import EpochSampler, KeyedPermutation
from llmkit.data.shards import TokenShards
from llmkit.errors import DataError

__all__ = ["EpochSampler", "KeyedPermutation", "OrderedBatch", "TokenWindows"]


class OrderedBatch(NamedTuple):
    """Rows of a pass over a whole split.

    `tokens` is as `TokenWindows.read` gives it. Causal: in row i, tokens[i, 1 : lengths[i] + 1] are targets. Masked:
    in row i, tokens[i, : lengths[i]] are tokens, [CLS] and [SEP] included. What comes after is padding.
    """

    tokens: NDArray[np.int64]
    lengths: NDArray[np.int64]


class TokenWindows:
    """A split as windows of fixed length over its token stream, documents one behind another.

    Causal windows are `length` inputs with their targets, one token further on: `length + 1` tokens, of which the last
    is the first of the next window, so that every token but the very first of the stream is a target once. Masked
    windows are `length` tokens: [CLS], `length - 2` of the stream, [SEP].

    Args:
        directory: an artifact of tokens.
        split: name of the split.
        length: tokens of a window, as the model gets them.
        masked: whether windows are for a masked language model.
        tokenizer_digest: digest of the tokenizer in use; None to take the tokens as they are.

    Raises:
        DataError: there is no such split, nothing in it to predict, or no [CLS] and [SEP] for masked windows.
        ArtifactError: damaged files, or tokens of another tokenizer.
    """

    def __init__(
        self, directory: Path, split: str, length: int, *, masked: bool = False, tokenizer_digest: str | None = None
    ) -> None:
        self.shards = TokenShards(directory, split, tokenizer_digest)
        self.length = length
        self.masked = masked
        special = self.shards.tokenizer
        self._frame: tuple[int, int] | None = None
        if masked:
            cls, sep = special.get("cls_id"), special.get("sep_id")
            if cls is None or sep is None:
                raise DataError(
                    "the tokenizer of these tokens has no [CLS] and [SEP], which masked windows need.",
                    where=str(directory),
                    hint="Train a `wordpiece` tokenizer or a `masked` one, or choose the causal objective.",
                )
            self._frame = (cls, sep)
        if length < (3 if masked else 1):
            raise ValueError(f"windows of {length} tokens")
        self._padding: int = next((special[name] for name in ("pad_id", "eos_id") if special.get(name) is not None), 0)
        self._stride = self._stride_of(length)
        # The first token of a causal stream is no target: nothing stands before it.
        self.targets = self.shards.tokens - (0 if masked else 1)
        """Tokens of the split that are predicted (causal) or can be chosen for it (masked) in one pass."""
        if self.targets < 1:
            raise DataError(f"the split `{split}` holds no token to predict.", where=str(directory))

    def __len__(self) -> int:
        """Windows that are full; what is left at the end of the stream is read by `in_order` alone."""
        return self.targets // self._stride

    def read(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Full windows.

        Args:
            indices: numbers in range(len(self)), [n].

        Returns:
            ids [n, length + 1] (causal) or [n, length] (masked).

        Raises:
            IndexError: there is no such window.
        """
        return self.read_at(indices * self._stride, self.length)

    def pieces(self, length: int) -> int:
        """How many windows of another length go into one, end to end."""
        return self._stride // self._stride_of(length)

    def starts(self, indices: NDArray[np.int64], pieces: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """Where in the stream windows of another length begin, [n]: each a piece, from 0, of a full window, [n]."""
        return indices * self._stride + pieces * self._stride_of(length)

    def read_at(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """Windows of any length.

        Args:
            starts: where in the stream they begin, [n].
            length: tokens of a window, as the model gets them.

        Returns:
            ids [n, length + 1] (causal) or [n, length] (masked).
        """
        return self._framed(self.shards.gather(starts, self._stride_of(length) + (not self.masked)))

    def borders(self, starts: NDArray[np.int64], length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where documents begin inside the windows that `read_at` gives: numbers of rows, and places in them.

        What frames a masked window belongs to its first and its last document.
        """
        rows, places = self.shards.borders(starts, self._stride_of(length) + (not self.masked))
        return rows, places + self.masked

    def _stride_of(self, length: int) -> int:
        return length - 2 if self.masked else length

    def in_order(self, batch: int) -> Iterator[OrderedBatch]:
        """The whole split from first to last window, the partial one at the end included.

        The lengths of a causal pass sum to `targets`; those of a masked pass, less two for each row, likewise.

        Args:
            batch: rows in each batch but the last.
        """
        full = len(self)
        rest = self.targets - full * self._stride
        rows = full + (rest > 0)
        for begin in range(0, rows, batch):
            end = min(begin + batch, rows)
            tokens = self.read(np.arange(begin, min(end, full), dtype=np.int64))
            lengths = np.full(end - begin, self.length, dtype=np.int64)
            if end > full:
                tokens = np.concatenate([tokens, self._last(rest)])
                lengths[-1] = rest + 2 if self.masked else rest
            yield OrderedBatch(tokens, lengths)

    def _last(self, rest: int) -> NDArray[np.int64]:
        count = rest if self.masked else rest + 1
        piece = self._framed(self.shards.read(self.shards.tokens - count, count)[None])
        row = np.full((1, self.length + (not self.masked)), self._padding, dtype=np.int64)
        row[:, : piece.shape[1]] = piece
        return row

    def _framed(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._frame is None:
            return tokens
        return np.pad(tokens, ((0, 0), (1, 1)), constant_values=((0, 0), self._frame))
