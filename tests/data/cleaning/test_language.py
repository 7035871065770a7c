from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from filter_support import make_filter, measure, reasons, verdicts
from py3langid.langid import MODEL_FILE, LanguageIdentifier
from pydantic import ValidationError

from llmkit.data.cleaning.config import LanguageConfig
from llmkit.data.cleaning.identification import identifier, sample
from llmkit.data.cleaning.language_codes import LanguageCode

REFERENCE: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
TEXTS = {
    "en": "The road leads over the mountains, and nobody knows where it ends.",
    "de": "Die Straße führt über das Gebirge, und niemand weiß, wo sie endet.",
    "fr": "La route passe par les montagnes, et personne ne sait où elle finit.",
    "es": "El camino pasa por las montañas y nadie sabe dónde termina.",
    "ru": "Дорога ведёт через горы, и никто не знает, где она кончается.",
    "el": "Ο δρόμος περνά από τα βουνά και κανείς δεν ξέρει πού τελειώνει.",
    "ja": "道は山を越えて続いているが、どこで終わるのか誰も知らない。",
    "zh": "这条路穿过山脉，没有人知道它在哪里结束。",
    "ar": "يمر الطريق عبر الجبال ولا أحد يعرف أين ينتهي",
    "sr": "Пут води преко планина, а нико не зна где се он завршава, јер нико још није стигао до краја.",
}
LINES = [
    *TEXTS.values(),
    "put vodi preko planina i niko ne zna gde se završava",
    "THE ROAD LEADS OVER THE MOUNTAINS",
    "e\u0301te\u0301 à la plage",
    "for (int i = 0; i < n; ++i) { sum += a[i]; }",
    "\U0001f600 \ud800",
    *(f"{a[:25]} {b[:25]}" for a in TEXTS.values() for b in TEXTS.values()),
    *(TEXTS["de"][:length] for length in range(1, 40)),
]


def ranked(text: str) -> dict[str, float]:
    """Probabilities of py3langid; where it finds nothing it gives all scripts the same one, which is 0 here."""
    found = dict(REFERENCE.rank(text))
    return dict.fromkeys(found, 0.0) if max(found.values()) < 2.01 / len(REFERENCE.nb_classes) else found


def test_languages_and_probabilities_are_those_of_py3langid() -> None:
    assert sum(not any(ranked(text).values()) for text in LINES) < 5
    found = measure(make_filter("language"), LINES)
    expected = [REFERENCE.classify(text) if any(ranked(text).values()) else (None, 0.0) for text in LINES]
    assert found["language"] == [language for language, _ in expected]
    np.testing.assert_allclose(found["probability"], [p for _, p in expected], rtol=1e-4)


def test_every_probability_is_that_of_py3langid() -> None:
    model = identifier()
    found = model.probabilities(LINES)
    for text, row in zip(LINES, found, strict=True):
        expected = ranked(text)
        np.testing.assert_allclose(row, [expected[name] for name in model.languages], rtol=1e-3, atol=1e-7)


def test_the_texts_around_change_nothing() -> None:
    model = identifier()
    together = model.probabilities(LINES)
    for index in (0, 9, 30, len(LINES) - 1):
        assert model.probabilities([LINES[index]]).tolist() == together[index : index + 1].tolist()


def test_known_languages() -> None:
    assert measure(make_filter("language"), list(TEXTS.values()))["language"] == list(TEXTS)
    assert set(get_args(LanguageCode)) == set(REFERENCE.labels)


@pytest.mark.parametrize("text", ["", " ", "\n\n"])
def test_nothing_tells(text: str) -> None:
    found = measure(make_filter("language"), [text])
    assert found == {"language": [None], "probability": [0.0]}
    assert reasons(make_filter("language"), [text]) == ["uncertain_language"]


def test_what_is_judged() -> None:
    measured = {"language": ["en", "de", "fr", "en", None], "probability": [0.9, 0.7, 0.99, 0.69, 0.0]}
    kept = make_filter("language", languages=["en", "de"], min_probability=0.7)
    assert [v and (v.reason, v.detail) for v in verdicts(kept, measured)] == [
        None,
        None,
        ("other_language", "fr, probability 0.99"),
        ("uncertain_language", "en, probability 0.69"),
        ("uncertain_language", "nothing tells"),
    ]
    every = make_filter("language", min_probability=0.0)
    assert verdicts(every, measured) == [None] * 5


def test_thresholds_do_not_measure_again() -> None:
    one, two = make_filter("language"), make_filter("language", languages=["en"], min_probability=0.9)
    assert one.measuring == two.measuring
    assert one.measuring != make_filter("language", sample_characters=500).measuring


def test_long_texts_are_judged_by_beginning_and_middle() -> None:
    assert sample("abcdefghij", 10) == "abcdefghij"
    assert sample("abcdefghijk", 10) == "abcde\nfghij"
    assert sample("a" * 50 + "m" * 50 + "z" * 100, 20) == "a" * 10 + "\n" + "m" * 5 + "z" * 5
    other = TEXTS["de"] * 40 + TEXTS["ru"] * 100
    assert measure(make_filter("language", sample_characters=200), [other]) == measure(
        make_filter("language"), [sample(other, 200)]
    )


def test_unknown_languages_are_refused() -> None:
    with pytest.raises(ValidationError, match="english"):
        LanguageConfig.model_validate({"languages": ["english"]})
