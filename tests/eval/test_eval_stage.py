from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmkit.errors import ModelError
from llmkit.eval import stage
from llmkit.eval.config import EvalConfig
from llmkit.eval.results import results_tables
from llmkit.eval.tasks.generate import Generate
from llmkit.store.stage import Context, ResolvedInput

MakeModel = Callable[..., ResolvedInput]
WriteRows = Callable[..., ResolvedInput]


@pytest.fixture
def inputs(make_model: MakeModel, write_rows: WriteRows, documents: ResolvedInput) -> dict[str, ResolvedInput]:
    chat = [
        {"prompt": f"What is {n}?", "completion": f"It is {n}.", "task": "even" if n % 2 else "odd", "id": str(n)}
        for n in range(6)
    ]
    labels = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(6)]
    pairs = [{"prompt": "Why?", "chosen": f"Because {n}.", "rejected": "No."} for n in range(4)]
    questions = [{"prompt": "It is", "choices": ["so", "not so"], "answer": n % 2} for n in range(3)]
    return {
        "first": make_model("first"),
        "second": make_model("second", "gpt2", seed=1),
        "encoder": make_model("encoder", "bert"),
        "classifier": make_model("classifier", "bert", head="classification", labels=("a", "b")),
        "judge": make_model("judge", head="reward"),
        "corpus": documents,
        "chat": write_rows("chat", train=chat, test=chat),
        "labels": write_rows("labels", train=labels, test=labels),
        "pairs": write_rows("pairs", train=pairs, test=pairs),
        "questions": write_rows("questions", train=questions),
    }


TASKS = [
    {"kind": "perplexity", "data": "corpus", "limit": 4},
    {"kind": "masked", "data": "corpus", "limit": 4},
    {
        "kind": "generate", "name": "answers", "data": "chat", "max_new_tokens": 5, "reward_model": "judge",
        "metrics": ["exact_match", "contains", "rouge", "bleu", "chrf", "length", "reward"],
    },
    {"kind": "classification", "data": "labels"},
    {"kind": "preferences", "data": "pairs"},
    {"kind": "choice", "data": "questions", "models": ["second"]},
]  # fmt: skip


def make(
    inputs: dict[str, ResolvedInput], directory: Path, tasks: list[dict[str, Any]] = TASKS, **more: Any
) -> tuple[EvalConfig, Context]:
    directory.mkdir(exist_ok=True)
    models = ["first", "second", "encoder", "classifier", "judge"]
    config = EvalConfig.model_validate(
        {"models": models, "tasks": tasks, "bootstrap": {"resamples": 100}, "batch_size": 3, **more}
    )
    found = {
        needed.key: replace(inputs[needed.value], key=needed.key, value=needed.value) for needed in config.inputs()
    }
    return config, Context("eval", 7, directory, found, "a.yaml:1: stages.eval")


def outputs(directory: Path) -> tuple[bytes, bytes]:
    return (directory / "results.json").read_bytes(), (directory / "samples.jsonl").read_bytes()


def test_every_task_from_end_to_end(inputs: dict[str, ResolvedInput], tmp_path: Path) -> None:
    config, context = make(inputs, tmp_path / "work")
    assert stage.check(config, context) == []
    outcome = stage.run(config, context)
    assert outcome.facts.kind == "results"
    assert outcome.summary["tokens"] > 0
    results = json.loads((context.directory / "results.json").read_text())
    assert list(results["models"]) == ["first", "second", "encoder", "classifier", "judge"]
    assert results["models"]["second"]["family"] == "gpt2"
    assert results["models"]["judge"]["head"] == "reward"
    assert results["models"]["first"]["digest"] == inputs["first"].digest
    measured = {(row["task"], row["model"]) for row in results["results"]}
    writing = ("perplexity", "answers", "answers/even", "answers/odd")
    assert measured == {
        *((task, model) for task in writing for model in ("first", "second")),
        ("masked", "encoder"), ("classification", "classifier"), ("preferences", "judge"), ("choice", "second"),
    }  # fmt: skip
    for row in results["results"]:
        assert list(row) == ["model", "task", "metric", "value", "low", "high", "n", "signature", "better"]
        assert row["low"] <= row["value"] <= row["high"] or row["metric"] == "bleu"
        assert row["n"] == {"perplexity": 4, "masked": 4, "answers": 6, "classification": 6, "preferences": 4}.get(
            row["task"], 3
        )
    assert {row["model"] for row in results["baselines"]} == {
        "gzip -9", "xz -9", "most frequent token", "reference", "majority class", "longer answer", "chance",
    }  # fmt: skip
    left = {(row["task"], row["model"]) for row in results["left_out"]}
    assert left >= {("perplexity", "encoder"), ("masked", "first"), ("preferences", "second")}
    assert not any(task == "choice" for task, _ in left)
    samples = [json.loads(line) for line in (context.directory / "samples.jsonl").read_text().splitlines()]
    assert {sample["task"] for sample in samples} == {"answers", "classification", "choice"}
    assert set(samples[0]["scores"]) == {"first", "second", "reference"}
    assert all((context.directory / pattern).is_file() for pattern in outcome.content)


def test_the_same_bytes_come_again_whatever_was_kept(
    inputs: dict[str, ResolvedInput], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, context = make(inputs, tmp_path / "whole")
    stage.run(config, context)
    # Interrupted when the second model is to answer, then started again.
    config, interrupted = make(inputs, tmp_path / "interrupted")
    answer, calls = Generate.measure, []

    def stop_at_the_second(self: Generate, *arguments: Any) -> Any:
        calls.append(arguments[0].candidate.label)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return answer(self, *arguments)

    monkeypatch.setattr(Generate, "measure", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        stage.run(config, interrupted)
    stage.run(config, interrupted)
    assert calls == ["first", "second", "second"]
    assert outputs(interrupted.directory) == outputs(context.directory)
    # All is kept: no model is opened.
    monkeypatch.setattr("llmkit.eval.models.load_model", lambda *_, **__: pytest.fail("a model was opened"))
    stage.run(config, interrupted)
    assert outputs(interrupted.directory) == outputs(context.directory)


def test_what_was_kept_for_other_settings_is_not_used(inputs: dict[str, ResolvedInput], tmp_path: Path) -> None:
    tasks = [{"kind": "perplexity", "data": "corpus", "limit": 4}]
    config, context = make(inputs, tmp_path / "work", tasks)
    stage.run(config, context)
    other, context = make(inputs, tmp_path / "work", [{**tasks[0], "context": 16}])
    stage.run(other, context)
    fresh, elsewhere = make(inputs, tmp_path / "fresh", [{**tasks[0], "context": 16}])
    stage.run(fresh, elsewhere)
    assert outputs(context.directory) == outputs(elsewhere.directory)


def test_check_names_what_is_wrong_with_the_data(
    inputs: dict[str, ResolvedInput], write_rows: WriteRows, tmp_path: Path
) -> None:
    inputs["chat"] = write_rows("broken", train=[{"prompt": "a"}])
    inputs["labels"] = write_rows("unknown", train=[{"text": "a", "label": "c"}], test=[{"text": "b", "label": "d"}])
    config, context = make(inputs, tmp_path / "work")
    found = {finding.key: finding.message for finding in stage.check(config, context)}
    assert list(found) == ["tasks.2.data", "tasks.3.data"]
    assert "train.jsonl:1" in found["tasks.2.data"]
    assert "does not know these classes of the data: d" in found["tasks.3.data"]


def test_check_knows_models_by_their_own_files(inputs: dict[str, ResolvedInput], tmp_path: Path) -> None:
    tasks = [{"kind": "masked", "data": "corpus", "models": ["first"]}]
    config, context = make(inputs, tmp_path / "work", tasks)
    [finding] = stage.check(config, context)
    assert finding.key == "tasks.0.models.0"
    assert "has a causal-lm head" in finding.message


def test_check_works_before_models_and_data_are_there(inputs: dict[str, ResolvedInput], tmp_path: Path) -> None:
    config, context = make(inputs, tmp_path / "work")
    assert stage.check(config, Context("eval", 0, context.directory)) == []
    some = {key: found for key, found in context.inputs.items() if key.startswith("tasks")}
    assert stage.check(config, Context("eval", 0, context.directory, some)) == []


def test_models_with_one_name_keep_apart(inputs: dict[str, ResolvedInput], tmp_path: Path) -> None:
    tasks = [{"kind": "perplexity", "data": "corpus", "limit": 2}]
    config, context = make(inputs, tmp_path / "work", tasks)
    found = dict(context.inputs)
    for key, path in (("models.0", "first"), ("models.1", "second")):
        place = tmp_path / path / "model"
        place.mkdir()
        for file in list((tmp_path / path).iterdir()):
            if file.is_file():
                file.rename(place / file.name)
        found[key] = ResolvedInput(key, str(place), place, "d", found[key].facts)
    stage.run(config, Context("eval", 7, context.directory, found))
    results = json.loads((context.directory / "results.json").read_text())
    assert list(results["models"])[:2] == [str(tmp_path / "first" / "model"), str(tmp_path / "second" / "model")]


def test_a_tokenizer_larger_than_the_model_is_refused(
    inputs: dict[str, ResolvedInput], make_model: MakeModel, other_bpe: Any, bpe: Any, tmp_path: Path
) -> None:
    inputs["first"] = make_model("small", tokenizer=other_bpe)
    bpe.save(inputs["first"].path)
    config, context = make(inputs, tmp_path / "work", [{"kind": "perplexity", "data": "corpus"}])
    with pytest.raises(ModelError, match="the tokenizer has 400 tokens, and the model 300"):
        stage.run(config, context)


def test_the_table_marks_the_best_model_and_names_baselines() -> None:
    def row(model: str, metric: str, value: float, better: str | None) -> dict[str, Any]:
        return {"model": model, "task": "t", "metric": metric, "value": value, "better": better}

    ((task, columns, rows),) = results_tables(
        {
            "models": {"a": {}, "b": {}},
            "results": [
                row("a", "loss", 2.5, "lower"), row("a", "accuracy", 0.5, "higher"), row("a", "length", 30.0, None),
                row("b", "loss", 2.0, "lower"), row("b", "accuracy", 0.5, "higher"), row("b", "length", 31.0, None),
                row("b", "win_rate vs a", 0.75, "higher"), {**row("b", "loss", 1.0, "lower"), "task": "t/part"},
            ],
            "baselines": [row("gzip -9", "loss", 3.0, "lower"), row("xz -9", "loss", 2.75, "lower")],
        }
    )  # fmt: skip
    assert task == "t"
    assert columns == ["metric", "a", "b", "baseline"]
    assert rows == [
        ["loss", "2.5", "2*", "3 gzip -9\n2.75 xz -9"],
        ["accuracy", "0.5", "0.5", ""],
        ["length", "30", "31", ""],
        ["win_rate vs a", "", "0.75", ""],
    ]
