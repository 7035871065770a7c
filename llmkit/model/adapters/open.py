"""Opening a directory that holds an adapter alone: its base model is opened, and the adapter put on it."""

from __future__ import annotations

from pathlib import Path

import torch

from llmkit.errors import ModelError
from llmkit.model.adapters.attach import attached
from llmkit.model.adapters.peft import load_adapter, read_head
from llmkit.model.adapters.peft_config import CONFIG, is_adapter, read_peft_config
from llmkit.model.load import load_model
from llmkit.model.quantization.config import Quantization
from llmkit.model.transformer import Transformer
from llmkit.store.gguf import SUFFIX
from llmkit.store.hub import PREFIX, download_model


def base_directory(directory: Path) -> Path:
    """Where the base model of an adapter is: its directory, or GGUF file.

    The name in adapter_config.json is a path from the adapter's directory or from the working directory, the directory
    of a stage, or a hub name.

    Raises:
        ModelError: no base is named, or there is none there.
    """
    where, name = str(directory / CONFIG), read_peft_config(directory).base
    if name is None:
        raise ModelError("the adapter does not name its base model", where=where, hint="Set base_model_name_or_path.")
    for start in (directory, Path()):
        path = start / name
        if path.suffix == SUFFIX and path.is_file():
            return path
        for candidate in (path / "model", path):
            if (candidate / "config.json").is_file() and not is_adapter(candidate):
                return candidate
    name = name.removeprefix(PREFIX)
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise ModelError(f"the adapter's base model `{name}` is not there", where=where)
    return download_model(name, where)


def open_adapted(
    directory: Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    quantize: Quantization | None = None,
) -> Transformer:
    """The base model of an adapter with the adapter on it, in evaluation mode.

    Args:
        directory: of the adapter.
        dtype, device, quantize: of the base, as for `load_model`; the adapter is in float32.

    Raises:
        ModelError: as for `load_model` and `load_adapter`, or parts of the model are in neither.
    """
    base = base_directory(directory)
    head, labels = read_head(directory)
    # Saved embeddings would replace what a quantized head shares with them.
    model = load_model(
        base, head=head, labels=labels, dtype=dtype, device=device, quantize=quantize, quantize_head=False
    )
    load_adapter(model, directory)
    missing = sorted(set(model.new_parameters) - set(attached(model).trained))
    if missing:
        raise ModelError(
            f"neither the adapter nor its base model {base} holds {', '.join(missing)}", where=str(directory)
        )
    return model.eval()
