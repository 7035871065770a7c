"""Which layers have a window, in the forms of transformers 4 and 5. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llmkit.model.config import ModelConfig
from llmkit.model.families.rope import GLOBAL, LOCAL

_MOST_LAYERS = 10_000


def read_local_layers(
    settings: Mapping[str, Any], values: dict[str, Any], window: int | None, is_local: Callable[[int], bool]
) -> None:
    """Set window and local_layers of `values`, which must hold the number of layers.

    Args:
        settings: of config.json, where `sliding_window` may be null.
        values: of the ModelConfig.
        window: what the reference takes where config.json leaves `sliding_window` out.
        is_local: which layers have it where config.json leaves `layer_types` out, as releases before 4.53 did.

    Raises:
        ValueError: `layer_types` are not one known kind for each layer, or the window is no whole number.
    """
    chosen = settings.get("sliding_window", window)
    if chosen is not None and (not isinstance(chosen, int) or isinstance(chosen, bool)):
        raise ValueError(f"sliding_window: {chosen!r} is no whole number")
    if values["layers"] > _MOST_LAYERS:
        raise ValueError(f"{values['layers']} layers are more than {_MOST_LAYERS}")
    kinds = settings.get("layer_types")
    if kinds is None:
        kinds = [LOCAL if chosen is not None and is_local(layer) else GLOBAL for layer in range(values["layers"])]
    if not isinstance(kinds, list) or len(kinds) != values["layers"] or not all(k in (GLOBAL, LOCAL) for k in kinds):
        raise ValueError(f"layer_types: must be {GLOBAL} or {LOCAL} for each of the {values['layers']} layers")
    values["local_layers"] = tuple(layer for layer, kind in enumerate(kinds) if kind == LOCAL)
    values["window"] = chosen if values["local_layers"] else None


def write_local_layers(config: ModelConfig, settings: dict[str, Any]) -> None:
    """Complete config.json with the window and each layer's kind."""
    settings["sliding_window"] = config.window
    settings["layer_types"] = [LOCAL if layer in config.local_layers else GLOBAL for layer in range(config.layers)]


def with_windows(is_local: Callable[[int], bool]) -> Callable[[dict[str, Any]], None]:
    """Completes a new model whose spec has a window: which layers have it."""

    def complete(values: dict[str, Any]) -> None:
        if values.get("window") is not None:
            values["local_layers"] = tuple(layer for layer in range(values["layers"]) if is_local(layer))

    return complete
