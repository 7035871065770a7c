"""Classes predicted by classification heads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from llmkit.config.base import Finding
from llmkit.data.examples import LabelledText, read_labels
from llmkit.eval.metrics.base import Metric
from llmkit.eval.metrics.classes import Labelled, accuracy, macro_f1, matthews, micro_f1
from llmkit.eval.models import Subject
from llmkit.eval.tasks.base import Begin, Measured, Measurement, Record, Result, Task, spread
from llmkit.eval.tasks.config import ClassificationTask
from llmkit.eval.texts import limited, name_of_split, read_split
from llmkit.model.scoring import score_sequences
from llmkit.store.stage import ResolvedInput

MAJORITY = "majority class"
_METRICS: Mapping[str, Callable[[int], Metric[Labelled]]] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "micro_f1": micro_f1,
    "mcc": matthews,
}


class Classification(Task[ClassificationTask]):
    """A text is cut at its end to the model's context; the class is the one with the highest logit."""

    def prepare(self) -> None:
        """Read the texts, and the classes of the training split for the baseline."""
        found = read_split(self._read, self.data, self.config.split)
        self.examples = limited(found, self.config.limit, lambda example: example.id)
        self.training = Counter(example.label for example in self._read(self.data, "train"))
        known = {label for model in self.models for label in model.properties["labels"]}
        self.labels = sorted(known | {example.label for example in self.examples} | set(self.training))

    def findings(self) -> list[Finding]:
        """Classes that a model cannot predict."""
        found = []
        for model in self.models:
            unknown = sorted({example.label for example in self.examples} - set(model.properties["labels"]))
            if unknown:
                shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
                found.append(Finding(f"`{model.label}` does not know these classes of the data: {shown}.", key="data"))
        return found

    def measure(self, subject: Subject, begin: Begin) -> Measurement:
        """Of each example: its class and the predicted one."""
        context = subject.candidate.context
        sequences = [subject.tokenizer.encode_single(example.text, context) for example in self.examples]
        logits = score_sequences(subject.model, sequences, self.settings.batch_size, begin(len(sequences)))
        names = subject.model.config.labels
        records: list[Record] = [
            {"id": example.id, "label": example.label, "output": names[place]}
            for example, place in zip(self.examples, logits.argmax(axis=1).tolist(), strict=True)
        ]
        how = f"texts cut to {context} tokens | tokenizer {subject.tokenizer.digest[:12]} | {self.settings.precision}"
        return Measurement(records, how, sum(len(sequence) for sequence in sequences))

    def results(self, measured: Measured) -> list[Result]:
        """The metrics of each model."""
        return [
            result
            for model, found in measured.models.items()
            for result in self._figures(model, [str(record["output"]) for record in found.records], found.how)
        ]

    def baselines(self, measured: Measured) -> list[Result]:
        """The same of answering always with the most frequent class of the training split."""
        if not self.training:
            return []
        majority = min(self.training, key=lambda label: (-self.training[label], label))
        return self._figures(MAJORITY, [majority] * len(self.examples), f"always `{majority}`, as in the train split")

    def samples(self, measured: Measured, count: int) -> list[Record]:
        """Texts with their class and the predicted ones."""
        return [
            {
                "task": self.title,
                "id": self.examples[place].id,
                "prompt": self.examples[place].text,
                "reference": self.examples[place].label,
                "outputs": {model: found.records[place]["output"] for model, found in measured.models.items()},
            }
            for place in spread([example.label for example in self.examples], count)
        ]

    def _figures(self, model: str, outputs: Sequence[str], how: str) -> list[Result]:
        number = {label: place for place, label in enumerate(self.labels)}
        pairs = [
            Labelled(number[example.label], number[output])
            for example, output in zip(self.examples, outputs, strict=True)
        ]
        note = f"{len(pairs)} texts of {name_of_split(self.config.split)} | {how}"
        metrics = [_METRICS[name](len(self.labels)) for name in self.config.metrics]
        return [self.estimate(model, metric, pairs, note=note) for metric in metrics]

    def _read(self, data: ResolvedInput, split: str) -> list[LabelledText]:
        return read_labels(data, split, text=self.config.text, label=self.config.label)
