"""vLLM behind the contract of `llmkit.model.sampling.TextGenerator`, where it is installed.

Prompts go in as token ids and each setting is mapped to vLLM's own. What vLLM would do otherwise than the built-in
engine is refused in words. The draws are vLLM's: seeded by request, but other numbers than the built-in engine's.
Written against the interface of vLLM 0.33.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from llmkit.errors import ConfigError, DataError, ModelError
from llmkit.model.config import ModelConfig
from llmkit.model.sampling import Completion, FinishReason, Piece, Sampling, settings_of
from llmkit.model.stops import Decode, tokens_before

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", None: "auto"}
# vLLM raises lower temperatures to this one.
_LOWEST_TEMPERATURE = 0.01


class VLLMGenerator:
    """Generates with vLLM from a model on disk.

    Args:
        path: the Hugging Face directory that vLLM opens.
        config: its architecture.
        decode: turns token ids into text; without it there are no texts and no stop texts.
        dtype: "fp32", "bf16" or "fp16"; by default as stored.
        max_batch: most sequences at work at once.

    Raises:
        ModelError: vLLM is not installed, or the model writes no text.
    """

    def __init__(
        self, path: Path, config: ModelConfig, *, decode: Decode | None = None, dtype: str | None = None,
        max_batch: int = 64,
    ) -> None:  # fmt: skip
        if config.head != "causal-lm":
            raise ModelError(f"a model with a {config.head} head writes no text.", where=str(path))
        try:
            vllm = import_module("vllm")
        except ImportError:
            raise ModelError(
                "vLLM is not installed.", hint="Install it (pip install vllm), or choose the engine `builtin`."
            ) from None
        self.config, self.decode = config, decode
        self._vllm: Any = vllm
        self._engine: Any = vllm.LLM(
            model=str(path),
            dtype=_DTYPES[dtype],
            max_model_len=config.context,
            max_num_seqs=max_batch,
            logprobs_mode="raw_logprobs",
            generation_config="vllm",
        )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        *,
        keys: Sequence[int] | None = None,
    ) -> list[Completion]:
        """Completions, as the built-in engine's `generate` gives them.

        vLLM gives log-probabilities under the model alone. Those under the distribution drawn from are the same where
        no setting changes it, and 0 at temperature 0; elsewhere they are NaN.

        Raises:
            ConfigError: settings that vLLM applies otherwise.
            DataError: a prompt is empty, too long or holds ids outside the vocabulary.
        """
        settings = settings_of(prompts, sampling)
        keys = range(len(prompts)) if keys is None else keys
        if len(keys) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(keys)} keys")
        results: list[Completion | None] = []
        asked: list[dict[str, list[int]]] = []
        parameters: list[Any] = []
        places: list[tuple[int, Sampling]] = []
        for row, (prompt, chosen, key) in enumerate(zip(prompts, settings, keys, strict=True)):
            self._check(prompt, chosen, f"prompt {row}")
            room = self.config.context - len(prompt)
            for sample in range(chosen.n):
                if room == 0:
                    results.append(Completion([], [], [], "context", "" if self.decode else None))
                    continue
                places.append((len(results), chosen))
                results.append(None)
                asked.append({"prompt_token_ids": list(prompt)})
                parameters.append(self._parameters(chosen, min(chosen.max_new_tokens, room), key, sample))
        if asked:
            outputs = self._engine.generate(asked, parameters, use_tqdm=False)
            for (place, chosen), output in zip(places, outputs, strict=True):
                results[place] = self._completion(output.outputs[0], chosen)
        return [completion for completion in results if completion is not None]

    def stream(self, prompt: Sequence[int], sampling: Sampling, *, key: int = 0) -> Iterator[Piece]:
        """One completion, as a single piece: vLLM's offline engine gives answers whole."""
        if sampling.n != 1:
            raise ValueError("a stream gives one answer; n must be 1")
        (completion,) = self.generate([prompt], sampling, keys=[key])
        yield Piece(completion.text or "", completion.token_ids, completion.finish_reason)

    def _check(self, prompt: Sequence[int], sampling: Sampling, where: str) -> None:
        config = self.config
        if not prompt:
            raise DataError("is empty", where=where, hint="Start it with the beginning-of-text token.")
        if len(prompt) > config.context:
            raise DataError(f"has {len(prompt)} tokens, the model's context {config.context}", where=where)
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise DataError(f"holds token ids outside the vocabulary of {config.vocab_size}", where=where)
        if sampling.stop and self.decode is None:
            raise ValueError("stop texts need a generator that can decode")
        if 0 < sampling.temperature < _LOWEST_TEMPERATURE:
            raise ConfigError(
                f"vLLM raises temperatures below {_LOWEST_TEMPERATURE}.", where="temperature", hint="Use 0 or more."
            )
        if sampling.temperature > 0 and sampling.min_p > 0 and sampling.top_p < 1:
            raise ConfigError(
                "vLLM applies min_p before top_p, and not after it.", where="min_p", hint="Set one of them."
            )

    def _parameters(self, sampling: Sampling, limit: int, key: int, sample: int) -> Any:
        digest = hashlib.sha256(f"{sampling.seed}/{key}/{sample}".encode()).digest()
        ends = self.config.eos_ids if sampling.stop_ids is None else sampling.stop_ids
        return self._vllm.SamplingParams(
            n=1,
            max_tokens=limit,
            temperature=sampling.temperature,
            top_k=sampling.top_k or 0,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty,
            seed=int.from_bytes(digest[:8], "little") >> 1,
            stop=list(sampling.stop) or None,
            stop_token_ids=list(ends),
            # What ends an answer is said above, all of it.
            ignore_eos=True,
            logprobs=0,
            detokenize=bool(sampling.stop),
            skip_special_tokens=False,
        )

    def _completion(self, output: Any, sampling: Sampling) -> Completion:
        token_ids = [int(token) for token in output.token_ids]
        reason: FinishReason
        if output.finish_reason == "length":
            reason = "length" if len(token_ids) == sampling.max_new_tokens else "context"
        elif output.finish_reason == "stop":
            reason = "stop"
        else:
            raise ModelError(f"vLLM ended an answer with `{output.finish_reason}`.")
        text: str | None = None
        logprobs = [float(row[token].logprob) for row, token in zip(output.logprobs, token_ids, strict=True)]
        if isinstance(output.stop_reason, str):
            assert self.decode is not None
            whole = self.decode(token_ids)
            text = whole[: min(start for stop in sampling.stop if (start := whole.find(stop)) >= 0)]
            token_ids = token_ids[: tokens_before(self.decode, token_ids, text)]
        elif self.decode is not None:
            text = self.decode(token_ids[:-1] if reason == "stop" else token_ids)
        logprobs = logprobs[: len(token_ids)]
        if sampling.temperature == 0:
            drawn = [0.0] * len(token_ids)
        elif sampling.distribution == Sampling().distribution:
            drawn = logprobs
        else:
            drawn = [math.nan] * len(token_ids)
        return Completion(token_ids, logprobs, drawn, reason, text)
