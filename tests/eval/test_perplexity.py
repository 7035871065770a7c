from __future__ import annotations

import gzip
import lzma
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eval_tools import TEXTS, quiet, resolved, subject
from hypothesis import given
from hypothesis import strategies as st

from llmkit.config.base import Facts
from llmkit.data.shards import ShardWriter
from llmkit.data.tokens_stage import describe
from llmkit.errors import DataError, ModelError
from llmkit.eval.metrics.base import Bootstrap
from llmkit.eval.models import Candidate, Machine
from llmkit.eval.tasks.base import Measured, Settings
from llmkit.eval.tasks.config import PerplexityTask
from llmkit.eval.tasks.perplexity import Perplexity
from llmkit.eval.texts import held_out_texts, limited
from llmkit.model.load import load_model
from llmkit.model.scoring import sliding_windows
from llmkit.store.documents import read_documents
from llmkit.store.stage import ResolvedInput
from llmkit.tokenizer.tokenizer import Tokenizer

MakeModel = Callable[..., ResolvedInput]


def task(data: ResolvedInput, *models: ResolvedInput, batch_size: int = 4, **options: Any) -> Perplexity:
    settings = Settings(0, batch_size, "fp32", Bootstrap(resamples=100))
    config = PerplexityTask.model_validate({"data": "corpus", **options})
    return Perplexity(config, data, settings, [Candidate(model.path.name, model) for model in models])


@given(st.integers(2, 60), st.integers(2, 12), st.integers(1, 12))
def test_windows_score_every_token_once_with_all_the_context_that_fits(length: int, context: int, stride: int) -> None:
    stride = min(stride, context)
    ids = list(range(100, 100 + length))
    scored: list[int] = []
    for window in sliding_windows(ids, context, stride):
        assert len(window.inputs) <= context
        for place, target in zip(window.positions, window.targets, strict=True):
            scored.append(target)
            # A position's target is the token behind it, and what it sees are the tokens before.
            assert window.inputs[place] == target - 1
            seen = place + 1
            assert list(window.inputs[:seen]) == list(range(target - seen, target))
            assert seen == target - 100 or seen > context - stride or len(ids) - 1 <= context
    assert scored == ids[1:]


@pytest.mark.parametrize("stride", [None, 5])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_figures_equal_a_loop_over_single_tokens(
    make_model: MakeModel, documents: ResolvedInput, bpe: Tokenizer, family: str, stride: int | None
) -> None:
    source = make_model("model", family)
    found = task(documents, source, context=16, stride=stride, limit=3).measure(subject(source), quiet)
    model = load_model(source.path, dtype=torch.float64)
    texts = held_out_texts(documents, "test", 3)
    for text, record in zip(texts, found.records, strict=True):
        ids = [bpe.bos_id, *bpe.encode(text.text)]
        nats, hits = 0.0, 0
        for place in range(1, len(ids)):
            # The window that scores a token is the first that holds the one before it.
            step = stride or 16
            begin = max(0, -(-(place - 16) // step) * step)
            with torch.no_grad():
                logits = model(torch.tensor([ids[begin:place]]))[0, -1]
            nats -= float(logits.log_softmax(-1)[ids[place]])
            hits += int(logits.argmax()) == ids[place]
        assert record["nll"] == pytest.approx(nats, rel=1e-5)
        assert record["hits"] == hits
        assert (record["tokens"], record["bytes"]) == (len(ids) - 1, len(text.text.encode()))


def test_figures_equal_those_of_transformers(make_model: MakeModel, tmp_path: Path, bpe: Tokenizer) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = "\n\n".join(TEXTS)[:70]
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    source = make_model("model")
    file = resolved(tmp_path / "text.txt")
    found = {r.metric: r for r in _results(task(file, source), source)}
    reference = AutoModelForCausalLM.from_pretrained(source.path)
    ids = AutoTokenizer.from_pretrained(source.path)(text, add_special_tokens=False).input_ids
    assert len(ids) < 64
    inputs = torch.tensor([[bpe.bos_id, *ids]])
    with torch.no_grad():
        loss = float(reference(input_ids=inputs, labels=inputs).loss)
    assert found["loss"].value == pytest.approx(loss, rel=1e-5)
    assert found["perplexity"].value == pytest.approx(math.exp(loss), rel=1e-5)
    assert found["bits_per_byte"].value == pytest.approx(loss * len(ids) / len(text) / math.log(2), rel=1e-5)


def test_batches_change_nothing_but_rounding(make_model: MakeModel, documents: ResolvedInput) -> None:
    source = make_model("model")
    one, many = (task(documents, source, batch_size=size).measure(subject(source), quiet).records for size in (1, 7))
    assert [record["tokens"] for record in one] == [record["tokens"] for record in many]
    np.testing.assert_allclose([r["nll"] for r in one], [r["nll"] for r in many], rtol=1e-5)


def test_models_with_other_tokenizers_are_measured_on_the_same_bytes(
    make_model: MakeModel, documents: ResolvedInput, other_bpe: Tokenizer
) -> None:
    models = [make_model("one"), make_model("two", tokenizer=other_bpe)]
    measure = task(documents, *models)
    records = [measure.measure(subject(model), quiet).records for model in models]
    assert [r["bytes"] for r in records[0]] == [r["bytes"] for r in records[1]]
    assert sum(r["tokens"] for r in records[0]) < sum(r["tokens"] for r in records[1])


def test_compressors_get_all_texts_in_one_piece(make_model: MakeModel, documents: ResolvedInput) -> None:
    whole = "".join(document.text for document in read_documents(documents.path, ("test",))).encode()
    found = {result.model: result for result in task(documents, make_model("model")).baselines(Measured({}))}
    assert found["gzip -9"].value == 8 * len(gzip.compress(whole, 9, mtime=0)) / len(whole)
    assert found["xz -9"].value == 8 * len(lzma.compress(whole, preset=9)) / len(whole)


def test_without_a_start_token_the_first_one_is_charged_as_uniform(
    make_model: MakeModel, documents: ResolvedInput, wordpiece: Tokenizer
) -> None:
    source = make_model("model", tokenizer=wordpiece)
    found = task(documents, source, limit=1).measure(subject(source), quiet)
    text = held_out_texts(documents, "test", 1)[0].text
    ids = wordpiece.encode(text)
    model = load_model(source.path, dtype=torch.float64)
    nats = math.log(wordpiece.vocab_size)
    for begin in range(0, len(ids) - 1, 64):
        window = torch.tensor([ids[begin : begin + 65]])
        with torch.no_grad():
            logits = model(window[:, :-1])[0]
        nats += float(torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum"))
    assert found.records[0]["nll"] == pytest.approx(nats, rel=1e-5)
    assert found.records[0]["tokens"] == len(ids)
    assert "first token uniform" in found.how


def test_tokens_are_turned_back_into_the_same_texts(
    documents: ResolvedInput, tmp_path: Path, bpe: Tokenizer, wordpiece: Tokenizer
) -> None:
    texts = [document.text for document in read_documents(documents.path, ("test",))]
    for name, tokenizer in (("exact", bpe), ("lossy", wordpiece)):
        with ShardWriter(tmp_path / name / "test", describe(tokenizer), tokenizer.eos_id, 100) as writer:
            for text in texts:
                writer.write(tokenizer.encode(text), len(text.encode()))
        tokenizer.save(tmp_path / name / "tokenizer")
    exact, lossy = (resolved(tmp_path / name, Facts("tokens")) for name in ("exact", "lossy"))
    assert [text.text for text in held_out_texts(exact, "test", None)] == texts
    assert [text.text for text in held_out_texts(exact, "all", None)] == texts
    with pytest.raises(DataError, match="give back"):
        held_out_texts(lossy, "test", None)


def test_texts_of_folders(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text(name, encoding="utf-8")
    assert [text.text for text in held_out_texts(resolved(tmp_path), "test", None)] == ["test"]
    assert [text.text for text in held_out_texts(resolved(tmp_path), "all", None)] == ["test", "train"]
    with pytest.raises(DataError, match="no text in the validation split"):
        held_out_texts(resolved(tmp_path), "validation", None)
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="not UTF-8"):
        held_out_texts(resolved(tmp_path / "bad.txt"), "test", None)
    (tmp_path / "blank.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(DataError, match="no text"):
        held_out_texts(resolved(tmp_path / "blank.txt"), "test", None)


def test_a_limit_takes_the_same_items_in_any_order_and_a_part_of_those_of_a_higher_one() -> None:
    items = [f"item {number}" for number in range(50)]
    ten = limited(items, 10, str)
    assert len(ten) == 10
    assert ten == sorted(ten, key=items.index) != items[:10]
    assert set(limited(items[::-1], 10, str)) == set(ten) < set(limited(items, 20, str))
    assert limited(items, 50, str) == items


def test_half_precision_gives_nearly_the_same(make_model: MakeModel, documents: ResolvedInput) -> None:
    source = make_model("model")
    opened = Candidate("model", source).open(Machine.choose("cpu", "bf16"))
    assert opened.model.embeddings.token.weight.dtype == torch.bfloat16
    exact, half = (
        sum(record["nll"] for record in task(documents, source).measure(each, quiet).records)
        for each in (subject(source), opened)
    )
    assert half == pytest.approx(exact, rel=0.01)
    assert half != exact


def test_a_model_that_has_diverged_is_refused(make_model: MakeModel, documents: ResolvedInput) -> None:
    source = make_model("model")
    opened = subject(source)
    with torch.no_grad():
        opened.model.embeddings.token.weight.fill_(math.nan)
    with pytest.raises(ModelError, match="not finite"):
        task(documents, source).measure(opened, quiet)


def _results(measure: Perplexity, source: ResolvedInput) -> list[Any]:
    return measure.results(Measured({"model": measure.measure(subject(source), quiet)}))
