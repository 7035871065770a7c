from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.data.examples import LabelledText
from llmkit.data.examples_build import BrokenRow, Candidate, build
from llmkit.store.splits import SPLITS, Splits, split_of

HALVES = Splits(validation=0.25, test=0.25)


def candidate(group: str, text: str, part: str | None = None, label: str = "x") -> Candidate:
    return Candidate(group, LabelledText(f"{group}:{text}", text, label), part=part)  # type: ignore[arg-type]


def texts(rows: list[object]) -> list[str]:
    return [row.text for row in rows if isinstance(row, LabelledText)]


def test_every_candidate_is_kept_or_dropped_for_a_reason() -> None:
    wrong = BrokenRow("rows.csv:3: what is wrong", "{}")
    built = build(
        [
            [candidate("held", "a", "test")],
            [
                candidate("one", "b"),
                Candidate("two", None, "malformed", broken=wrong),
                candidate("three", "b"),
                candidate("held", "c"),
                candidate("one", "b", label="y"),
            ],
        ],
        Splits(validation=0, test=0),
    )
    assert built.broken == [wrong]
    assert built.report() == {
        "in": 6,
        "kept": 3,
        "dropped": {"duplicate": 1, "held out for test": 1, "malformed": 1},
        "splits": {
            "train": {"rows": 2, "labels": {"x": 1, "y": 1}, "majority": {"label": "x", "share": 0.5}},
            "validation": {"rows": 0},
            "test": {"rows": 1, "labels": {"x": 1}, "majority": {"label": "x", "share": 1.0}},
        },
    }


def test_a_limit_ends_the_reading_of_each_part() -> None:
    read: list[str] = []

    def endless(part: str | None):  # type: ignore[no-untyped-def]
        for index in range(10**9):
            read.append(f"{part} {index}")
            yield candidate(f"{part} {index}", f"{part} {index // 2}", part)

    built = build([endless("validation"), endless(None)], Splits(validation=0, test=0), limit=3)
    assert [len(built.splits[split]) for split in SPLITS] == [3, 3, 0]
    # Two of five candidates are duplicates.
    assert len(read) == 10


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 60))))
def test_no_group_is_in_two_splits_and_counts_add_up(pairs: list[tuple[int, int]]) -> None:
    built = build([[candidate(f"group {group}", f"text {text}") for group, text in pairs]], HALVES)
    report = built.report()
    assert report["in"] == len(pairs) == report["kept"] + sum(report["dropped"].values())
    assert report["kept"] == len({text for _, text in pairs})
    groups = {split: {row.id.partition(":")[0] for row in rows} for split, rows in built.splits.items()}
    for split, members in groups.items():
        assert all(split_of(group, HALVES) == split for group in members)
