from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data.cleaning import pipeline
from llmkit.data.cleaning.base import Dropped, Verdict
from llmkit.data.cleaning.config import CleaningConfig
from llmkit.data.cleaning.pipeline import Cleaning, DroppedDocument, cleaning_steps
from llmkit.data.deduplication import ExactDuplicates, content_key
from llmkit.data.sources.base import Broken, Record
from llmkit.store.documents import Document, document_id


def document(text: str, path: str = "p") -> Document:
    return Document("", text, "s", path)


class Cut:
    """Cuts texts to six characters, drops those that begin with `x`."""

    name = "cut"

    def apply(self, batch: Sequence[Document]) -> list[Verdict]:
        return [
            Dropped("x", d.text) if d.text.startswith("x") else d if len(d.text) <= 6 else replace(d, text=d.text[:6])
            for d in batch
        ]


def test_every_number_of_a_planted_set() -> None:
    records: list[Record] = [
        document("abc"),
        document("x out"),
        Broken("s", "p", "line 3: broken", "räw"),
        document("äbcdefgh"),
        document("abc"),
        document("äbcdef"),
        document("x again"),
    ]
    cleaning = Cleaning([Cut(), ExactDuplicates()])
    (out,) = cleaning.run("s", records)
    kept = [item for item in out if isinstance(item, Document)]
    dropped = [item for item in out if isinstance(item, DroppedDocument)]
    assert [(d.text, d.id) for d in kept] == [("abc", document_id("abc")), ("äbcdef", document_id("äbcdef"))]
    assert [(d.step, d.reason, d.document.text) for d in dropped] == [
        ("read", "malformed", "räw"),
        ("cut", "x", "x out"),
        ("cut", "x", "x again"),
        ("exact_duplicates", "duplicate", "abc"),
        ("exact_duplicates", "duplicate", "äbcdef"),
    ]
    assert dropped[0].detail == "line 3: broken"
    expected = {
        "in": 7,
        "kept": 2,
        "dropped": {"duplicate": 2, "malformed": 1, "x": 2},
        "bytes_in": 3 + 5 + 4 + 9 + 3 + 7 + 7,
        "bytes_kept": 3 + 7,
        "steps": {
            "read": {"in": 7, "kept": 6, "changed": 0, "dropped": {"malformed": 1}, "bytes_in": 38, "bytes_kept": 34},
            "cut": {"in": 6, "kept": 4, "changed": 1, "dropped": {"x": 2}, "bytes_in": 34, "bytes_kept": 20},
            "exact_duplicates": {
                "in": 4, "kept": 2, "changed": 0, "dropped": {"duplicate": 2}, "bytes_in": 20, "bytes_kept": 10,
            },
        },
    }  # fmt: skip
    assert cleaning.report() == {"total": expected, "sources": {"s": expected}}


def test_duplicates_are_found_across_sources_and_white_space() -> None:
    cleaning = Cleaning([ExactDuplicates()])
    list(cleaning.run("first", [document("a b"), document("A b")]))
    ((item,),) = cleaning.run("second", [document(" a\n\tb ")])
    assert isinstance(item, DroppedDocument)
    assert item.detail == f"content {content_key('a b').hex()}"
    assert cleaning.report()["sources"]["second"]["dropped"] == {"duplicate": 1}
    assert cleaning.report()["total"]["kept"] == 2


texts = st.one_of(
    st.sampled_from(["", "short", "a\r\nb " * 12, "same text, twice or more often", "line of text\n" * 40]),
    st.text(st.characters(exclude_categories=("Cs",)), max_size=60),
)
records = st.lists(
    st.one_of(texts.map(document), st.text("abc", max_size=5).map(lambda t: Broken("s", "p", "why", t))), max_size=40
)


@given(st.lists(records, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_counts_always_add_up(sources: list[list[Record]]) -> None:
    cleaning = Cleaning(cleaning_steps(CleaningConfig()))
    out = {str(n): [item for batch in cleaning.run(str(n), part) for item in batch] for n, part in enumerate(sources)}
    report = cleaning.report()
    for name, section in [*report["sources"].items(), ("total", report["total"])]:
        items = [i for found in out.values() for i in found] if name == "total" else out[name]
        kept = [item for item in items if isinstance(item, Document)]
        reasons = Counter(item.reason for item in items if isinstance(item, DroppedDocument))
        assert section["in"] == section["kept"] + sum(section["dropped"].values()) == len(items)
        assert (section["kept"], section["dropped"]) == (len(kept), dict(reasons))
        assert section["bytes_kept"] == sum(len(d.text.encode()) for d in kept)
        steps = list(section["steps"].values())
        assert list(section["steps"]) == ["read", "unicode", "length", "repetition", "exact_duplicates"]
        assert (steps[0]["in"], steps[-1]["kept"]) == (section["in"], section["kept"])
        for step, following in zip(steps, [*steps[1:], None], strict=True):
            assert step["in"] == step["kept"] + sum(step["dropped"].values())
            assert 0 <= step["changed"] <= step["kept"]
            if following is not None:
                assert (step["kept"], step["bytes_kept"]) == (following["in"], following["bytes_in"])
    assert report["total"]["in"] == sum(len(part) for part in sources)


@given(records)
@settings(max_examples=30, deadline=None)
def test_batches_change_nothing(planted: list[Record]) -> None:
    whole = Cleaning(cleaning_steps(CleaningConfig()))
    expected = [item for batch in whole.run("s", planted) for item in batch if isinstance(item, Document)]
    single = Cleaning(cleaning_steps(CleaningConfig()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_BATCH_DOCUMENTS", 1)
        found = [item for batch in single.run("s", planted) for item in batch if isinstance(item, Document)]
    assert found == expected
    assert single.report() == whole.report()


def test_steps_can_be_left_out() -> None:
    config = CleaningConfig(unicode=None, length=None, repetition=None, exact_duplicates=False)
    cleaning = Cleaning(cleaning_steps(config))
    (out,) = cleaning.run("s", [document("\x00"), document("\x00")])
    assert [item.text for item in out if isinstance(item, Document)] == ["\x00", "\x00"]
    assert cleaning.step_names == ["read"]
