"""llmkit: from raw text to an aligned, evaluated language model, as a chain of stages driven by YAML.

Importing this package loads nothing heavy; `load` imports torch when it is called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmkit.inference import LoadedModel

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(
    path_or_name: str, dtype: str | None = None, device: str | None = None, quantize: str | None = None
) -> LoadedModel:
    """Open a model directory or a hub name; see `llmkit.inference.load`."""
    from llmkit.inference import load as load_model

    return load_model(path_or_name, dtype=dtype, device=device, quantize=quantize)


def __dir__() -> list[Any]:
    return sorted(__all__)
