from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from eval_tools import quiet, subject

from llmkit.errors import DataError
from llmkit.eval.metrics.base import Bootstrap
from llmkit.eval.models import Candidate
from llmkit.eval.tasks.base import Measured, Measurement, Settings
from llmkit.eval.tasks.choice import Choice, answers, continuations
from llmkit.eval.tasks.classification import Classification
from llmkit.eval.tasks.config import ChoiceTask, ClassificationTask, PreferencesTask
from llmkit.eval.tasks.preferences import Preferences
from llmkit.model.load import load_model
from llmkit.store.stage import ResolvedInput
from llmkit.tokenizer.tokenizer import Tokenizer

MakeModel = Callable[..., ResolvedInput]
WriteRows = Callable[..., ResolvedInput]
SETTINGS = Settings(0, 2, "fp32", Bootstrap(resamples=100))
CANDIDATE = "model"


def classification(data: ResolvedInput, model: ResolvedInput, **options: Any) -> Classification:
    config = ClassificationTask.model_validate({"data": "labels", **options})
    return Classification(config, data, SETTINGS, [Candidate(CANDIDATE, model)])


def preferences(data: ResolvedInput, model: ResolvedInput) -> Preferences:
    config = PreferencesTask.model_validate({"data": "pairs"})
    return Preferences(config, data, SETTINGS, [Candidate(CANDIDATE, model)])


def choice(data: ResolvedInput, model: ResolvedInput) -> Choice:
    return Choice(ChoiceTask.model_validate({"data": "questions"}), data, SETTINGS, [Candidate(CANDIDATE, model)])


@pytest.fixture
def labels(write_rows: WriteRows) -> ResolvedInput:
    train = [{"text": f"text {n}", "label": "b" if n < 5 else "a"} for n in range(8)]
    test = [{"text": f"a text of {'many ' * n} words", "label": "ab"[n % 2]} for n in range(5)]
    return write_rows("labels", train=train, test=test)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_classes_are_those_that_transformers_gives(make_model: MakeModel, labels: ResolvedInput, family: str) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = make_model("model", family, head="classification", labels=("a", "b", "c"))
    measure = classification(labels, source)
    found = measure.measure(subject(source), quiet)
    reference = AutoModelForSequenceClassification.from_pretrained(source.path).eval()
    tokenizer = AutoTokenizer.from_pretrained(source.path)
    expected = []
    for example in measure.examples:
        ids = tokenizer(example.text).input_ids
        ids = ids if family == "bert" else [*ids, tokenizer.eos_token_id]
        with torch.no_grad():
            logits = reference(input_ids=torch.tensor([ids])).logits[0]
        expected.append(reference.config.id2label[int(logits.argmax())])
    assert [record["output"] for record in found.records] == expected
    assert len(set(expected)) > 1 or family == "llama"


def test_figures_of_planted_predictions_and_the_majority_class(make_model: MakeModel, labels: ResolvedInput) -> None:
    source = make_model("model", "bert", head="classification", labels=("a", "b", "c"))
    measure = classification(labels, source, metrics=["accuracy", "macro_f1", "micro_f1", "mcc"])
    assert [example.label for example in measure.examples] == ["a", "b", "a", "b", "a"]
    records = [{"output": output} for output in ("a", "b", "b", "b", "c")]
    measured = Measured({CANDIDATE: Measurement(records, "how", 0)})
    found = {result.metric: result.value for result in measure.results(measured)}
    assert found["accuracy"] == found["micro_f1"] == pytest.approx(3 / 5)
    # F1: a 2/(3 + 1), b 4/(2 + 3), c 0/(0 + 1).
    assert found["macro_f1"] == pytest.approx((0.5 + 0.8 + 0) / 3)
    # c = 3, s = 5, true (3, 2, 0), predicted (1, 3, 1).
    assert found["mcc"] == pytest.approx((15 - 9) / math.sqrt((25 - 13) * (25 - 11)))
    # The train split has five b and three a: b is right on two of five.
    baseline = {result.metric: result.value for result in measure.baselines(measured)}
    assert baseline["accuracy"] == pytest.approx(2 / 5)
    assert baseline["mcc"] == 0
    assert {result.model for result in measure.baselines(measured)} == {"majority class"}
    [first, *_] = measure.samples(measured, 2)
    assert (first["prompt"], first["reference"], first["outputs"]) == ("a text of  words", "a", {CANDIDATE: "a"})


def test_a_class_that_the_model_does_not_know_is_found(make_model: MakeModel, labels: ResolvedInput) -> None:
    source = make_model("model", "bert", head="classification", labels=("a", "x"))
    [finding] = classification(labels, source).findings()
    assert finding.message == "`model` does not know these classes of the data: b."


@pytest.fixture
def pairs(write_rows: WriteRows) -> ResolvedInput:
    rows = [
        {"prompt": f"Question {n}", "chosen": "good" * (n + 1), "rejected": "bad" * length}
        for n, length in enumerate((1, 3, 4, 9))
    ]
    return write_rows("pairs", train=rows[:1], test=rows)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_rewards_of_pairs_are_those_of_transformers(make_model: MakeModel, pairs: ResolvedInput, family: str) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    source = make_model("model", family, head="reward")
    measure = preferences(pairs, source)
    found = measure.measure(subject(source), quiet)
    reference = AutoModelForSequenceClassification.from_pretrained(source.path).eval()
    tokenizer = AutoTokenizer.from_pretrained(source.path)
    for example, record in zip(measure.examples, found.records, strict=True):
        for side in ("chosen", "rejected"):
            messages = [*example.prompt, {"role": "assistant", "content": getattr(example, side)}]
            ids = tokenizer.apply_chat_template(messages, return_dict=False)
            with torch.no_grad():
                expected = float(reference(input_ids=torch.tensor([ids])).logits[0, 0])
            assert record[side] == pytest.approx(expected, abs=1e-4)


def test_accuracy_and_margin_of_planted_rewards(make_model: MakeModel, pairs: ResolvedInput) -> None:
    measure = preferences(pairs, make_model("model", head="reward"))
    scores = [(2.0, 1.0), (0.0, 0.5), (1.0, 1.0), (3.0, -1.0)]
    records = [{"chosen": chosen, "rejected": rejected} for chosen, rejected in scores]
    measured = Measured({CANDIDATE: Measurement(records, "how", 0)})
    found = {result.metric: result.value for result in measure.results(measured)}
    assert found == {"accuracy": pytest.approx(2.5 / 4), "margin": pytest.approx((1 - 0.5 + 0 + 4) / 4)}
    # Lengths 4, 8, 12, 16 against 3, 9, 12, 27.
    [baseline] = measure.baselines(measured)
    assert (baseline.model, baseline.value) == ("longer answer", 1.5 / 4)


@pytest.fixture
def questions(write_rows: WriteRows) -> ResolvedInput:
    rows = [
        {"prompt": "The text is", "choices": ["wrapped", "filled to the width", "x"], "answer": 1},
        {"prompt": "def ", "choices": ["wrap(text)", "1"], "answer": 0},
        {"messages": [{"role": "user", "content": "Yes?"}], "choices": ["yes", "no", "maybe not"], "answer": 2},
    ]
    return write_rows("questions", train=rows)


def test_the_chosen_option_has_the_highest_likelihood(
    make_model: MakeModel, questions: ResolvedInput, bpe: Tokenizer
) -> None:
    source = make_model("model")
    measure = choice(questions, source)
    found = measure.measure(subject(source), quiet)
    model = load_model(source.path, dtype=torch.float64)

    def likelihood(ids: list[int], scored: int) -> float:
        with torch.no_grad():
            logprobs = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
        return sum(float(logprobs[place - 1, ids[place]]) for place in range(len(ids) - scored, len(ids)))

    joints = (" ", "")
    for example, joint, record in zip(measure.examples, joints, found.records, strict=False):
        prompt = str(example.prompt)
        for option, logprob in zip(example.choices, record["logprobs"], strict=True):
            whole, head = bpe.encode(prompt + joint + option), bpe.encode(prompt.rstrip())
            assert whole[: len(head)] == head
            assert logprob == pytest.approx(likelihood([bpe.bos_id or 0, *whole], len(whole) - len(head)), rel=1e-5)
    chat = bpe.render_conversation([{"role": "user", "content": "Yes?"}], add_generation_prompt=True).ids
    for option, logprob in zip(measure.examples[2].choices, found.records[2]["logprobs"], strict=True):
        said = [*bpe.encode(option), bpe.end_of_turn_id or 0]
        assert logprob == pytest.approx(likelihood([*chat, *said], len(said)), rel=1e-5)


def test_accuracies_of_planted_likelihoods(make_model: MakeModel, questions: ResolvedInput) -> None:
    measure = choice(questions, make_model("model"))
    # By likelihood: 2, 0, 2. By byte (7, 19, 1; 10, 1; 3, 2, 9): -1, -0.5, -4; -0.2, -1; -1, -2, -3/9.
    records = [{"logprobs": [-7.0, -9.5, -4.0]}, {"logprobs": [-0.5, -1.0]}, {"logprobs": [-3.0, -4.0, -2.9]}]
    measured = Measured({CANDIDATE: Measurement(records, "how", 0)})
    found = {result.metric: result.value for result in measure.results(measured)}
    assert found == {"accuracy": pytest.approx(2 / 3), "accuracy_per_byte": pytest.approx(1.0)}
    [chance] = measure.baselines(measured)
    assert chance.value == pytest.approx((1 / 3 + 1 / 2 + 1 / 3) / 3)
    assert measure.samples(measured, 1)[0]["outputs"] == {CANDIDATE: "x"}


def test_options_that_change_the_tokens_of_the_prompt_are_scored_over_the_same_text(bpe: Tokenizer) -> None:
    prompt, options = "def f(x):", ["\n    pass", " pass", "return"]
    head = bpe.encode(prompt)
    assert bpe.encode(prompt + options[0])[: len(head)] != head
    found = continuations(bpe, prompt, options)
    [kept] = {len(ids) - scored for ids, scored in found}
    assert kept <= len(head)
    for (ids, _), text in zip(found, ("\n    pass", " pass", " return"), strict=True):
        assert ids[:kept] == [bpe.bos_id, *head[: kept - 1]]
        assert bpe.decode(ids) == prompt + text


def test_the_answer_is_scored_up_to_its_end_of_turn(bpe: Tokenizer) -> None:
    [(ids, scored)] = answers(bpe, [{"role": "user", "content": "a"}], ["text"])
    assert ids[-scored:] == [*bpe.encode("text"), bpe.end_of_turn_id]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "choices": ["b"], "answer": 0}, "`choices` has to be a list of two or more"),
        ({"prompt": "a", "choices": ["b", ""], "answer": 0}, "`choices` has to be a list of two or more"),
        ({"prompt": "a", "choices": ["b", "c"], "answer": 2}, "`answer` is 2"),
        ({"prompt": "a", "choices": ["b", "c"], "answer": True}, "`answer` is True"),
        ({"prompt": 3, "choices": ["b", "c"], "answer": 0}, "needs `prompt`"),
        ({"messages": ["a"], "choices": ["b", "c"], "answer": 0}, "needs `prompt`"),
    ],
)
def test_malformed_questions_are_named(make_model: MakeModel, write_rows: WriteRows, row: Any, message: str) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl:1") as error:
        choice(write_rows("bad", train=[row]), make_model("model"))
    assert message in str(error.value)


def test_majority_of_a_tie_is_the_first_by_name(make_model: MakeModel, write_rows: WriteRows) -> None:
    rows = [{"text": f"{label}{n}", "label": label} for label in "ba" for n in range(3)]
    data = write_rows("tie", train=rows, test=rows)
    measure = classification(data, make_model("model", "bert", head="classification", labels=("a", "b")))
    assert Counter(measure.training) == {"a": 3, "b": 3}
    assert "always `a`" in measure.baselines(Measured({}))[0].signature
    assert np.isclose(measure.baselines(Measured({}))[0].value, 0.5)
