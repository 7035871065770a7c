"""How often reward models agree with preferences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmkit.data.examples import read_preferences
from llmkit.eval.metrics.answers import mean, sign
from llmkit.eval.models import Subject
from llmkit.eval.tasks.base import Begin, Measured, Measurement, Record, Result, Task
from llmkit.eval.tasks.config import PreferencesTask
from llmkit.eval.tasks.generate import conversation_ids
from llmkit.eval.texts import limited, name_of_split, read_split
from llmkit.model.scoring import score_sequences

LONGER = "longer answer"


class Preferences(Task[PreferencesTask]):
    """Both answers are rendered after the prompt in the reward model's own chat template."""

    def prepare(self) -> None:
        """Read the pairs."""
        found = read_split(read_preferences, self.data, self.config.split)
        self.examples = limited(found, self.config.limit, lambda example: example.id)

    def measure(self, subject: Subject, begin: Begin) -> Measurement:
        """Of each pair: both rewards."""
        context = subject.candidate.context
        sequences = [
            conversation_ids(subject.tokenizer, example.prompt, answer, context)
            for example in self.examples
            for answer in (example.chosen, example.rejected)
        ]
        scores = score_sequences(subject.model, sequences, self.settings.batch_size, begin(len(sequences)))
        records: list[Record] = [
            {"id": example.id, "chosen": chosen, "rejected": rejected}
            for example, (chosen, rejected) in zip(self.examples, scores.reshape(-1, 2).tolist(), strict=True)
        ]
        how = f"longer than {context} tokens: their end | tokenizer {subject.tokenizer.digest[:12]}"
        return Measurement(records, f"{how} | {self.settings.precision}", sum(len(ids) for ids in sequences))

    def results(self, measured: Measured) -> list[Result]:
        """Accuracy and mean margin of each reward model."""
        margin = mean("margin", "mean reward of the better answer less that of the worse", "higher", _margin)
        return [
            self.estimate(model, metric, found.records, note=f"{self._what()} | {found.how}")
            for model, found in measured.models.items()
            for metric in (_accuracy("higher reward"), margin)
        ]

    def baselines(self, measured: Measured) -> list[Result]:
        """Accuracy of preferring the answer with more characters."""
        lengths: Sequence[Record] = [
            {"chosen": len(example.chosen), "rejected": len(example.rejected)} for example in self.examples
        ]
        return [self.estimate(LONGER, _accuracy("more characters"), lengths, note=self._what())]

    def _what(self) -> str:
        return f"{len(self.examples)} pairs of {name_of_split(self.config.split)}"


def _accuracy(by: str) -> Any:
    signature = f"share of pairs where the better answer has the {by}, ties one half"
    return mean("accuracy", signature, "higher", lambda record: 0.5 + 0.5 * sign(_margin(record)))


def _margin(record: Record) -> float:
    return float(record["chosen"] - record["rejected"])
