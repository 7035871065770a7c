"""The files by which a directory says how its body's output becomes one vector for a text. No torch.

They are those of sentence-transformers (Reimers & Gurevych 2019): `modules.json` lists what follows on the body, a
folder for each; `sentence_bert_config.json` says how much of a text is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmkit.errors import ModelError
from llmkit.model.config import ModelConfig

MODULES = "modules.json"
_LENGTH = "sentence_bert_config.json"
_PROMPTS = "config_sentence_transformers.json"
_POOLING_FOLDER, _NORMALIZE_FOLDER = "1_Pooling", "2_Normalize"
_FOLDER = re.compile(r"[A-Za-z0-9_-]{1,100}")
_POOLING = {"cls": "first", "lasttoken": "last", "mean": "mean"}
_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
"""How releases before 6 say which pooling it is: true for one of these."""

ReadJson = Callable[[Path], Mapping[str, Any]]


def read_embedding_settings(directory: Path, read_json: ReadJson) -> dict[str, Any] | None:
    """Settings of an embedding head: pooling, normalize_embedding and, where it is said, embedding_context.

    Args:
        directory: a model directory.
        read_json: reads a JSON object, raising ModelError.

    Returns:
        None where the directory is no sentence model.

    Raises:
        ModelError: the files are damaged, or ask for what an embedding head does not do.
    """
    where = directory / MODULES
    if not where.is_file():
        return None
    modules = _read_modules(where)
    kinds = [kind for kind, _ in modules]
    if "Pooling" not in kinds:
        return None
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]) or modules[0][1]:
        raise ModelError(
            f"modules {', '.join(kinds)} are not supported, only Transformer, Pooling and Normalize, in this order",
            where=str(where),
        )
    if not _FOLDER.fullmatch(modules[1][1]):
        raise ModelError(f"{modules[1][1][:200]!r} is not the name of a folder here", where=str(where))
    settings = {
        "pooling": _read_pooling(directory / modules[1][1] / "config.json", read_json),
        "normalize_embedding": kinds[-1] == "Normalize",
    }
    _refuse_prompt(directory / _PROMPTS, read_json)
    return settings | _read_length(directory, read_json)


def _read_modules(path: Path) -> list[tuple[str, str]]:
    """Kind and folder of each module, in their order."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        return [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in listed]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise ModelError("must hold a list of modules, each with a type and a path", where=str(path)) from None


def _read_pooling(path: Path, read_json: ReadJson) -> str:
    settings = read_json(path)
    mode = settings.get("pooling_mode", [name for name, flag in _FLAGS.items() if settings.get(flag)] or "mean")
    if isinstance(mode, list) and len(mode) == 1:
        mode = mode[0]
    if not isinstance(mode, str) or mode not in _POOLING:
        raise ModelError(f"pooling {mode!r} is not supported, only {', '.join(_POOLING)} are", where=str(path))
    return _POOLING[mode]


def _refuse_prompt(path: Path, read_json: ReadJson) -> None:
    name = read_json(path).get("default_prompt_name") if path.is_file() else None
    if name is not None:
        raise ModelError(
            f"default_prompt_name: {name!r} puts words before each text, which is not supported",
            where=str(path),
            hint="Set it to null, and write the prompt before your texts yourself.",
        )


def _read_length(directory: Path, read_json: ReadJson) -> dict[str, int]:
    """How many tokens of a text are read; releases from 6 on leave it to the tokenizer's settings."""
    path = directory / _LENGTH
    settings = read_json(path) if path.is_file() else {}
    if settings.get("do_lower_case"):
        raise ModelError("do_lower_case is not supported: lowercasing is the tokenizer's", where=str(path))
    length = settings.get("max_seq_length")
    if length is None and (directory / "tokenizer_config.json").is_file():
        path = directory / "tokenizer_config.json"
        length = read_json(path).get("model_max_length")
        # Written for "unlimited" is 1e30.
        length = length if isinstance(length, int) and length < 10**9 else None
    if length is None:
        return {}
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise ModelError(f"max_seq_length: {length!r} is no number of tokens", where=str(path))
    return {"embedding_context": length}


def embedding_files(config: ModelConfig) -> dict[str, Mapping[str, Any] | list[dict[str, Any]]]:
    """The JSON files, by name, that have sentence-transformers open a directory as this embedding model.

    In the form of its releases before 6, which all read.
    """
    kinds = {"Transformer": "", "Pooling": _POOLING_FOLDER}
    if config.normalize_embedding:
        kinds["Normalize"] = _NORMALIZE_FOLDER
    modules = [
        {"idx": index, "name": str(index), "path": folder, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, folder) in enumerate(kinds.items())
    ]
    pooling = {flag: _POOLING.get(mode) == config.pooling for mode, flag in _FLAGS.items()}
    files: dict[str, Mapping[str, Any] | list[dict[str, Any]]] = {
        MODULES: modules,
        f"{_POOLING_FOLDER}/config.json": {"word_embedding_dimension": config.width, **pooling},
        _LENGTH: {"max_seq_length": config.embedding_context, "do_lower_case": False},
    }
    if config.normalize_embedding:
        # Its folder must be there.
        files[f"{_NORMALIZE_FOLDER}/config.json"] = {}
    return files
