"""Lists of what is blocked, read from files of one entry per line, and held as hashes: the lists of the University of
Toulouse (UT1) have millions of domains, which as strings would take hundreds of megabytes in every process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from llmkit.data.sources.files import READ_ERRORS, open_bytes
from llmkit.errors import DataError

_ENTRIES = 1 << 16
_BYTES = 8


class BlockList:
    """A set of strings of which nothing is kept but 64 bits of each one's BLAKE2b: 8 bytes an entry, however long. That
    a string which is not in a list of ten million is taken for one that is happens once in 10^12 times.

    Args:
        entries: the strings.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        found: list[NDArray[np.uint64]] = [np.zeros(0, np.uint64)]
        some: list[str] = []
        for entry in entries:
            some.append(entry)
            if len(some) == _ENTRIES:
                found.append(_hashes(some))
                some = []
        self._hashes = np.unique(np.concatenate([*found, _hashes(some)]))

    def __len__(self) -> int:
        return len(self._hashes)

    def holds(self, entries: Sequence[str]) -> NDArray[np.bool_]:
        """Which strings are in the list, [entries]."""
        if not len(self._hashes):
            return np.zeros(len(entries), bool)
        hashes = _hashes(entries)
        places = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        return np.asarray(self._hashes[places] == hashes)


def _hashes(entries: Sequence[str]) -> NDArray[np.uint64]:
    encoded = (entry.encode("utf-8", "surrogatepass") for entry in entries)
    digests = b"".join(hashlib.blake2b(entry, digest_size=_BYTES).digest() for entry in encoded)
    return np.frombuffer(digests, "<u8").astype(np.uint64)


def read_entries(files: Sequence[str], normal: Callable[[str], str], blanks: bool = False) -> Iterator[str]:
    """The entries of files, one on each line, in the form in which they are compared. Empty lines and those that begin
    with `#` are none.

    Args:
        files: paths, plain or compressed as their names say.
        normal: gives the form of an entry, nothing where there is nothing to compare; raises `ValueError` with what the
            entry is instead.
        blanks: whether an entry may have blanks in it.

    Raises:
        DataError: a file cannot be read, is no UTF-8, or has lines of another form.
    """
    for file in files:
        number = 0
        try:
            with open_bytes(file) as stream:
                for line in stream:
                    number += 1
                    entry = line.decode("utf-8").strip()
                    if not entry or entry.startswith("#"):
                        continue
                    if not blanks and len(entry.split()) > 1:
                        raise ValueError("more than one entry")
                    form = normal(entry)
                    if form:
                        yield form
        except UnicodeDecodeError:
            raise DataError("the list is no UTF-8.", where=f"{file}, line {number}") from None
        except READ_ERRORS as error:
            raise DataError(f"the list cannot be read: {error}.", where=file) from None
        except ValueError as error:
            hint = "A list has one entry on each line; of a hosts file, keep the names alone."
            raise DataError(f"`{entry[:80]}` is {error}.", where=f"{file}, line {number}", hint=hint) from None
