"""Multiple choice by likelihood, as the Language Model Evaluation Harness does it (Gao et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llmkit.config.base import Finding
from llmkit.data.examples import Message, files_by_split
from llmkit.data.records import FileRecord, read_records
from llmkit.errors import DataError
from llmkit.eval.metrics.answers import mean
from llmkit.eval.models import Candidate, Subject
from llmkit.eval.tasks.base import Begin, Measured, Measurement, Record, Result, Task
from llmkit.eval.tasks.config import ChoiceTask
from llmkit.eval.tasks.generate import as_text
from llmkit.eval.texts import limited
from llmkit.model.scoring import Window, score_windows
from llmkit.tokenizer.tokenizer import Tokenizer

CHANCE = "chance"


@dataclass(frozen=True)
class Question:
    """A question with options.

    Args:
        id: name of the question.
        prompt: text that an option continues, as it stands; or messages that it answers.
        choices: the options, at least two.
        answer: number of the right one, from 0.
        place: file and line.
    """

    id: str
    prompt: str | list[Message]
    choices: list[str]
    answer: int
    place: str


class Choice(Task[ChoiceTask]):
    """An option's likelihood is that of its tokens after the prompt's; also by UTF-8 byte of the option."""

    def prepare(self) -> None:
        """Read the questions."""
        files = [file for members in files_by_split(self.data.path).values() for file in members]
        found = [_question(row, f"{file.name}:{n}") for file in files for n, row in enumerate(read_records(file))]
        if not found:
            raise DataError("there is no question.", where=str(self.data.path))
        self.examples = limited(found, self.config.limit, lambda example: example.id)

    def findings(self) -> list[Finding]:
        """Questions that do not fit a model, or that its tokenizer cannot render."""
        found = []
        for model in self.models:
            longest = max(len(inputs) for inputs, _ in self._sequences(model))
            if longest > model.context:
                found.append(
                    Finding(
                        f"a prompt with an option takes {longest} tokens, and the context of `{model.label}` is"
                        f" {model.context}.",
                        key="data",
                    )
                )
        return found

    def measure(self, subject: Subject, begin: Begin) -> Measurement:
        """Of each question: the log-likelihood of each option."""
        windows = [
            Window(ids[:-1], range(len(ids) - scored - 1, len(ids) - 1), ids[-scored:])
            for ids, scored in self._sequences(subject.candidate)
        ]
        nats, _ = score_windows(subject.model, windows, self.settings.batch_size, begin(len(windows)))
        likelihoods = iter((-nats).tolist())
        records: list[Record] = [
            {"id": example.id, "logprobs": [next(likelihoods) for _ in example.choices]} for example in self.examples
        ]
        how = f"tokenizer {subject.tokenizer.digest[:12]} | {self.settings.precision}"
        return Measurement(records, how, sum(len(window.inputs) for window in windows))

    def results(self, measured: Measured) -> list[Result]:
        """Accuracy by likelihood, and by likelihood for each byte."""
        found = []
        for model, measurement in measured.models.items():
            note = f"{len(self.examples)} questions | {measurement.how}"
            for name, per_byte in (("accuracy", False), ("accuracy_per_byte", True)):
                right = [
                    float(self._chosen(place, record, per_byte) == self.examples[place].answer)
                    for place, record in enumerate(measurement.records)
                ]
                unit = "log p over its UTF-8 bytes" if per_byte else "log p"
                metric = mean(name, f"share of questions whose right option has the highest {unit}", "higher", float)
                found.append(self.estimate(model, metric, right, note=note))
        return found

    def baselines(self, measured: Measured) -> list[Result]:
        """Accuracy to be expected of a draw among the options."""
        odds = [1 / len(example.choices) for example in self.examples]
        metric = mean("accuracy", "mean of one over the number of options", "higher", float)
        return [self.estimate(CHANCE, metric, odds)]

    def samples(self, measured: Measured, count: int) -> list[Record]:
        """Questions with the right option and the likeliest ones."""
        found = []
        for place, example in enumerate(self.examples[:count]):
            outputs = {
                model: example.choices[self._chosen(place, measurement.records[place], False)]
                for model, measurement in measured.models.items()
            }
            prompt = example.prompt if isinstance(example.prompt, str) else as_text(example.prompt)
            reference = example.choices[example.answer]
            sample = {"task": self.title, "id": example.id, "prompt": prompt, "reference": reference}
            found.append({**sample, "outputs": outputs})
        return found

    def _chosen(self, place: int, record: Record, per_byte: bool) -> int:
        choices = self.examples[place].choices
        scores = [
            logprob / (len(choice.encode()) if per_byte else 1)
            for logprob, choice in zip(record["logprobs"], choices, strict=True)
        ]
        return max(range(len(scores)), key=scores.__getitem__)

    def _sequences(self, model: Candidate) -> Iterator[tuple[list[int], int]]:
        """Ids of each prompt with each of its options, and how many of them at the end are scored."""
        for example in self.examples:
            if isinstance(example.prompt, str):
                yield from continuations(model.tokenizer, example.prompt, example.choices)
            else:
                yield from answers(model.tokenizer, example.prompt, example.choices)


def continuations(tokenizer: Tokenizer, prompt: str, options: Sequence[str]) -> list[tuple[list[int], int]]:
    """Ids of a text with each of its continuations, and how many at the end are scored.

    A space joins the two where neither has white space there. Text and continuation are encoded together, so that
    tokens are those of running text. Where one continuation changes the tokens before it, all are scored from there
    on, so that every option's likelihood is of the same text and what it adds.
    """
    before = [] if tokenizer.start_id is None else [tokenizer.start_id]
    head = tokenizer.encode(prompt.rstrip())
    wholes = []
    for option in options:
        joint = "" if not prompt or prompt[-1].isspace() or option[0].isspace() else " "
        wholes.append(tokenizer.encode(prompt + joint + option))
    kept = min(_common(head, whole) for whole in wholes)
    kept = max(kept, 0 if before else 1)
    return [([*before, *whole], len(whole) - kept) for whole in wholes]


def answers(tokenizer: Tokenizer, prompt: list[Message], options: Sequence[str]) -> list[tuple[list[int], int]]:
    """Ids of a conversation with each of its answers, end-of-turn token included, and how many are the answer's."""
    found = []
    for option in options:
        messages: list[Any] = [*prompt, {"role": "assistant", "content": option}]
        ids, mask = tokenizer.render_conversation(messages)
        end = len(mask) - mask[::-1].index(1)
        begin = end
        while begin and mask[begin - 1]:
            begin -= 1
        found.append((ids[:end], end - begin))
    return found


def _common(head: Sequence[int], whole: Sequence[int]) -> int:
    """How many tokens at the start of `whole` are those of `head`, leaving one at least."""
    same = next((n for n, (ours, theirs) in enumerate(zip(head, whole, strict=False)) if ours != theirs), len(head))
    return min(same, len(whole) - 1)


def _question(row: FileRecord, identity: str) -> Question:
    if row.problem is not None:
        raise DataError(row.problem, where=row.place)
    values = row.values
    choices, right = values.get("choices"), values.get("answer")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise DataError("`choices` has to be a list of two or more texts.", where=row.place)
    if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(choices):
        raise DataError(
            f"`answer` is {right!r}; it has to be the number of the right option, 0 to {len(choices) - 1}.",
            where=row.place,
        )
    prompt = values.get("messages", values.get("prompt"))
    if not isinstance(prompt, str) and not _are_messages(prompt):
        raise DataError("a question needs `prompt`, a text, or `messages`, a list of messages.", where=row.place)
    assert isinstance(prompt, (str, list))
    return Question(str(values.get("id", identity)), prompt, choices, right, row.place)


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
        )
    )
