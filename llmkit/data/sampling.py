"""Which window is read when: a pure function of seed and step, in constant memory and time.

A shuffled epoch is a keyed permutation of the windows, so the batch of any step is found without the ones before it,
and resuming at the millionth step costs what the first one does.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from llmkit.errors import DataError


class KeyedPermutation:
    """A bijection on range(n) chosen by a key; each index is computed by itself, no table is made.

    A balanced Feistel network of eight rounds permutes the numbers of the least even count of bits that holds n; a
    result outside of range(n) is permuted again until it falls inside (cycle walking: Black & Rogaway, "Ciphers with
    Arbitrary Finite Domains", CT-RSA 2002), which takes fewer than four turns on average. The round function is the
    finalizer of MurmurHash3 over the half and a round key; the round keys are sha512 of the key. Good for shuffling,
    no cipher.

    Args:
        n: size of the domain, 1 <= n <= 2**62.
        key: any text; another key gives another permutation.
    """

    def __init__(self, n: int, key: str) -> None:
        if not 1 <= n <= 2**62:
            raise ValueError(f"a permutation of {n} things is out of range")
        self._n = n
        self._half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        self._keys = np.frombuffer(hashlib.sha512(key.encode()).digest(), dtype="<u8").astype(np.uint64)

    def __len__(self) -> int:
        return self._n

    def __call__(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where each index goes.

        Args:
            indices: numbers in range(n), [k].

        Returns:
            numbers in range(n), [k].

        Raises:
            IndexError: an index outside of range(n).
        """
        if indices.size and not 0 <= indices.min() <= indices.max() < self._n:
            raise IndexError(f"an index lies outside of range({self._n})")
        out = self._permute(indices.astype(np.uint64))
        outside = np.flatnonzero(out >= self._n)
        while outside.size:
            out[outside] = self._permute(out[outside])
            outside = outside[out[outside] >= self._n]
        return out.astype(np.int64)

    def _permute(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & self._mask)
        return (left << self._half) | right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    x = (x ^ (x >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> np.uint64(33))


class EpochSampler:
    """Batches of indices, epoch after epoch, each epoch a permutation of its own.

    Every epoch holds every index exactly once; a batch may take its first part from the end of one epoch and the rest
    from the next. What a step gets depends on (n, batch, seed, step) alone.

    Args:
        n: how many things there are to sample from.
        batch: indices in the batch of one step, over all ranks.
        seed: chooses the permutations.

    Raises:
        DataError: there is nothing to sample from.
    """

    def __init__(self, n: int, batch: int, seed: int) -> None:
        if n < 1:
            raise DataError(
                "the data does not fill a single training window.", hint="Use more data, or a shorter length."
            )
        if batch < 1:
            raise ValueError(f"a batch of {batch}")
        self._n = n
        self._batch = batch
        self._seed = seed

    def epoch(self, step: int) -> int:
        """The epoch from which the first index of a step is taken."""
        return step * self._batch // self._n

    def indices(self, step: int, rank: int = 0, world: int = 1) -> NDArray[np.int64]:
        """Indices of a step's batch, or of one rank's part of it.

        The parts of ranks 0, 1, ... put one behind another are the whole batch; where `world` does not divide it, they
        differ in length by one.
        """
        begin, end = self._batch * rank // world, self._batch * (rank + 1) // world
        return self.at(step * self._batch + np.arange(begin, end, dtype=np.int64))

    def at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices at places of the endless row of epochs, [k]."""
        epochs, offsets = np.divmod(positions, self._n)
        out = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            out[here] = KeyedPermutation(self._n, f"{self._seed}/{epoch}")(offsets[here])
        return out
