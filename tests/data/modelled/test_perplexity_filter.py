from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from modelled_support import CONTEXT, PROSE, bpe, make_filter, measure, reasons, save_random, verdicts

from llmkit.data.modelled.config import PerplexityConfig
from llmkit.data.modelled.ngrams import train
from llmkit.data.modelled.perplexity import Perplexity
from llmkit.data.words import words_of
from llmkit.errors import ConfigError, ModelError
from llmkit.model.load import load_model


def by_ngrams(folder: Path, **settings: object) -> Perplexity:
    folder.mkdir()
    train(words_of(PROSE * 3), 3).save(folder)
    config = PerplexityConfig.model_validate({"ngram": {"train_on": ["prose.txt"], "order": 3}, **settings})
    return Perplexity(config, folder)


def garbage(seed: int, words: int = 20) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randrange(3, 9))) for _ in range(words))


def test_perplexity_of_words_is_that_of_their_bits(tmp_path: Path) -> None:
    found = by_ngrams(tmp_path / "m")
    model = train(words_of(PROSE * 3), 3)
    texts = [PROSE[0], "Die Füchse, nicht die Eulen.", "...", ""]
    measured = measure(found, texts)
    for row, words in enumerate((14, 5)):
        (bits,) = model.bits(words_of([texts[row]]))
        assert measured["length"][row] == words
        assert measured["perplexity"][row] == pytest.approx(2 ** (bits / words))
        assert measured["bits_per_byte"][row] == pytest.approx(bits / len(texts[row].encode()))
    assert measured["length"][2:] == [0, 0]
    assert all(math.isnan(measured[name][row]) for name in ("perplexity", "bits_per_byte") for row in (2, 3))


def test_planted_garbage_goes_and_text_like_that_of_the_model_stays(tmp_path: Path) -> None:
    shuffled = " ".join(random.Random(1).sample(" ".join(PROSE).split(), 40))
    texts = [*PROSE, *(garbage(seed) for seed in range(5)), "too short xyzzy", "", shuffled]
    found = by_ngrams(tmp_path / "m", max_perplexity=30)
    assert reasons(found, texts) == [None] * 5 + ["too_unlikely"] * 5 + [None, None, "too_unlikely"]
    (dropped,) = verdicts(found, [garbage(7)])
    assert dropped is not None
    assert dropped.detail.startswith("a perplexity of ")
    assert dropped.detail.endswith(" per word")


def test_what_the_model_knows_by_heart_can_go_too(tmp_path: Path) -> None:
    texts = [PROSE[0], "The village carries owl and nobody waits.", garbage(1)]
    limits = {
        "perplexity": {"min_perplexity": 30, "max_perplexity": 70},
        "bits": {"min_bits_per_byte": 0.5, "max_bits_per_byte": 0.9557},
    }
    for name, settings in limits.items():
        found = by_ngrams(tmp_path / name, min_length=3, **settings)
        assert reasons(found, texts) == ["too_likely", None, "too_unlikely"]
    assert reasons(by_ngrams(tmp_path / "none"), texts) == [None, None, None]


def test_perplexity_of_a_model_is_that_of_its_logits(tmp_path: Path) -> None:
    place = save_random(tmp_path / "gpt", "llama")
    model = load_model(place, dtype=torch.float64)
    texts = [PROSE[0], " ".join(PROSE), "é"]
    measured = measure(make_filter("perplexity", model=str(place)), [*texts, ""])
    for row, text in enumerate(texts):
        ids = [bpe().bos_id, *bpe().encode(text)]
        nats = 0.0
        for begin in range(0, len(ids) - 1, CONTEXT):
            window = torch.tensor([ids[begin : begin + CONTEXT + 1]])
            with torch.no_grad():
                logits = model(window[:, :-1])[0]
            nats += float(torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum"))
        assert measured["length"][row] == len(ids) - 1
        assert measured["perplexity"][row] == pytest.approx(math.exp(nats / (len(ids) - 1)), rel=1e-5)
        assert measured["bits_per_byte"][row] == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-5)
    assert measured["length"][1] > 2 * CONTEXT
    assert math.isnan(measured["perplexity"][3])


def test_documents_and_threads_change_no_bit_of_each_others_measures(tmp_path: Path) -> None:
    place = save_random(tmp_path / "gpt", "llama")
    texts = [*PROSE, " ".join(PROSE)]
    together = measure(make_filter("perplexity", model=str(place)), texts)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    found = make_filter("perplexity", model=str(place))
    alone = [measure(found, [text]) for text in texts]
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert [one["perplexity"][0] for one in alone] == together["perplexity"]


def test_narrow_weights_and_batches_are_nearly_the_same(tmp_path: Path) -> None:
    place = str(save_random(tmp_path / "gpt", "llama"))
    exact = measure(make_filter("perplexity", model=place), PROSE)["bits_per_byte"]
    batched = measure(make_filter("perplexity", model=place, batch_size=3), PROSE)["bits_per_byte"]
    narrow = measure(make_filter("perplexity", model=place, precision="bf16"), PROSE)["bits_per_byte"]
    assert batched == pytest.approx(exact, rel=1e-5)
    assert narrow == pytest.approx(exact, rel=0.05)
    assert narrow != exact


def test_models_that_do_not_fit_are_refused_in_words(tmp_path: Path) -> None:
    classifier = save_random(tmp_path / "bert", "bert", "classification", ("a", "b"))
    with pytest.raises(ModelError, match="has a classification head, and causal-lm is wanted"):
        measure(make_filter("perplexity", model=str(classifier)), PROSE)
    with pytest.raises(ModelError, match="no such folder"):
        measure(make_filter("perplexity", model=str(tmp_path / "nowhere")), PROSE)
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device"):
            measure(make_filter("perplexity", model=str(classifier), device="cuda"), PROSE)
