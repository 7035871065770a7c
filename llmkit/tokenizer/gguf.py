"""The tokenizer that a GGUF file's metadata describes, as a tokenizer of `tokenizers`.

Three kinds (`tokenizer.ggml.model`): "gpt2", byte-level BPE with merges and a named pre-tokenizer; "llama", the BPE of
SentencePiece, whose merges follow from the scores of the pieces; "bert", WordPiece.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer as Backend

from llmkit.errors import ModelError
from llmkit.store.gguf import GGUFFile
from llmkit.tokenizer.gguf_splits import BEGINS_WITH_BOS, NORMALIZED, SPLITS, WHOLE_WORDS_FIRST
from llmkit.tokenizer.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Types of tokens in `tokenizer.ggml.token_type`."""
SPACE = "▁"

ROLES = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "sep_token": "tokenizer.ggml.seperator_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "cls_token": "tokenizer.ggml.cls_token_id",
    "mask_token": "tokenizer.ggml.mask_token_id",
}
"""Special tokens of tokenizer_config.json and their keys (the format itself misspells one)."""

# What is taken where the file does not say, by kind, as llama.cpp does.
_DEFAULT_IDS = {
    "llama": {"bos_token": 1, "eos_token": 2, "unk_token": 0},
    "bert": {"unk_token": 100, "sep_token": 102, "pad_token": 0, "cls_token": 101, "mask_token": 103},
    "gpt2": {},
}
# Files of these architectures were long written without a pre-tokenizer's name, and have one kind alone.
_UNNAMED_GPT2 = ("gpt2", "gptneox")


def tokenizer_of_gguf(file: GGUFFile) -> Tokenizer:
    """The tokenizer of a GGUF file, with its chat template.

    Raises:
        ModelError: there is none, it is of an unknown kind, or its parts do not fit together.
    """
    where = str(file.path)
    kind = file.get("tokenizer.ggml.model", str)
    if kind not in _DEFAULT_IDS:
        raise ModelError(
            f"the tokenizer is of the kind {kind!r}, which is not supported.",
            where=where,
            hint=f"Known are {', '.join(_DEFAULT_IDS)}.",
        )
    tokens = list(file.get("tokenizer.ggml.tokens", list))
    types = list(file.get("tokenizer.ggml.token_type", list, [NORMAL] * len(tokens)))
    _check(tokens, types, where)
    roles = _roles(file, kind, tokens)
    definition = {"gpt2": _byte_level, "llama": _sentencepiece, "bert": _wordpiece}[kind](file, tokens, types, roles)
    definition |= {
        "version": "1.0",
        "added_tokens": _added(definition["model"]["vocab"], types, roles),
        "post_processor": _post_processor(file, kind, roles),
    }
    try:
        backend = Backend.from_str(json.dumps(definition, ensure_ascii=False))
    except Exception as error:  # `tokenizers` raises nothing more precise
        raise ModelError(f"the tokenizer's parts do not fit together: {error}.", where=where) from None
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **{role: text for role, (_, text) in roles.items()},
    }
    template = file.get("tokenizer.chat_template", str, None)
    if template is not None:
        settings["chat_template"] = template
    return Tokenizer(backend, settings)


def _check(tokens: Sequence[Any], types: Sequence[int], where: str) -> None:
    if not tokens or not all(isinstance(token, str) for token in tokens):
        raise ModelError("tokenizer.ggml.tokens must be a list of texts.", where=where)
    if len(types) < len(tokens):
        raise ModelError(f"there are {len(tokens)} tokens, but only {len(types)} token types.", where=where)
    if len(set(tokens)) != len(tokens):
        twice = next(token for index, token in enumerate(tokens) if token in tokens[:index])
        raise ModelError(f"the token {twice!r} occurs twice in tokenizer.ggml.tokens.", where=where)


def _roles(file: GGUFFile, kind: str, tokens: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Id and text of each special token that there is."""
    found = {}
    for role, key in ROLES.items():
        default = _DEFAULT_IDS[kind].get(role)
        index = file.get(key, int, default)
        if index is None or (key not in file.metadata and index >= len(tokens)):
            continue
        if not 0 <= index < len(tokens):
            raise ModelError(f"{key} is {index}, but there are {len(tokens)} tokens.", where=str(file.path))
        found[role] = (index, tokens[index])
    return found


def _byte_level(
    file: GGUFFile, tokens: Sequence[str], types: Sequence[int], roles: Mapping[str, tuple[int, str]]
) -> dict[str, Any]:
    where = str(file.path)
    unnamed = "gpt-2" if file.architecture in _UNNAMED_GPT2 else ...
    name = file.get("tokenizer.ggml.pre", str, unnamed)
    name = unnamed if name == "default" and unnamed is not ... else name
    if name not in SPLITS:
        raise ModelError(
            f"the pre-tokenizer {name!r} is not known.", where=where, hint=f"Known are {', '.join(sorted(SPLITS))}."
        )
    merges = []
    for merge in file.get("tokenizer.ggml.merges", list):
        # The first part may itself be a space, where a vocabulary is not in the byte alphabet.
        first, _, second = merge[1:].partition(" ") if isinstance(merge, str) else ("", "", "")
        if not second:
            raise ModelError(f"tokenizer.ggml.merges holds {merge!r}, which is no pair.", where=where)
        merges.append([merge[0] + first, second])
    steps = list(SPLITS[name])
    return {
        "normalizer": {"type": "NFC"} if name in NORMALIZED else None,
        "pre_tokenizer": steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": name in WHOLE_WORDS_FIRST,
            "vocab": {token: index for index, token in enumerate(tokens)}, "merges": merges,
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    }  # fmt: skip


def _sentencepiece(
    file: GGUFFile, tokens: Sequence[str], types: Sequence[int], roles: Mapping[str, tuple[int, str]]
) -> dict[str, Any]:
    scores = list(file.get("tokenizer.ggml.scores", list))
    if len(scores) < len(tokens):
        raise ModelError(f"there are {len(tokens)} tokens, but only {len(scores)} scores.", where=str(file.path))
    prefix = file.get("tokenizer.ggml.add_space_prefix", bool, True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    prepend = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": None,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": roles["unk_token"][1] if "unk_token" in roles else None,
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True,
            "ignore_merges": False, "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": merges_of_scores(tokens, types, scores),
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
    }  # fmt: skip


def merges_of_scores(tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Merges that do what SentencePiece's BPE does: of all pairs whose union is a piece, the best-scored union first.

    Unions of equal score follow their ids; among the pairs of one union the order is without effect on texts in which
    they do not overlap.
    """
    index = {token: place for place, token in enumerate(tokens) if types[place] == NORMAL}
    found = []
    for token, place in index.items():
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = sorted((index[a], index[b], a, b) for a, b in pairs if a in index and b in index)
        found += [(-scores[place], place, order, a, b) for order, (_, _, a, b) in enumerate(known)]
    return [(a, b) for *_, a, b in sorted(found)]


def _wordpiece(
    file: GGUFFile, tokens: Sequence[str], types: Sequence[int], roles: Mapping[str, tuple[int, str]]
) -> dict[str, Any]:
    lowercase = file.get("tokenizer.ggml.normalizer.lowercase", bool, True)
    return {
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
            "lowercase": lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {
            "type": "WordPiece", "unk_token": roles["unk_token"][1], "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": {_piece(token): index for index, token in enumerate(tokens)},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    }  # fmt: skip


def _piece(token: str) -> str:
    """A WordPiece entry: in the file, words begin with a mark and pieces that continue one with nothing."""
    if token.startswith("[") and token.endswith("]"):
        return token
    return token[len(SPACE) :] if token.startswith(SPACE) else f"##{token}"


def _added(
    vocabulary: Mapping[str, int], types: Sequence[int], roles: Mapping[str, tuple[int, str]]
) -> list[dict[str, Any]]:
    """Tokens that are found in a text as they are; special ones are control tokens."""
    special = {index for index, _ in roles.values()}
    return [
        {
            "id": index, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": types[index] != USER_DEFINED or index in special,
        }
        for text, index in vocabulary.items()
        if types[index] in (CONTROL, USER_DEFINED) or index in special
    ]  # fmt: skip


def _post_processor(file: GGUFFile, kind: str, roles: Mapping[str, tuple[int, str]]) -> dict[str, Any] | None:
    """What goes around a text that stands alone."""
    bos_default = kind == "llama" or file.metadata.get("tokenizer.ggml.pre") in BEGINS_WITH_BOS
    before = [role for role in ("bos_token",) if file.get("tokenizer.ggml.add_bos_token", bool, bos_default)]
    after = [role for role in ("eos_token",) if file.get("tokenizer.ggml.add_eos_token", bool, False)]
    if kind == "bert":
        before, after = ["cls_token"], ["sep_token"]
    before, after = ([role for role in part if role in roles] for part in (before, after))
    if not before and not after:
        return None

    def special(role: str, segment: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": roles[role][1], "type_id": segment}}

    def text(name: str, segment: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": segment}}

    single = [*(special(role, 0) for role in before), text("A", 0), *(special(role, 0) for role in after)]
    second = [] if kind == "bert" else [special(role, 1) for role in before]
    pair = [*single, *second, text("B", 1), *(special(role, 1) for role in after)]
    names = {roles[role][1]: roles[role][0] for role in (*before, *after)}
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": {
            token: {"id": token, "ids": [index], "tokens": [token]} for token, index in names.items()
        },
    }  # fmt: skip
