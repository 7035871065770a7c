"""The n-grams of the texts that models are measured on, sorted on disk, and looking for them in other texts.

An index is a folder:

- `key.npy`: hashes of n-grams, and of whole texts shorter than one, sorted, each once
- `row.npy`: for each key the first row that has it
- `table.npy`: which values the first and which the last bits of keys have (a Bloom filter)
- `size.npy`: how many words the n-grams and the shorter texts have
- `names.npy`, `name_starts.npy`: where each row stands, as UTF-8, one behind another

All of them are mapped into memory, so that looking takes little of it whatever the index's size.
"""

from __future__ import annotations

import shutil
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmkit.data.cleaning.config import UnicodeConfig
from llmkit.data.cleaning.unicode import clean_unicode
from llmkit.data.decontamination.texts import rows_of
from llmkit.data.deduplication.base import (
    SHARE_ENTRIES,
    Entries,
    Part,
    count_shares,
    group_starts,
    join_entries,
    load_share,
    save_entries,
)
from llmkit.data.hashing import Hashes, Places, Running
from llmkit.data.words import Words, words_of
from llmkit.errors import DataError
from llmkit.store.stage import ResolvedInput

_UNICODE = UnicodeConfig(normalization="NFKC", line_endings=False, control_characters=False)
_KEY, _ROW, _TABLE, _SIZES = "key.npy", "row.npy", "table.npy", "size.npy"
_NAMES, _NAME_STARTS = "names.npy", "name_starts.npy"
_RUN = "ngrams"
_BATCH_CHARACTERS = 1 << 19
_BITS_OF_KEY = 16
"""Bits of the table for each key, at least: fewer than two in a hundred other n-grams get as far as to the keys."""
_BLOCK = 1 << 18
"""Words that are looked for at once, so that a long document takes little memory beside its text."""


def plain(text: str) -> str:
    """The text as its words are compared: ligatures, full-width letters and characters without width do not count."""
    return text if text.isascii() else clean_unicode(text, _UNICODE)


def write_index(names: Sequence[str], inputs: Sequence[ResolvedInput], settings: Mapping[str, Any], out: Path) -> None:
    """Write the n-grams of all inputs to a folder, which `filter.Decontamination` opens; a task of its own.

    Args:
        names: what stands in `against`, for messages.
        inputs: what was found there, each key being its place in the config.
        settings: `Decontamination.measuring`.
        out: folder, made where it is absent.

    Raises:
        DataError: an input that cannot be read, or one in which no text is long enough.
    """
    writer = _Writer(out, settings["ngram"], settings["min_words"])
    for name, source in zip(names, inputs, strict=True):
        before = writer.rows
        for row, texts in rows_of(name, source):
            writer.add(row, texts)
        writer.finish_batch()
        if writer.rows == before:
            held_out = "" if source.facts.kind == "file" else " held out"
            raise DataError(
                f"`{name}` has no text{held_out} of {settings['min_words']} words or more, so nothing of it can be"
                " looked for.",
                where=source.key,
                hint="Lower `min_words`, or leave it out: of an evaluation, name the data of the other tasks.",
            )
    writer.close()


class _Writer:
    """Writes an index; no more than a few million n-grams are in memory.

    Args:
        folder: where to, made where it is absent.
        ngram: words in an n-gram.
        min_words: texts of fewer words are left out.
    """

    def __init__(self, folder: Path, ngram: int, min_words: int) -> None:
        self._folder = folder
        self._ngram = ngram
        self._min_words = min_words
        self._runs = folder / "runs"
        self._runs.mkdir(parents=True, exist_ok=True)
        self._parts: list[Part] = []
        self._entries: list[Entries] = []
        self._held = self._total = 0
        self._sizes: set[int] = set()
        self._names = bytearray()
        self._name_starts = array("q", [0])
        self._last_name = ""
        self._texts: list[str] = []
        self._places: list[str] = []
        self._characters = 0

    @property
    def rows(self) -> int:
        """Rows with a text that is long enough, as far as batches are finished."""
        return len(self._name_starts) - 1

    def add(self, name: str, texts: Iterable[Iterable[str]]) -> None:
        """Append the texts of a row, each in pieces cut between words."""
        for text in texts:
            pieces = iter(text)
            first, second = next(pieces, ""), next(pieces, None)
            if second is not None:
                self._add_long(name, chain((first, second), pieces))
            elif len(first) >= self._min_words:
                self._texts.append(plain(first))
                self._places.append(name)
                self._characters += len(first)
                if self._characters >= _BATCH_CHARACTERS:
                    self.finish_batch()

    def finish_batch(self) -> None:
        """Put the texts that are waiting to the others."""
        self._put(words_of(self._texts), self._places)
        self._texts, self._places, self._characters = [], [], 0

    def _add_long(self, name: str, pieces: Iterable[str]) -> None:
        """A text in several pieces: the words at the end of one are looked at again with the next."""
        self.finish_batch()
        words = words_of(())
        whole = True
        for piece in pieces:
            hashes = np.concatenate([words.hashes, words_of([plain(piece)]).hashes])
            words = Words(hashes, np.array([0, len(hashes)]))
            if len(hashes) >= self._ngram:
                self._put(words, [name])
                words = Words(hashes[len(hashes) - self._ngram + 1 :], words.begins)
                whole = False
        if whole:
            self._put(words, [name])

    def _put(self, words: Words, names: Sequence[str]) -> None:
        """Append the n-grams of some texts, and what is shorter than one as a whole."""
        counts, size = words.counts, self._ngram
        short = (counts >= self._min_words) & (counts < size)
        numbers = np.array(
            [self._number(name) if count >= self._min_words else 0 for name, count in zip(names, counts, strict=True)],
            np.int64,
        )
        text = np.repeat(np.arange(len(counts)), counts)
        inside = np.flatnonzero(np.arange(len(text)) + size <= words.begins[text + 1])
        begins = np.concatenate([inside, words.begins[:-1][short]])
        ends = np.concatenate([inside + size, words.begins[1:][short]])
        keys = Running(words.hashes.copy()).hashes(begins, ends)
        self._sizes.update(np.unique(ends - begins).tolist())
        self._entries.append(Entries(keys, np.concatenate([numbers[text[inside]], numbers[short]])))
        self._held += len(keys)
        if self._held >= SHARE_ENTRIES:
            self._finish_run()

    def _number(self, name: str) -> int:
        """The number of a row; texts of one follow each other."""
        if name != self._last_name:
            self._last_name = name
            self._names += name.encode("utf-8", "backslashreplace")
            self._name_starts.append(len(self._names))
        return self.rows - 1

    def _finish_run(self) -> None:
        """Write the n-grams that are held in memory, each once, with the first row that has it."""
        if not self._held:
            return
        entries = join_entries(self._entries).in_order()
        folder = self._runs / f"{len(self._parts):05d}"
        folder.mkdir()
        entries = entries.take(group_starts(entries.key))
        save_entries(folder, _RUN, entries)
        # Numbers of rows are those of the whole index: no part has any before its own.
        self._parts.append(Part(folder, 0))
        self._total += len(entries)
        self._entries, self._held = [], 0

    def close(self) -> None:
        """Merge what was written into the index."""
        self._finish_run()
        size = 2 ** max(self._total * _BITS_OF_KEY, 8).bit_length() // 8
        table = np.lib.format.open_memmap(self._folder / _TABLE, "w+", np.uint8, (size,))
        count = 0
        shares = count_shares(self._parts, _RUN, SHARE_ENTRIES)
        with (self._runs / _KEY).open("wb") as keys, (self._runs / _ROW).open("wb") as rows:
            for share in range(shares):
                entries = load_share(self._parts, _RUN, share, shares)
                entries = entries.take(group_starts(entries.key))
                keys.write(entries.key.tobytes())
                rows.write(entries.row.astype(np.uint32).tobytes())
                for bits in (_first_bits(entries.key, table), _last_bits(entries.key, table)):
                    np.bitwise_or.at(table, bits >> 3, np.uint8(1) << (bits & 7).astype(np.uint8))
                count += len(entries)
        for name, kind in ((_KEY, np.uint64), (_ROW, np.uint32)):
            values = np.lib.format.open_memmap(self._folder / name, "w+", kind, (count,))
            values[:] = np.memmap(self._runs / name, kind, "r")
            values.flush()
        shutil.rmtree(self._runs)
        table.flush()
        np.save(self._folder / _SIZES, np.array(sorted(self._sizes), np.int64))
        np.save(self._folder / _NAMES, np.frombuffer(bytes(self._names), np.uint8))
        np.save(self._folder / _NAME_STARTS, np.array(self._name_starts, np.int64))


@dataclass(frozen=True, slots=True)
class Found:
    """Stretches of words that an index has, in the order in which they stand, [found] each.

    Args:
        begin: first words.
        end: the words behind them.
        row: number of the first row of the index that has them.
    """

    begin: Places
    end: Places
    row: Places


class Index:
    """An index that `write_index` has written.

    Args:
        folder: where it is.
    """

    def __init__(self, folder: Path) -> None:
        self._keys = _mapped(folder / _KEY)
        self._rows = _mapped(folder / _ROW)
        self._table = _mapped(folder / _TABLE)
        self._names = _mapped(folder / _NAMES)
        self._name_starts = _mapped(folder / _NAME_STARTS)
        self._sizes: list[int] = np.load(folder / _SIZES).tolist()

    def name(self, row: int) -> str:
        """Where the texts of a row stand."""
        begin, end = self._name_starts[row : row + 2].tolist()
        return self._names[begin:end].tobytes().decode()

    def find(self, words: Words) -> Found:
        """Where n-grams of the index, and its texts that are shorter than one, stand in some texts.

        Args:
            words: of the texts.
        """
        begins, ends, rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for first in range(0, len(words.hashes), _BLOCK):
            block = words.hashes[first : first + _BLOCK + self._sizes[-1] - 1]
            running = Running(block.copy())
            for size in self._sizes:
                place, row = self._look_up(running.windows(size)[:_BLOCK])
                place += first
                text = np.searchsorted(words.begins, place, side="right") - 1
                inside = place + size <= words.begins[text + 1]
                begins.append(place[inside])
                ends.append(place[inside] + size)
                rows.append(row[inside])
        begin, end, row = np.concatenate(begins), np.concatenate(ends), np.concatenate(rows)
        order = np.lexsort((end, begin))
        return Found(begin[order], end[order], row[order])

    def _look_up(self, hashes: Hashes) -> tuple[Places, Places]:
        """Places of the hashes that are keys, and the rows that have them."""
        table = self._table
        likely = np.flatnonzero(_is_set(table, _first_bits(hashes, table)))
        likely = likely[_is_set(table, _last_bits(hashes[likely], table))]
        wanted = hashes[likely]
        at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        real = self._keys[at] == wanted
        return likely[real], self._rows[at[real]].astype(np.int64)


def _mapped(file: Path) -> NDArray[Any]:
    """An array in a file, of which only what is looked at is read."""
    return np.asarray(np.load(file, mmap_mode="r"))


def _first_bits(keys: Hashes, table: NDArray[np.uint8]) -> Places:
    """As many bits of each key as number the bits of the table, from its beginning."""
    return (keys >> np.uint64(65 - (8 * len(table)).bit_length())).view(np.int64)


def _last_bits(keys: Hashes, table: NDArray[np.uint8]) -> Places:
    """As many bits of each key as number the bits of the table, at its end."""
    return (keys & np.uint64(8 * len(table) - 1)).view(np.int64)


def _is_set(table: NDArray[np.uint8], bits: Places) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = ((table[bits >> 3] >> (bits & 7).astype(np.uint8)) & 1).view(np.bool_)
    return found
