"""The tasks by kind. Everything else reaches a task through this table; adding one is adding a row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmkit.eval.tasks.base import Task
from llmkit.eval.tasks.choice import Choice
from llmkit.eval.tasks.classification import Classification
from llmkit.eval.tasks.generate import Generate
from llmkit.eval.tasks.masked import Masked
from llmkit.eval.tasks.perplexity import Perplexity
from llmkit.eval.tasks.preferences import Preferences

TASKS: Mapping[str, type[Task[Any]]] = {
    "perplexity": Perplexity,
    "masked": Masked,
    "generate": Generate,
    "classification": Classification,
    "preferences": Preferences,
    "choice": Choice,
}
