"""Metrics of predicted classes: accuracy, F1, and Matthews' correlation coefficient.

The statistics of an example are three indicators for each class (it is the true one, the predicted one, both), so that
sums of them are the margins and the diagonal of the confusion matrix, which is all that these metrics need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from llmkit.eval.metrics.base import Floats, Metric


class Labelled(NamedTuple):
    """Numbers of the true and of the predicted class."""

    true: int
    predicted: int


class Margins(NamedTuple):
    """Of each class how many examples are in it, how many are said to be, and how many are both; each [R, C]."""

    true: Floats
    predicted: Floats
    both: Floats


def accuracy(classes: int) -> Metric[Labelled]:
    """Share of examples whose class is the predicted one."""
    return _of_margins("accuracy", "correct over all", classes, lambda m: m.both.sum(1) / m.true.sum(1))


def macro_f1(classes: int) -> Metric[Labelled]:
    """Unweighted mean over classes of F1 = 2 x both / (true + predicted), of the classes that occur."""

    def combine(margins: Margins) -> Floats:
        either = margins.true + margins.predicted
        f1 = 2 * margins.both / np.maximum(either, 1)
        mean: Floats = f1.sum(1) / (either > 0).sum(1)
        return mean

    return _of_margins("macro_f1", "mean F1 of the classes that are true or predicted somewhere", classes, combine)


def micro_f1(classes: int) -> Metric[Labelled]:
    """F1 of all classes' counts together; equal to accuracy where each example has one class."""

    def combine(margins: Margins) -> Floats:
        quotient: Floats = 2 * margins.both.sum(1) / (margins.true.sum(1) + margins.predicted.sum(1))
        return quotient

    return _of_margins("micro_f1", "F1 of the counts of all classes", classes, combine)


def matthews(classes: int) -> Metric[Labelled]:
    """Matthews' correlation coefficient of any number of classes (R_K, Gorodkin 2004); 0 where it is undefined."""

    def combine(margins: Margins) -> Floats:
        total = margins.true.sum(1)
        covariance = margins.both.sum(1) * total - (margins.true * margins.predicted).sum(1)
        true_variance = total**2 - (margins.true**2).sum(1)
        predicted_variance = total**2 - (margins.predicted**2).sum(1)
        product = np.sqrt(true_variance) * np.sqrt(predicted_variance)
        coefficient: Floats = np.where(product > 0, covariance / np.where(product > 0, product, 1.0), 0.0)
        return coefficient

    return _of_margins("mcc", "R_K (Gorodkin 2004), 0 where one side has a single class", classes, combine)


def _of_margins(name: str, signature: str, classes: int, combine: Callable[[Margins], Floats]) -> Metric[Labelled]:
    def statistics(examples: Sequence[Labelled]) -> Floats:
        identity = np.eye(classes)
        true = identity[[example.true for example in examples]]
        predicted = identity[[example.predicted for example in examples]]
        return np.concatenate([true, predicted, true * predicted], axis=1)

    def of_sums(totals: Floats) -> Floats:
        true, predicted, both = np.split(totals, 3, axis=1)
        return combine(Margins(true, predicted, both))

    return Metric(name, f"{signature} | {classes} classes", "higher", statistics, of_sums)
