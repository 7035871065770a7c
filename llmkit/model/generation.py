"""The generation engine: batched prefill, a preallocated cache, continuous batching, seeded draws.

What a sequence becomes depends on its prompt, its settings and its key: each attends to itself only, and its draws
come from its own generator. The rounding of a row's numbers can depend on how many rows a kernel is given. On a CPU it
does not in bf16 with heads up to 64 wide, to the bit; elsewhere the last bits may differ, and with them a token whose
scores tie to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from llmkit.errors import DataError
from llmkit.model.batch import Batch, Request
from llmkit.model.fused import FusedModel
from llmkit.model.projection import Layout, Precision
from llmkit.model.sampling import Completion, Piece, Sampling, settings_of
from llmkit.model.stops import Decode as DecodeText
from llmkit.model.stops import TextStream
from llmkit.model.transformer import Transformer


class Generator:
    """Generates with a causal language model, in evaluation mode and without gradients.

    Args:
        model: a causal language model. Its weights may change between calls, as an optimizer or `copy_` change them
            (what is written through `.data` leaves no trace, and is not seen).
        decode: turns token ids into text; without it there are no texts and no stop texts.
        max_batch: most sequences at work at once; bounds the cache's memory, changes no result.
        compile: have torch compile what writes a request alone: seconds before its second token, then faster. On a CPU
            for weights that are not quantized, which are read where they are; prompts are read as without it.
    """

    def __init__(
        self, model: Transformer, *, decode: DecodeText | None = None, max_batch: int = 64, compile: bool = False
    ) -> None:
        if model.config.head != "causal-lm":
            raise ValueError(f"a model with a {model.config.head} head writes no text")
        self.model = model
        self.decode = decode
        self.max_batch = max_batch
        self.compile = compile
        self._forms: dict[Layout, FusedModel] = {}

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        *,
        keys: Sequence[int] | None = None,
        alone: bool = False,
    ) -> list[Completion]:
        """Completions of prompts given as token ids.

        Args:
            prompts: not empty each, and no longer than the model's context.
            sampling: settings for all of them, or for each.
            keys: what each prompt's random draws depend on besides `sampling.seed`; by default its place in the list.
                The same prompt, key and settings give the same answer whatever else is in the batch.
            alone: that a single request is all there is: it is written in the form that is fastest for one, as `stream`
                does. In bf16 on a CPU that rounds otherwise than batches do, of whatever size.

        Returns:
            `sampling.n` completions of the first prompt, then of the second, and so on.

        Raises:
            DataError: a prompt is empty, too long or holds ids outside the vocabulary.
        """
        requests = self._requests(prompts, settings_of(prompts, sampling), keys)
        results: list[Completion | None] = [None] * len(requests)
        with _generating(self.model):
            batch = self._batch(requests, alone)
            while batch.unfinished():
                for place, completion in batch.advance():
                    results[place] = completion
        return [completion for completion in results if completion is not None]

    def stream(self, prompt: Sequence[int], sampling: Sampling, *, key: int = 0) -> Iterator[Piece]:
        """One completion in pieces; joined, they are what `generate` gives for the same key and a request alone.

        Raises:
            DataError: as for `generate`.
            ValueError: more than one answer was asked for.
        """
        if sampling.n != 1:
            raise ValueError("a stream gives one answer; n must be 1")
        requests = self._requests([prompt], [sampling], [key])
        stream = None if self.decode is None else TextStream(self.decode, sampling.stop)
        shown, released = 0, 0
        batch: Batch | None = None
        while True:
            with _generating(self.model):
                batch = batch or self._batch(requests, alone=True)
                finished = batch.advance()
                written = [] if finished else batch.written(0)
            if finished:
                completion = finished[0][1]
                rest = (completion.text or "")[shown:]
                yield Piece(rest, completion.token_ids[released:], completion.finish_reason)
                return
            text, token_ids = ("", written[released:]) if stream is None else stream.push(written)
            shown, released = shown + len(text), released + len(token_ids)
            if text or token_ids:
                yield Piece(text, token_ids)

    def _batch(self, requests: Sequence[Request], alone: bool) -> Batch:
        if alone and len(requests) == 1:
            for layout in self._layouts_alone():
                if Precision.of(self.model, layout).layout == layout:
                    fused = self._form(layout)
                    return Batch(fused, requests, self.decode, 1, self._reader(fused))
        # Without such a layout a single request is one of a batch.
        return Batch(self._form("packed"), requests, self.decode, self.max_batch)

    def _layouts_alone(self) -> tuple[Layout, ...]:
        return ("rows", "halves") if self.compile else ("halves",)

    def _reader(self, alone: FusedModel) -> FusedModel:
        """The form that reads the prompt of a request alone."""
        if Precision.of(self.model, "packed").layout == "halves":
            return alone if alone.layout == "halves" else self._form("halves")
        # Both read prompts alike, to the bit; packed weights are not made for that alone.
        return self._form("packed" if "packed" in self._forms else "modules")

    def _form(self, layout: Layout) -> FusedModel:
        """A form of the model, made anew where its weights have changed."""
        known = self._forms.get(layout)
        if known is None or not known.is_current():
            # What is outdated goes first: weights are not to lie in memory once more than they have to.
            self._forms = {name: form for name, form in self._forms.items() if name != layout and form.is_current()}
            self._forms[layout] = known = FusedModel(self.model, layout)
        return known

    def _requests(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling], keys: Sequence[int] | None
    ) -> list[Request]:
        keys = range(len(prompts)) if keys is None else keys
        if len(keys) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(keys)} keys")
        if self.decode is None and any(sampling.stop for sampling in samplings):
            raise ValueError("stop texts need a generator that can decode")
        requests: list[Request] = []
        for row, (prompt, sampling, key) in enumerate(zip(prompts, samplings, keys, strict=True)):
            self._check(prompt, f"prompt {row}")
            limit = min(sampling.max_new_tokens, self.model.config.context - len(prompt))
            for sample in range(sampling.n):
                requests.append(Request(len(requests), tuple(prompt), limit, key, sample, sampling))
        return requests

    def _check(self, prompt: Sequence[int], where: str) -> None:
        config = self.model.config
        if not prompt:
            raise DataError("is empty", where=where, hint="Start it with the beginning-of-text token.")
        if len(prompt) > config.context:
            raise DataError(f"has {len(prompt)} tokens, the model's context {config.context}", where=where)
        if min(prompt) < 0 or max(prompt) >= config.vocab_size:
            raise DataError(f"holds token ids outside the vocabulary of {config.vocab_size}", where=where)


@contextmanager
def _generating(model: Transformer) -> Iterator[None]:
    """Evaluation mode without gradients, and each module's own mode again afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True
        # Casts of weights made here must not reach a training step under the same autocast.
        if torch.is_autocast_enabled(model.device.type):
            torch.clear_autocast_cache()
