"""Whole runs at the smallest size: what is learned, saved, counted, refused; and that a killed run ends alike."""

from __future__ import annotations

import json

import pytest
import torch
from finetune_samples import (
    byte_tokenizer,
    chat_rows,
    label_rows,
    make_context,
    save_tiny,
    settings,
    write_rows,
)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import llmkit.finetune.stage as stage
from llmkit.config.base import Facts
from llmkit.data.examples import read_conversations, read_labels
from llmkit.errors import ConfigError, DataError
from llmkit.finetune.objectives import ChatObjective
from llmkit.model.load import load_model
from llmkit.tokenizer.tokenizer import Tokenizer
from llmkit.train.memory.machines import named_machine

H100 = named_machine("h100")

FAST = {"batch_size": 32, "optimizer": {"lr": 1e-2}, "log_every": 50}


def held_out_words(context):
    """Words that the run has not seen, with the answers that the rule gives."""
    talks = read_conversations(context.inputs["data"], "test")
    assert len(talks) >= 8
    return [talk.messages[0]["content"] for talk in talks]


def test_chat_learns_the_rule(tmp_path):
    context = make_context(tmp_path / "out", save_tiny(tmp_path / "m"), write_rows(tmp_path / "d.jsonl", chat_rows()))
    outcome = stage.run(settings(**{**FAST, "optimizer": {"lr": 4e-3}}, epochs=30), context)
    model = load_model(context.directory / "model")
    tokenizer = Tokenizer.load(context.directory / "model")
    right = 0
    words = held_out_words(context)
    for word in words:
        ids = tokenizer.render_conversation([{"role": "user", "content": word}], add_generation_prompt=True).ids
        with torch.no_grad():
            answer = model(torch.tensor([ids]))[0, -1].argmax().item()
            end = model(torch.tensor([[*ids, answer]]))[0, -1].argmax().item()
        right += tokenizer.decode([answer]) == word[-1] and end == tokenizer.end_of_turn_id
    assert right >= 0.9 * len(words)  # a quarter is right by chance
    assert outcome.facts.kind == "model"
    facts = {"family": "llama", "head": "causal-lm", "causal": True, "context": 64, "chat_template": True}
    assert {key: outcome.facts.get(key) for key in facts} == facts
    assert outcome.summary["validation_token_accuracy"] > 0.9
    assert outcome.summary["epochs"] == 30
    lines = [json.loads(line) for line in (context.directory / "metrics.jsonl").read_text().splitlines()]
    assert {line["split"] for line in lines} == {"train", "validation"}


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_classification_learns_the_rule(family, tmp_path):
    data = write_rows(tmp_path / "d.jsonl", label_rows())
    context = make_context(tmp_path / "out", save_tiny(tmp_path / "m", family), data)
    outcome = stage.run(settings(**FAST, task="classification", epochs=12), context)
    labels = ["is a", "is b", "is c", "is d"]
    assert outcome.facts.get("labels") == labels
    assert outcome.facts.get("head") == "classification"
    theirs = AutoModelForSequenceClassification.from_pretrained(context.directory / "model").eval()
    assert theirs.config.id2label == dict(enumerate(labels))
    tokenizer = Tokenizer.load(context.directory / "model")
    texts = read_labels(context.inputs["data"], "test")
    assert len(texts) >= 8
    right = 0
    for text in texts:
        ids = torch.tensor([tokenizer.encode_single(text.text, 64)])
        with torch.no_grad():
            logits = theirs(input_ids=ids).logits[0]
            ours = load_model(context.directory / "model")(ids)[0]
        torch.testing.assert_close(ours, logits, rtol=0, atol=1e-4)
        right += labels[logits.argmax()] == text.label
    assert right >= 0.9 * len(texts)
    assert outcome.summary["validation_accuracy"] > 0.9


def test_transformers_opens_what_chat_gives_and_stops_where_the_turn_ends(tmp_path):
    data = write_rows(tmp_path / "d.jsonl", chat_rows()[:40])
    context = make_context(tmp_path / "out", save_tiny(tmp_path / "m"), data)
    stage.run(settings(batch_size=8, steps=2), context)
    theirs = AutoModelForCausalLM.from_pretrained(context.directory / "model").eval()
    assert theirs.generation_config.eos_token_id == [3, 0]
    tokenizer = AutoTokenizer.from_pretrained(context.directory / "model")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "abc"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    ours = load_model(context.directory / "model")
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, rtol=0, atol=1e-4)


class Killed(BaseException):
    pass


def test_a_killed_run_ends_with_the_bytes_of_an_uninterrupted_one(tmp_path, monkeypatch):
    model, data = save_tiny(tmp_path / "m", dropout=0.1), write_rows(tmp_path / "d.jsonl", chat_rows())
    config = settings(batch_size=32, micro_batch_size=8, steps=18, checkpoints={"every": 4}, evaluate_every=6)
    straight = make_context(tmp_path / "straight", model, data)
    stage.run(config, straight)

    killed = make_context(tmp_path / "killed", model, data)
    calls = []

    class Deadly(ChatObjective):
        def loss(self, model, batch):
            calls.append(1)
            if len(calls) == 45:  # in the twelfth step: four micro-batches a step, evaluated after the sixth
                raise Killed
            return super().loss(model, batch)

    monkeypatch.setattr(stage, "ChatObjective", Deadly)
    with pytest.raises(Killed):
        stage.run(config, killed)
    monkeypatch.undo()
    assert not (killed.directory / "model").exists()
    stage.run(config, killed)
    files = sorted(path.name for path in (straight.directory / "model").iterdir())
    assert "model.safetensors" in files
    for name in files:
        assert (killed.directory / "model" / name).read_bytes() == (straight.directory / "model" / name).read_bytes()


LONG = [
    {"messages": [{"role": "user", "content": "q" * n}, {"role": "assistant", "content": "yes"}]} for n in (1, 5, 30)
]
SHORT_TEMPLATE = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}:{% else %}{% generation %}" + (
    "{{ m.content + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)


def folder(tmp_path, train, validation=()):
    write_rows(tmp_path / "data" / "train.jsonl", list(train))
    write_rows(tmp_path / "data" / "validation.jsonl", list(validation) or list(train)[:1])
    return tmp_path / "data"


def report_of(tmp_path, **values):
    context = make_context(tmp_path / "out", save_tiny(tmp_path / "m"), folder(tmp_path, LONG))
    outcome = stage.run(settings(batch_size=2, steps=1, chat_template=SHORT_TEMPLATE, **values), context)
    report = json.loads((context.directory / "report.json").read_text())
    return report["splits"]["train"], outcome.summary


def test_rows_that_are_too_long_are_dropped_and_counted(tmp_path, capsys):
    """Rows have 6, 10 and 35 tokens: the question, a colon, three letters and the end."""
    counts, summary = report_of(tmp_path, max_length=10)
    assert counts == {
        "rows": 3, "kept": 2, "dropped_overlong": 1, "dropped_without_target": 0, "truncated": 0,
        "tokens": 16, "targets": 8, "longest": 35,
    }  # fmt: skip
    assert (summary["examples"], summary["dropped"]) == (2, 1)
    assert "1 of the 3 train examples are left out: 1 too long" in capsys.readouterr().err


def test_rows_are_cut_but_none_is_kept_that_teaches_nothing(tmp_path):
    counts, _ = report_of(tmp_path, max_length=8, overlong="truncate")
    assert counts == {
        "rows": 3, "kept": 2, "dropped_overlong": 0, "dropped_without_target": 1, "truncated": 1,
        "tokens": 14, "targets": 6, "longest": 35,
    }  # fmt: skip


def test_rows_that_are_too_long_can_be_refused(tmp_path):
    with pytest.raises(DataError, match=r"row 3 \(id .*\): the example has 35 tokens, and at most 34 fit"):
        report_of(tmp_path, max_length=34, overlong="error")


def test_nothing_left_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"stages\.sft\.data: none of the 3 training examples is left .*: 3 too long"):
        report_of(tmp_path, max_length=4)


def test_a_classifier_is_trained_on_with_its_own_order_of_labels(tmp_path):
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    first = make_context(tmp_path / "one", save_tiny(tmp_path / "m", "bert"), folder(tmp_path / "1", rows * 4))
    config = settings(task="classification", steps=1, batch_size=4)
    stage.run(config, first)
    second = make_context(tmp_path / "two", tmp_path / "one" / "model", folder(tmp_path / "2", rows[::-1] * 4))
    stage.run(settings(task="classification", steps=1, batch_size=4, optimizer={"lr": 1e-9}), second)
    one, two = load_model(tmp_path / "one" / "model"), load_model(tmp_path / "two" / "model")
    assert two.config.labels == ("x", "y")
    torch.testing.assert_close(two.head.score.weight, one.head.score.weight, rtol=0, atol=1e-6)


def test_numeric_labels_are_in_the_order_of_numbers(tmp_path):
    rows = [{"text": "a", "label": label} for label in (10, 9, 2)]
    context = make_context(tmp_path / "out", save_tiny(tmp_path / "m", "bert"), folder(tmp_path, rows))
    outcome = stage.run(settings(task="classification", steps=1, batch_size=3), context)
    assert outcome.facts.get("labels") == ["2", "9", "10"]


def test_other_column_names(tmp_path):
    rows = [{"sentence": "a", "class": "x"}, {"sentence": "b", "class": "y"}]
    context = make_context(tmp_path / "out", save_tiny(tmp_path / "m", "bert"), folder(tmp_path, rows))
    config = settings(task="classification", text_column="sentence", label_column="class", steps=1, batch_size=2)
    assert stage.check(config, context) == []
    assert stage.run(config, context).facts.get("labels") == ["x", "y"]


def test_the_schedule_is_checked_against_the_steps_that_epochs_come_to(tmp_path):
    context = make_context(tmp_path / "out", save_tiny(tmp_path / "m"), folder(tmp_path, LONG))
    config = settings(epochs=2, batch_size=2, schedule={"warmup_steps": 5})
    assert list(config.check({"model": Facts("model"), "data": Facts("file")})) == []
    assert [finding.key for finding in stage.check(config, context)] == ["schedule.warmup_steps"]
    with pytest.raises(ConfigError, match="warm-up of 5 steps is longer than the training of 4"):
        stage.run(config, context)


def findings(tmp_path, rows, family="llama", template="chatml", validation=(), **values):
    model = save_tiny(tmp_path / "m", family, template=template)
    context = make_context(tmp_path / "out", model, folder(tmp_path, rows, validation))
    return [(f.key, f.severity, f.message) for f in stage.check(settings(**values), context)]


def test_check_finds_nothing_wrong_with_what_is_right(tmp_path):
    assert findings(tmp_path, chat_rows()[:20]) == []


def test_check_tells_what_would_be_left_out(tmp_path):
    ((key, severity, message),) = findings(tmp_path, LONG, chat_template=SHORT_TEMPLATE, max_length=10)
    assert (key, severity) == ("max_length", "warning")
    assert message == "1 of the 3 rows looked at, out of 3, would be left out: 1 too long."


@pytest.mark.parametrize(
    ("rows", "values", "key", "message"),
    [
        ([{"messages": [{"role": "user", "content": "x"}]}], {}, "data", "train.jsonl:1: the last message has to be"),
        (LONG, {"chat_template": "{{ raise_exception('no') }}"}, "chat_template", "does not take these messages: no"),
        (LONG, {"chat_template": "{{ messages[0].content }}"}, "chat_template", "does not show which part"),
        (LONG, {"template": None}, "model", "no chat template"),
        (LONG, {"max_length": 3}, "data", "none of the 3 rows looked at, out of 3, can be learned from: 3 too long"),
        ([{"text": "a", "label": "x"}], {"task": "classification", "family": "bert"}, "data", "have 1 label"),
        (
            label_rows(),
            {"task": "classification", "family": "bert", "validation": [{"text": "a", "label": "is e"}]},
            "data",
            "the label 'is e' occurs in the validation split alone",
        ),
    ],
)
def test_check_finds_what_is_wrong(tmp_path, rows, values, key, message):
    ((found, severity, text),) = findings(tmp_path, rows, **values)
    assert (found, severity) == (key, "error")
    assert message in text


def test_check_names_the_row_that_the_template_refuses(tmp_path):
    template = SHORT_TEMPLATE + "{% if messages[0].content == 'q' * 5 %}{{ raise_exception('fives') }}{% endif %}"
    ((key, _, message),) = findings(tmp_path, LONG, chat_template=template)
    assert key == "data"
    assert "train split): row 2 (id " in message
    assert "fives" in message


def test_check_warns_of_turns_without_an_end(tmp_path):
    template = SHORT_TEMPLATE.replace(" + eos_token", "")
    ((key, severity, message),) = findings(tmp_path, LONG, chat_template=template)
    assert (key, severity) == ("chat_template", "warning")
    assert "does not learn when to stop" in message


def test_check_before_the_model_is_there(tmp_path):
    context = make_context(tmp_path / "out", save_tiny(tmp_path / "m"), folder(tmp_path, [{"no": "row"}]))
    del context.inputs["model"]
    (finding,) = stage.check(settings(), context)
    assert finding.key == "data"
    del context.inputs["data"]
    assert stage.check(settings(), context) == []


def test_a_tokenizer_of_another_model_is_noticed(tmp_path):
    model = save_tiny(tmp_path / "m", "bert")
    byte_tokenizer().save(model)
    context = make_context(tmp_path / "out", model, folder(tmp_path, label_rows()))
    (finding,) = stage.check(settings(task="classification"), context)
    assert finding.key == "model"
    assert "the tokenizer has 260 tokens and the model knows 13" in finding.message


def test_the_plan():
    facts = {"model": Facts("model", {"parameters": 1000, "context": 64}), "data": Facts("examples")}
    planned = stage.plan(settings(steps=10, batch_size=4), facts, H100)
    assert (planned.parameters, planned.tokens, planned.flops) == (1000, 2560, 6.0 * 1000 * 2560)
    assert planned.memory_bytes == {"weights": 4000, "gradients": 4000, "optimizer": 8000}
    assert stage.plan(settings(), facts, H100).tokens is None
    assert stage.plan(settings(), {"model": Facts("unknown"), "data": Facts("file")}, H100).parameters is None
