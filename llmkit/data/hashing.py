"""64-bit hashes of stretches of a sequence, found together by one running sum.

The hash of a stretch is the polynomial in a fixed odd base, modulo 2^64, whose coefficients are random numbers of its
elements (Karp & Rabin, 1987), mixed. It depends on the elements alone, not on where they stand.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

_BASE = 0x9E3779B97F4A7C15


def mix(x: Hashes) -> Hashes:
    """The finalizer of MurmurHash3: a bijection in which every bit depends on every bit."""
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))


def numbers_of(values: NDArray[np.integer]) -> Hashes:
    """A random number for each value, which is not negative; even and never 0."""
    return (mix((values.astype(np.uint64) + np.uint64(1)) * np.uint64(_BASE)) | np.uint64(2)) & ~np.uint64(1)


class Running:
    """Hashes of stretches of one sequence.

    Args:
        numbers: of its elements, [n]; overwritten. 0 stands for an element that is passed over.
        places: by which power each is multiplied, [n]; by default its index. An element passed over may share its
            place with the one behind it.
    """

    def __init__(self, numbers: Hashes, places: Places | None = None) -> None:
        powers, self._inverses = _powers(len(numbers).bit_length())
        numbers *= powers[: len(numbers)] if places is None else powers[places]
        self._sums = np.empty(len(numbers) + 1, np.uint64)
        self._sums[0] = 0
        np.cumsum(numbers, out=self._sums[1:])
        self._places = places

    def hashes(self, begins: Places, ends: Places) -> Hashes:
        """Of the stretches from each beginning, which is an element, to each end."""
        first = begins if self._places is None else self._places[begins]
        return mix((self._sums[ends] - self._sums[begins]) * self._inverses[first])

    def windows(self, size: int) -> Hashes:
        """Of all stretches of `size` elements, by their beginnings; for a sequence whose places are its indices."""
        sums, count = self._sums, max(len(self._sums) - size, 0)
        return mix((sums[len(sums) - count :] - sums[:count]) * self._inverses[:count])


@lru_cache(maxsize=4)
def _powers(bits: int) -> tuple[Hashes, Hashes]:
    """Powers of the base and of its inverse modulo 2^64, exponents from 0 to 2^bits."""
    powers = []
    for base in (_BASE, pow(_BASE, -1, 2**64)):
        factors = np.full(2**bits + 1, base, np.uint64)
        factors[0] = 1
        powers.append(np.multiply.accumulate(factors))
    return powers[0], powers[1]
