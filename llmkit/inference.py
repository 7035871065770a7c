"""A model together with its tokenizer: what `llmkit.load` returns, and what commands that use a model work with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from llmkit.config.base import nearest
from llmkit.errors import ConfigError, ModelError
from llmkit.model.adapters.open import base_directory, open_adapted
from llmkit.model.adapters.peft_config import is_adapter
from llmkit.model.embedding import embed_sequences
from llmkit.model.facts import read_stored
from llmkit.model.generation import Generator
from llmkit.model.load import load_model
from llmkit.model.quantization.config import quantization_of
from llmkit.model.sampling import Completion, Piece, Sampling, TextGenerator
from llmkit.model.save import MAX_SHARD_SIZE, save_model
from llmkit.model.scoring import Advance, Floats, Window, score_windows, sliding_windows
from llmkit.model.transformer import Transformer
from llmkit.model.vllm_engine import VLLMGenerator
from llmkit.store.gguf import SUFFIX, read_gguf
from llmkit.store.hub import PREFIX, download_model
from llmkit.tokenizer.gguf import tokenizer_of_gguf
from llmkit.tokenizer.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, str]]
Prompt = str | Messages
"""A text to go on with, or a conversation to answer."""

Engine = Literal["builtin", "vllm"]
"""What writes: llmkit's own engine, or vLLM where it is installed."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A model and its tokenizer.

    Args:
        model: `model(input_ids, attention_mask=None)` gives logits. Where vLLM writes, it has no weights.
        tokenizer: text to ids and back.
        writer: vLLM, or None where the built-in engine writes.
        compile: whether torch compiles what writes a request alone.
    """

    model: Transformer
    tokenizer: Tokenizer
    writer: TextGenerator | None = None
    compile: bool = False
    # The built-in engine, kept with the form of the weights that it writes from.
    _builtin: list[Generator] = field(default_factory=list, init=False, repr=False, compare=False)

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Ids that generation starts from: of the text, or of the conversation up to the assistant's next turn."""
        if isinstance(prompt, str):
            # A beginning-of-text token comes first where the tokenizer puts one before texts, as the models expect it.
            ids = [*self.tokenizer.frame_ids[0], *self.tokenizer.encode(prompt)]
            return ids if ids or self.tokenizer.start_id is None else [self.tokenizer.start_id]
        return self.tokenizer.render_conversation([dict(message) for message in prompt], add_generation_prompt=True).ids

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        max_batch: int = 64,
        each: Sequence[Mapping[str, Any]] | None = None,
        keys: Sequence[int] | None = None,
        **sampling: Any,
    ) -> list[Completion]:
        """Answers to prompts.

        Args:
            prompts: one prompt or a list of them; a prompt is a text to go on with, or a list of messages
                (`{"role": "user", "content": "..."}`) to answer. One that is not in a list is written in the fastest
                way, which in bf16 on a CPU rounds otherwise than lists do; the answers of a list do not depend on
                what else is in it.
            max_batch: most sequences at work at once. With vLLM it is given where the model is loaded.
            each: for each prompt the settings in which it differs from `sampling`.
            keys: what each prompt's draws depend on besides the seed; by default its place in the list.
            sampling: fields of `llmkit.model.sampling.Sampling` (max_new_tokens, temperature, top_k, top_p, min_p,
                repetition_penalty, stop, seed, n).

        Returns:
            `n` completions of each prompt, in order.

        Raises:
            ConfigError: an unknown or impossible sampling setting.
            DataError: a prompt is longer than the model's context.
            ModelError: the model does not generate text.
        """
        listed = [prompts] if _is_single(prompts) else list(prompts)
        ids = [self.encode_prompt(prompt) for prompt in listed]  # type: ignore[arg-type]
        if each is not None and len(each) != len(listed):
            raise ValueError(f"{len(listed)} prompts but {len(each)} settings")
        shared = self.sampling(**sampling)
        settings = [self.sampling(**{**sampling, **own}) if own else shared for own in each or [{}] * len(listed)]
        generator = self._generator(max_batch)
        if isinstance(generator, Generator):
            return generator.generate(ids, settings, keys=keys, alone=_is_single(prompts))
        return generator.generate(ids, settings, keys=keys)

    def stream(self, prompt: Prompt, **sampling: Any) -> Iterator[Piece]:
        """One answer in pieces, as it is written; arguments as for `generate`."""
        return self._generator(1).stream(self.encode_prompt(prompt), self.sampling(**sampling))

    def embed(self, texts: str | Sequence[str], *, batch_size: int = 64) -> Tensor:
        """Embeddings of texts, fp32 [n, width] on the CPU, in the texts' order.

        Texts are framed as the model's tokenizer frames them, and cut to the model's `embedding_context`. The texts of
        special tokens in them are ordinary text.

        Args:
            texts: one text or a list of them.
            batch_size: most texts at once; batches are of texts of like length.

        Raises:
            ModelError: the model has no embedding head.
        """
        config = self.model.config
        length = min(config.embedding_context or config.context, config.context)
        listed = [texts] if isinstance(texts, str) else texts
        sequences = [self.tokenizer.encode_single(text, length, end=False) for text in listed]
        return embed_sequences(self.model, sequences, batch_size)

    def save(
        self,
        directory: str | Path,
        *,
        dtype: str | None = None,
        generation: Mapping[str, Any] | None = None,
        max_shard_size: int = MAX_SHARD_SIZE,
    ) -> None:
        """Write a Hugging Face directory: weights, config, tokenizer with its chat template, generation settings.

        Args:
            directory: where to; made if it is missing. Weights that lie there are replaced.
            dtype: "fp32", "bf16" or "fp16"; by default the model's.
            generation: settings for generation_config.json, such as {"temperature": 0.7}, over those that came with the
                model.
            max_shard_size: most bytes of weights in a file; what is larger is written as shards with an index.

        Raises:
            ConfigError: an unknown dtype.
            ModelError: vLLM holds the weights.
        """
        if self.writer is not None:
            raise ModelError("vLLM holds the weights.", hint="Open the model with the built-in engine to save it.")
        chosen = _dtype(dtype)
        save_model(self.model, directory, dtype=chosen, generation=generation, max_shard_size=max_shard_size)
        self.tokenizer.save(Path(directory))

    def sampling(self, **settings: Any) -> Sampling:
        """Sampling settings; by default the answer ends at the model's end-of-text and end-of-turn tokens."""
        unknown = [key for key in settings if key not in Sampling.model_fields]
        if unknown:
            guess = nearest(unknown[0], Sampling.model_fields)
            raise ConfigError(
                f"`{unknown[0]}` is no sampling setting.", hint=f"Did you mean `{guess}`?" if guess else None
            )
        if settings.get("stop_ids") is None:
            ends = {*self.model.config.eos_ids, self.tokenizer.eos_id, self.tokenizer.end_of_turn_id} - {None}
            settings["stop_ids"] = tuple(sorted(end for end in ends if end is not None))
        try:
            return Sampling(**settings)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(f"{first['msg']}.", where=".".join(str(part) for part in first["loc"])) from None

    def _generator(self, max_batch: int) -> TextGenerator:
        if self.writer is not None:
            return self.writer
        head = self.model.config.head
        if head != "causal-lm":
            raise ModelError(f"a model with a {head} head writes no text.", hint="Name a causal language model.")
        if not self._builtin:
            self._builtin.append(Generator(self.model, decode=self.tokenizer.decode, compile=self.compile))
        self._builtin[0].max_batch = max_batch
        return self._builtin[0]


@dataclass(frozen=True)
class Likelihoods:
    """How likely texts are to a language model.

    Args:
        nats: negative log-likelihood of each text, [texts].
        hits: how many tokens of each the model found the likeliest, [texts].
        tokens: how many tokens each has, [texts].
        inputs: tokens that went through the model, in all.
    """

    nats: Floats
    hits: Floats
    tokens: Sequence[int]
    inputs: int


def score_texts(
    model: Transformer,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    context: int,
    stride: int | None = None,
    batch_size: int,
    begin: Callable[[int], Advance] | None = None,
) -> Likelihoods:
    """The likelihood of texts, each on its own.

    Before a text stands the beginning-of-text token, or the end-of-text token where there is no other. A tokenizer
    with neither leaves the first token without context: it is charged as a draw from the whole vocabulary. The end of
    a text is not scored: it has no bytes.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: its own.
        texts: of any length.
        context: tokens that the model sees at once; longer texts are scored in windows.
        stride: tokens between the starts of two windows; by default they do not overlap.
        batch_size: windows that go through the model at once.
        begin: told how many windows there are; gives a function that counts them as done.

    Raises:
        ModelError: the model gives logits that are no numbers.
    """
    prefix = tokenizer.start_id
    encoded = tokenizer.encode_batch(list(texts))
    windows: list[Window] = []
    owners: list[int] = []
    for owner, ids in enumerate(encoded):
        found = list(sliding_windows(ids if prefix is None else [prefix, *ids], context, stride or context))
        windows += found
        owners += [owner] * len(found)
    nats, hits = np.zeros(len(encoded)), np.zeros(len(encoded))
    if prefix is None:
        nats[[bool(ids) for ids in encoded]] = math.log(tokenizer.vocab_size)
    advance: Advance = (lambda amount: None) if begin is None else begin(len(windows))
    window_nats, window_hits = score_windows(model, windows, batch_size, advance)
    np.add.at(nats, owners, window_nats)
    np.add.at(hits, owners, window_hits)
    return Likelihoods(nats, hits, [len(ids) for ids in encoded], sum(len(window.inputs) for window in windows))


def _is_single(prompts: Any) -> bool:
    return isinstance(prompts, str) or (bool(prompts) and isinstance(prompts[0], Mapping))


def model_directory(path_or_name: str, where: str = "") -> Path:
    """The Hugging Face directory, or the GGUF file, that a name or path stands for.

    Args:
        path_or_name: a model directory, a stage's directory (its `model/` is taken), a GGUF file, or "hf:owner/name"; a
            directory may hold an adapter alone.
        where: place of the name, for messages.

    Raises:
        ModelError: there is no model there.
    """
    if path_or_name.startswith(PREFIX):
        return download_model(path_or_name.removeprefix(PREFIX), where)
    path = Path(path_or_name)
    if path.suffix == SUFFIX and path.is_file():
        return path
    for candidate in (path / "model", path):
        if (candidate / "config.json").is_file() or is_adapter(candidate):
            return candidate
    problem = "there is no model here (no config.json)." if path.exists() else "there is no such folder."
    raise ModelError(problem, where=where or path_or_name, hint="Name a model directory, a GGUF file or hf:owner/name.")


def load(
    path_or_name: str,
    dtype: str | None = None,
    device: str | None = None,
    quantize: str | None = None,
    engine: Engine = "builtin",
    *,
    compile: bool = False,
) -> LoadedModel:
    """Open a model with its tokenizer.

    Args:
        path_or_name: a model directory, a stage's directory, a GGUF file, or "hf:owner/name"; where it is an adapter
            (PEFT's format), the base model that it names is opened and the adapter put on it.
        dtype: "fp32", "bf16" or "fp16"; by default as stored, where quantized weights count as fp32.
        device: a torch device; by default CUDA where it is at hand, else the CPU.
        quantize: "int8", "int4" (CPUs alone) or "nf4", to keep the weights of linear maps in 8 or 4 bits and the output
            map in 8; the dtype is then bf16 by default.
        engine: "builtin", or "vllm" where it is installed; vLLM chooses its device, and quantizes nothing here.
        compile: have torch compile what writes one answer at a time on a CPU: seconds before its second token, then
            faster.

    Raises:
        ModelError: no model there, of an unknown architecture, or damaged; or one that cannot be quantized so.
        ArtifactError: no tokenizer beside it.
        ConfigError: an unknown dtype, quantization or engine, or a combination that vLLM or `compile` does not offer.
    """
    number = _dtype(dtype)
    kind = None if quantize is None else quantization_of(quantize)
    if kind is not None and dtype is None:
        dtype, number = "bf16", torch.bfloat16
    if engine not in ("builtin", "vllm"):
        raise ConfigError(f"`{engine}` is no engine.", hint="Choose builtin or vllm.")
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if compile and (engine == "vllm" or kind is not None or torch.device(chosen).type != "cpu"):
        raise ConfigError(
            "`compile` is for plain weights on a CPU, and the built-in engine.", hint="Leave it out here."
        )
    if engine == "vllm":
        return _with_vllm(path_or_name, dtype, device, quantize)
    directory = model_directory(path_or_name)
    if is_adapter(directory):
        model = open_adapted(directory, dtype=number, device=chosen, quantize=kind)
        has_tokenizer = (directory / "tokenizer.json").is_file()
        tokenizer = load_tokenizer(directory if has_tokenizer else base_directory(directory))
        return LoadedModel(model, tokenizer, compile=compile)
    model = load_model(directory, dtype=number, device=chosen, quantize=kind)
    return LoadedModel(model, load_tokenizer(directory), compile=compile)


def _dtype(name: str | None) -> torch.dtype | None:
    if name is not None and name not in DTYPES:
        raise ConfigError(f"`{name}` is no dtype.", hint=f"Choose among {', '.join(DTYPES)}.")
    return None if name is None else DTYPES[name]


def _with_vllm(path_or_name: str, dtype: str | None, device: str | None, quantize: str | None) -> LoadedModel:
    for name, value in (("device", device), ("quantize", quantize)):
        if value is not None:
            raise ConfigError(f"`{name}` is the built-in engine's.", hint="Leave it out, or choose that engine.")
    directory = model_directory(path_or_name)
    if not directory.is_dir():
        raise ConfigError(
            "vLLM opens no GGUF file here.", where=str(directory), hint="Turn it into a directory: llmkit import."
        )
    config = read_stored(directory).config
    tokenizer = load_tokenizer(directory)
    writer = VLLMGenerator(directory, config, decode=tokenizer.decode, dtype=dtype)
    with torch.device("meta"):
        model = Transformer(config)
    return LoadedModel(model, tokenizer, writer)


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face directory or a GGUF file."""
    return tokenizer_of_gguf(read_gguf(path)) if path.suffix == SUFFIX else Tokenizer.load(path)
