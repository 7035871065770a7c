"""Filters with models in whole stages: what is dropped and kept, what is measured anew, the bytes, and chains."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from modelled_support import PROSE, save_random, wordpiece

from llmkit.config.base import Facts
from llmkit.data import stage
from llmkit.data.config import DataConfig
from llmkit.data.corpus import parts
from llmkit.data.corpus.build import make_corpus
from llmkit.data.execution.cache import Cache
from llmkit.data.execution.engine import open_engine
from llmkit.data.modelled.ngrams import train
from llmkit.data.modelled.texts import sampled_words, training_texts
from llmkit.data.words import words_of
from llmkit.errors import ConfigError, DataError
from llmkit.model.load import load_model
from llmkit.pipeline.run import Pipeline, load_experiment
from llmkit.store.artifact import open_artifact
from llmkit.store.documents import Document, document_id, read_documents, write_documents
from llmkit.store.files import sha256_tree
from llmkit.store.stage import Context, ResolvedInput

OFF = {"length": None, "repetition": None}


def prose(draw: random.Random) -> str:
    return " ".join(draw.choice(PROSE) for _ in range(3))


def garbage(draw: random.Random) -> str:
    return " ".join("".join(draw.choices("bcdfghjklmnpqrstvwxz", k=6)) for _ in range(30))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """30 texts of known sentences, 10 of drawn letters, 2 with a word of a list; and what filters read."""
    draw = random.Random(2)
    texts = [f"{prose(draw)} {number}" for number in range(30)] + [garbage(draw) for _ in range(10)]
    texts += [f"{PROSE[0]} {number} What a turnip!" for number in range(2)]
    rows = [json.dumps({"text": text}) for text in draw.sample(texts, len(texts))]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows))
    (tmp_path / "reference.txt").write_text("\n".join(PROSE * 2))
    (tmp_path / "list.txt").write_text("turnip\n")
    save_random(tmp_path / "gpt", "llama")
    save_random(tmp_path / "classifier", "bert", "classification", ("bad", "good"))
    monkeypatch.chdir(tmp_path)
    # Parts of a few documents, so that there are several tasks.
    monkeypatch.setattr(parts, "PART_ROWS", 12)
    monkeypatch.setattr(parts, "_GROUP_ROWS", 5)
    return tmp_path


def settings(**cleaning: Any) -> DataConfig:
    return DataConfig.model_validate(
        {
            "sources": [{"kind": "jsonl", "files": ["texts.jsonl"]}],
            "cleaning": {**OFF, **cleaning},
            "splits": {"validation": 0.0, "test": 0.0},
            "executor": {"processes": 1},
        }
    )


def context(config: DataConfig, directory: Path) -> Context:
    """With inputs as the pipeline finds them."""
    found = {
        needed.key: ResolvedInput(
            needed.key, needed.value, Path(needed.value), sha256_tree(Path(needed.value)), Facts(needed.kinds[-1])
        )
        for needed in config.inputs()
    }
    directory.mkdir(exist_ok=True)
    return Context("corpus", 1, directory, found)


def make(config: DataConfig, folder: Path) -> tuple[Mapping[str, int], Mapping[str, Any]]:
    """How many tasks of each name were done, and what was dropped by step and reason."""
    with open_engine(config.executor, Cache(folder / "work"), "corpus") as engine:
        corpus = make_corpus(engine, config, context(config, folder / "out"))
    steps = corpus.report["total"]["steps"]
    return engine.made, {name: step["dropped"] for name, step in steps.items() if step["dropped"]}


NGRAM = {"ngram": {"train_on": ["reference.txt"], "order": 3, "min_count": 1}}


def test_planted_garbage_goes_and_another_threshold_measures_nothing_again(world: Path) -> None:
    first = {"perplexity": {**NGRAM, "max_perplexity": 60.0}, "toxicity": {"lexicon": "list.txt"}}
    made, dropped = make(settings(**first), world)
    assert dropped == {"perplexity": {"too_unlikely": 10}, "toxicity": {"toxic_words": 2}}
    assert (made["ngrams"], made["measure"], made["judge"]) == (1, 2 * 4, 4)
    made, dropped = make(
        settings(perplexity={**NGRAM, "min_perplexity": 60.0}, toxicity={"lexicon": "list.txt", "max_share": 0.1}),
        world,
    )
    assert dropped == {"perplexity": {"too_likely": 32}}
    assert (made["ngrams"], made["measure"], made["judge"]) == (0, 0, 4)
    (world / "reference.txt").write_text(garbage(random.Random(2)))
    made, _ = make(settings(**first), world)
    assert (made["ngrams"], made["measure"]) == (1, 4)


def test_thresholds_of_models_measure_nothing_again_and_their_other_settings_do(world: Path) -> None:
    first = {"perplexity": {"model": "gpt"}, "classifier": {"model": "classifier", "label": "good"}}
    made, dropped = make(settings(**first), world)
    assert (made["measure"], dropped) == (8, {})
    made, dropped = make(
        settings(
            perplexity={"model": "gpt", "max_bits_per_byte": 0.01, "min_length": 1},
            classifier={"model": "classifier", "label": "good", "min_probability": 0.5, "keep": ["good"]},
        ),
        world,
    )
    assert (made["measure"], dropped) == (0, {"perplexity": {"too_unlikely": 42}})
    made, _ = make(settings(perplexity={"model": "gpt", "context": 8}, classifier=first["classifier"]), world)
    assert made["measure"] == 4
    save_random(world / "classifier", "bert", "classification", ("worse", "good"))
    made, _ = make(settings(**first), world)
    assert made["measure"] == 4


def contents(directory: Path) -> dict[str, bytes]:
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def test_one_process_and_two_give_the_same_bytes(world: Path) -> None:
    cleaning: dict[str, dict[str, Any]] = {
        "perplexity": {"model": "gpt"},
        "classifier": {"model": "classifier", "label": "good", "windows": "all"},
        "toxicity": {"lexicon": "list.txt", "max_share": 0.0, "model": "classifier", "label": "bad"},
    }
    cleaning["toxicity"]["max_probability"] = 1.0
    for processes in (1, 2):
        asked = settings(**cleaning).model_dump(mode="json")
        config = DataConfig.model_validate({**asked, "executor": {"processes": processes}})
        threads = torch.get_num_threads()
        torch.set_num_threads(3 - processes)
        stage.run(config, context(config, world / f"by-{processes}"))
        torch.set_num_threads(threads)
    one, two = contents(world / "by-1"), contents(world / "by-2")
    assert one == two
    rows = pq.read_table(world / "by-1" / "documents").to_pylist()
    model = load_model("classifier", dtype=torch.float64)
    for row in rows[:3]:
        ids = wordpiece().encode_windows(row["text"], 24)
        with torch.no_grad():
            good = torch.stack([model(torch.tensor([window]))[0].softmax(-1) for window in ids]).mean(0)[1]
        assert row["classifier.probability"] == pytest.approx(float(good), rel=1e-5)
    dropped = pq.read_table(world / "by-1" / "dropped").to_pylist()
    assert [(row["step"], row["reason"]) for row in dropped] == [("toxicity", "toxic_words")] * 2
    assert all("turnip" in row["text"] and row["toxicity.matches"] == 1 for row in dropped)


def test_texts_to_learn_from_come_from_documents_files_and_tables(tmp_path: Path) -> None:
    documents = [Document(document_id(text), text, "s", "p", split=split) for text, split in
                 (("one", "train"), ("two", "test"))]  # fmt: skip
    write_documents(tmp_path / "corpus", documents)
    assert list(training_texts("documents", str(tmp_path / "corpus"))) == ["one"]
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "three"}\n{"text": "four"}\n')
    (folder / "b.txt").write_text("five\nsix")
    (folder / "c.csv").write_text("id,text\n1,seven\n")
    assert list(training_texts("file", str(folder))) == ["three", "four", "five\nsix", "seven"]
    (folder / "d.jsonl").write_text('{"txt": "?"}\n')
    with pytest.raises(DataError, match=r"d\.jsonl:1: there is no text in the column `text`"):
        list(training_texts("file", str(folder / "d.jsonl")))
    (folder / "e.bin").write_bytes(b"?")
    with pytest.raises(DataError, match="does not tell its format"):
        list(training_texts("file", str(folder / "e.bin")))
    (folder / "f.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="no UTF-8"):
        list(training_texts("file", str(folder / "f.txt")))
    with pytest.raises(DataError, match="no file here"):
        list(training_texts("file", str(tmp_path / "nothing")))


def test_of_too_many_texts_a_part_is_chosen_by_their_digests() -> None:
    texts = [f"text number {number} of many" for number in range(400)]
    whole = sampled_words(lambda: texts, 10**9)
    assert whole[1:] == (400, sum(map(len, texts)))
    assert (whole[0].hashes == words_of(texts).hashes).all()
    assert (whole[0].begins == words_of(texts).begins).all()
    part, turned = (sampled_words(lambda given=given: given, whole[2] // 4) for given in (texts, texts[::-1]))
    assert 70 < part[1] < 130
    assert sorted(part[0].hashes) == sorted(turned[0].hashes)
    assert [len(table.keys) for table in train(part[0], 2).tables] == [
        len(table.keys) for table in train(turned[0], 2).tables
    ]


def test_nothing_to_learn_from_is_an_error(world: Path) -> None:
    (world / "reference.txt").write_text("...\n")
    with pytest.raises(DataError, match="no word to learn n-grams from"):
        make(settings(perplexity=NGRAM), world)


CHAIN = """
run: chain
seed: 3
stages:
  corpus:
    stage: data
    sources: [{kind: text, files: [reference]}]
    cleaning: {length: null, repetition: null}
    splits: {validation: 0.0, test: 0.0}
  bpe: {stage: tokenizer, data: corpus, vocab_size: 300}
  tokens: {data: corpus, tokenizer: bpe}
  gpt:
    stage: pretrain
    data: tokens
    model: {family: llama, layers: 1, width: 16, heads: 2, context: 32}
    steps: 2
    batch_size: 2
    precision: fp32
  moods:
    stage: examples
    source: {kind: files, files: [moods.csv], format: labels}
    splits: {validation: 0.1, test: 0.1}
  classifier:
    stage: finetune
    task: classification
    model: gpt
    data: moods
    steps: 30
    batch_size: 16
    optimizer: {lr: 2e-2}
    precision: fp32
  filtered:
    stage: data
    sources: [{kind: jsonl, files: [texts.jsonl]}]
    cleaning:
      length: null
      repetition: null
      perplexity: {ngram: {train_on: [corpus, "reference/*.txt"], order: 3}, max_perplexity: 60}
      classifier: {model: classifier, label: night, keep: [day]}
    splits: {validation: 0.0, test: 0.0}
  by_gpt:
    stage: data
    sources: [{kind: jsonl, files: [texts.jsonl]}]
    cleaning: {length: null, repetition: null, perplexity: {model: gpt}}
    splits: {validation: 0.0, test: 0.0}
  eval: {models: [gpt], tasks: [{kind: perplexity, data: by_gpt, split: train}]}
"""


@pytest.fixture
def chain(world: Path) -> Path:
    (world / "reference").mkdir()
    for number, text in enumerate(PROSE * 2):
        (world / "reference" / f"{number}.txt").write_text(f"{text} {number % 2} {text}")
    rows = [f"{'moon' if number % 2 else 'sun'} {number},{'night' if number % 2 else 'day'}" for number in range(60)]
    (world / "moods.csv").write_text("\n".join(["text,label", *rows]))
    (world / "chain.yaml").write_text(CHAIN)
    return world / "runs" / "chain"


def test_a_stage_of_data_filters_by_models_that_earlier_stages_have_trained(chain: Path) -> None:
    sun, moon = ([f"{name} {number}" for number in range(start, 12, 2)] for start, name in enumerate(("sun", "moon")))
    with Path("texts.jsonl").open("a") as stream:
        stream.writelines("\n" + json.dumps({"text": text}) for text in [*sun, *moon])
    pipeline = Pipeline(load_experiment("chain.yaml", ()))
    assert {name for name, _ in pipeline.findings(deep=True)} <= {"gpt"}
    pipeline.run()
    report = json.loads((chain / "filtered" / "report.json").read_text())
    steps = report["total"]["steps"]
    assert steps["perplexity"]["dropped"] == {"too_unlikely": 10}
    kept = [document.text for document in read_documents(chain / "filtered")]
    assert [text for text in kept if text.startswith(("sun", "moon"))] == sun
    assert steps["classifier"]["dropped"]["wrong_class"] >= len(moon)
    # The measures of the filter are those of the evaluation on the same documents.
    rows = pq.read_table(chain / "by_gpt" / "documents").to_pylist()
    bits = sum(row["perplexity.bits_per_byte"] * len(row["text"].encode()) for row in rows)
    results = json.loads((chain / "eval" / "results.json").read_text())["results"]
    (evaluated,) = (r["value"] for r in results if r["metric"] == "bits_per_byte" and r["model"] == "gpt")
    assert bits / sum(len(row["text"].encode()) for row in rows) == pytest.approx(evaluated, rel=1e-5)
    # Another threshold: neither model is made again, and only that stage and those after it.
    again = Pipeline(load_experiment("chain.yaml", ("stages.filtered.cleaning.perplexity.max_perplexity=50",)))
    assert {name for name, state in again.states().items() if state.state != "up to date"} == {"filtered"}

    # Which classes there are is known once the classifier is there.
    assert open_artifact(chain / "classifier", verify=False).facts.get("labels") == ["day", "night"]
    wrong = Pipeline(load_experiment("chain.yaml", ("stages.filtered.cleaning.classifier.label=nigh",)))
    assert [(f.key, f.hint) for name, f in wrong.findings(deep=True) if name == "filtered"] == [
        ("cleaning.classifier.label", "Did you mean `night`?")
    ]
    with pytest.raises(ConfigError, match="`classifier` has no class `nigh`"):
        wrong.run(["filtered"])


def test_models_that_cannot_fit_are_found_before_any_stage_runs(chain: Path) -> None:
    for change, message in (
        ("stages.filtered.cleaning.classifier.model=gpt", "`gpt` has a causal-lm head"),
        ("stages.by_gpt.cleaning.perplexity.model=classifier", "`classifier` has a classification head"),
        ("stages.by_gpt.cleaning.perplexity.model=moods", "`moods` gives examples, and model is wanted"),
        ("stages.filtered.cleaning.perplexity.ngram.train_on=[bpe]", "`bpe` gives tokenizer"),
        ("stages.by_gpt.cleaning.perplexity.context=64", "longer than the context of `gpt`, 32"),
        ("stages.filtered.cleaning.classifier.model=nowhere", "neither a stage of this config nor a file"),
    ):
        with pytest.raises(ConfigError, match=message):
            Pipeline(load_experiment("chain.yaml", (change,))).run()
    assert not chain.exists()
