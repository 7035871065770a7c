"""Loss, perplexity and bits per byte of held-out text, beside general-purpose compressors on the same bytes."""

from __future__ import annotations

import gzip
import lzma

from llmkit.eval.metrics.language import bits_per_byte, loss, perplexity, token_accuracy
from llmkit.eval.models import Subject
from llmkit.eval.tasks.base import Begin, Measured, Measurement, Record, Result, Task
from llmkit.eval.tasks.config import PerplexityTask
from llmkit.eval.texts import held_out_texts, name_of_split
from llmkit.inference import score_texts


class Perplexity(Task[PerplexityTask]):
    """Every model reads the same texts with its own tokenizer; `score_texts` says what is scored."""

    def prepare(self) -> None:
        """Read the texts."""
        self.texts = held_out_texts(self.data, self.config.split, self.config.limit)
        self.bytes = [text.bytes for text in self.texts]

    def measure(self, subject: Subject, begin: Begin) -> Measurement:
        """Of each text: nats, tokens, bytes, and tokens that were the likeliest."""
        context = self.config.context or subject.candidate.context
        stride = self.config.stride or context
        tokenizer = subject.tokenizer
        found = score_texts(
            subject.model,
            tokenizer,
            [text.text for text in self.texts],
            context=context,
            stride=stride,
            batch_size=self.settings.batch_size,
            begin=begin,
        )
        records: list[Record] = [
            {"nll": nats, "tokens": tokens, "bytes": size, "hits": int(hits)}
            for nats, tokens, size, hits in zip(
                found.nats.tolist(), found.tokens, self.bytes, found.hits.tolist(), strict=True
            )
        ]
        overlap = f"stride {stride}" if stride < context else "no overlap"
        start = "none, first token uniform" if tokenizer.start_id is None else "start of text"
        how = f"windows of {context} tokens, {overlap} | before a text: {start}"
        how += f" | tokenizer {tokenizer.digest[:12]} | {self.settings.precision}"
        return Measurement(records, how, found.inputs)

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
