"""The repeated blocks of a model: where compilation cuts, and where the matrices are that Muon is for."""

from __future__ import annotations

import torch
from torch import nn

from llmkit.model.attention import Attention, attend_apart
from llmkit.model.experts import RoutedMLP


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """Members of the outermost `nn.ModuleList`s of a model, in order: its transformer blocks."""
    found: list[nn.Module] = []
    for child in model.children():
        found += list(child) if isinstance(child, nn.ModuleList) else repeated_blocks(child)
    return found


def compile_blocks(model: nn.Module) -> list[nn.Module]:
    """Have torch compile each block when it is first called; names of parameters stay as they are.

    Blocks share their code, so the first one's compilation serves all. A model without blocks is compiled whole.
    Routed experts, and attention within the documents of packed sequences, are left as they are: their sizes change
    with every batch.

    Returns:
        the compiled modules, for `uncompile`.
    """
    modules = repeated_blocks(model) or [model]
    # One for all blocks, else none could use what was compiled for another. Not where it is defined: torch then imports
    # its compiler, which takes longer than to import torch.
    apart = torch.compiler.disable(attend_apart)
    for module in modules:
        for part in module.modules():
            if isinstance(part, RoutedMLP):
                setattr(part, "forward", torch.compiler.disable(part.forward))  # noqa: B010
            elif isinstance(part, Attention):
                part.attend_apart = apart
        module.compile()
    return modules


def uncompile(modules: list[nn.Module]) -> None:
    """Undo `compile_blocks`."""
    for module in modules:
        module._compiled_call_impl = None
        for part in module.modules():
            if isinstance(part, RoutedMLP):
                vars(part).pop("forward", None)
            elif isinstance(part, Attention):
                part.attend_apart = attend_apart
