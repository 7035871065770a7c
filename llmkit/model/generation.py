"""The generation engine: batched prefill, a preallocated cache, continuous batching, seeded draws.

Sequences at work occupy the cache's first slots without gaps. Each round writes one token of each: a finished sequence
leaves, the last one takes its slot, and waiting prompts join at the end, so no slot computes for nothing. What a
sequence becomes depends on its prompt, the settings and its key alone: each attends to itself only, and its draws come
from its own generator.

Shapes: B sequences at work, L prompt tokens, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from llmkit.errors import DataError
from llmkit.model.cache import Decode, KVCache, Prefill
from llmkit.model.draw import draw, uniforms
from llmkit.model.layers import compute_dtype
from llmkit.model.sampling import Completion, FinishReason, Piece, Sampling
from llmkit.model.stops import Cut, StopFinder, TextStream
from llmkit.model.stops import Decode as DecodeText
from llmkit.model.transformer import Transformer

# Bounds the memory of one prefill; a longer prompt goes alone.
_PREFILL_TOKENS = 16384


@dataclass(frozen=True)
class _Request:
    """One answer to write: its place in the results, its prompt, how far it may go."""

    place: int
    prompt: tuple[int, ...]
    limit: int
    key: int
    sample: int


class Generator:
    """Generates with a causal language model, in evaluation mode and without gradients.

    Args:
        model: a causal language model. Its weights are read at each call, so training may go on in between.
        decode: turns token ids into text; without it there are no texts and no stop texts.
        max_batch: most sequences at work at once; bounds the cache's memory, changes no result.
    """

    def __init__(self, model: Transformer, *, decode: DecodeText | None = None, max_batch: int = 64) -> None:
        if model.config.head != "causal-lm":
            raise ValueError(f"a model with a {model.config.head} head writes no text")
        self.model = model
        self.decode = decode
        self.max_batch = max_batch

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, keys: Sequence[int] | None = None
    ) -> list[Completion]:
        """Completions of prompts given as token ids.

        Args:
            prompts: not empty each, and no longer than the model's context.
            sampling: settings for all of them.
            keys: what each prompt's random draws depend on besides `sampling.seed`; by default its place in the list.
                The same prompt, key and settings give the same answer whatever else is in the batch.

        Returns:
            `sampling.n` completions of the first prompt, then of the second, and so on.

        Raises:
            DataError: a prompt is empty, too long or holds ids outside the vocabulary.
        """
        requests = self._requests(prompts, sampling, range(len(prompts)) if keys is None else keys)
        results: list[Completion | None] = [None] * len(requests)
        with _generating(self.model):
            batch = _Batch(self.model, requests, sampling, self.decode, self.max_batch)
            while batch.unfinished():
                for place, completion in batch.advance():
                    results[place] = completion
        return [completion for completion in results if completion is not None]

    def stream(self, prompt: Sequence[int], sampling: Sampling, *, key: int = 0) -> Iterator[Piece]:
        """One completion in pieces; joined, they are what `generate` gives for the same key.

        Raises:
            DataError: as for `generate`.
            ValueError: more than one answer was asked for.
        """
        if sampling.n != 1:
            raise ValueError("a stream gives one answer; n must be 1")
        requests = self._requests([prompt], sampling, [key])
        stream = None if self.decode is None else TextStream(self.decode, sampling.stop)
        shown, released = 0, 0
        batch: _Batch | None = None
        while True:
            with _generating(self.model):
                batch = batch or _Batch(self.model, requests, sampling, self.decode, 1)
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

    def _requests(self, prompts: Sequence[Sequence[int]], sampling: Sampling, keys: Sequence[int]) -> list[_Request]:
        if len(keys) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts but {len(keys)} keys")
        if sampling.stop and self.decode is None:
            raise ValueError("stop texts need a generator that can decode")
        config = self.model.config
        requests: list[_Request] = []
        for row, (prompt, key) in enumerate(zip(prompts, keys, strict=True)):
            where = f"prompt {row}"
            if not prompt:
                raise DataError("is empty", where=where, hint="Start it with the beginning-of-text token.")
            if len(prompt) > config.context:
                raise DataError(f"has {len(prompt)} tokens, the model's context {config.context}", where=where)
            if min(prompt) < 0 or max(prompt) >= config.vocab_size:
                raise DataError(f"holds token ids outside the vocabulary of {config.vocab_size}", where=where)
            limit = min(sampling.max_new_tokens, config.context - len(prompt))
            for sample in range(sampling.n):
                requests.append(_Request(len(requests), tuple(prompt), limit, key, sample))
        return requests


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


class _Batch:
    """The sequences at work and those waiting. Row r of every tensor belongs to slot r of the cache."""

    def __init__(
        self,
        model: Transformer,
        requests: Sequence[_Request],
        sampling: Sampling,
        decode: DecodeText | None,
        max_batch: int,
    ) -> None:
        self.model, self.sampling, self.decode = model, sampling, decode
        self.device = model.device
        stop_ids = model.config.eos_ids if sampling.stop_ids is None else sampling.stop_ids
        self.stop_ids = torch.tensor(stop_ids, dtype=torch.int64)
        self.finder = StopFinder(decode, sampling.stop) if decode is not None and sampling.stop else None
        # Prompts of like length prefill together; those of one prompt stay together and prefill once.
        self.waiting = deque(sorted(requests, key=lambda request: (-len(request.prompt), request.place)))
        self.working: list[_Request] = []
        self.slots = min(max_batch, len(requests))
        capacity = max((len(request.prompt) + request.limit for request in requests), default=0)
        most = max((request.limit for request in requests), default=0)
        dtype = compute_dtype(model.embeddings.token)
        self.cache = KVCache(model.config, self.slots, capacity, dtype, self.device)
        self.lengths = torch.zeros(self.slots, dtype=torch.int64)
        self.produced = torch.zeros(self.slots, dtype=torch.int64)
        self.limits = torch.zeros(self.slots, dtype=torch.int64)
        self.uniforms = torch.zeros(self.slots, most, dtype=torch.float64)
        self.tokens = torch.zeros(self.slots, most, dtype=torch.int64)
        self.logprobs = torch.zeros(self.slots, most, dtype=torch.float32)
        self.sampling_logprobs = torch.zeros(self.slots, most, dtype=torch.float32)

    def unfinished(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.working or self.waiting)

    def written(self, row: int) -> list[int]:
        """The tokens that a row has so far."""
        written: list[int] = self.tokens[row, : int(self.produced[row])].tolist()
        return written

    def advance(self) -> list[tuple[int, Completion]]:
        """Write one token of some sequences, either those that join now or all at work; returns those that finish."""
        free = self.slots - len(self.working)
        # Joining in groups: a prefill for each single free slot would cost more than the slot is worth.
        if self.waiting and free >= max(1, self.slots // 8):
            return self._join(free)
        return self._step()

    def _join(self, free: int) -> list[tuple[int, Completion]]:
        finished: list[tuple[int, Completion]] = []
        joining: list[_Request] = []
        prompts: dict[tuple[int, ...], int] = {}
        longest = len(self.waiting[0].prompt)
        while self.waiting and len(joining) < free:
            request = self.waiting[0]
            more = len(prompts) + (request.prompt not in prompts)
            if prompts and longest * more > _PREFILL_TOKENS:
                break
            self.waiting.popleft()
            if request.limit == 0:
                finished.append((request.place, Completion([], [], [], "context", "" if self.decode else None)))
                continue
            prompts.setdefault(request.prompt, len(prompts))
            joining.append(request)
        if not joining:
            return finished
        start = len(self.working)
        rows = torch.arange(start, start + len(joining))
        self.working += joining
        source = torch.tensor([prompts[request.prompt] for request in joining])
        for row, request in zip(rows.tolist(), joining, strict=True):
            self.lengths[row], self.produced[row], self.limits[row] = len(request.prompt), 0, request.limit
            self.uniforms[row, : request.limit] = uniforms(
                self.sampling.seed, request.key, request.sample, request.limit
            )
        logits_BV = self._prefill(list(prompts), rows, source)
        return finished + self._record(start, logits_BV)

    def _prefill(self, prompts: Sequence[tuple[int, ...]], rows: Tensor, source: Tensor) -> Tensor:
        """Logits after each joining row's prompt, whose keys and values go to the cache."""
        longest = max(len(prompt) for prompt in prompts)
        input_ids = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=self.device)
        ends = torch.tensor([len(prompt) - 1 for prompt in prompts], device=self.device)
        source = source.to(self.device)
        cache = Prefill(self.cache, rows.to(self.device), source, ends + 1)
        hidden_BLW = self.model.hidden(input_ids, cache=cache)
        last_BW = hidden_BLW[torch.arange(len(prompts), device=self.device), ends]
        logits_BV: Tensor = self.model.head(last_BW).float()
        return logits_BV[source]

    def _step(self) -> list[tuple[int, Completion]]:
        """One token of every sequence at work."""
        batch = len(self.working)
        rows = torch.arange(batch)
        input_ids = self.tokens[rows, self.produced[:batch] - 1][:, None].to(self.device)
        lengths = self.lengths[:batch]
        cache = Decode(self.cache, lengths[:, None].to(self.device), int(lengths.max()) + 1, self.model.config.window)
        hidden_BLW = self.model.hidden(input_ids, positions=cache.positions, cache=cache)
        logits_BV = self.model.head(hidden_BLW[:, -1]).float()
        self.lengths[:batch] += 1
        return self._record(0, logits_BV)

    def _record(self, start: int, logits_BV: Tensor) -> list[tuple[int, Completion]]:
        """Draw the next token of the rows from `start` on; returns what finishes with it."""
        rows = torch.arange(start, start + len(logits_BV))
        at = self.produced[rows]
        drawn = draw(logits_BV, self.uniforms[rows, at].to(self.device), self.sampling)
        tokens_B, self.logprobs[rows, at], self.sampling_logprobs[rows, at] = (tensor.cpu() for tensor in drawn)
        self.tokens[rows, at] = tokens_B
        self.produced[rows] = at + 1
        stopped_B = torch.isin(tokens_B, self.stop_ids)
        done = (stopped_B | (at + 1 == self.limits[rows])).tolist()
        cuts = self._cuts(start, tokens_B.tolist())
        finished = [
            (start + offset, self._complete(start + offset, bool(stopped_B[offset]), cuts.get(offset)))
            for offset in range(len(rows))
            if done[offset] or offset in cuts
        ]
        results = [(self.working[row].place, completion) for row, completion in finished]
        self._leave([row for row, _ in finished])
        return results

    def _cuts(self, start: int, tokens: Sequence[int]) -> dict[int, Cut]:
        """Rows, counted from `start`, whose newest token completes a stop text."""
        if self.finder is None:
            return {}
        finder = self.finder
        suspects = [offset for offset, token in enumerate(tokens) if finder.suspect(token)]
        found = {offset: finder.find(self.written(start + offset)) for offset in suspects}
        return {offset: cut for offset, cut in found.items() if cut is not None}

    def _complete(self, row: int, stopped: bool, cut: Cut | None) -> Completion:
        request, token_ids = self.working[row], self.written(row)
        text: str | None = None
        reason: FinishReason = "length" if request.limit == self.sampling.max_new_tokens else "context"
        if cut is not None:
            text, token_ids, reason = cut.text, token_ids[: cut.tokens], "stop"
        else:
            reason = "stop" if stopped else reason
            if self.decode is not None:
                text = self.decode(token_ids[:-1] if stopped else token_ids)
        count = len(token_ids)
        return Completion(
            token_ids,
            self.logprobs[row, :count].tolist(),
            self.sampling_logprobs[row, :count].tolist(),
            reason,
            text,
        )

    def _leave(self, rows: Sequence[int]) -> None:
        """Free the slots of finished rows; the last rows at work move into them."""
        if not rows:
            return
        left = len(self.working) - len(rows)
        gone = set(rows)
        holes = [row for row in rows if row < left]
        movers = [row for row in range(left, len(self.working)) if row not in gone]
        for hole, mover in zip(holes, movers, strict=True):
            self.working[hole] = self.working[mover]
        del self.working[left:]
        if holes:
            source, target = torch.tensor(movers), torch.tensor(holes)
            for tensor in (
                self.lengths,
                self.produced,
                self.limits,
                self.uniforms,
                self.tokens,
                self.logprobs,
                self.sampling_logprobs,
            ):
                tensor[target] = tensor[source]
            self.cache.move(source.to(self.device), target.to(self.device))
