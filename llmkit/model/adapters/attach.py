"""Putting an adapter on a model, switching it off for a while, and merging it into the weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmkit.errors import ConfigError, ModelError
from llmkit.model.adapters.config import AdapterConfig, matches, no_match
from llmkit.model.adapters.lora import LowRank, MagnitudeLowRank, initial_a
from llmkit.model.families import FAMILIES
from llmkit.model.families.base import Transfer
from llmkit.model.layers import Linear
from llmkit.model.plain import dense_weight
from llmkit.model.transformer import Transformer

STATE = "adapter"
"""Name of the submodule of an adapted model that holds its `Attached`."""
SAMPLES = 64
"""Values of each matrix that the fingerprint looks at."""


@dataclass(frozen=True)
class Placement:
    """Linear maps that share one A, with the rank and alpha of their adapters."""

    names: tuple[str, ...]
    rank: int
    alpha: float


class Attached(nn.Module):
    """What is known of a model's adapter.

    Attributes:
        config: its settings.
        adapted: names of the linear maps that it stands on.
        trained: names of the base model's parameters that are trained in full; of shared ones, all names.
        fingerprint: tells the base model from others; None where its weights are no plain numbers.
    """

    def __init__(
        self, config: AdapterConfig, adapted: Sequence[str], trained: Sequence[str], fingerprint: str | None
    ) -> None:
        super().__init__()
        self.config, self.adapted, self.trained, self.fingerprint = config, tuple(adapted), tuple(trained), fingerprint

    def keep(self, model: Transformer) -> None:
        """Keep the trained parameters as they are now: what the model without its adapter has."""
        for number, name in enumerate(self.trained):
            self.register_buffer(f"base_{number}", model.get_parameter(name).detach().clone(), persistent=False)

    def base(self, name: str) -> Tensor:
        """A trained parameter as it was at first."""
        return self.get_buffer(f"base_{self.trained.index(name)}")


def attach(model: Transformer, config: AdapterConfig, seed: int) -> None:
    """Put a new adapter on a model, in place; all but the adapter and what `trainable` names is frozen.

    Parts that are new in the model (a head that the checkpoint did not hold) are trained in full too. The adapter
    changes nothing until it is trained.

    Args:
        model: without an adapter.
        config: settings.
        seed: of the matrices A; each depends on it and on its name alone.

    Raises:
        ConfigError: a pattern matches nothing, maps that share an A would have different ranks, or a map shares its
            weight with the embeddings.
    """
    modules = trainable_modules(model, config.trainable)
    whole = {name for name, _ in modules}
    targets = [name for name in config.select(list(linear_names(model)), model.config.layers) if name not in whole]
    placements = []
    for transfer in linear_transfers(model):
        names = tuple(name for name in map(_module_of, transfer.ours) if name in targets)
        if names:
            placements.append(_placement(names, config))
    install(model, config, placements, [name for name, _ in modules], fingerprint(model))
    with torch.no_grad():
        for placement in placements:
            first = adapter_of(model, placement.names[0])
            shape = (placement.rank, first.a.shape[1])
            first.a.copy_(initial_a(shape, config.initialization, seed, f"{placement.names[0]}.adapter.a"))


def install(
    model: Transformer,
    config: AdapterConfig,
    placements: Sequence[Placement],
    trainable: Sequence[str],
    base_fingerprint: str | None,
) -> None:
    """Freeze the model, put adapters with unset A on it, and thaw the modules `trainable`, in float32."""
    if find_attached(model) is not None:
        raise ModelError("the model has an adapter already", hint="Merge it first.")
    chosen = {name for placement in placements for name in placement.names}
    names = [name for name in linear_names(model) if name in chosen]
    tied = [name for name in names if _shares_embedding(model, name)]
    if tied:
        raise ConfigError(
            f"adapter: `{tied[0]}` shares its weight with the token embedding, so an adapter cannot be merged into it.",
            hint="Leave it out of `targets`, or name `embeddings.token` in `trainable`.",
        )
    model.requires_grad_(False)
    kind = MagnitudeLowRank if config.learns_magnitude else LowRank
    for placement in placements:
        linears = [linear_of(model, name) for name in placement.names]
        # The bias stays a tensor of plain numbers, whatever the weight is kept in.
        device = next((tensor.device for tensor in (*linears[0].parameters(), *linears[0].buffers())), None)
        a = nn.Parameter(torch.empty(placement.rank, linears[0].in_features, dtype=torch.float32, device=device))
        scale = config.scale(placement.rank, placement.alpha)
        for linear in linears:
            linear.adapter = kind(linear, a, alpha=placement.alpha, scale=scale, dropout=config.dropout)
    trained = _thaw(model, trainable)
    state = Attached(config, names, trained, base_fingerprint)
    state.keep(model)
    model.add_module(STATE, state)
    model.train(model.training)


def find_attached(model: nn.Module) -> Attached | None:
    """What is known of a model's adapter; None where it has none."""
    state = getattr(model, STATE, None)
    return state if isinstance(state, Attached) else None


def attached(model: nn.Module) -> Attached:
    """What is known of a model's adapter; raises ModelError where it has none."""
    state = find_attached(model)
    if state is None:
        raise ModelError("the model has no adapter", hint="Attach or load one first.")
    return state


@contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Within this context the model computes what it did before the adapter came, trained modules included.

    It serves as the reference of its own fine-tuning (DPO, PPO, GRPO) with no second model in memory. Not to be left by
    a backward pass that belongs to it: gradients are those of the adapted model's weights.
    """
    state = attached(model)
    adapters = [module for module in model.modules() if isinstance(module, LowRank)]
    before = [module.enabled for module in adapters]
    trained = {name: model.get_parameter(name) for name in state.trained}
    values = {name: parameter.data for name, parameter in trained.items()}
    try:
        for module in adapters:
            module.enabled = False
        for name, parameter in trained.items():
            parameter.data = state.base(name)
        yield
    finally:
        for name, parameter in trained.items():
            parameter.data = values[name]
        for module, enabled in zip(adapters, before, strict=True):
            module.enabled = enabled


@torch.no_grad()
def merge(model: Transformer) -> None:
    """Make the adapter part of the weights and remove it, in place.

    Sums are made in float32 and brought to the weights' dtype by one rounding. A quantized map becomes a plain one, of
    its dense weight's dtype.

    Raises:
        ModelError: the model has no adapter.
    """
    for name in attached(model).adapted:
        linear = linear_of(model, name)
        merged = nn.Parameter(dense_weight(linear), requires_grad=False)
        linear.adapter = None
        if type(linear) is Linear:
            linear.weight = merged
            continue
        with torch.device("meta"):
            plain = Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)
        plain.weight = merged
        plain.bias = linear.bias
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, plain.train(model.training))
    delattr(model, STATE)


def linear_names(model: Transformer) -> Iterator[str]:
    """Names of the model's linear maps."""
    return (name for name, module in model.named_modules() if isinstance(module, Linear))


def linear_of(model: Transformer, name: str) -> Linear:
    """A linear map by its name."""
    linear = model.get_submodule(name)
    assert isinstance(linear, Linear)
    return linear


def adapter_of(model: Transformer, name: str) -> LowRank:
    """The adapter on a linear map."""
    adapter = linear_of(model, name).adapter
    assert isinstance(adapter, LowRank)
    return adapter


def linear_transfers(model: Transformer) -> list[Transfer]:
    """The reference's tensors that hold the weights of the model's linear maps."""
    names = [f"{name}.weight" for name in linear_names(model)]
    return FAMILIES[model.config.family].transfers(model.config, names)


def trainable_modules(model: Transformer, patterns: Sequence[str]) -> list[tuple[str, nn.Module]]:
    """Modules with parameters of their own that patterns name, and those that are new in the model.

    Raises:
        ConfigError: a pattern matches nothing.
    """
    modules = [(name, module) for name, module in model.named_modules() if any(True for _ in _own(module))]
    for pattern in patterns:
        if not any(matches(pattern, name) for name, _ in modules):
            raise no_match(pattern, [name for name, _ in modules], "module with parameters")
    new = {_module_of(name) for name in model.new_parameters}
    return [pair for pair in modules if pair[0] in new or any(matches(pattern, pair[0]) for pattern in patterns)]


def fingerprint(model: Transformer) -> str | None:
    """A digest of some values of each linear map in the blocks, as bfloat16 rounds them: equal in float32 and bfloat16.

    None where weights are quantized, or kept in float16, which rounds otherwise.
    """
    digest = hashlib.sha256()
    for name in linear_names(model):
        linear = linear_of(model, name)
        if not name.startswith("blocks."):
            continue
        if type(linear) is not Linear or linear.weight.dtype == torch.float16:
            return None
        flat = linear.weight.detach().flatten()
        few = flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES].to("cpu", torch.bfloat16)
        digest.update(f"{name}{list(linear.weight.shape)}".encode())
        digest.update(few.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _placement(names: tuple[str, ...], config: AdapterConfig) -> Placement:
    ranks = {config.rank_of(name) for name in names}
    alphas = {config.alpha_of(name) for name in names}
    if len(ranks) > 1 or len(alphas) > 1:
        raise ConfigError(
            f"adapter: {', '.join(names)} are one matrix in this family, and need one rank and one alpha.",
            hint="Name them together in `ranks` and `alphas`.",
        )
    return Placement(names, ranks.pop(), alphas.pop())


def _thaw(model: Transformer, modules: Sequence[str]) -> list[str]:
    """Make the parameters of these modules, and of those that share one with them, trainable, in float32.

    Returns:
        all names of these parameters.
    """
    chosen = {id(parameter): parameter for name in modules for parameter in _own(model.get_submodule(name))}
    sharing = [module for module in model.modules() if any(id(parameter) in chosen for parameter in _own(module))]
    chosen |= {id(parameter): parameter for module in sharing for parameter in _own(module)}
    for parameter in chosen.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    named = model.named_parameters(remove_duplicate=False)
    return [name for name, parameter in named if id(parameter) in chosen]


def _own(module: nn.Module) -> Iterator[nn.Parameter]:
    return module.parameters(recurse=False)


def _module_of(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _shares_embedding(model: Transformer, name: str) -> bool:
    weight = getattr(linear_of(model, name), "weight", None)
    return weight is not None and weight is getattr(model.embeddings.token, "weight", None)
