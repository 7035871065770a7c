"""vLLM's side of the contract, against a stand-in with the interface of vLLM 0.33 that counts."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llmkit.errors import ConfigError, DataError, ModelError
from llmkit.model.sampling import Sampling
from llmkit.model.spec import ModelSpec
from llmkit.model.vllm_engine import VLLMGenerator

CONTEXT = 40
CONFIG = ModelSpec(family="llama", layers=1, width=32, heads=4, context=CONTEXT).resolve(60, pad_id=0, eos_ids=(50,))
PIECES = {10: "He", 11: "llo", 12: " wor", 13: "ld.", 14: "\n", 15: "\n"}


def _decode(token_ids: list[int]) -> str:
    return "".join(PIECES.get(token, f"<{token}>") for token in token_ids)


@dataclass
class SamplingParams:
    """The fields of vLLM's class that are set here; unknown ones are refused, as there."""

    n: int = 1
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None
    stop_reason: int | str | None


@dataclass
class RequestOutput:
    outputs: list[CompletionOutput]


class LLM:
    """Writes t + 1 after t, each token with a log-probability that names it."""

    def __init__(self, model: str, **settings: Any) -> None:
        known = {"dtype", "max_model_len", "max_num_seqs", "logprobs_mode", "generation_config"}
        assert set(settings) <= known
        self.model, self.settings = model, settings
        self.asked: list[tuple[dict[str, list[int]], SamplingParams]] = []

    def generate(
        self, prompts: list[dict[str, list[int]]], sampling_params: list[SamplingParams], *, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        assert not use_tqdm
        self.asked += zip(prompts, sampling_params, strict=True)
        return [
            RequestOutput([self._write(prompt["prompt_token_ids"], wanted)])
            for prompt, wanted in zip(prompts, sampling_params, strict=True)
        ]

    def _write(self, prompt: list[int], wanted: SamplingParams) -> CompletionOutput:
        assert wanted.max_tokens is not None
        tokens: list[int] = []
        reason, stopped_by = "length", None
        while len(tokens) < wanted.max_tokens:
            tokens.append(([*prompt, *tokens][-1]) + 1)
            if tokens[-1] in (wanted.stop_token_ids or []):
                reason, stopped_by = "stop", tokens[-1]
                break
            found = [stop for stop in wanted.stop or [] if stop in _decode(tokens)]
            if found:
                reason, stopped_by = "stop", found[0]
                break
        rows = [{token: Logprob(-token / 100), 0: Logprob(-0.01)} for token in tokens]
        return CompletionOutput(0, "not used", tuple(tokens), None, rows, reason, stopped_by)


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> VLLMGenerator:
    module: Any = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    return VLLMGenerator(tmp_path, CONFIG, decode=_decode, dtype="bf16", max_batch=7)


def test_settings_are_mapped_one_by_one(generator: VLLMGenerator, tmp_path: Path) -> None:
    assert generator._engine.model == str(tmp_path)
    assert generator._engine.settings == {
        "dtype": "bfloat16", "max_model_len": CONTEXT, "max_num_seqs": 7, "logprobs_mode": "raw_logprobs",
        "generation_config": "vllm",
    }  # fmt: skip
    sampling = Sampling(
        temperature=0.7, top_k=5, top_p=0.9, repetition_penalty=1.2, stop=("zz",), stop_ids=(58, 59), max_new_tokens=6
    )
    generator.generate([[3, 4]], sampling)
    prompt, wanted = generator._engine.asked[0]
    assert prompt == {"prompt_token_ids": [3, 4]}
    found = {field.name: getattr(wanted, field.name) for field in fields(wanted)}
    seed = found.pop("seed")
    assert isinstance(seed, int)
    assert 0 <= seed < 2**63
    assert found == {
        "n": 1, "repetition_penalty": 1.2, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.0, "stop": ["zz"],
        "stop_token_ids": [58, 59], "ignore_eos": True, "max_tokens": 6, "logprobs": 0, "detokenize": True,
        "skip_special_tokens": False,
    }  # fmt: skip
    generator.generate([[3, 4]], Sampling())
    assert generator._engine.asked[1][1].top_k == 0
    assert generator._engine.asked[1][1].stop_token_ids == [50]


def test_completions_keep_the_contract(generator: VLLMGenerator) -> None:
    settings = [
        Sampling(max_new_tokens=3, n=2),
        Sampling(max_new_tokens=9, temperature=0),
        Sampling(stop=("o w",), temperature=0.5),
        Sampling(),
        Sampling(),
    ]
    prompts = [[20], [46], [9], [1] * 38, [1] * CONTEXT]
    one, two, ended, cut, late, full = generator.generate(prompts, settings)
    assert (one.token_ids, one.finish_reason, one.text) == ([21, 22, 23], "length", "<21><22><23>")
    assert two.token_ids == one.token_ids
    assert one.logprobs == one.sampling_logprobs == pytest.approx([-0.21, -0.22, -0.23])
    assert (ended.token_ids, ended.finish_reason, ended.text) == ([47, 48, 49, 50], "stop", "<47><48><49>")
    assert ended.sampling_logprobs == [0.0] * 4
    assert (cut.token_ids, cut.finish_reason, cut.text) == ([10, 11], "stop", "Hell")
    assert cut.logprobs == pytest.approx([-0.1, -0.11])
    assert all(math.isnan(value) for value in cut.sampling_logprobs)
    assert (late.token_ids, late.finish_reason) == ([2, 3], "context")
    assert (full.token_ids, full.finish_reason, full.text) == ([], "context", "")
    pieces = list(generator.stream([20], Sampling(max_new_tokens=3)))
    assert [(piece.text, piece.token_ids, piece.finish_reason) for piece in pieces] == [
        ("<21><22><23>", [21, 22, 23], "length")
    ]


def test_seeds_belong_to_requests(generator: VLLMGenerator) -> None:
    generator.generate([[3], [4]], Sampling(n=2, seed=5))
    generator.generate([[4]], Sampling(n=2, seed=5), keys=[1])
    generator.generate([[4]], Sampling(seed=6), keys=[1])
    seeds = [wanted.seed for _, wanted in generator._engine.asked]
    assert len(set(seeds[:4])) == 4
    assert seeds[4:6] == seeds[2:4]
    assert seeds[6] not in seeds[:6]


def test_what_vllm_does_otherwise_is_refused(generator: VLLMGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    for sampling, message in [
        (Sampling(min_p=0.1, top_p=0.9), "min_p before top_p"),
        (Sampling(temperature=0.001), "temperatures below 0.01"),
    ]:
        with pytest.raises(ConfigError, match=message):
            generator.generate([[3]], sampling)
    for prompt in ([], [1] * (CONTEXT + 1), [60]):
        with pytest.raises(DataError, match="prompt 0"):
            generator.generate([prompt], Sampling())
    with pytest.raises(ValueError, match="1 prompts but 2 keys"):
        generator.generate([[3]], Sampling(), keys=[1, 2])
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModelError, match="vLLM is not installed"):
        VLLMGenerator(Path(), CONFIG)
