"""What `llmkit check` says of ranks that share matrix products and sequences."""

from __future__ import annotations

from typing import Any

import pytest

from llmkit.config.base import Facts, Finding
from llmkit.pretrain.config import PretrainConfig
from llmkit.train.config import TrainConfig
from llmkit.train.parallel.config import ParallelConfig

TOKENS = Facts("tokens", {"vocab_size": 100, "splits": ["train", "validation"]})


def findings(parallel: dict[str, int], model: dict[str, Any] | None = None, **settings: Any) -> list[Finding]:
    shape = {"family": "llama", "layers": 2, "width": 64, "heads": 4, "context": 48, **(model or {})}
    config = PretrainConfig.model_validate({"data": "tokens", "model": shape, "parallel": parallel, **settings})
    return list(config.check({next(iter(config.sources)): TOKENS}))


@pytest.mark.parametrize("parallel", [{}, {"tensor": 4}, {"context": 2, "tensor": 4}, {"context": 8}])
def test_what_can_be_shared_is_let_through(parallel: dict[str, int]) -> None:
    assert not findings(parallel)


@pytest.mark.parametrize(
    ("parallel", "model", "key", "words"),
    [
        ({"tensor": 4}, {"kv_heads": 2}, "parallel.tensor", "4 ranks do not divide kv_heads (2)"),
        ({"tensor": 4}, {"mlp_width": 90}, "parallel.tensor", "4 ranks do not divide mlp_width (90)"),
        ({"tensor": 4}, {"context": 50}, "sequence_length", "sequences of 50 tokens"),
        # Two pieces for each of five ranks.
        ({"context": 5}, {}, "sequence_length", "sequences of 48 tokens"),
    ],
)
def test_what_cannot_be_shared_is_found(parallel: dict[str, int], model: dict[str, Any], key: str, words: str) -> None:
    (finding,) = findings(parallel, model)
    assert finding.key == key
    assert words in finding.message


def test_lengths_of_phases_are_looked_at_too() -> None:
    phases = [{"steps": 10, "sequence_length": 18}]
    (finding,) = findings({"context": 2}, phases=phases, micro_batch_size=16)
    assert finding.key == "phases.0.sequence_length"


@pytest.mark.parametrize("parallel", [{"tensor": 2}, {"context": 2}])
def test_shared_blocks_are_not_compiled(parallel: dict[str, int]) -> None:
    (finding,) = findings(parallel, compile=True)
    assert finding.key == "compile"


@pytest.mark.parametrize("name", ["tensor", "context"])
def test_other_stages_share_rows_and_weights_alone(name: str) -> None:
    config = TrainConfig(stage="x", parallel=ParallelConfig.model_validate({name: 2}))
    (finding,) = config.check({})
    assert finding.key == f"parallel.{name}"
