"""Models from a Hugging Face hub, through its own client and cache."""

from __future__ import annotations

from pathlib import Path

from llmkit.errors import ArtifactError

PREFIX = "hf:"
_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]


def download_model(name: str, where: str) -> Path:
    """Folder of a snapshot of a repository, downloaded unless it is in the cache; its name is the commit.

    Args:
        name: "owner/name", after the prefix "hf:".
        where: place of the name in a config or command, for messages.

    Raises:
        ArtifactError: there is no such repository, or no way to it.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_PATTERNS))
    except Exception as error:  # the client raises errors of many libraries, with the reason in the text
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(
            f"the hub repository `{name}` cannot be had: {reason}",
            where=where,
            hint="Name a local folder where there is no network.",
        ) from None
