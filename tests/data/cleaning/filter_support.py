"""What filters say of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmkit.data.cleaning.base import Dropped, Filter
from llmkit.data.cleaning.config import CleaningConfig
from llmkit.data.cleaning.pipeline import filters
from llmkit.store.documents import Document


def make_filter(name: str, **settings: Any) -> Filter:
    """A filter as a config asks for it."""
    nothing = dict.fromkeys(CleaningConfig.model_fields)
    (found,) = filters(CleaningConfig.model_validate({**nothing, name: settings}))
    return found


def measure(found: Filter, texts: Sequence[str]) -> dict[str, list[Any]]:
    """The columns of a filter, which are those that it says it has."""
    measured = found.measure([Document("", text, "s", "p") for text in texts])
    assert list(measured) == list(found.columns)
    return {name: np.asarray(values).tolist() for name, values in measured.items()}


def verdicts(found: Filter, measured: Mapping[str, Sequence[Any]]) -> list[Dropped | None]:
    """What a filter says of measures, which it gets in the types that they are kept in."""
    types = {name: object if kind == "string" else kind for name, kind in found.columns.items()}
    return found.judge({name: np.array(measured[name], kind) for name, kind in types.items()})


def reasons(found: Filter, texts: Sequence[str]) -> list[str | None]:
    """Why each text is dropped."""
    return [verdict and verdict.reason for verdict in verdicts(found, measure(found, texts))]
