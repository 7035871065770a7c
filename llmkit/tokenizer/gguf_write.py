"""A tokenizer as the metadata of a GGUF file, from which llama.cpp makes the same ids. No reading of it: `gguf.py`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from llmkit.errors import ModelError
from llmkit.tokenizer.gguf import BYTE, CONTROL, NORMAL, ROLES, SPACE, UNKNOWN, UNUSED, USER_DEFINED, merges_of_scores
from llmkit.tokenizer.gguf_splits import SPLITS, WHOLE_WORDS_FIRST, Step
from llmkit.tokenizer.tokenizer import Tokenizer

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_NEUTRAL = ("trim_offsets",)


def gguf_of_tokenizer(tokenizer: Tokenizer, vocab_size: int, pre: str | None = None) -> dict[str, Any]:
    """The `tokenizer.*` keys of a file.

    Args:
        tokenizer: byte-level BPE, or BPE with byte fallback as of SentencePiece.
        vocab_size: rows of the model's embedding; ids beyond the vocabulary are filled up with unused tokens.
        pre: the name of the pre-tokenizer that llama.cpp is to use where it has none that is exactly the tokenizer's.

    Raises:
        ModelError: llama.cpp would make other ids of some text.
    """
    definition = tokenizer.definition
    model = definition["model"]
    if model["type"] != "BPE":
        raise ModelError(f"GGUF files are not written with a {model['type']} tokenizer, only with BPE.")
    if tokenizer.vocab_size > vocab_size:
        raise ModelError(f"the tokenizer has {tokenizer.vocab_size} ids, the model only {vocab_size}.")
    tokens, types = _tokens(definition, vocab_size)
    found = _sentencepiece(definition, tokens, types) if model.get("byte_fallback") else _byte_level(definition, pre)
    roles = {
        key: index
        for role, key in ROLES.items()
        if (index := getattr(tokenizer, f"{role.removesuffix('_token')}_id")) is not None
    }
    before, after = tokenizer.frame_ids
    if before not in ([], [tokenizer.bos_id]) or after not in ([], [tokenizer.eos_id]):
        raise ModelError("the tokenizer puts more around a text than a first and a last token.")
    found |= {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        **roles,
        "tokenizer.ggml.add_bos_token": bool(before),
        "tokenizer.ggml.add_eos_token": bool(after),
    }
    if tokenizer.end_of_turn_id is not None and tokenizer.end_of_turn_id != tokenizer.eos_id:
        found["tokenizer.ggml.eot_token_id"] = tokenizer.end_of_turn_id
    if tokenizer.chat_template is not None:
        found["tokenizer.chat_template"] = tokenizer.chat_template
    return found


def _tokens(definition: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Text and type of each id."""
    tokens = [f"[PAD{index}]" for index in range(size)]
    types = [UNUSED] * size
    unknown = definition["model"].get("unk_token")
    for text, index in definition["model"]["vocab"].items():
        tokens[index], types[index] = text, BYTE if _BYTE.fullmatch(text) else NORMAL
    for added in definition["added_tokens"]:
        index = added["id"]
        tokens[index], types[index] = added["content"], CONTROL if added["special"] else USER_DEFINED
        if added["content"] == unknown:
            types[index] = UNKNOWN
    if len(set(tokens)) != size:
        raise ModelError("two ids of the tokenizer have the same text.")
    return tokens, types


def _byte_level(definition: Mapping[str, Any], pre: str | None) -> dict[str, Any]:
    model = definition["model"]
    if (definition["decoder"] or {}).get("type") != "ByteLevel":
        raise ModelError("GGUF files are written only with byte-level BPE, or with BPE with byte fallback.")
    if (definition["normalizer"] or {"type": "NFC"})["type"] != "NFC":
        raise ModelError(f"llama.cpp has no normalizer {definition['normalizer']['type']} before byte-level BPE.")
    name = _pre_tokenizer(definition, bool(model.get("ignore_merges"))) or pre
    if name is None:
        raise ModelError(
            "llama.cpp has no pre-tokenizer that cuts every text as this tokenizer does.",
            hint="--pre-tokenizer names one to use nevertheless. Of llmkit's own tokenizers, smaug-bpe (digits: 3) and "
            "stablelm2 (digits: 1) cut all texts without combining marks (such as Hindi's vowel signs) the same way.",
        )
    if name not in SPLITS:
        raise ModelError(f"the pre-tokenizer {name!r} is not known.", hint=f"Known are {', '.join(sorted(SPLITS))}.")
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.merges": [
            merge if isinstance(merge, str) else f"{merge[0]} {merge[1]}" for merge in model["merges"]
        ],
    }


def _pre_tokenizer(definition: Mapping[str, Any], whole_words_first: bool) -> str | None:
    steps = _plain(_flat(definition["pre_tokenizer"]))
    for name, known in SPLITS.items():
        if _plain(known) == steps and (name in WHOLE_WORDS_FIRST) == whole_words_first:
            return name
    return None


def _flat(step: Mapping[str, Any] | None) -> list[Step]:
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [inner for part in step["pretokenizers"] for inner in _flat(part)]
    return [dict(step)]


def _plain(steps: Sequence[Step]) -> list[Step]:
    """Steps without what leaves the ids as they are."""
    return [{key: value for key, value in step.items() if key not in _NEUTRAL} for step in steps]


def _sentencepiece(definition: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> dict[str, Any]:
    merges = [
        tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in definition["model"]["merges"]
    ]
    ranks: dict[str, int] = {}
    for first, second in merges:
        ranks.setdefault(first + second, len(ranks))
    scores = [-float(ranks[token]) if token in ranks else -float(len(ranks) + 1) for token in tokens]
    # llama.cpp knows scores of pieces, no merges: it joins whatever makes a piece, the best-scored first.
    implied = merges_of_scores(tokens, types, scores)
    same = sorted(implied) == sorted(merges) and [a + b for a, b in implied] == [a + b for a, b in merges]
    if not same:
        raise ModelError("the tokenizer's merges do not follow from scores of its pieces, as llama.cpp needs them.")
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": _prefixed(definition),
    }


def _prefixed(definition: Mapping[str, Any]) -> bool:
    """Whether a space is put before a text; refuses normalizers beyond the marking of spaces."""
    normalizer = definition["normalizer"]
    parts = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    steps = _flat(definition["pre_tokenizer"])
    metaspace = [step for step in steps if step["type"] == "Metaspace"]
    marked = bool(metaspace) or any(
        part["type"] == "Replace" and part["pattern"] == {"String": " "} and part["content"] == SPACE for part in parts
    )
    # Spaces have become marks before Gemma's split at spaces, which so does nothing.
    others = [part for part in parts if part["type"] not in ("Prepend", "Replace")]
    others += [step for step in steps if step["type"] != "Metaspace" and step.get("pattern") != {"String": " "}]
    if not marked or others:
        raise ModelError("the tokenizer prepares texts in a way that llama.cpp does not know.")
    return any(part["type"] == "Prepend" for part in parts) or any(
        step.get("prepend_scheme", "always") != "never" for step in metaspace
    )
