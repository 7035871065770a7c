"""Quantizing a model in place, map by map."""

from __future__ import annotations

from torch import nn

from llmkit.model.layers import Linear
from llmkit.model.quantization.config import Quantization
from llmkit.model.quantization.int4 import Int4Linear
from llmkit.model.quantization.int8 import Int8Embedding, Int8Linear
from llmkit.model.quantization.linear import QuantizedLinear
from llmkit.model.quantization.nf4 import NF4Linear
from llmkit.model.transformer import Transformer

KINDS: dict[Quantization, type[Int8Linear | Int4Linear | NF4Linear]] = {
    "int8": Int8Linear,
    "int4": Int4Linear,
    "nf4": NF4Linear,
}


def quantize(model: Transformer, kind: Quantization, *, output: bool = True) -> Transformer:
    """Keep the weights of the linear maps inside the blocks in fewer bits, in place; the same bits each time.

    Norms, biases, embeddings, routers and experts stay dense. So do adapters, which may be attached before or
    after and be trained on the quantized weights.

    Args:
        model: on its device and in its dtype.
        kind: see `Quantization`.
        output: whether a language model's output map becomes int8 too (of any kind: it decides the next token, and is
            large), and with it the token embedding, where the two are tied. False where they are to be trained.

    Returns:
        the model.

    Raises:
        ModelError: int4 elsewhere than on a CPU; nf4 without bitsandbytes.
    """
    for name in quantizable(model):
        quantize_linear(model, name, kind)
    if output:
        quantize_output(model)
    return model


def quantizable(model: Transformer) -> list[str]:
    """Names of the linear maps that `quantize` replaces, the output map apart."""
    return [name for name, module in model.named_modules() if _is_quantizable(name, module)]


def _is_quantizable(name: str, module: nn.Module) -> bool:
    plain = isinstance(module, Linear) and not isinstance(module, QuantizedLinear)
    return plain and name.startswith("blocks.")


def quantize_parameter(model: Transformer, parameter: str, kind: Quantization) -> None:
    """Replace the linear map whose weight a parameter is, if it is one of `quantizable`: at once, while loading."""
    name, _, leaf = parameter.rpartition(".")
    if leaf == "weight" and _is_quantizable(name, model.get_submodule(name)):
        quantize_linear(model, name, kind)


def quantize_linear(model: Transformer, name: str, kind: Quantization) -> None:
    """Replace one linear map by a quantized one, with the bias and the adapter that it has."""
    parent, _, leaf = name.rpartition(".")
    linear = model.get_submodule(name)
    assert isinstance(linear, Linear)
    quantized = KINDS[kind](linear.weight, linear.bias)
    quantized.adapter = linear.adapter
    setattr(model.get_submodule(parent), leaf, quantized.train(linear.training))


def quantize_output(model: Transformer) -> None:
    """Keep a language model's output map in int8, and the token embedding where the two are one."""
    linear = getattr(model.head, "projection", None)
    if not isinstance(linear, Linear) or isinstance(linear, QuantizedLinear):
        return
    tied = linear.weight is model.embeddings.token.weight
    quantize_linear(model, "head.projection", "int8")
    if tied:
        output = model.get_submodule("head.projection")
        assert isinstance(output, Int8Linear)
        model.embeddings.token = Int8Embedding(output)


def is_quantized(model: nn.Module) -> bool:
    """Whether any linear map of the model is quantized."""
    return any(isinstance(module, QuantizedLinear) for module in model.modules())
