"""Continuous batching: the sequences at work, those waiting, and how one takes the place of another.

Sequences at work occupy the cache's first slots without gaps. Each round writes one token of each: a finished sequence
leaves, the last one takes its slot, and waiting prompts join at the end, so no slot computes for nothing.

Shapes: B sequences at work, N prompts, L prompt tokens, W width, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmkit.model.cache import Decode, KVCache, Prefill
from llmkit.model.draw import Drawn, draw_rows, uniforms
from llmkit.model.fused import FusedModel
from llmkit.model.sampling import Completion, FinishReason, Sampling
from llmkit.model.stops import Cut, StopFinder
from llmkit.model.stops import Decode as DecodeText

# Bounds the memory of one prefill: tokens of all prompts in a chunk, and columns of a chunk.
_CHUNK_TOKENS = 8192
_CHUNK = 1024
# Prompts that prefill together.
_PREFILL_TOKENS = 16384


@dataclass(frozen=True)
class Request:
    """One answer to write.

    Attributes:
        place: in the results.
        prompt: its token ids.
        limit: most tokens to write.
        key, sample: what its draws depend on besides the seed.
        sampling: its settings.
    """

    place: int
    prompt: tuple[int, ...]
    limit: int
    key: int
    sample: int
    sampling: Sampling


class Batch:
    """Requests at work and waiting. Row r of every tensor belongs to slot r of the cache.

    Args:
        fused: the model.
        requests: what to write.
        decode: turns token ids into text.
        max_batch: most requests at work at once.
        reader: the form that reads prompts, where it is not the one that writes.
    """

    def __init__(
        self,
        fused: FusedModel,
        requests: Sequence[Request],
        decode: DecodeText | None,
        max_batch: int,
        reader: FusedModel | None = None,
    ) -> None:
        self.fused, self.reader, self.decode = fused, reader or fused, decode
        config, self.device = fused.model.config, fused.device
        self.eos_ids = config.eos_ids
        # Prompts of like length prefill together; those of one prompt stay together and prefill once.
        self.waiting = deque(sorted(requests, key=lambda request: (-len(request.prompt), request.place)))
        self.working: list[Request] = []
        self.slots = min(max_batch, len(requests))
        capacity = max((len(request.prompt) + request.limit for request in requests), default=0)
        most = max((request.limit for request in requests), default=0)
        spare = 0 if fused.compiler is None else 1
        self.cache = KVCache(config, self.slots, capacity, fused.precision.kept, self.device, spare)
        self.lengths = torch.zeros(self.slots, dtype=torch.int64)
        self.produced = torch.zeros(self.slots, dtype=torch.int64)
        self.limits = torch.zeros(self.slots, dtype=torch.int64)
        self.uniforms = torch.zeros(self.slots, most, dtype=torch.float64)
        self.tokens = torch.zeros(self.slots, most, dtype=torch.int64)
        self.logprobs = torch.zeros(self.slots, most, dtype=torch.float32)
        self.sampling_logprobs = torch.zeros(self.slots, most, dtype=torch.float32)
        penalised = any(request.sampling.repetition_penalty != 1 for request in requests)
        # Prompt and answer of each row, its first token again where it has none: what repetition is counted in.
        self.history = torch.zeros(self.slots, capacity, dtype=torch.int64) if penalised else None
        most_ends = max((len(self._ends(request)) for request in requests), default=0)
        # -1 is no token.
        self.stop_ids = torch.full((self.slots, most_ends), -1)
        self.finders: dict[tuple[str, ...], StopFinder] = {}

    def _ends(self, request: Request) -> tuple[int, ...]:
        chosen = request.sampling.stop_ids
        return self.eos_ids if chosen is None else chosen

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
        joining: list[Request] = []
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
        self.working += joining
        for row, request in enumerate(joining, start):
            self._enter(row, request)
        source = torch.tensor([prompts[request.prompt] for request in joining])
        slots = torch.arange(start, start + len(joining))
        return finished + self._record(start, self._prefill(list(prompts), slots, source))

    def _enter(self, row: int, request: Request) -> None:
        self.lengths[row], self.produced[row], self.limits[row] = len(request.prompt), 0, request.limit
        if request.sampling.temperature > 0:
            seed, key, sample = request.sampling.seed, request.key, request.sample
            self.uniforms[row, : request.limit] = uniforms(seed, key, sample, request.limit)
        ends = self._ends(request)
        self.stop_ids[row] = -1
        self.stop_ids[row, : len(ends)] = torch.tensor(ends, dtype=torch.int64)
        if self.history is not None:
            self.history[row] = request.prompt[0]
            self.history[row, : len(request.prompt)] = torch.tensor(request.prompt)

    def _prefill(self, prompts: Sequence[tuple[int, ...]], slots: Tensor, source: Tensor) -> Tensor:
        """Logits after each joining row's prompt, whose keys and values go to the cache; prompts, the longest first."""
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        longest = int(lengths[0])
        ids = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=self.device)
        device = self.device
        passing = Prefill(self.cache, slots.to(device), source.to(device), lengths.to(device))
        last: list[Tensor] = []
        start = 0
        while start < longest:
            # Prompts that have ended take no further part.
            active = int((lengths > start).sum())
            width = min(max(_CHUNK_TOKENS // active // 64 * 64, 64), _CHUNK)
            end = min(start + width, longest)
            passing.begin(start, active)
            hidden_NLW = self.reader.prefill(ids[:active, start:end], start, passing)
            ending = range(int((lengths > end).sum()), active)
            rows = torch.tensor(list(ending), dtype=torch.int64)
            # Later chunks hold the ends of longer prompts, which come first.
            last.insert(0, hidden_NLW[rows.to(device), (lengths[rows] - 1 - start).to(device)])
            start = end
        return self.reader.logits(torch.cat(last))[source.to(device)]

    def _step(self) -> list[tuple[int, Completion]]:
        """One token of every sequence at work."""
        self._recompute_caches()
        batch = len(self.working)
        input_ids = self.tokens[:batch].gather(1, self.produced[:batch, None] - 1)[:, 0]
        lengths = self.lengths[:batch]
        passing = Decode(self.cache, lengths.to(self.device), int(lengths.max()))
        hidden_BW = self.fused.decode(input_ids.to(self.device), passing)
        self.lengths[:batch] += 1
        return self._record(0, self.fused.logits(hidden_BW))

    def _recompute_caches(self) -> None:
        """Where rotary frequencies change with the coming token, rotate all of a row's keys with the new ones."""
        scaling = self.fused.model.config.rope_scaling
        if scaling is None or scaling.kind != "longrope":
            return
        rows = (self.lengths[: len(self.working)] == scaling.original_context).nonzero()[:, 0]
        if len(rows):
            sequences = [(*self.working[row].prompt, *self.written(row)) for row in rows.tolist()]
            self._prefill(sequences, rows, torch.arange(len(rows)))

    def _record(self, start: int, logits_BV: Tensor) -> list[tuple[int, Completion]]:
        """Draw the next token of the rows from `start` on; returns what finishes with it."""
        end = start + len(logits_BV)
        at = self.produced[start:end, None]
        history = None
        if self.history is not None:
            history = self.history[start:end, : int(self.lengths[start:end].max())].to(self.device)
        uniforms_B = self.uniforms[start:end].gather(1, at)[:, 0].to(self.device)
        samplings = [request.sampling for request in self.working[start:end]]
        drawn = Drawn(*(part.cpu() for part in draw_rows(logits_BV, uniforms_B, samplings, history)))
        for table, values in (
            (self.tokens, drawn.tokens),
            (self.logprobs, drawn.logprobs),
            (self.sampling_logprobs, drawn.sampling_logprobs),
        ):
            table[start:end].scatter_(1, at, values[:, None])
        self.produced[start:end] += 1
        if self.history is not None:
            places = self.lengths[start:end, None].clamp(max=self.history.shape[1] - 1)
            self.history[start:end].scatter_(1, places, drawn.tokens[:, None])
        stopped_B = (drawn.tokens[:, None] == self.stop_ids[start:end]).any(dim=1)
        done = (stopped_B | (self.produced[start:end] == self.limits[start:end])).tolist()
        cuts = self._cuts(start, drawn.tokens)
        finished = [
            (start + offset, self._complete(start + offset, bool(stopped_B[offset]), cuts.get(offset)))
            for offset in range(len(done))
            if done[offset] or offset in cuts
        ]
        results = [(self.working[row].place, completion) for row, completion in finished]
        self._leave([row for row, _ in finished])
        return results

    def _cuts(self, start: int, tokens_B: Tensor) -> dict[int, Cut]:
        """Rows, counted from `start`, whose newest token completes a stop text."""
        found: dict[int, Cut] = {}
        if self.decode is None or not any(request.sampling.stop for request in self.working[start:]):
            return found
        for offset, token in enumerate(tokens_B.tolist()):
            stop = self.working[start + offset].sampling.stop
            if not stop:
                continue
            if stop not in self.finders:
                self.finders[stop] = StopFinder(self.decode, stop)
            finder = self.finders[stop]
            cut = finder.find(self.written(start + offset)) if finder.suspect(token) else None
            if cut is not None:
                found[offset] = cut
        return found

    def _complete(self, row: int, stopped: bool, cut: Cut | None) -> Completion:
        request, token_ids = self.working[row], self.written(row)
        text: str | None = None
        reason: FinishReason = "length" if request.limit == request.sampling.max_new_tokens else "context"
        if cut is not None:
            text, token_ids, reason = cut.text, token_ids[: cut.tokens], "stop"
        else:
            reason = "stop" if stopped else reason
            if self.decode is not None:
                text = self.decode(token_ids[:-1] if stopped else token_ids)
        count = len(token_ids)
        logprobs, sampling_logprobs = self.logprobs[row, :count], self.sampling_logprobs[row, :count]
        return Completion(token_ids, logprobs.tolist(), sampling_logprobs.tolist(), reason, text)

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
        if not holes:
            return
        source, target = torch.tensor(movers), torch.tensor(holes)
        tables = [self.lengths, self.produced, self.limits, self.uniforms, self.tokens, self.stop_ids]
        tables += [self.logprobs, self.sampling_logprobs, *([] if self.history is None else [self.history])]
        for table in tables:
            table[target] = table[source]
        self.cache.move(source.to(self.device), target.to(self.device))
