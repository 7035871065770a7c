"""Token shards: the ids of a split's documents one after another in memory-mapped files, with an index of documents.

A split is a folder:

- `index.json`: format, type of the ids, counts, bytes of text, the tokenizer's digest and special ids, the shards
- `00000.bin`, ...: ids, little-endian, 16 bits where the vocabulary fits and 32 otherwise, no header
- `00000.idx`, ...: NumPy array file of uint64 [documents + 1]: where each document of the shard begins, and the end

A document lies in one shard, the separator behind it included. Positions in the token stream count over all shards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import ArtifactError, DataError
from llmkit.store.files import write_json_atomic

INDEX = "index.json"
FORMAT = 1
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
"""Types of ids by the names that `token_dtype` gives."""


def token_dtype(vocab_size: int) -> str:
    """Name of the smallest type that holds every id of a vocabulary."""
    return "uint16" if vocab_size <= 2**16 else "uint32"


class ShardWriter:
    """Writes one split; a context manager that finishes with `index.json`, or leaves it away on an exception.

    Args:
        directory: folder of the split, made where it is absent.
        tokenizer: what `index.json` says of the tokenizer: at least `digest` and `vocab_size`.
        separator: id to put behind each document, or None.
        shard_tokens: a shard is closed with the document that brings it to this many tokens.
    """

    def __init__(self, directory: Path, tokenizer: Mapping[str, Any], separator: int | None, shard_tokens: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._tokenizer = dict(tokenizer)
        self._separator = [] if separator is None else [separator]
        self._shard_tokens = shard_tokens
        self._dtype = token_dtype(self._tokenizer["vocab_size"])
        self.dtype = DTYPES[self._dtype]
        """Type of the ids on disk."""
        self._shards: list[dict[str, Any]] = []
        self._stream: BinaryIO | None = None
        self._ends: list[NDArray[np.int64]] = []
        self._filled = 0
        self.tokens = 0
        self.documents = 0
        self.text_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_shard()
        if kind is None:
            index = {
                "format": FORMAT,
                "dtype": self._dtype,
                "tokens": self.tokens,
                "documents": self.documents,
                "text_bytes": self.text_bytes,
                "separator": self._separator[0] if self._separator else None,
                "tokenizer": self._tokenizer,
                "shards": self._shards,
            }
            write_json_atomic(self._directory / INDEX, index)

    def write(self, ids: Sequence[int], text_bytes: int) -> None:
        """Append a document.

        Args:
            ids: its token ids, without the separator.
            text_bytes: length of its text in UTF-8 bytes.

        Raises:
            ValueError: an id that is not in the vocabulary.
        """
        tokens = np.array([*ids, *self._separator], dtype=np.int64)
        self.write_many(tokens, np.array([tokens.size]), text_bytes)

    def write_many(self, tokens: NDArray[Any], lengths: NDArray[np.int64], text_bytes: int) -> None:
        """Append several documents.

        Args:
            tokens: ids of all of them behind one another, separators included, [T].
            lengths: tokens of each, the separator included, [n], with the sum T.
            text_bytes: length of their texts in UTF-8 bytes.

        Raises:
            ValueError: an id that is not in the vocabulary.
        """
        if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < self._tokenizer["vocab_size"]:
            raise ValueError(f"a token id lies outside the vocabulary of {self._tokenizer['vocab_size']}")
        ends = np.cumsum(lengths, dtype=np.int64)
        assert int(ends[-1] if ends.size else 0) == tokens.size
        document = position = 0
        while document < ends.size:
            # Up to the document that brings the shard to its size.
            full = int(np.searchsorted(ends, position + self._shard_tokens - self._filled)) + 1
            after = min(full, ends.size)
            end = int(ends[after - 1])
            if self._stream is None:
                self._stream = (self._directory / f"{len(self._shards):05d}.bin").open("wb")
            self._stream.write(tokens[position:end].astype(self.dtype, copy=False).data)
            self._ends.append(ends[document:after] - position + self._filled)
            self._filled += end - position
            if full <= ends.size:
                self._close_shard()
            document, position = after, end
        self.tokens += tokens.size
        self.documents += int(ends.size)
        self.text_bytes += text_bytes

    def _close_shard(self) -> None:
        if self._stream is None:
            return
        self._stream.close()
        self._stream = None
        name = f"{len(self._shards):05d}"
        ends = np.concatenate([np.zeros(1, np.int64), *self._ends])
        with (self._directory / f"{name}.idx").open("wb") as stream:
            np.save(stream, ends.astype("<u8"), allow_pickle=False)
        self._shards.append({"name": name, "tokens": self._filled, "documents": int(ends.size) - 1})
        self._ends, self._filled = [], 0


class TokenShards:
    """One split of an artifact of tokens, opened for reading.

    Args:
        directory: the artifact's directory.
        split: name of the split.
        tokenizer_digest: digest of the tokenizer that the reader works with; None to take the tokens as they are.

    Raises:
        DataError: there is no such split.
        ArtifactError: damaged files, or tokens of another tokenizer than the reader's.
    """

    def __init__(self, directory: Path, split: str, tokenizer_digest: str | None = None) -> None:
        self._folder = directory / split
        index = self._read_index(directory, split)
        self.tokens: int = index["tokens"]
        self.documents: int = index["documents"]
        self.text_bytes: int = index["text_bytes"]
        self.separator: int | None = index["separator"]
        self.tokenizer: Mapping[str, Any] = index["tokenizer"]
        self.dtype = DTYPES[index["dtype"]]
        """Type of the ids on disk."""
        if tokenizer_digest is not None and tokenizer_digest != self.tokenizer["digest"]:
            raise ArtifactError(
                "the tokens were made with another tokenizer than the one in use "
                f"(digest {self.tokenizer['digest'][:12]}, not {tokenizer_digest[:12]}).",
                where=str(self._folder),
                hint="Use the tokenizer of the tokens, or make the tokens anew.",
            )
        self._shards = [self._open(shard["name"], shard["tokens"]) for shard in index["shards"]]
        self._ends = [self._open_ends(shard["name"], shard["tokens"], shard["documents"]) for shard in index["shards"]]
        if self._totals() != (self.tokens, self.documents):
            self._damaged(self._folder / INDEX, "its counts are not the sums over its shards")
        # Position of each shard's first token, and of its first document, with the ends of the last.
        self._token_starts = np.cumsum([0, *(shard.size for shard in self._shards)])
        self._document_starts = np.cumsum([0, *(ends.size - 1 for ends in self._ends)])

    @property
    def shard_count(self) -> int:
        """How many shards the split is in."""
        return len(self._shards)

    def parts(self) -> Iterator[tuple[NDArray[Any], NDArray[np.uint64]]]:
        """For each shard its ids, [T], and where its documents begin in it, with the end of the last, [n + 1]."""
        return zip(self._shards, self._ends, strict=True)

    def read(self, start: int, count: int) -> NDArray[np.int64]:
        """Tokens `start` to `start + count` of the stream; fewer at its end."""
        piece: NDArray[np.int64] = self.gather(np.array([start]), min(count, self.tokens - start))[0]
        return piece

    def gather(self, starts: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """Pieces of the stream.

        Args:
            starts: position of the first token of each piece, [n].
            count: tokens in each; no piece may go beyond the end of the stream.

        Returns:
            ids [n, count].
        """
        if starts.size and not 0 <= starts.min() <= starts.max() <= self.tokens - count:
            raise IndexError(f"tokens {starts.max()} to {starts.max() + count} of {self.tokens}")
        out = np.empty((starts.size, count), dtype=np.int64)
        for row, start in zip(out, starts.tolist(), strict=True):
            shard = int(np.searchsorted(self._token_starts, start, side="right")) - 1
            position = start - int(self._token_starts[shard])
            filled = 0
            while filled < count:
                piece = self._shards[shard][position : position + count - filled]
                row[filled : filled + piece.size] = piece
                filled += piece.size
                position = 0
                shard += 1
        return out

    def borders(self, starts: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where documents begin inside pieces of the stream, each of `count` tokens.

        Args:
            starts: position of the first token of each piece, [n].

        Returns:
            for each document that begins behind the first token of a piece: number of the piece, and place in it.
        """
        rows, places = [], []
        for row, start in enumerate(starts.tolist()):
            shard = int(np.searchsorted(self._token_starts, start, side="right")) - 1
            while shard < len(self._shards) and self._token_starts[shard] < start + count:
                base, ends = int(self._token_starts[shard]), self._ends[shard]
                first = np.searchsorted(ends, np.uint64(max(0, start + 1 - base)))
                last = np.searchsorted(ends, np.uint64(max(0, start + count - base)))
                # The last one is the end of the shard: where it is none of the stream's, the next shard begins there.
                found = np.unique(ends[first : min(int(last), ends.size - 1)].astype(np.int64)) + (base - start)
                rows.append(np.full(found.size, row, dtype=np.int64))
                places.append(found)
                shard += 1
        if not rows:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return np.concatenate(rows), np.concatenate(places)

    def document(self, index: int) -> NDArray[np.int64]:
        """Ids of one document, the separator included, [tokens].

        Raises:
            IndexError: there is no such document.
        """
        if not 0 <= index < self.documents:
            raise IndexError(f"document {index} of {self.documents}")
        shard = int(np.searchsorted(self._document_starts, index, side="right")) - 1
        begin, end = self._ends[shard][index - self._document_starts[shard] :][:2].tolist()
        document: NDArray[np.int64] = self._shards[shard][begin:end].astype(np.int64)
        return document

    def _read_index(self, directory: Path, split: str) -> dict[str, Any]:
        file = self._folder / INDEX
        try:
            index: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if index["format"] != FORMAT:
                self._damaged(file, f"it is of format {index['format']}; this version reads {FORMAT}")
            counts = [index["tokens"], index["documents"], index["text_bytes"]]
            shapes = [(shard["name"], shard["tokens"], shard["documents"]) for shard in index["shards"]]
            vocab_size, dtype = index["tokenizer"]["vocab_size"], index["dtype"]
            usable = all(isinstance(count, int) for count in counts) and isinstance(index["tokenizer"]["digest"], str)
            if not usable or len(shapes) == 0 or "separator" not in index:
                self._damaged(file, "a count, a shard or the tokenizer's digest is missing in it")
        except FileNotFoundError:
            present = sorted(found.parent.name for found in directory.glob(f"*/{INDEX}"))
            raise DataError(
                f"there are no tokens of the split `{split}` here.",
                where=str(directory),
                hint=f"Splits: {', '.join(present) or 'none'}.",
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._damaged(file, f"it cannot be read: {error!r}")
        if dtype not in DTYPES or vocab_size > np.iinfo(DTYPES[dtype]).max + 1:
            self._damaged(file, f"ids of a vocabulary of {vocab_size} are no {dtype}")
        return index

    def _open(self, name: str, tokens: int) -> NDArray[Any]:
        file = self._folder / f"{name}.bin"
        size = file.stat().st_size if file.is_file() else None
        if size is None:
            self._damaged(file, "the shard is missing")
        if size != tokens * self.dtype.itemsize:
            self._damaged(file, f"it is {size:,} bytes long, and {tokens:,} tokens of {self.dtype} are more or less")
        if tokens == 0:
            return np.empty(0, dtype=self.dtype)
        return np.memmap(file, dtype=self.dtype, mode="r")

    def _open_ends(self, name: str, tokens: int, documents: int) -> NDArray[np.uint64]:
        file = self._folder / f"{name}.idx"
        try:
            ends: NDArray[np.uint64] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            self._damaged(file, f"the index of documents cannot be read: {error}")
        if ends.dtype != np.dtype("<u8") or ends.shape != (documents + 1,) or ends[0] != 0 or ends[-1] != tokens:
            self._damaged(file, f"it is no index of {documents:,} documents in {tokens:,} tokens")
        return ends

    def _totals(self) -> tuple[int, int]:
        return sum(shard.size for shard in self._shards), sum(ends.size - 1 for ends in self._ends)

    def _damaged(self, file: Path, problem: str) -> NoReturn:
        raise ArtifactError(f"{problem}.", where=str(file), hint="Remove the artifact so that its stage runs again.")
