from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from eval_tools import quiet, subject

from llmkit.eval.metrics.base import Bootstrap
from llmkit.eval.models import Candidate
from llmkit.eval.tasks.base import Measured, Settings
from llmkit.eval.tasks.config import MaskedTask
from llmkit.eval.tasks.masked import Masked, masked_windows
from llmkit.eval.texts import held_out_texts
from llmkit.store.stage import ResolvedInput
from llmkit.tokenizer.tokenizer import Tokenizer

MakeModel = Callable[..., ResolvedInput]


def task(data: ResolvedInput, *models: ResolvedInput, seed: int = 0, **options: Any) -> Masked:
    settings = Settings(seed, 3, "fp32", Bootstrap(resamples=100))
    config = MaskedTask.model_validate({"data": "corpus", **options})
    return Masked(config, data, settings, [Candidate(model.path.name, model) for model in models])


def test_windows_hold_the_text_but_for_its_masked_tokens(wordpiece: Tokenizer) -> None:
    ids = list(range(10, 110))
    windows = list(masked_windows(ids, wordpiece, 34, 0.15, "key"))
    assert [len(window.inputs) for window in windows] == [34, 34, 34, 6]
    restored: list[int] = []
    for window in windows:
        inputs = list(window.inputs)
        assert (inputs[0], inputs[-1]) == (wordpiece.cls_id, wordpiece.sep_id)
        assert len(window.targets) == max(1, round(0.15 * (len(inputs) - 2)))
        for place, target in zip(window.positions, window.targets, strict=True):
            assert inputs[place] == wordpiece.mask_id
            inputs[place] = target
        restored += inputs[1:-1]
    assert restored == ids
    assert list(masked_windows(ids, wordpiece, 34, 0.15, "key")) == windows
    assert list(masked_windows(ids, wordpiece, 34, 0.15, "other")) != windows


def test_every_place_is_masked_equally_often(wordpiece: Tokenizer) -> None:
    counts = Counter(
        place
        for key in range(2000)
        for w in masked_windows(range(20), wordpiece, 64, 0.25, str(key))
        for place in w.positions
    )
    assert set(counts) == set(range(1, 21))
    # 2000 x 5 / 20 = 500 times each, standard deviation 19.4.
    assert all(abs(count - 500) < 5 * 19.4 for count in counts.values())


def test_figures_equal_a_loop_and_transformers(
    make_model: MakeModel, documents: ResolvedInput, wordpiece: Tokenizer
) -> None:
    from transformers import AutoModelForMaskedLM

    source = make_model("encoder", "bert")
    measure = task(documents, source, limit=3)
    found = measure.measure(subject(source), quiet)
    reference = AutoModelForMaskedLM.from_pretrained(source.path).eval()
    for text, record in zip(held_out_texts(documents, "test", 3), found.records, strict=True):
        nats, hits, tokens = 0.0, 0, 0
        for window in masked_windows(wordpiece.encode(text.text), wordpiece, 64, 0.15, f"0:{text.id}"):
            with torch.no_grad():
                logits = reference(input_ids=torch.tensor([list(window.inputs)])).logits[0]
            for place, target in zip(window.positions, window.targets, strict=True):
                nats -= float(logits[place].double().log_softmax(-1)[target])
                hits += int(logits[place].argmax()) == target
                tokens += 1
        assert record["nll"] == pytest.approx(nats, rel=1e-4)
        assert (record["hits"], record["tokens"]) == (hits, tokens)
    results = {result.metric: result for result in measure.results(Measured({"encoder": found}))}
    assert results["loss"].value == pytest.approx(
        sum(r["nll"] for r in found.records) / sum(r["tokens"] for r in found.records)
    )


def test_the_baseline_names_the_token_that_is_masked_most_often(
    make_model: MakeModel, documents: ResolvedInput, wordpiece: Tokenizer
) -> None:
    source = make_model("encoder", "bert")
    [baseline] = task(documents, source).baselines(Measured({}))
    masked = Counter(
        target
        for text in held_out_texts(documents, "test", None)
        for window in masked_windows(wordpiece.encode(text.text), wordpiece, 64, 0.15, f"0:{text.id}")
        for target in window.targets
    )
    assert (baseline.model, baseline.metric) == ("most frequent token", "token_accuracy")
    assert baseline.value == pytest.approx(masked.most_common(1)[0][1] / masked.total())


def test_models_of_one_tokenizer_share_a_baseline(
    make_model: MakeModel, documents: ResolvedInput, bpe: Tokenizer
) -> None:
    one, two = make_model("one", "bert"), make_model("two", "bert", seed=1)
    assert len(task(documents, one, two).baselines(Measured({}))) == 1
    without = make_model("without", "bert", tokenizer=bpe)
    [finding] = task(documents, one, without).findings()
    assert "`without` has no mask token" in finding.message
