"""Reading a run's directory: states of stages, counts, results and cost, also of runs that are not whole."""

from __future__ import annotations

import json
import math
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_run
import pytest

from llmkit.errors import ArtifactError
from llmkit.report.data import read_data
from llmkit.report.gather import RunReport, gather, gather_json
from llmkit.report.page import render
from llmkit.report.results import headlines, read_evaluation
from llmkit.report.samples import read_samples
from llmkit.report.stages import Stage


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_run.write_run(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def run(run_directory: Path) -> RunReport:
    return gather(run_directory)


def by_name(report: RunReport) -> dict[str, Stage]:
    return {stage.name: stage for stage in report.stages}


def test_a_finished_run(run: RunReport) -> None:
    assert (run.name, run.place) == ("quickstart", "runs/quickstart")
    assert {stage.status for stage in run.stages} == {"complete"}
    assert [stage.name for stage in run.stages] == list(fake_run.CHAIN)
    assert all(stage.notes == () for stage in run.stages)
    assert by_name(run)["eval"].upstream == (
        "pretrain", "sft", "dpo", "grpo", "classifier", "corpus", "questions", "reward", "topics",
    )  # fmt: skip
    assert run.modified == fake_run.MOMENT


def test_cost_is_the_sum_of_what_the_stages_recorded(run: RunReport) -> None:
    assert run.cost.seconds == pytest.approx(sum(fake_run.SECONDS.values()))
    assert run.cost.tokens == sum(fake_run.TOKENS.values())
    pretrain = next(row for row in run.cost.stages if row.stage == "pretrain")
    assert pretrain.tokens_per_second == pytest.approx(3_276_800 / 188.0)
    assert pretrain.matrix_share == pytest.approx(6 * 5e6 * 3_276_800 / 188.0 / 1.2e12)
    corpus = next(row for row in run.cost.stages if row.stage == "corpus")
    assert (corpus.tokens, corpus.tokens_per_second, corpus.flop_rate, corpus.matrix_share) == (None,) * 4


def test_an_interrupted_run_tells_what_is_there(tmp_path: Path) -> None:
    run_directory = fake_run.write_run(tmp_path, ["corpus", "tokenizer", "tokens"])
    fake_run.interrupt_stage(run_directory, "pretrain")
    report = gather(run_directory)
    stages = by_name(report)
    assert [stages[name].status for name in ("tokens", "pretrain", "sft", "eval")] == [
        "complete",
        "interrupted",
        "missing",
        "missing",
    ]
    assert stages["pretrain"].upstream == ("tokens",)
    assert stages["sft"].upstream == ("pretrain", "questions")
    assert stages["sft"].kind == "finetune"
    assert (report.curves["pretrain"].last_step, report.curves["pretrain"].unreadable) == (400, 0)
    assert report.cards == ()
    assert report.cost.seconds == pytest.approx(21.4 + 9.1 + 6.2)


def test_an_interrupted_data_stage_gives_no_counts(tmp_path: Path) -> None:
    run_directory = fake_run.write_run(tmp_path, [])
    fake_run.interrupt_stage(run_directory, "corpus")
    found = gather(run_directory).data["corpus"]
    assert (found.ledger, found.dropped, found.splits) == (None, (), ())


def test_what_is_made_from_an_earlier_version_is_out_of_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_directory = fake_run.write_run(tmp_path, ["corpus", "tokenizer", "tokens", "pretrain"])
    shutil.rmtree(run_directory / "tokenizer")
    monkeypatch.setitem(fake_run._WRITERS, "tokenizer", _other_tokenizer)
    fake_run.write_stage(run_directory, "tokenizer")
    stages = by_name(gather(run_directory))
    assert [stages[name].status for name in ("corpus", "tokenizer", "tokens", "pretrain")] == [
        "complete", "complete", "out of date", "out of date",
    ]  # fmt: skip
    assert stages["tokens"].notes == ("Made from an earlier version of tokenizer.",)
    assert stages["pretrain"].notes == ("Made from tokens, which is out of date.",)


def _other_tokenizer(directory: Path, name: str) -> Any:
    facts = fake_run._tokenizer(directory, name)
    (directory / "tokenizer" / "tokenizer.json").write_text('{"other": true}')
    return facts


def test_a_newer_attempt_beside_a_finished_stage_is_noted(tmp_path: Path) -> None:
    run_directory = fake_run.write_run(tmp_path, ["corpus"])
    fake_run.interrupt_stage(run_directory, "corpus")
    stage = by_name(gather(run_directory))["corpus"]
    assert stage.status == "complete"
    assert stage.notes == ("A newer attempt, with other settings or inputs, is not finished.",)


def test_settings_that_have_changed_since_are_noted(tmp_path: Path) -> None:
    run_directory = fake_run.write_run(tmp_path, ["questions"])
    settings = (run_directory / "run.yaml").read_text()
    (run_directory / "run.yaml").write_text(settings.replace("task: questions", "task: answers"))
    stage = by_name(gather(run_directory))["questions"]
    assert stage.status == "complete"
    assert stage.notes == ("Made with other settings than the resolved config has now: source.",)


def test_a_damaged_stage_is_told_as_such(tmp_path: Path) -> None:
    run_directory = fake_run.write_run(tmp_path, ["corpus", "tokenizer"])
    with (run_directory / "tokenizer" / "tokenizer" / "tokenizer.json").open("a") as stream:
        stream.write("x")
    (run_directory / "corpus" / "manifest.json").write_text("{")
    stages = by_name(gather(run_directory))
    assert stages["tokenizer"].status == "damaged"
    assert "is 3 bytes long and should be 2" in stages["tokenizer"].notes[0]
    assert stages["corpus"].status == "damaged"


def test_a_run_without_its_config_is_put_in_order_by_its_manifests(tmp_path: Path) -> None:
    run_directory = fake_run.write_run(tmp_path, ["corpus", "tokenizer", "tokens", "pretrain"])
    (run_directory / "run.yaml").unlink()
    report = gather(run_directory)
    assert [stage.name for stage in report.stages] == ["corpus", "tokenizer", "tokens", "pretrain"]
    assert report.name == "quickstart"
    assert all(stage.notes == () for stage in report.stages)


def test_links_in_a_circle_are_cut(tmp_path: Path) -> None:
    run_directory = fake_run.write_run(tmp_path, ["corpus", "tokenizer"])
    manifest = run_directory / "corpus" / "manifest.json"
    raw = json.loads(manifest.read_text())
    raw["inputs"] = {"data": {"value": "tokenizer", "path": "", "digest": ""}, "own": {"value": "corpus"}}
    manifest.write_text(json.dumps(raw))
    stages = by_name(gather(run_directory))
    assert (stages["tokenizer"].upstream, stages["corpus"].upstream) == ((), ("tokenizer",))


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_no_run_is_a_mistake_with_a_hint(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="there is no") as caught:
        gather(tmp_path / name)
    assert "runs/quickstart" in str(caught.value.hint)


def test_counts_of_documents_add_up(run: RunReport) -> None:
    found = run.data["corpus"]
    assert found.ledger is not None
    assert found.ledger.adds_up
    assert found.ledger.reasons == ("duplicate", "too_short", "repetitive", "malformed")
    assert [(row.name, row.came, row.kept) for row in found.ledger.rows] == [
        ("python-docs", 9_000, 8_455),
        ("notes", 500, 445),
    ]
    assert [(split.name, split.counts["documents"]) for split in found.splits] == [
        ("train", 8_010),
        ("validation", 445),
        ("test", 445),
    ]
    assert found.licenses == (("python-docs", "PSF-2.0"), ("notes", None))


@pytest.mark.parametrize(
    "place", [("total", "kept"), ("sources", "notes", "kept"), ("sources", "notes", "dropped", "duplicate")]
)
def test_counts_that_do_not_add_up_are_noticed(tmp_path: Path, place: tuple[str, ...]) -> None:
    report = json.loads(json.dumps(fake_run.DATA_REPORT))
    inner = report
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] += 1
    (tmp_path / "report.json").write_text(json.dumps(report))
    ledger = read_data(tmp_path, "data", {}).ledger
    assert ledger is not None
    assert not ledger.adds_up


def test_records_that_could_not_be_read_are_counted(tmp_path: Path) -> None:
    report = json.loads(json.dumps(fake_run.DATA_REPORT))
    for section in (report["total"], report["sources"]["notes"]):
        section["quarantined"] = {"malformed": 4}
        section["in"] += 4
    (tmp_path / "report.json").write_text(json.dumps(report))
    ledger = read_data(tmp_path, "data", {}).ledger
    assert ledger is not None
    assert ledger.adds_up
    assert ledger.total.dropped == {**report["total"]["dropped"], "unreadable: malformed": 4}


def test_the_page_tells_what_the_data_card_tells(tmp_path: Path) -> None:
    def counted(**languages: int) -> dict[str, Any]:
        return {name: {"documents": count, "bytes": 9} for name, count in languages.items()}

    census = {
        "notes": {"licenses": counted(MIT=4) | {"": {"documents": 1, "bytes": 9}}, "languages": counted(de=2, en=3)},
        "python-docs": {"licenses": counted(), "languages": counted(de=7)},
    }
    gaps = ["`minhash` was left out. (Near duplicates.)"]
    (tmp_path / "report.json").write_text(json.dumps({**fake_run.DATA_REPORT, "census": census, "gaps": gaps}))
    found = read_data(tmp_path, "data", fake_run.stage_config("corpus"))
    assert found.licenses == (("python-docs", "PSF-2.0"), ("notes", "MIT"), ("notes", None))
    assert found.languages == (("de", 9), ("en", 3))
    assert found.gaps == tuple(gaps)


def test_two_dropped_documents_of_each_reason(run: RunReport) -> None:
    dropped = run.data["corpus"].dropped
    assert [sample.reason for sample in dropped] == [
        "duplicate",
        "duplicate",
        "malformed",
        "repetitive",
        "too_short",
        "too_short",
    ]
    assert dropped[0].text == "Return repr(self)."
    assert (dropped[0].step, dropped[0].detail, dropped[0].path) == ("exact_duplicates", "as json.tool", "notes/1.txt")


def test_examples_tokenizers_and_tokens(run: RunReport) -> None:
    questions, topics, pairs = (run.data[name] for name in ("questions", "topics", "pairs"))
    assert questions.examples[0].parts[0] == ("user", "What does textwrap.dedent do?")
    assert questions.ledger is not None
    assert [row.name for row in questions.ledger.rows] == ["describe", "module"]
    assert topics.labels == (("internet", 700), ("mathematics", 500))
    assert topics.examples[0].parts == (("text", "Send a QUIT command to the server."), ("label", "internet"))
    assert pairs.examples[0].parts == (
        ("user", "Which module defines walk?"),
        ("chosen", "os"),
        ("rejected", "walk walk walk"),
    )
    compression = run.data["tokenizer"].compression
    assert [(row.name, row.bytes_per_token) for row in compression] == [
        ("all", 3.5),
        ("python-docs", 3.625),
        ("notes", 2.75),
    ]
    assert run.data["tokens"].splits[0].counts["tokens"] == 7_740_000


def test_results_mark_the_best_and_what_overlaps_it(run: RunReport) -> None:
    evaluation = run.evaluations["eval"]
    assert [[model.label for model in table.models] for table in evaluation.tables] == [
        ["pretrain", "sft", "dpo", "grpo"],
        ["classifier"],
    ]
    rows = {(row.task, row.metric): row for row in evaluation.rows}
    marks = {key: {model: score.mark for model, score in row.scores.items()} for key, row in rows.items()}
    assert marks["held-out text", "bits_per_byte"] == {"pretrain": "best", "sft": "", "dpo": "", "grpo": ""}
    # 0.508-0.612 overlaps 0.483-0.590 and 0.470-0.575, but not 0.071-0.096.
    assert marks["questions", "rouge_l"] == {"pretrain": "", "sft": "close", "dpo": "close", "grpo": "best"}
    assert marks["topics", "accuracy"] == {"classifier": ""}
    assert [[task for task, _ in table.tasks] for table in evaluation.tables] == [
        ["held-out text", "questions"],
        ["topics"],
    ]
    assert [[task for task, _ in table.parts] for table in evaluation.tables] == [["questions/module"], []]
    assert evaluation.left_out == (("topics", "sft", "has a causal-lm head"),)
    assert list(rows["held-out text", "bits_per_byte"].baselines) == ["gzip -9", "xz -9"]
    shown = [(found.row.task, found.row.metric, found.model, found.against) for found in headlines(evaluation)]
    assert shown == [
        ("held-out text", "bits_per_byte", "pretrain", "gzip -9"), ("questions", "exact_match", "grpo", "pretrain"),
        ("questions", "reward", "dpo", "pretrain"),
        ("topics", "accuracy", "classifier", "majority class"),
    ]  # fmt: skip


def test_results_with_odd_values(tmp_path: Path) -> None:
    rows = [
        {
            "model": "a",
            "task": "t",
            "metric": "length",
            "value": 3.0,
            "low": None,
            "high": None,
            "n": 1,
            "signature": "s",
            "better": None,
        },
        {"model": "b", "task": "t", "metric": "length", "value": 9.0, "n": 1},
        {"model": "a", "task": "t", "metric": "loss", "value": float("nan"), "better": "lower"},
        {"model": "b", "task": "t", "metric": "loss", "value": 2.0, "better": "lower"},
        {"model": "c", "task": "t", "metric": "loss", "value": 2.0, "better": "lower"},
        {"model": "c", "task": "t", "metric": "text", "value": "high"},
        {"model": "a", "task": "t", "metric": "f1", "value": 0.0, "better": "higher"},
        {"model": "b", "task": "t", "metric": "f1", "value": 0.0, "better": "higher"},
    ]
    (tmp_path / "results.json").write_text(json.dumps({"results": rows, "interval": {"confidence": 0.9}}))
    evaluation = read_evaluation(tmp_path)
    assert evaluation is not None
    assert evaluation.confidence == 0.9
    length, loss, f1 = evaluation.rows
    assert [score.mark for score in f1.scores.values()] == ["", ""]
    assert [score.mark for score in length.scores.values()] == ["", ""]
    assert [score.mark for score in loss.scores.values()] == ["", "best", "best"]


def test_tasks_that_share_a_model_share_a_table(tmp_path: Path) -> None:
    measured = [("one", "a"), ("two", "b"), ("three", "c"), ("two", "a"), ("four", "c")]
    rows = [
        {"model": model, "task": task, "metric": "loss", "value": 1.0, "better": "lower"} for task, model in measured
    ]
    (tmp_path / "results.json").write_text(json.dumps({"results": rows}))
    evaluation = read_evaluation(tmp_path)
    assert evaluation is not None
    tables = [
        ([model.label for model in table.models], [task for task, _ in table.tasks]) for table in evaluation.tables
    ]
    assert tables == [(["a", "b"], ["one", "two"]), (["c"], ["three", "four"])]


def test_samples_with_scores_in_each_shape(tmp_path: Path) -> None:
    shapes: list[Any] = [{"a": {"rouge": 0.5}}, {"rouge": {"a": 0.5}}, {"a": 0.5}, None]
    rows = [
        {"task": "t", "id": n, "prompt": "p", "outputs": {"a": "x"}, "scores": shape} for n, shape in enumerate(shapes)
    ]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"task": "t"}, *rows]))
    (task,) = read_samples(tmp_path)
    assert (task.total, len(task.samples)) == (8, 6)
    assert [sample.outputs[0].scores for sample in task.samples[:4]] == [
        (("rouge", 0.5),),
        (("rouge", 0.5),),
        (("score", 0.5),),
        (),
    ]
    assert task.samples[0].reference is None


def test_answers_of_the_first_and_the_last_step_of_training(run: RunReport) -> None:
    found = run.rollouts["grpo"]
    assert [(rollout.step, rollout.completion) for rollout in found] == [
        (step, f"answer {n} of step {step}") for step in (0, 600) for n in range(3)
    ]
    assert (found[3].reward, found[3].reference, found[3].scores) == (0.75, "os", (("exact_match", 0.0),))
    assert run.rollouts["dpo"] == ()


def test_model_cards_tell_origin_and_licences(run: RunReport) -> None:
    cards = {card.stage: card for card in run.cards}
    assert list(cards) == ["pretrain", "bert", "sft", "classifier", "reward", "dpo", "grpo"]
    grpo = cards["grpo"]
    assert grpo.lineage == ("pretrain", "sft", "grpo")
    assert [(source.stage, source.name, source.license) for source in grpo.sources] == [
        ("corpus", "python-docs", "PSF-2.0"), ("corpus", "notes", None), ("questions", "python-docs", "PSF-2.0"),
        ("pairs", "python-docs", "PSF-2.0"),
    ]  # fmt: skip
    assert grpo.command == "llmkit chat --model runs/quickstart/grpo"
    assert cards["pretrain"].command.startswith("llmkit generate --model runs/quickstart/pretrain ")
    assert "AutoModelForSequenceClassification" in cards["classifier"].command
    # Embedding 4096 x 256; six blocks of queries 256 x 256, keys and values 256 x 128, output 256 x 256, MLP
    # 3 x 256 x 704 and two norms of 256; a final norm.
    block = 2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 704 + 2 * 256
    assert dict(cards["pretrain"].properties)["parameters"] == 4096 * 256 + 6 * block + 256


def test_the_report_as_json(run_directory: Path) -> None:
    found = gather_json(run_directory)
    text = json.dumps(found, allow_nan=False)
    assert str(run_directory.parent) not in text
    assert found["stages"][0]["directory"] == "corpus"
    assert found["cost"]["stages"][0]["seconds"] == 21.4


def test_a_page_is_made_without_torch(run_directory: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from llmkit.report.page import write_report; "
        "write_report(Path(sys.argv[1]), Path(sys.argv[2])); "
        "sys.exit(bool({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, str(run_directory), str(tmp_path / "page.html")]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value[:4]) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in _places(item, (*path, key)))]


def test_any_value_of_any_file_may_be_wrong_without_costing_the_page(run_directory: Path, tmp_path: Path) -> None:
    """Values of other types put into the JSON files of a run, thirty times, with a fixed seed."""
    copy = shutil.copytree(run_directory, tmp_path / "quickstart")
    names = (
        "manifest.json",
        "report.json",
        "results.json",
        "engine.json",
        "config.json",
        "metrics.jsonl",
        "samples.jsonl",
    )
    files = sorted(path for path in copy.rglob("*.json*") if path.name in names)
    wrong = [None, True, -1, 3.5, math.nan, -math.inf, "text", "", [], [1, "a"], {}, {"a": 1}, 10**400]
    draw = random.Random(20)
    for _ in range(30):
        file = draw.choice(files)
        kept = file.read_text()
        lines = kept.splitlines() if file.suffix == ".jsonl" else [kept]
        number = draw.randrange(len(lines))
        value = json.loads(lines[number])
        path = draw.choice(_places(value)[1:])
        target = value
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = draw.choice(wrong)
        file.write_text("\n".join([*lines[:number], json.dumps(value), *lines[number + 1 :]]))
        json.dumps(gather_json(copy), allow_nan=False)
        assert render(gather(copy)).endswith("</html>\n"), (file, path)
        file.write_text(kept)
