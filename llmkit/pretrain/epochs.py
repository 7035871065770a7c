"""Weights that follow the sizes of the sources, and shares that no source is read too often for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llmkit.data.loader import TokenWindows
from llmkit.errors import DataError
from llmkit.pretrain.config import PretrainConfig
from llmkit.pretrain.course import Course
from llmkit.pretrain.mixture import Mixture

_ROUNDS = 1000
_CLOSE = 1e-6


def mixture_of(config: PretrainConfig, course: Course, windows: Sequence[TokenWindows]) -> Mixture:
    """The shares that the settings ask for, of sources of these sizes.

    A source whose share would read it more often than its `max_epochs` gets a smaller one, and the others have the rest
    in their proportions.

    Args:
        config: weights, temperature and limits.
        course: of the training.
        windows: the training split of each source, of the longest length.

    Raises:
        DataError: all sources together may not be read often enough for so long a training.
    """
    sources = list(config.sources.values())
    weights = [source.weight for source in sources]
    by_phase = [phase.weights for phase in config.phases]
    scales = np.ones(len(sources))
    if config.temperature is not None:
        sizes = np.array([each.targets for each in windows], dtype=np.float64)
        scales = (sizes / sizes.max()) ** (1 / config.temperature)
    limits = [np.inf if source.max_epochs is None else source.max_epochs for source in sources]
    # Of each phase a part of a window may be left over, and counts differ from shares by some sequences.
    spare = len(course.stretches) * (2 + len(sources) / 2)
    room = np.array([limit * len(each) - spare for limit, each in zip(limits, windows, strict=True)])
    if (room <= 0).any():
        raise _too_few(sources[int(np.argmax(room <= 0))].data, course)
    pieces = np.array([[each.pieces(stretch.length) for each in windows] for stretch in course.stretches])
    for _ in range(_ROUNDS):
        mixture = Mixture(weights, course, by_phase, scales.tolist())
        used = windows_used(mixture, course, pieces)
        over = used > room * (1 + _CLOSE)
        if not over.any():
            return mixture
        scales = np.where(over, scales * _smaller(used, room), scales)
        if not scales.max() > 0:
            break
        scales /= scales.max()
    raise _too_few(sources[int(np.argmax(used / room))].data, course)


def windows_used(mixture: Mixture, course: Course, pieces: NDArray[np.int64]) -> NDArray[np.float64]:
    """Windows of each source that the shares come to, [S].

    Args:
        mixture: the shares.
        course: of the training.
        pieces: sequences of each phase that a window of each source is cut into, [phases, S].
    """
    bounds = np.array([*(float(stretch.rows_before) for stretch in course.stretches), float(course.rows)])
    used: NDArray[np.float64] = (np.diff(mixture.expected(bounds), axis=0) / pieces).sum(0)
    return used


def _smaller(used: NDArray[np.float64], room: NDArray[np.float64]) -> NDArray[np.float64]:
    """What to multiply a weight by for its share to shrink from `used` to `room`, the others' being as they are."""
    total = used.sum()
    wanted, has = np.minimum(room / total, 1 - 1e-12), np.minimum(used / total, 1 - 1e-12)
    factor: NDArray[np.float64] = wanted * (1 - has) / np.maximum(has * (1 - wanted), 1e-300)
    return factor


def _too_few(name: str, course: Course) -> DataError:
    tokens = f"{course.tokens:,}"
    return DataError(
        f"with `max_epochs` the sources do not last for the training's {tokens} tokens; `{name}` is too small.",
        hint="Train for fewer steps, raise `max_epochs`, or add text.",
    )
