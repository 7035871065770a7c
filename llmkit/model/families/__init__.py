"""The families of models that llmkit opens and saves; to add one, write its module and name it here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from llmkit.errors import ModelError
from llmkit.model.families.base import Family
from llmkit.model.families.bert import BERT
from llmkit.model.families.distilbert import DISTILBERT
from llmkit.model.families.gemma import GEMMA, GEMMA2
from llmkit.model.families.gemma3 import GEMMA3, GEMMA3_MULTIMODAL
from llmkit.model.families.gpt2 import GPT2
from llmkit.model.families.gpt_neox import GPT_NEOX
from llmkit.model.families.gpt_oss import GPT_OSS
from llmkit.model.families.llama import LLAMA
from llmkit.model.families.mistral import MISTRAL
from llmkit.model.families.mixtral import MIXTRAL
from llmkit.model.families.modernbert import MODERNBERT
from llmkit.model.families.olmo2 import OLMO2
from llmkit.model.families.phi3 import PHI3
from llmkit.model.families.qwen2 import QWEN2, QWEN3
from llmkit.model.families.qwen3_moe import QWEN3_MOE
from llmkit.model.families.roberta import ROBERTA, XLM_ROBERTA

_DECODERS = (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3, PHI3, OLMO2, GPT_NEOX, GPT2)
_ROUTED = (MIXTRAL, QWEN3_MOE, GPT_OSS)
_ENCODERS = (BERT, ROBERTA, XLM_ROBERTA, DISTILBERT, MODERNBERT)
_PARTS_OF_OTHERS = (GEMMA3_MULTIMODAL,)

FAMILIES: dict[str, Family] = {family.name: family for family in (*_DECODERS, *_ROUTED, *_ENCODERS)}

_OPENED: dict[str, Family] = {**FAMILIES, **{family.name: family for family in _PARTS_OF_OTHERS}}


def nearest_family(name: str) -> str:
    """The known family whose name is most like `name`."""
    return max(FAMILIES, key=lambda known: difflib.SequenceMatcher(None, known, name.lower()).ratio())


def family_of(settings: Mapping[str, Any], where: str) -> Family:
    """The family that a config.json belongs to; raises ModelError with the nearest known one."""
    name = settings.get("model_type")
    if isinstance(name, str) and name in _OPENED:
        return _OPENED[name]
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
