"""Loss, perplexity and bits per byte of held-out text, beside general-purpose compressors on the same bytes."""

from __future__ import annotations

import gzip
import lzma
import math
from collections.abc import Iterator, Sequence

from llmkit.eval.metrics.language import bits_per_byte, loss, perplexity, token_accuracy
from llmkit.eval.models import Subject
from llmkit.eval.scoring import Window, score_windows
from llmkit.eval.tasks.base import Begin, Measured, Measurement, Record, Result, Task
from llmkit.eval.tasks.config import PerplexityTask
from llmkit.eval.texts import held_out_texts, name_of_split
from llmkit.tokenizer.tokenizer import Tokenizer


class Perplexity(Task[PerplexityTask]):
    """Every model reads the same texts with its own tokenizer; a text is scored on its own.

    Before a text stands the beginning-of-text token, or the end-of-text token where there is no other. A tokenizer
    with neither leaves the first token without context: it is charged as a draw from the whole vocabulary. The end of
    a text is not scored: it has no bytes.
    """

    def prepare(self) -> None:
        """Read the texts."""
        self.texts = held_out_texts(self.data, self.config.split, self.config.limit)
        self.bytes = [text.bytes for text in self.texts]

    def measure(self, subject: Subject, begin: Begin) -> Measurement:
        """Of each text: nats, tokens, bytes, and tokens that were the likeliest."""
        context = self.config.context or subject.candidate.context
        stride = self.config.stride or context
        tokenizer = subject.tokenizer
        prefix = start_of_text(tokenizer)
        windows: list[Window] = []
        owners: list[int] = []
        records: list[Record] = []
        for owner, ids in enumerate(tokenizer.encode_batch([text.text for text in self.texts])):
            # Without a start of text there is no context for the first token.
            free = math.log(tokenizer.vocab_size) if prefix is None and ids else 0.0
            records.append({"nll": free, "tokens": len(ids), "bytes": self.bytes[owner], "hits": 0})
            found = list(sliding_windows(ids if prefix is None else [prefix, *ids], context, stride))
            windows += found
            owners += [owner] * len(found)
        nats, hits = score_windows(subject.model, windows, self.settings.batch_size, begin(len(windows)))
        for owner, window_nats, window_hits in zip(owners, nats.tolist(), hits.tolist(), strict=True):
            records[owner]["nll"] += window_nats
            records[owner]["hits"] += int(window_hits)
        overlap = f"stride {stride}" if stride < context else "no overlap"
        start = "none, first token uniform" if prefix is None else "start of text"
        how = f"windows of {context} tokens, {overlap} | before a text: {start}"
        how += f" | tokenizer {tokenizer.digest[:12]} | {self.settings.precision}"
        return Measurement(records, how, sum(len(window.inputs) for window in windows))

    def results(self, measured: Measured) -> list[Result]:
        """Four metrics of each model."""
        return [
            self.estimate(model, metric(f"{self._what()} | {found.how}"), found.records)
            for model, found in measured.models.items()
            for metric in (bits_per_byte, loss, perplexity, token_accuracy)
        ]

    def baselines(self, measured: Measured) -> list[Result]:
        """Bits per byte of gzip and xz at their strongest on all texts in one piece."""
        whole = "".join(text.text for text in self.texts).encode()
        sizes = {
            "gzip -9": len(gzip.compress(whole, compresslevel=9, mtime=0)),
            "xz -9": len(lzma.compress(whole, preset=9)),
        }
        signature = f"compressed bits over UTF-8 bytes | {self._what()}, in one piece"
        return [
            Result(
                name,
                self.title,
                "bits_per_byte",
                8 * size / len(whole),
                None,
                None,
                len(self.texts),
                signature,
                "lower",
            )
            for name, size in sizes.items()
        ]

    def _what(self) -> str:
        return f"{len(self.texts)} texts of {name_of_split(self.config.split)}, {sum(self.bytes)} bytes"


def start_of_text(tokenizer: Tokenizer) -> int | None:
    """The token that stands before a text: its beginning, or the end of the one before."""
    return tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id


def sliding_windows(ids: Sequence[int], context: int, stride: int) -> Iterator[Window]:
    """Windows of at most `context` inputs, `stride` apart, that together score every token but the first once.

    A token is scored in the first window that holds the token before it.
    """
    begin, scored = 0, 0
    while scored < len(ids) - 1:
        end = min(begin + context, len(ids) - 1)
        yield Window(ids[begin:end], range(scored - begin, end - begin), ids[scored + 1 : end + 1])
        scored = end
        begin += stride
