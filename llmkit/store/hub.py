"""Models from a Hugging Face hub, through its own client and cache."""

from __future__ import annotations

import re
from pathlib import Path

from llmkit.errors import ArtifactError

PREFIX = "hf:"
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w.-]+(/[\w.-]+)*)?", re.ASCII)

_SETTINGS = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    # How sentence models make one vector of a text.
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "*_Pooling/config.json",
]
_SAFETENSORS = ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"]
_ADAPTER = ["adapter_config.json", "adapter_model.safetensors"]
_PICKLED = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"]


def download_model(name: str, where: str) -> Path:
    """Folder of a snapshot of a repository, downloaded unless it is in the cache; its name is the commit.

    Only files that llmkit reads are asked for, and pytorch_model.bin only where there are no safetensors.

    Args:
        name: "owner/name", after the prefix "hf:", or "owner/name@revision" for a branch, tag or commit.
        where: place of the name in a config or command, for messages.

    Raises:
        ArtifactError: the name is none, there is no such repository or revision, or no way to it.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise ArtifactError(
            f"`{name[:200]}` is no name of a hub repository.",
            where=where,
            hint="Write hf:owner/name, or hf:owner/name@revision.",
        )
    folder = _fetch(name, where, [*_SETTINGS, *_SAFETENSORS, *_ADAPTER])
    weights = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors")
    if any((folder / file).exists() for file in weights):
        return folder
    return _fetch(name, where, [*_SETTINGS, *_PICKLED])


def _fetch(name: str, where: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
    except Exception as error:  # the client raises errors of many libraries, with the reason in the text
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(
            f"the hub repository `{name}` cannot be had: {reason}",
            where=where,
            hint="Name a local folder where there is no network.",
        ) from None
