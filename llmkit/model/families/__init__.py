"""The families of models that llmkit opens and saves; to add one, write its module and name it here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from llmkit.errors import ModelError
from llmkit.model.families.base import Family
from llmkit.model.families.bert import BERT
from llmkit.model.families.gpt2 import GPT2
from llmkit.model.families.llama import LLAMA

FAMILIES: dict[str, Family] = {family.name: family for family in (LLAMA, GPT2, BERT)}


def nearest_family(name: str) -> str:
    """The known family whose name is most like `name`."""
    return max(FAMILIES, key=lambda known: difflib.SequenceMatcher(None, known, name.lower()).ratio())


def family_of(settings: Mapping[str, Any], where: str) -> Family:
    """The family that a config.json belongs to; raises ModelError with the nearest known one."""
    name = settings.get("model_type")
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name]
    if "auto_map" in settings:
        raise ModelError(
            f"unknown model family {name!r} (model_type); the directory brings Python code for it, which is never run.",
            where=where,
            hint=f"Known are {', '.join(FAMILIES)}.",
        )
    raise ModelError(
        f"unknown model family {name!r} (model_type)",
        where=where,
        hint=f"Known are {', '.join(FAMILIES)}; the nearest is {nearest_family(str(name))}.",
    )
