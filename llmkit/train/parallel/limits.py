"""What tensor and context parallelism do not compute, known from the architecture alone. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from llmkit.model.config import ModelConfig

_HEADS = ("causal-lm", "masked-lm")


def product_limits(config: ModelConfig, ranks: int) -> Iterator[str]:
    """What of an architecture tensor parallelism over so many ranks does not compute, in words."""
    if ranks == 1:
        return
    if config.head not in _HEADS:
        yield f"a {config.head} head is not shared among ranks"
    if config.experts:
        yield "experts are not shared among ranks"
    if config.attention_sinks:
        yield "attention sinks are not shared among ranks"
    if config.qk_norm == "projection" and config.norm != "rms":
        yield "layer norms over whole projections are not shared among ranks"
    for name in ("heads", "kv_heads", "mlp_width"):
        size = getattr(config, name)
        if size % ranks:
            yield f"{ranks} ranks do not divide {name} ({size:,})"


def vocabulary_limits(vocab_size: int, ranks: int) -> Iterator[str]:
    """Parts are of equal size but for the last one, which must not be empty."""
    if -(-vocab_size // ranks) * (ranks - 1) >= vocab_size:
        yield f"a vocabulary of {vocab_size:,} is too small for {ranks} ranks"


def sequence_limits(config: ModelConfig, ranks: int) -> Iterator[str]:
    """What of an architecture context parallelism over so many ranks does not compute, in words."""
    if ranks == 1:
        return
    if config.head not in _HEADS:
        yield f"a {config.head} head takes whole sequences, which are not divided among ranks"
    if config.experts:
        yield "sequences of models with experts are not divided among ranks"
    if config.rope_scaling is not None and config.rope_scaling.depends_on_length:
        yield "sequences are not divided among ranks where rotary frequencies depend on their length"


def length_unit(causal: bool, context: int, tensor: int) -> int:
    """What the length of sequences has to be a multiple of.

    Each of the `context` ranks takes one piece of a sequence, of a causal model two, and each of the `tensor` ranks a
    part of those tokens. Lengths are asked for in pieces that can be divided among all of them.
    """
    pieces = 1 if context == 1 else context * (2 if causal else 1)
    return pieces * tensor
