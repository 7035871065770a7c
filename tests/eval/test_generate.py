from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from eval_tools import quiet, resolved, subject
from sacrebleu import corpus_chrf

from llmkit.errors import DataError
from llmkit.eval.metrics.base import Bootstrap
from llmkit.eval.models import Candidate
from llmkit.eval.tasks.base import Measured, Measurement, Result, Settings, spread
from llmkit.eval.tasks.config import GenerateTask
from llmkit.eval.tasks.generate import Generate
from llmkit.model.load import load_model
from llmkit.store.stage import ResolvedInput
from llmkit.tokenizer.tokenizer import Tokenizer

MakeModel = Callable[..., ResolvedInput]
WriteRows = Callable[..., ResolvedInput]


def row(question: str, reply: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": reply}], **more}


@pytest.fixture
def rows(write_rows: WriteRows) -> ResolvedInput:
    questions = [
        row(f"What does {word}{'!' * n} do?", word * 2, task="long" if n % 3 else "short", id=f"{word}-{n}")
        for n, word in enumerate(["wrap", "fill", "dedent", "indent", "shorten", "break"])
    ]
    return write_rows("chat", train=[row("a", "b")], test=questions)


def task(
    data: ResolvedInput, *models: ResolvedInput, judge: ResolvedInput | None = None, seed: int = 0, **options: Any
) -> Generate:
    settings = Settings(seed, 2, "fp32", Bootstrap(resamples=100))
    config = GenerateTask.model_validate({"data": "chat", "max_new_tokens": 6, **options})
    judging = None if judge is None else Candidate("judge", judge)
    return Generate(config, data, settings, [Candidate(model.path.name, model) for model in models], judging)


def answered(*outputs: str) -> Measurement:
    return Measurement([{"output": output} for output in outputs], "how", 0)


def figures(results: list[Result], name: str) -> dict[str, float]:
    return {result.metric: result.value for result in results if result.task == name}


def test_answers_are_the_greedy_ones_after_the_rendered_prompt(
    make_model: MakeModel, rows: ResolvedInput, bpe: Tokenizer
) -> None:
    source = make_model("model")
    measure = task(rows, source)
    found = measure.measure(subject(source), quiet)
    model = load_model(source.path)
    ends = {bpe.eos_id, bpe.end_of_turn_id}
    for example, record in zip(measure.examples, found.records, strict=True):
        question = example.messages[0]["content"]
        ids = bpe.render_conversation([{"role": "user", "content": question}], add_generation_prompt=True).ids
        written: list[int] = []
        while len(written) < 6 and not ends & set(written):
            with torch.no_grad():
                written.append(int(model(torch.tensor([ids + written]))[0, -1].argmax()))
        assert record["output"] == bpe.decode([token for token in written if token not in ends])
        assert record["tokens"] == len(written)


def test_drawn_answers_depend_on_the_example_and_the_seed_alone(make_model: MakeModel, rows: ResolvedInput) -> None:
    source = make_model("model")
    opened = subject(source)

    def outputs(seed: int, limit: int | None) -> dict[str, str]:
        found = task(rows, source, seed=seed, limit=limit, temperature=1.0).measure(opened, quiet)
        return {record["id"]: record["output"] for record in found.records}

    every, some = outputs(1, None), outputs(1, 3)
    assert len(some) == 3
    assert some.items() <= every.items()
    assert outputs(2, None) != every


def test_figures_on_planted_answers(make_model: MakeModel, rows: ResolvedInput) -> None:
    source = make_model("model")
    measure = task(rows, source, metrics=["exact_match", "contains", "chrf", "rouge", "length"])
    references = [example.reference for example in measure.examples]
    outputs = [references[0], f" {references[1]}\n", references[2].upper(), "no", "", references[5] + " it is"]
    results = measure.results(Measured({"model": answered(*outputs)}))
    whole = figures(results, "generate")
    assert whole["exact_match"] == pytest.approx(2 / 6)
    assert whole["contains"] == pytest.approx(4 / 6)
    assert whole["length"] == pytest.approx(np.mean([len(output) for output in outputs]))
    assert whole["chrf"] == pytest.approx(corpus_chrf(outputs, [references]).score)
    # Tasks of the rows: short, long, long, short, long, long.
    assert figures(results, "generate/short")["exact_match"] == pytest.approx(1 / 2)
    assert figures(results, "generate/long")["exact_match"] == pytest.approx(1 / 4)
    assert {result.n for result in results if result.task == "generate/long"} == {4}


def test_rows_of_one_task_get_no_parts(make_model: MakeModel, write_rows: WriteRows) -> None:
    source = make_model("model")
    data = write_rows("one", test=[row("a", "b", task="only"), row("c", "d", task="only")], train=[row("e", "f")])
    results = task(data, source).results(Measured({"model": answered("b", "x")}))
    assert {result.task for result in results} == {"generate"}


def test_rewards_are_those_of_the_reward_model_on_the_whole_conversation(
    make_model: MakeModel, rows: ResolvedInput, bpe: Tokenizer
) -> None:
    source, judge = make_model("model"), make_model("judge", head="reward", seed=5)
    measure = task(rows, source, judge=judge, metrics=["reward"], reward_model="judge")
    outputs = ["", "yes", "wrapwrap", "no\n", "é", "z" * 90]
    judged = measure.judge_answers(subject(judge, "judge"), {"model": answered(*outputs)}, quiet)
    reference = load_model(judge.path)
    for example, output, record in zip(measure.examples, outputs, judged.records, strict=True):
        for answer, reward in ((output, record["models"]["model"]), (example.reference, record["reference"])):
            messages: Any = [*example.prompt, {"role": "assistant", "content": answer}]
            ids = bpe.render_conversation(messages).ids[-64:]
            with torch.no_grad():
                expected = float(reference(torch.tensor([ids]))[0])
            assert reward == pytest.approx(expected, abs=1e-5)
    measured = Measured({"model": answered(*outputs)}, judged)
    mean = np.mean([record["models"]["model"] for record in judged.records])
    assert figures(measure.results(measured), "generate")["reward"] == pytest.approx(mean)
    mean = np.mean([record["reference"] for record in judged.records])
    assert figures(measure.baselines(measured), "generate")["reward"] == pytest.approx(mean)


def test_win_rates_are_of_each_model_against_those_before_it(make_model: MakeModel, rows: ResolvedInput) -> None:
    models, judge = [make_model(name) for name in "abc"], make_model("judge", head="reward")
    measure = task(rows, *models, judge=judge, metrics=["reward"], reward_model="judge")
    rewards = {"a": [0, 0, 0, 0, 0, 0], "b": [1, 1, 1, -1, 0, 0], "c": [2, 0, 0, 0, 1, -1]}
    records = [{"reference": 0.0, "models": {m: float(rewards[m][at]) for m in rewards}} for at in range(6)]
    judged = Measurement(records, "how", 0)
    results = measure.results(Measured({name: answered(*"uvwxyz") for name in "abc"}, judged))
    wins = {
        (result.model, result.metric): result.value
        for result in results
        if result.task == "generate" and result.metric.startswith("win_rate")
    }
    assert wins == {
        ("b", "win_rate vs a"): pytest.approx((3 + 2 / 2) / 6),
        ("c", "win_rate vs a"): pytest.approx((2 + 3 / 2) / 6),
        ("c", "win_rate vs b"): pytest.approx((3 + 0 / 2) / 6),
    }


def test_prompts_that_fill_the_context_are_refused_or_left_out_for_every_model(
    make_model: MakeModel, write_rows: WriteRows
) -> None:
    wide, narrow = make_model("wide"), make_model("narrow", context=40)
    data = write_rows(
        "long", train=[row("a", "b")], test=[row("short?", "a"), row("long" * 16, "b"), row("x" * 500, "c")]
    )
    measure = task(data, wide, narrow)
    over = [finding for finding in measure.findings() if finding.severity == "error"]
    assert [finding.message.split(" (")[0] for finding in over] == [
        "1 of 3 prompts fill the context of `wide`",
        "2 of 3 prompts fill the context of `narrow`",
    ]
    skipping = task(data, wide, narrow, too_long="skip")
    assert [example.reference for example in skipping.examples] == ["a"]
    assert not [finding for finding in skipping.findings() if finding.severity == "error"]
    results = skipping.results(Measured({"wide": answered("a"), "narrow": answered("b")}))
    assert {result.n for result in results} == {1}
    assert "1 prompts of the test split (2 too long)" in results[0].signature
    with pytest.raises(DataError, match="every prompt is too long"):
        task(write_rows("all", train=[row("a", "b")], test=[row("x" * 500, "c")]), narrow, too_long="skip")


def test_too_little_room_for_an_answer_is_a_warning(make_model: MakeModel, rows: ResolvedInput) -> None:
    [finding] = task(rows, make_model("model"), max_new_tokens=50).findings()
    assert finding.severity == "warning"
    assert finding.key == "max_new_tokens"


def test_every_row_of_a_file_is_taken_where_the_split_is_all(make_model: MakeModel, write_rows: WriteRows) -> None:
    source, data = make_model("model"), write_rows("file", train=[row(f"q{n}", "a") for n in range(40)])
    file = resolved(data.path / "train.jsonl")
    assert len(task(file, source, split="all").examples) == 40
    assert len(task(file, source).examples) < 10
    with pytest.raises(DataError, match=r"no example in the test split\. `split: all` takes every row"):
        task(write_rows("few", train=[row("q", "a")], test=[]), source)


def test_samples_show_all_models_on_examples_of_every_task(make_model: MakeModel, rows: ResolvedInput) -> None:
    measure = task(rows, make_model("one"), make_model("two"))
    measured = Measured({"one": answered(*"abcdef"), "two": answered(*"uvwxyz")})
    samples = measure.samples(measured, 3)
    assert [sample["id"] for sample in samples] == ["wrap-0", "fill-1", "indent-3"]
    assert samples[1] == {
        "task": "generate",
        "id": "fill-1",
        "prompt": "What does fill! do?",
        "reference": "fillfill",
        "outputs": {"one": "b", "two": "v"},
    }


def test_examples_are_spread_over_groups() -> None:
    assert spread(["a", "a", "a", "b", "c", "b"], 5) == [0, 3, 4, 1, 5]
    assert spread(["a", "b"], 9) == [0, 1]
    assert spread([], 3) == []
