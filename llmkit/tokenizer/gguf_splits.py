"""How the pre-tokenizers that GGUF files name cut a text before byte-level BPE, as steps of `tokenizers`.

A GGUF file says "llama-bpe" where tokenizer.json has a regular expression. The names and what they stand for are
llama.cpp's (src/llama-vocab.cpp); the expressions are those of the tokenizers that it imitates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Step = dict[str, Any]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_FIRST = r"[^\r\n\p{L}\p{N}]?"
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _split(pattern: str) -> Step:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _bytes(use_regex: bool) -> Step:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _words(digits: str) -> tuple[Step, ...]:
    return (_split(rf"{_CONTRACTIONS}|{_FIRST}\p{{L}}+|{digits}|{_REST}"), _bytes(use_regex=False))


_GPT2 = (_bytes(use_regex=True),)
_DIGITS = ({"type": "Digits", "individual_digits": True}, _bytes(use_regex=True))
_LLAMA3 = _words(r"\p{N}{1,3}")
_QWEN2 = _words(r"\p{N}")
_QWEN35 = (
    _split(
        rf"{_CONTRACTIONS}|{_FIRST}[\p{{L}}\p{{M}}]+|\p{{N}}"
        r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    _bytes(use_regex=False),
)
_TEKKEN = (
    _split(rf"{_FIRST}{_UPPER}*{_LOWER}+|{_FIRST}{_UPPER}+{_LOWER}*|\p{{N}}|{_CASED_REST}"),
    _bytes(use_regex=False),
)
_GPT4O = (
    _split(
        rf"{_FIRST}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_FIRST}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
        rf"|\p{{N}}{{1,3}}|{_CASED_REST}"
    ),
    _bytes(use_regex=False),
)
_DEEPSEEK3 = (
    _split(r"\p{N}{1,3}"),
    _split("[一-龥぀-ゟ゠-ヿ]+"),
    _split(
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    _bytes(use_regex=False),
)

SPLITS: Mapping[str, tuple[Step, ...]] = {
    # The first name of each kind is the one written.
    **dict.fromkeys(
        ("gpt-2", "phi-2", "mpt", "olmo", "jais", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "gigachat",
         "a.x-4.0", "mellum", "modern-bert", "exaone4", "trillion", "granite-docling", "jina-v1-en", "jina-v2-code",
         "roberta-bpe"), _GPT2,
    ),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"), _DIGITS
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano",
         "dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), _LLAMA3,
    ),
    **dict.fromkeys(
        ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open"), _QWEN2
    ),
    "qwen35": _QWEN35,
    "tekken": _TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _GPT4O),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm"), _DEEPSEEK3),
}  # fmt: skip
"""Steps of `pre_tokenizer` in tokenizer.json by the name in `tokenizer.ggml.pre`."""

WHOLE_WORDS_FIRST = frozenset(
    {"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "glm4",
     "tekken"}
)  # fmt: skip
"""Names under which a piece that is itself in the vocabulary is taken as it is, whatever the merges say."""

BEGINS_WITH_BOS = WHOLE_WORDS_FIRST - {"glm4"}
"""Names under which a text begins with the beginning-of-text token, unless the file says otherwise."""

NORMALIZED = frozenset({"qwen2"})
"""Names whose tokenizers bring text into normal form C first, as those that they stand for do; llama.cpp does not."""


def name_of(steps: tuple[Step, ...], whole_words_first: bool) -> str | None:
    """The name of a pre-tokenizer, or None where none is exactly this."""
    for name, known in SPLITS.items():
        if known == steps and (name in WHOLE_WORDS_FIRST) == whole_words_first:
            return name
    return None
