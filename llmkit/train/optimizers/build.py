"""Optimizers and the groups of parameters that they treat alike."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from llmkit.config.base import nearest
from llmkit.errors import ConfigError
from llmkit.train.blocks import repeated_blocks
from llmkit.train.optimizers.adafactor import Adafactor
from llmkit.train.optimizers.adamw import AdamW
from llmkit.train.optimizers.config import MATRICES_ONLY, OptimizerConfig, OptimizerName, ParameterGroup
from llmkit.train.optimizers.lion import Lion
from llmkit.train.optimizers.muon import Muon
from llmkit.train.optimizers.scaling import width_factors
from llmkit.train.optimizers.schedule_free import ScheduleFree
from llmkit.train.optimizers.update_rule import Keeping

Named = list[tuple[str, nn.Parameter]]


class Treatment(NamedTuple):
    """How a parameter is updated: by which optimizer, at how many times the learning rate, and how much it decays."""

    optimizer: OptimizerName
    lr_factor: float
    weight_decay: float


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


def treatments(model: nn.Module, config: OptimizerConfig) -> dict[str, Treatment]:
    """How each trainable parameter is updated, by name.

    With `muon` or `normuon`, the matrices inside the model's blocks go to Muon and the rest to AdamW. Under a rule of
    scaling weight decay is divided by a parameter's factor, so that what a step takes off does not depend on the width.

    Raises:
        ConfigError: a group matches no parameter, or gives a vector to an optimizer of matrices.
    """
    parameters = trainable_parameters(model)
    inside = {id(parameter) for block in repeated_blocks(model) for parameter in block.parameters()}
    decayed = {name for name, _ in split_by_decay(model, parameters)[0]}
    scales = {} if config.base_width is None else width_factors(model, config.base_width)
    _require_matches(config.groups, [name for name, _ in parameters])
    found = {}
    for name, parameter in parameters:
        chosen = next((group for group in config.groups if fnmatchcase(name, group.match)), None)
        kind = config.name
        if kind in MATRICES_ONLY and not (name in decayed and id(parameter) in inside):
            kind = "adamw"
        if chosen is not None and chosen.name is not None:
            kind = chosen.name
            if kind in MATRICES_ONLY and parameter.dim() < 2:
                raise ConfigError(
                    f"{kind} is for matrices, and `{name}` is a vector.",
                    hint=f"Let the group `{chosen.match}` match matrices alone.",
                )
        factor = 1.0 if name not in scales else scales[name].muon if kind in MATRICES_ONLY else scales[name].adam
        decay = config.weight_decay / factor if name in decayed else 0.0
        if chosen is not None:
            factor = factor if chosen.lr_factor is None else chosen.lr_factor
            decay = decay if chosen.weight_decay is None else chosen.weight_decay
        found[name] = Treatment(kind, factor, decay)
    return found


def _require_matches(groups: Sequence[ParameterGroup], names: list[str]) -> None:
    for group in groups:
        if not any(fnmatchcase(name, group.match) for name in names):
            near = nearest(group.match, names)
            raise ConfigError(
                f"no parameter that is trained matches `{group.match}` of optimizer.groups.",
                hint=f"The nearest is `{near}`." if near else f"Parameters are named like `{names[0]}`.",
            )


def build_optimizers(
    model: nn.Module, config: OptimizerConfig, dtype: torch.dtype, *, seed: int = 0, average: float | None = None
) -> list[Optimizer]:
    """The optimizers that together update every trainable parameter once.

    Args:
        model: on its device, distributed as it will be.
        config: settings.
        dtype: of Muon's matrix products.
        seed: of stochastic rounding.
        average: decay of the average of the weights; None for none.

    Raises:
        ConfigError: as for `treatments`.
    """
    keeping = Keeping(
        rounding=config.rounding,
        narrow_state=config.state == "bf16",
        offload=config.offload,
        seed=seed,
        average=average,
    )
    treated = treatments(model, config)
    by_kind: dict[OptimizerName, dict[Treatment, Named]] = {}
    for name, parameter in trainable_parameters(model):
        treatment = treated[name]
        by_kind.setdefault(treatment.optimizer, {}).setdefault(treatment, []).append((name, parameter))
    optimizers: list[Optimizer] = []
    for kind in sorted(by_kind, key=lambda kind: kind not in MATRICES_ONLY):
        groups = [
            {
                "params": members,
                "lr": config.lr * treatment.lr_factor,
                "lr_factor": treatment.lr_factor,
                "weight_decay": treatment.weight_decay,
            }
            for treatment, members in sorted(by_kind[kind].items(), key=lambda item: -item[0].weight_decay)
        ]
        optimizers.append(_build(kind, groups, config, dtype, keeping))
    return optimizers


def _build(
    kind: OptimizerName, groups: list[dict[str, Any]], config: OptimizerConfig, dtype: torch.dtype, keeping: Keeping
) -> Optimizer:
    lr, betas = config.lr, (config.betas[0], config.betas[1])
    if kind in MATRICES_ONLY:
        row_decay = config.betas[1] if kind == "normuon" else None
        return Muon(groups, lr=lr, momentum=config.momentum, row_decay=row_decay, dtype=dtype, keeping=keeping)
    if kind == "lion":
        return Lion(groups, lr=lr, betas=betas, keeping=keeping)
    if kind == "adafactor":
        return Adafactor(groups, lr=lr, keeping=keeping)
    if kind == "schedule-free":
        return ScheduleFree(groups, lr=lr, betas=betas, eps=config.eps, keeping=keeping)
    return AdamW(groups, lr=lr, betas=betas, eps=config.eps, keeping=keeping)


def set_learning_rate(optimizers: Sequence[Optimizer], rate: float) -> None:
    """Set the learning rate of a step, each group's own factor applied."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_factor"]
