from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.data.cleaning.config import UnicodeConfig
from llmkit.data.cleaning.unicode import Unicode, clean_unicode
from llmkit.store.documents import Document

NOTHING = UnicodeConfig(normalization="none", line_endings=False, control_characters=False, zero_width=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain\ttext\n", "plain\ttext\n"),
        ("a\r\nb\rc\x0bd\x0ce\x85f\u2028g\u2029h\r\r\ni", "a\nb\nc\nd\ne\nf\ng\nh\n\ni"),
        ("nul\x00 bell\x07 esc\x1b[0m del\x7f c1\x9b non\ufffe\uffff\ufdd0", "nul bell esc[0m del c1 non"),
        ("\ufeffzero\u200bwidth\u00ad\u2060", "zerowidth"),
        # The zero-width joiner makes one sign of several, the non-joiner is spelling in Persian.
        ("\U0001f469\u200d\U0001f680 می\u200cخواهم", "\U0001f469\u200d\U0001f680 می\u200cخواهم"),
        ("e\u0301 \u212b", "\u00e9 \u00c5"),
        # The accent meets its letter only once what stood between is gone.
        ("e\u200b\u0301", "\u00e9"),
        ("ﬁ ² ｆ", "ﬁ ² ｆ"),
    ],
)
def test_clean_up(text: str, expected: str) -> None:
    assert clean_unicode(text, UnicodeConfig()) == expected


def test_nfkc_also_replaces_compatibility_characters() -> None:
    assert clean_unicode("ﬁ ² ｆ", UnicodeConfig(normalization="NFKC")) == "fi 2 f"


def test_each_part_can_be_left_out() -> None:
    text = "a\r\nb\x00\u200be\u0301"
    assert clean_unicode(text, NOTHING) == text
    changed = {"line_endings": "a\nb\x00\u200be\u0301", "control_characters": "a\r\nb\u200be\u0301",
               "zero_width": "a\r\nb\x00e\u0301"}  # fmt: skip
    for name, expected in changed.items():
        assert clean_unicode(text, NOTHING.model_copy(update={name: True})) == expected


@given(st.text(st.characters(exclude_categories=("Cs",))), st.sampled_from(["NFC", "NFKC"]))
def test_what_is_clean_stays_as_it_is(text: str, form: str) -> None:
    config = UnicodeConfig.model_validate({"normalization": form})
    once = clean_unicode(text, config)
    assert clean_unicode(once, config) == once
    assert unicodedata.is_normalized(form, once)
    assert not any(unicodedata.category(c) == "Cc" and c not in "\t\n" for c in once)


def test_documents_that_do_not_change_are_given_back() -> None:
    same, other = (Document("", text, "s", "p", metadata={"k": "v"}) for text in ("same", "oth\x00er"))
    kept, changed = Unicode(UnicodeConfig()).apply([same, other])
    assert kept is same
    assert changed == Document("", "other", "s", "p", metadata={"k": "v"})
