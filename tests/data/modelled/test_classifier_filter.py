from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from modelled_support import CONTEXT, PROSE, make_filter, measure, reasons, save_random, verdicts, wordpiece

from llmkit.errors import ModelError
from llmkit.model.load import load_model

LABELS = ("bad", "{fair}", "good")
LONG = " ".join(PROSE)
TEXTS = [*PROSE, LONG]


@pytest.fixture
def classifier(tmp_path: Path) -> str:
    return str(save_random(tmp_path / "classifier", "bert", "classification", LABELS))


def windows(text: str) -> list[list[int]]:
    """The text in pieces between [CLS] and [SEP], none of which is longer than the context."""
    ids = wordpiece().encode(text)
    room = CONTEXT - 2
    pieces = [ids[start : start + room] for start in range(0, len(ids), room)]
    return [[wordpiece().cls_id, *piece, wordpiece().sep_id] for piece in pieces]


def direct(place: str, text: str) -> np.ndarray:
    """Probabilities by a forward pass in float64, [windows, labels]."""
    model = load_model(place, dtype=torch.float64)
    with torch.no_grad():
        rows = [model(torch.tensor([ids]))[0].softmax(-1).numpy() for ids in windows(text)]
    return np.stack(rows)


def test_labels_and_probabilities_are_those_of_a_direct_pass(classifier: str) -> None:
    measured = measure(make_filter("classifier", model=classifier), TEXTS)
    asked = measure(make_filter("classifier", model=classifier, label="{fair}"), TEXTS)
    every = measure(make_filter("classifier", model=classifier, label="{fair}", windows="all"), TEXTS)
    assert len(windows(LONG)) > 2
    for row, text in enumerate(TEXTS):
        rows = direct(classifier, text)
        assert measured["label"][row] == asked["label"][row] == LABELS[rows[0].argmax()]
        assert measured["probability"][row] == pytest.approx(rows[0].max(), rel=1e-5)
        assert asked["probability"][row] == pytest.approx(rows[0][1], rel=1e-5)
        assert every["label"][row] == LABELS[rows.mean(0).argmax()]
        assert every["probability"][row] == pytest.approx(rows.mean(0)[1], rel=1e-5)
        assert math.isnan(measured["score"][row])
    # The long text begins as the first one does.
    assert len(set(measured["probability"])) == len(TEXTS) - 1


def test_classes_and_probabilities_are_judged(classifier: str) -> None:
    measured = measure(make_filter("classifier", model=classifier, label="{fair}"), TEXTS)
    middle = float(np.median(measured["probability"]))
    low = make_filter("classifier", model=classifier, label="{fair}", min_probability=middle)
    high = make_filter("classifier", model=classifier, label="{fair}", max_probability=middle)
    assert reasons(low, TEXTS) == ["low_probability" if p < middle else None for p in measured["probability"]]
    assert reasons(high, TEXTS) == ["high_probability" if p > middle else None for p in measured["probability"]]
    details = [item.detail for item in verdicts(low, TEXTS) if item]
    assert details == [f"probability {p:.3f} of {{fair}}" for p in measured["probability"] if p < middle]
    others = [label for label in LABELS if label != measured["label"][0]]
    found = verdicts(make_filter("classifier", model=classifier, keep=others), TEXTS[:1])
    assert [(item.reason, item.detail) for item in found if item] == [("wrong_class", measured["label"][0])]
    assert reasons(make_filter("classifier", model=classifier, keep=list(LABELS)), TEXTS) == [None] * len(TEXTS)
    assert reasons(make_filter("classifier", model=classifier), TEXTS) == [None] * len(TEXTS)


def test_a_head_with_one_output_gives_scores(tmp_path: Path) -> None:
    place = str(save_random(tmp_path / "scorer", "bert", "reward"))
    model = load_model(place, dtype=torch.float64)
    with torch.no_grad():
        expected = [float(model(torch.tensor([windows(text)[0]]))) for text in TEXTS]
    measured = measure(make_filter("classifier", model=place), TEXTS)
    assert measured["score"] == pytest.approx(expected, rel=1e-5)
    assert measured["label"] == [None] * len(TEXTS)
    assert all(math.isnan(value) for value in measured["probability"])
    bound = float(np.median(expected))
    found = reasons(make_filter("classifier", model=place, min_score=bound - 1e-6, max_score=bound + 1e-6), TEXTS)
    assert found == [
        "low_score" if value < bound - 1e-6 else "high_score" if value > bound + 1e-6 else None for value in expected
    ]


def test_an_empty_text_has_the_class_of_its_frame(classifier: str) -> None:
    model = load_model(classifier, dtype=torch.float64)
    with torch.no_grad():
        expected = model(torch.tensor([[wordpiece().cls_id, wordpiece().sep_id]]))[0].softmax(-1)
    assert measure(make_filter("classifier", model=classifier), [""])["probability"] == pytest.approx(
        [float(expected.max())], rel=1e-5
    )


def test_a_class_that_the_model_does_not_know_is_refused(classifier: str) -> None:
    with pytest.raises(ModelError, match=r"no class `great`.*bad, \{fair\}, good"):
        measure(make_filter("classifier", model=classifier, label="great"), PROSE)
    with pytest.raises(ModelError, match="no class `great`"):
        measure(make_filter("toxicity", model=classifier, label="great"), PROSE)


def test_toxicity_is_the_highest_probability_of_a_window(classifier: str) -> None:
    measured = measure(make_filter("toxicity", model=classifier, label="bad"), TEXTS)
    expected = [float(direct(classifier, text)[:, 0].max()) for text in TEXTS]
    assert measured["probability"] == pytest.approx(expected, rel=1e-5)
    assert measured["matches"] == [0] * len(TEXTS)
    bound = float(np.median(expected))
    found = make_filter("toxicity", model=classifier, label="bad", max_probability=bound)
    assert reasons(found, TEXTS) == ["toxic" if value > bound else None for value in expected]
