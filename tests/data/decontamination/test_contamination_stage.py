"""Planted evaluation data through whole chains of stages."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from decontamination_support import write_rows

from llmkit.config.experiment import Experiment, parse_experiment, static_findings
from llmkit.config.yaml import parse_yaml
from llmkit.data.config import DataConfig
from llmkit.data.execution.engine import Engine
from llmkit.errors import ConfigError, DataError
from llmkit.pipeline.kinds import KINDS
from llmkit.pipeline.run import Pipeline, load_experiment
from llmkit.store.documents import read_documents

ASKED = "How many apples does the farmer have left when {} of his {} friends have taken one each?"
CLEAN = "This document, which is number {}, tells of {} rivers that run to the sea, and of nothing else."


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """40 documents, each tenth with a question in it, and the questions."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "asked.jsonl", [{"question": ASKED.format(n, 3 * n), "answer": str(n)} for n in range(10)])
    texts = [CLEAN.format(n, n % 7) for n in range(40)]
    for place in range(0, 40, 10):
        texts[place] += f"\n\n{ASKED.format(place // 10, 3 * place // 10).upper()} {CLEAN.format('x', place)}"
    write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    return tmp_path


def corpus(**decontamination: Any) -> dict[str, Any]:
    return {
        "stage": "data",
        "sources": [{"kind": "jsonl", "files": ["texts.jsonl"]}],
        "executor": {"processes": 1},
        "cleaning": {"repetition": None},
        "splits": {"validation": 0.0, "test": 0.1},
        "work": {"keep": True},
        **({"decontamination": decontamination} if decontamination else {}),
    }


def experiment(folder: Path, stages: dict[str, Any]) -> Experiment:
    (folder / "config.yaml").write_text(json.dumps({"run": "r", "stages": stages}))
    return load_experiment(folder / "config.yaml")


def report(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"runs/r/{name}/report.json").read_text())
    return found


def test_planted_questions_go_and_the_counts_add_up(folder: Path) -> None:
    Pipeline(experiment(folder, {"corpus": corpus(against=["asked.jsonl"])})).run()
    out = folder / "runs/r/corpus"
    kept = [document.path for document in read_documents(out)]
    dropped = pq.read_table(out / "dropped").to_pylist()
    assert [row["path"] for row in dropped] == [f"texts.jsonl:{line}" for line in (1, 11, 21, 31)]
    assert {(row["step"], row["reason"]) for row in dropped} == {("decontamination", "contaminated")}
    # 18 words of the question have six stretches of 13; the document has 19 words before it and behind.
    assert dropped[1]["detail"] == (
        f"6 matches, {18 / 56:.1%} of the words; asked.jsonl:2:"
        ' "HOW MANY APPLES DOES THE FARMER HAVE LEFT WHEN 1 OF HIS 3"'
    )
    assert "HOW MANY APPLES" in dropped[0]["text"]
    assert sorted(kept) == sorted(f"texts.jsonl:{line}" for line in range(1, 41) if line not in (1, 11, 21, 31))
    total = report(folder, "corpus")["total"]
    assert (total["in"], total["kept"], total["dropped"]) == (40, 36, {"contaminated": 4})
    step = total["steps"]["decontamination"]
    assert (step["in"], step["kept"], step["dropped"]) == (40, 36, {"contaminated": 4})
    names = list(total["steps"])
    assert names.index("decontamination") == names.index("exact_duplicates") - 1


def test_another_threshold_measures_nothing_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: Counter[str] = Counter()
    run = Engine._execute

    def counting(self: Engine, tasks: Any, missing: Any) -> Any:
        made.update(task.name for task in missing.values())
        return run(self, tasks, missing)

    monkeypatch.setattr(Engine, "_execute", counting)
    work = {"work": {"keep": True, "folder": "work"}}
    Pipeline(experiment(folder, {"corpus": corpus(against=["asked.jsonl"]) | work})).run()
    assert made["index"] == 1
    assert made["measure"] == 2
    Pipeline(experiment(folder, {"corpus": corpus(against=["asked.jsonl"], min_share=0.5) | work})).run()
    assert report(folder, "corpus")["total"]["kept"] == 40
    assert (made["index"], made["measure"]) == (1, 2)
    write_rows(folder / "asked.jsonl", [{"question": CLEAN.format(5, 5)}])
    Pipeline(experiment(folder, {"corpus": corpus(against=["asked.jsonl"], min_share=0.5) | work})).run()
    # The last thirteen words are those of every seventh document.
    found = [row["path"] for row in pq.read_table(folder / "runs/r/corpus/dropped").to_pylist()]
    assert found == [f"texts.jsonl:{line}" for line in (6, 13, 20, 27, 34)]
    assert (made["index"], made["measure"]) == (2, 3)


def test_a_mistake_in_the_files_is_found_before_anything_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "asked.jsonl").write_text("{broken")
    run = Engine.run
    done: list[str] = []

    def noting(self: Engine, tasks: Any, what: str = "") -> Any:
        done.extend(task.name for task in tasks)
        return run(self, tasks, what)

    monkeypatch.setattr(Engine, "run", noting)
    with pytest.raises(DataError, match=r"asked\.jsonl:1: this is not JSON"):
        Pipeline(experiment(folder, {"corpus": corpus(against=["asked.jsonl"])})).run()
    assert done == ["index"]


def test_texts_that_are_all_too_short_are_named_with_their_place(folder: Path) -> None:
    write_rows(folder / "short.jsonl", [{"question": "Who is it?"}])
    with pytest.raises(DataError) as caught:
        Pipeline(experiment(folder, {"corpus": corpus(against=["asked.jsonl", "short.jsonl"])})).run()
    place = r"config\.yaml:1: stages\.corpus\.decontamination\.against\.1: `short\.jsonl` has no text of 8 words"
    assert re.search(place, str(caught.value))


def test_held_out_examples_documents_and_tokens(folder: Path) -> None:
    write_rows(folder / "held.jsonl", [{"text": f"{ASKED.format(n, 3 * n)} I {n}."} for n in range(4)])
    held = corpus() | {
        "sources": [{"kind": "jsonl", "files": ["held.jsonl"]}],
        "splits": {"validation": 0.0, "test": 0.6},
    }
    chat = {"stage": "examples", "splits": {"validation": 0.3, "test": 0.3}}
    chat["source"] = {
        "kind": "files",
        "files": ["asked.jsonl"],
        "columns": {"prompt": "question", "completion": "answer"},
    }
    stages = {
        "held": held,
        "chat": chat,
        "bpe": {"stage": "tokenizer", "data": "held", "vocab_size": 300},
        "held_tokens": {"stage": "tokens", "data": "held", "tokenizer": "bpe"},
        "by_documents": corpus(against=["held"]),
        "by_tokens": corpus(against=["held_tokens"]),
        "by_examples": corpus(against=["chat"]),
    }
    Pipeline(experiment(folder, stages)).run()
    test = {document.text for document in read_documents(folder / "runs/r/held", ("test",))}
    assert 0 < len(test) < 4
    expected = {f"texts.jsonl:{10 * n + 1}" for n in range(4) if f"{ASKED.format(n, 3 * n)} I {n}." in test}
    for name in ("by_documents", "by_tokens"):
        rows = pq.read_table(folder / f"runs/r/{name}/dropped").to_pylist()
        assert {row["path"] for row in rows} == expected
    assert all("held_tokens/test: document" in row["detail"] for row in rows)
    lines = [
        json.loads(line)["messages"][0]["content"]
        for split in ("validation", "test")
        for line in (folder / f"runs/r/chat/{split}.jsonl").read_text().splitlines()
    ]
    rows = pq.read_table(folder / "runs/r/by_examples/dropped").to_pylist()
    found = {f"texts.jsonl:{10 * n + 1}" for n in range(4) if ASKED.format(n, 3 * n) in lines}
    assert {row["path"] for row in rows} == found


EVALUATED = """
run: r
stages:
  corpus:
    stage: data
    sources: [{kind: jsonl, files: [texts.jsonl]}]
    decontamination: {against: [extra.jsonl, eval]}
  other: {stage: data, sources: [{kind: jsonl, files: [texts.jsonl]}]}
  bpe: {stage: tokenizer, data: corpus}
  tokens: {data: corpus, tokenizer: bpe}
  other_tokens: {stage: tokens, data: other, tokenizer: bpe}
  chat: {stage: examples, source: {kind: files, files: [asked.jsonl]}}
  gpt: {stage: pretrain, data: tokens, steps: 2, model: {family: llama, layers: 1, width: 32, heads: 2, context: 64}}
  eval:
    models: [gpt]
    tasks:
      - {kind: perplexity, data: corpus}
      - {kind: perplexity, name: t, data: tokens}
      - {kind: perplexity, name: o, data: other}
      - {kind: generate, data: chat}
      - {kind: choice, data: asked.jsonl}
      - {kind: perplexity, name: x, data: extra.jsonl}
"""


def test_an_evaluation_stands_for_what_its_tasks_measure_on() -> None:
    found = parse_experiment(parse_yaml(EVALUATED, "a.yaml"), KINDS)
    config = found.stages["corpus"]
    assert isinstance(config, DataConfig)
    assert config.decontamination is not None
    # Neither the corpus itself nor its tokens; what two name once.
    assert config.decontamination.against == ["extra.jsonl", "other", "chat", "asked.jsonl"]
    assert found.dependencies("corpus") == ["other", "chat"]


def test_an_evaluation_of_the_corpus_alone_leaves_nothing_to_look_for() -> None:
    start = EVALUATED.partition("      - {kind: perplexity, name: o")[0]
    text = start.replace("[extra.jsonl, eval]", "[eval]")
    found = parse_experiment(parse_yaml(text, "a.yaml"), KINDS)
    findings = [finding for name, finding in static_findings(found, {}) if name == "corpus"]
    assert [finding.key for finding in findings] == ["decontamination.against"]
    assert "all tasks measure on what is made of this corpus" in findings[0].message


def test_the_wrong_kind_is_refused() -> None:
    text = EVALUATED.replace("[extra.jsonl, eval]", "[gpt]")
    with pytest.raises(ConfigError, match="depend on each other in a circle"):
        parse_experiment(parse_yaml(text, "a.yaml"), KINDS)
