"""What writes a request alone, compiled: the numbers of the plain forward pass, and no compilation anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_generation_engine import PARTS, VOCABULARY, _logits, _model, _prompts
from torch._dynamo.testing import CompileCounterWithBackend

from llmkit.model.generation import Generator
from llmkit.model.sampling import Completion, Sampling
from llmkit.model.transformer import Transformer

SAMPLING = Sampling(temperature=0, max_new_tokens=40, stop_ids=())


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """What other tests have compiled, with which sizes, is no matter of these."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def _off(model: Transformer, prompt: list[int], completion: Completion) -> float:
    """The largest error of a log-probability after the first token, which is the prompt's."""
    expected = torch.log_softmax(_logits(model, prompt, completion.token_ids), -1)
    chosen = expected.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
    return float((torch.tensor(completion.logprobs) - chosen)[1:].abs().max())


@pytest.mark.parametrize("parts", ["windows", "parallel", "experts"])
def test_each_kind_of_block_is_compiled_once(parts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer answers, other caches, a stream, and weights that have changed find it compiled."""
    counter, compile_function = CompileCounterWithBackend("aot_eager"), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: compile_function(function, backend=counter))
    model = _model(parts=parts)
    generator, (short, long) = Generator(model, compile=True), _prompts((7, 130))
    completion = generator.generate([short], SAMPLING, alone=True)[0]
    assert _off(model, short, completion) < 2e-5
    compiled = counter.frame_count
    # Blocks that differ in their parts, and the output projection; routed experts cut a block in two.
    assert 2 <= compiled <= 6
    streamed = [token for piece in generator.stream(short, SAMPLING) for token in piece.token_ids]
    assert streamed == completion.token_ids
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    again = generator.generate([long], SAMPLING.model_copy(update={"max_new_tokens": 90}), alone=True)[0]
    assert _off(model, long, again) < 2e-5
    # A ring that is full, and read whole, is other code.
    assert counter.frame_count <= compiled + ("window" in PARTS[parts])
    # Several requests are written as they are without it.
    assert generator.generate([short, long], SAMPLING) == Generator(model).generate([short, long], SAMPLING)


def test_compiled_code_reads_bf16_exactly() -> None:
    """The compiler's own code, past a window, with sinks and biases: bf16 weights where they lie, all else in fp32."""
    half, model = _model(torch.bfloat16, parts="sinks", std=0.08), _model(parts="sinks", std=0.08)
    model.load_state_dict(half.float().state_dict())
    half = _model(torch.bfloat16, parts="sinks", std=0.08)
    generator, prompt = Generator(half, compile=True), _prompts((90,))[0]
    (completion,) = generator.generate([prompt], SAMPLING, alone=True)
    # What is left is the rounding of the prompt's keys.
    assert _off(model, prompt, completion) < 0.03
    assert generator.generate([prompt], SAMPLING, alone=True) == [completion]


def test_where_nothing_compiles_it_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no compiler found\nand more")

    monkeypatch.setattr(torch, "compile", lambda _: broken)
    model, prompt = _model(), _prompts((20,))[0]
    (completion,) = Generator(model, compile=True).generate([prompt], SAMPLING, alone=True)
    assert _off(model, prompt, completion) < 2e-5
    said = capsys.readouterr().err
    assert said.count("torch.compile does not work here, writing goes on without it (no compiler found)") == 1
    assert "and more" not in said


def test_the_functions_own_errors_are_its_own() -> None:
    with pytest.raises(Exception, match="outside the vocabulary"):
        Generator(_model(), compile=True).generate([[VOCABULARY]], SAMPLING, alone=True)
