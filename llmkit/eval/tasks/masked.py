"""Loss and accuracy of masked language models on held-out text."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence

from llmkit.config.base import Finding
from llmkit.eval.metrics.language import loss, token_accuracy
from llmkit.eval.models import Candidate, Subject
from llmkit.eval.tasks.base import Begin, Measured, Measurement, Record, Result, Task
from llmkit.eval.tasks.config import MaskedTask
from llmkit.eval.texts import held_out_texts, name_of_split
from llmkit.model.scoring import Window, score_windows
from llmkit.tokenizer.tokenizer import Tokenizer


class Masked(Task[MaskedTask]):
    """Which tokens are masked depends on the seed, the text and the tokenizer alone, not on the model."""

    def prepare(self) -> None:
        """Read the texts."""
        self.texts = held_out_texts(self.data, self.config.split, self.config.limit)

    def findings(self) -> list[Finding]:
        """A tokenizer must have a mask token."""
        return [
            Finding(f"the tokenizer of `{model.label}` has no mask token.", key="models")
            for model in self.models
            if model.tokenizer.mask_id is None
        ]

    def measure(self, subject: Subject, begin: Begin) -> Measurement:
        """Of each text with tokens: nats, masked tokens, and those that were the likeliest."""
        windows, owners = self._windows(subject.candidate)
        nats, hits = score_windows(subject.model, windows, self.settings.batch_size, begin(len(windows)))
        records: dict[int, Record] = {owner: {"nll": 0.0, "tokens": 0, "hits": 0} for owner in owners}
        for owner, window, window_nats, window_hits in zip(owners, windows, nats.tolist(), hits.tolist(), strict=True):
            records[owner]["nll"] += window_nats
            records[owner]["tokens"] += len(window.targets)
            records[owner]["hits"] += int(window_hits)
        how = f"{self._how(subject.candidate)} | {self.settings.precision}"
        return Measurement(list(records.values()), how, sum(len(window.inputs) for window in windows))

    def results(self, measured: Measured) -> list[Result]:
        """Two metrics of each model."""
        return [
            self.estimate(model, metric(found.how), found.records)
            for model, found in measured.models.items()
            for metric in (loss, token_accuracy)
        ]

    def baselines(self, measured: Measured) -> list[Result]:
        """Accuracy of naming always the token that is masked most often, for each tokenizer."""
        found: list[Result] = []
        seen: dict[str, str] = {}
        for model in self.models:
            how = self._how(model)
            if how in seen.values():
                continue
            seen[model.label] = how
            windows, owners = self._windows(model)
            counts = Counter(target for window in windows for target in window.targets)
            best = min(counts, key=lambda token: (-counts[token], token))
            records: dict[int, Record] = {owner: {"tokens": 0, "hits": 0} for owner in owners}
            for owner, window in zip(owners, windows, strict=True):
                records[owner]["tokens"] += len(window.targets)
                records[owner]["hits"] += sum(target == best for target in window.targets)
            name = "most frequent token" if len(seen) == 1 else f"most frequent token ({model.label})"
            metric = token_accuracy(f"{how} | the masked tokens' own most frequent one")
            found.append(self.estimate(name, metric, list(records.values())))
        return found

    def _windows(self, model: Candidate) -> tuple[list[Window], list[int]]:
        """The masked windows of all texts, and the text that each is of."""
        context = self.config.context or model.context
        windows: list[Window] = []
        owners: list[int] = []
        for owner, ids in enumerate(model.tokenizer.encode_batch([text.text for text in self.texts])):
            key = f"{self.settings.seed}:{self.texts[owner].id}"
            found = list(masked_windows(ids, model.tokenizer, context, self.config.fraction, key))
            windows += found
            owners += [owner] * len(found)
        return windows, owners

    def _how(self, model: Candidate) -> str:
        context = self.config.context or model.context
        return (
            f"{self.config.fraction:.0%} of the tokens as [MASK], seed {self.settings.seed}"
            f" | {len(self.texts)} texts of {name_of_split(self.config.split)}"
            f" | windows of {context} tokens, no overlap | tokenizer {model.tokenizer.digest[:12]}"
        )


def masked_windows(
    ids: Sequence[int], tokenizer: Tokenizer, context: int, fraction: float, key: str
) -> Iterator[Window]:
    """Pieces of a text between [CLS] and [SEP], with tokens replaced by [MASK].

    Args:
        ids: the text's tokens.
        tokenizer: gives the special tokens; those that it lacks are left out.
        context: tokens of a window, special ones included.
        fraction: share of a piece's tokens that is masked, at least one.
        key: decides which.
    """
    assert tokenizer.mask_id is not None
    before = [] if tokenizer.cls_id is None else [tokenizer.cls_id]
    after = [] if tokenizer.sep_id is None else [tokenizer.sep_id]
    # `random` gives the same numbers for a seed in every version of Python.
    generator = random.Random(hashlib.sha256(key.encode()).digest())
    room = context - len(before) - len(after)
    for start in range(0, len(ids), room):
        piece = list(ids[start : start + room])
        order = sorted(range(len(piece)), key=[generator.random() for _ in piece].__getitem__)
        chosen = sorted(order[: max(1, round(fraction * len(piece)))])
        targets = [piece[place] for place in chosen]
        for place in chosen:
            piece[place] = tokenizer.mask_id
        yield Window([*before, *piece, *after], [place + len(before) for place in chosen], targets)
