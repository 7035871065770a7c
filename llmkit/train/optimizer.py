"""Optimizers and the groups of parameters that they treat alike."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from llmkit.train.adamw import AdamW
from llmkit.train.blocks import repeated_blocks
from llmkit.train.config import OptimizerConfig
from llmkit.train.lion import Lion
from llmkit.train.muon import Muon

Named = list[tuple[str, nn.Parameter]]


def trainable_parameters(model: nn.Module) -> Named:
    """Parameters that are trained, by name, shared ones once."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def split_by_decay(model: nn.Module, parameters: Named) -> tuple[Named, Named]:
    """Those that weight decay is for (matrices), and those that it is not for (norms, biases, embeddings)."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed = [
        (name, parameter)
        for name, parameter in parameters
        # Experts' biases are matrices by shape alone.
        if parameter.dim() >= 2 and id(parameter) not in embeddings and not name.endswith(".bias")
    ]
    names = {name for name, _ in decayed}
    return decayed, [pair for pair in parameters if pair[0] not in names]


def build_optimizers(model: nn.Module, config: OptimizerConfig, dtype: torch.dtype) -> list[Optimizer]:
    """The optimizers that together update every trainable parameter once; `dtype` is that of Muon's matrix products.

    AdamW (Loshchilov and Hutter 2019) in its fused form, or Lion. With `muon` or `normuon`, the matrices inside the
    model's blocks go to Muon and the rest to AdamW.
    """
    parameters = trainable_parameters(model)
    optimizers: list[Optimizer] = []
    if config.name in ("muon", "normuon"):
        inside = {id(parameter) for block in repeated_blocks(model) for parameter in block.parameters()}
        decayed, _ = split_by_decay(model, parameters)
        hidden = [parameter for _, parameter in decayed if id(parameter) in inside]
        if hidden:
            optimizers.append(
                Muon(
                    hidden,
                    lr=config.lr,
                    momentum=config.momentum,
                    weight_decay=config.weight_decay,
                    row_decay=config.betas[1] if config.name == "normuon" else None,
                    dtype=dtype,
                )
            )
        taken = {id(parameter) for parameter in hidden}
        parameters = [pair for pair in parameters if id(pair[1]) not in taken]
    decayed, kept = split_by_decay(model, parameters)
    groups = [
        {"params": [parameter for _, parameter in members], "weight_decay": decay}
        for members, decay in ((decayed, config.weight_decay), (kept, 0.0))
        if members
    ]
    if groups:
        betas = (config.betas[0], config.betas[1])
        if config.name == "lion":
            optimizers.append(Lion(groups, lr=config.lr, betas=betas))
        else:
            optimizers.append(AdamW(groups, lr=config.lr, betas=betas, eps=config.eps))
    return optimizers
