"""Answers written by the models on the same prompts, against references and under a reward model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

from llmkit.config.base import Finding
from llmkit.data.examples import Message, read_conversations
from llmkit.errors import DataError
from llmkit.eval.metrics.answers import (
    ROUGE_TYPES,
    Answer,
    bleu,
    chrf,
    contains,
    exact_match,
    length,
    mean,
    rouge,
    sign,
)
from llmkit.eval.metrics.base import Metric
from llmkit.eval.models import Candidate, Subject
from llmkit.eval.tasks.base import Begin, Measured, Measurement, Record, Result, Task, spread
from llmkit.eval.tasks.config import GenerateTask
from llmkit.eval.texts import limited, name_of_split, read_split
from llmkit.inference import LoadedModel
from llmkit.model.generation import Generator
from llmkit.model.scoring import score_sequences
from llmkit.tokenizer.tokenizer import Tokenizer

REFERENCE = "reference"
_METRICS: dict[str, Callable[[], list[Metric[Answer]]]] = {
    "exact_match": lambda: [exact_match()],
    "contains": lambda: [contains()],
    "rouge": lambda: [rouge(kind) for kind in ROUGE_TYPES],
    "bleu": lambda: [bleu()],
    "chrf": lambda: [chrf()],
    "length": lambda: [length()],
}
# Prompts given to the engine at once, in batches: progress is shown after each lot.
_BATCHES = 4


class Generate(Task[GenerateTask]):
    """The prompt is all of a conversation but its last message, in the chat template of each model's own tokenizer.

    A model that was never taught the template gets the same rendering as the ones that were: all answer one prompt.
    """

    def prepare(self) -> None:
        """Read the conversations, and leave out prompts that are too long where the config says so."""
        found = read_split(read_conversations, self.data, self.config.split)
        self.examples = limited(found, self.config.limit, lambda example: example.id)
        self.asked = len(self.examples)
        self.prompts = {model.label: self._prompts(model) for model in self.models}
        if self.config.too_long == "skip":
            fitting = [place for place in range(self.asked) if self._fits(place)]
            if not fitting:
                raise DataError("every prompt is too long for one of the models.", where=str(self.data.path))
            self.examples = [self.examples[place] for place in fitting]
            self.prompts = {label: [ids[place] for place in fitting] for label, ids in self.prompts.items()}
        self.groups = [example.task or "other" for example in self.examples]

    def findings(self) -> list[Finding]:
        """Prompts that leave a model no room for an answer, or less than `max_new_tokens`."""
        found = []
        for model in self.models:
            lengths = [len(ids) for ids in self.prompts[model.label]]
            over = sum(length >= model.context for length in lengths)
            if over:
                found.append(
                    Finding(
                        f"{over} of {len(lengths)} prompts fill the context of `{model.label}` ({model.context} tokens)"
                        f", the longest with {max(lengths)} tokens.",
                        key="data",
                        hint="`too_long: skip` leaves them out for every model.",
                    )
                )
            cut = sum(length + self.config.max_new_tokens > model.context for length in lengths) - over
            if cut:
                found.append(
                    Finding(
                        f"{cut} of {len(lengths)} prompts leave `{model.label}` less than {self.config.max_new_tokens}"
                        f" tokens to answer in (its context is {model.context}).",
                        key="max_new_tokens",
                        severity="warning",
                    )
                )
        return found

    def measure(self, subject: Subject, begin: Begin) -> Measurement:
        """Of each example: the answer, why it ended, and its length in tokens."""
        sampling = LoadedModel(subject.model, subject.tokenizer).sampling(
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            top_k=self.config.top_k,
            top_p=self.config.top_p,
            stop=tuple(self.config.stop),
            seed=self.settings.seed,
        )
        size = self.settings.batch_size
        generator = Generator(subject.model, decode=subject.tokenizer.decode, max_batch=size)
        prompts = self.prompts[subject.candidate.label]
        order = sorted(range(len(prompts)), key=lambda place: (-len(prompts[place]), place))
        records: list[Record] = [{}] * len(prompts)
        advance = begin(len(prompts))
        for start in range(0, len(order), size * _BATCHES):
            places = order[start : start + size * _BATCHES]
            keys = [_key(self.examples[place].id) for place in places]
            answers = generator.generate([prompts[place] for place in places], sampling, keys=keys)
            for place, answer in zip(places, answers, strict=True):
                records[place] = {
                    "id": self.examples[place].id,
                    "output": answer.text,
                    "ended": answer.finish_reason,
                    "tokens": len(answer.token_ids),
                }
            advance(len(places))
        read = sum(len(ids) for ids in prompts)
        how = f"tokenizer {subject.tokenizer.digest[:12]} | {self.settings.precision}"
        return Measurement(records, how, read + sum(record["tokens"] for record in records))

    def judge_answers(self, judge: Subject, measured: Mapping[str, Measurement], begin: Begin) -> Measurement:
        """Of each example: the reward of the reference and of every model's answer."""
        authors = {label: [str(record["output"]) for record in found.records] for label, found in measured.items()}
        authors[""] = [example.reference for example in self.examples]
        sequences = [
            conversation_ids(judge.tokenizer, example.prompt, answer, judge.candidate.context)
            for answers in authors.values()
            for example, answer in zip(self.examples, answers, strict=True)
        ]
        scores = score_sequences(judge.model, sequences, self.settings.batch_size, begin(len(sequences)))
        columns = scores.reshape(len(authors), len(self.examples)).tolist()
        by_author = dict(zip(authors, columns, strict=True))
        records: list[Record] = [
            {"id": example.id, "reference": by_author[""][place], "models": {m: by_author[m][place] for m in measured}}
            for place, example in enumerate(self.examples)
        ]
        how = f"reward of {judge.candidate.label} {judge.candidate.source.digest[:12]}"
        how += f" | longer than {judge.candidate.context} tokens: their end | {self.settings.precision}"
        return Measurement(records, how, sum(len(sequence) for sequence in sequences))

    def results(self, measured: Measured) -> list[Result]:
        """Every metric of each model, on all examples and on those of each `task`."""
        found = []
        for part, places in self._parts():
            for model, measurement in measured.models.items():
                answers = [Answer(measurement.records[at]["output"], self.examples[at].reference) for at in places]
                for metric in self._metrics():
                    note = f"{self._how()} | {measurement.how}"
                    found.append(self.estimate(model, metric, answers, task=part, note=note))
            if measured.judged is not None:
                records = [measured.judged.records[place] for place in places]
                found += self._rewards(part, records, list(measured.models), measured.judged.how)
        return found

    def baselines(self, measured: Measured) -> list[Result]:
        """Length and reward of the reference answers."""
        found = []
        for part, places in self._parts():
            if "length" in self.config.metrics:
                answers = [Answer(self.examples[at].reference, self.examples[at].reference) for at in places]
                found.append(self.estimate(REFERENCE, length(), answers, task=part))
            if measured.judged is not None:
                metric = mean("reward", "mean reward", "higher", lambda record: record["reference"])
                records = [measured.judged.records[place] for place in places]
                found.append(self.estimate(REFERENCE, metric, records, task=part, note=measured.judged.how))
        return found

    def samples(self, measured: Measured, count: int) -> list[Record]:
        """Prompts, references, answers, and rewards where there is a judge."""
        found = []
        for place in spread(self.groups, count):
            example = self.examples[place]
            sample: Record = {
                "task": self.title,
                "id": example.id,
                "prompt": as_text(example.prompt),
                "reference": example.reference,
                "outputs": {model: answers.records[place]["output"] for model, answers in measured.models.items()},
            }
            if measured.judged is not None:
                record = measured.judged.records[place]
                rewards = {**record["models"], REFERENCE: record["reference"]}
                sample["scores"] = {author: {"reward": reward} for author, reward in rewards.items()}
            found.append(sample)
        return found

    def _rewards(self, part: str, records: Sequence[Record], models: Sequence[str], how: str) -> list[Result]:
        """Mean reward of each model, and how often each beats those before it in the config."""
        note = f"{self._how()} | {how}"
        found = []

        def rewards(model: str) -> list[float]:
            return [record["models"][model] for record in records]

        for model in models:
            found.append(
                self.estimate(
                    model, mean("reward", "mean reward", "higher", float), rewards(model), task=part, note=note
                )
            )
        for other, model in combinations(models, 2):
            metric = mean(
                f"win_rate vs {other}",
                f"share of prompts where the reward is higher than that of {other}, ties one half",
                "higher",
                lambda pair: 0.5 + 0.5 * sign(pair[0] - pair[1]),
            )
            pairs = list(zip(rewards(model), rewards(other), strict=True))
            found.append(self.estimate(model, metric, pairs, task=part, note=note))
        return found

    def _metrics(self) -> list[Metric[Answer]]:
        return [metric for name in self.config.metrics if name in _METRICS for metric in _METRICS[name]()]

    def _parts(self) -> list[tuple[str, list[int]]]:
        """Names and places of all examples and, where there are several tasks among them, of each task's."""
        parts = [(self.title, list(range(len(self.examples))))]
        names = sorted(set(self.groups))
        if len(names) > 1:
            for name in names:
                parts.append((f"{self.title}/{name}", [at for at, group in enumerate(self.groups) if group == name]))
        return parts

    def _how(self) -> str:
        config = self.config
        drawn = "greedy" if config.temperature == 0 else f"temperature {config.temperature}, seed {self.settings.seed}"
        drawn += f", top_k {config.top_k}" if config.top_k is not None else ""
        drawn += f", top_p {config.top_p}" if config.top_p < 1 else ""
        drawn += f", stop {config.stop}" if config.stop else ""
        count = f"{len(self.examples)} prompts of {name_of_split(config.split)}"
        if len(self.examples) < self.asked:
            count += f" ({self.asked - len(self.examples)} too long)"
        count += ", in each model's own chat template whether taught or not"
        return f"{count} | {drawn}, {config.max_new_tokens} tokens"

    def _prompts(self, model: Candidate) -> list[list[int]]:
        return [
            model.tokenizer.render_conversation([*example.prompt], add_generation_prompt=True).ids
            for example in self.examples
        ]

    def _fits(self, place: int) -> bool:
        return all(len(self.prompts[model.label][place]) < model.context for model in self.models)


def conversation_ids(tokenizer: Tokenizer, prompt: Sequence[Message], answer: str, context: int) -> list[int]:
    """Ids of a conversation that ends with an answer; of one longer than `context` its last tokens."""
    messages: list[Any] = [*prompt, {"role": "assistant", "content": answer}]
    return tokenizer.render_conversation(messages).ids[-context:]


def as_text(messages: Sequence[Message]) -> str:
    """A prompt for people to read: what the user says, or every message after its role."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _key(example: str) -> int:
    """What the random draws of an answer depend on: the example alone."""
    return int.from_bytes(hashlib.sha256(example.encode()).digest()[:8], "big")
