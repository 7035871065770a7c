"""Where the chain of stages is drawn."""

from __future__ import annotations

import re
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.report.chain import Drawing, columns_of, draw_columns, draw_rows, is_implied

LINE = {
    "corpus": [],
    "tokenizer": ["corpus"],
    "tokens": ["corpus", "tokenizer"],
    "pretrain": ["tokens"],
    "eval": ["pretrain"],
}


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, list[str]]:
    size = draw(st.integers(1, 14))
    names = [f"s{number}" for number in range(size)]
    return {name: draw(st.lists(st.sampled_from(names[:place]), unique=True, max_size=4)) if place else []
            for place, name in enumerate(names)}  # fmt: skip


def test_a_stage_stands_right_before_the_first_that_reads_it() -> None:
    graph = {name: LINE[name] for name in ("corpus", "tokenizer", "tokens", "pretrain")}
    graph |= {"questions": [], "sft": ["pretrain", "questions"], "eval": ["pretrain", "sft"]}
    assert columns_of(graph) == {
        "corpus": 0,
        "tokenizer": 1,
        "tokens": 2,
        "pretrain": 3,
        "questions": 3,
        "sft": 4,
        "eval": 5,
    }


def test_a_link_that_another_path_makes_superfluous_is_implied() -> None:
    assert is_implied(LINE, "corpus", "tokens")
    assert not is_implied(LINE, "tokenizer", "tokens")


def test_a_straight_chain_is_drawn_in_a_straight_line() -> None:
    drawn = draw_columns({"a": [], "b": ["a"], "c": ["b"]})
    assert drawn is not None
    assert [box.y for box in drawn.boxes] == [1, 1, 1]
    assert drawn.boxes[0].x == 0
    middle = 1 + drawn.boxes[0].height / 2
    first = drawn.links[0].path
    assert first.startswith(f"M{drawn.boxes[0].width:.1f} {middle:.1f}")
    assert first.endswith(f"{drawn.boxes[1].x:.1f} {middle:.1f}")


def test_too_many_columns_are_drawn_as_rows_only() -> None:
    names = [f"s{number}" for number in range(12)]
    assert draw_columns({name: names[:place][-1:] for place, name in enumerate(names)}) is None


@settings(deadline=None)
@given(graphs())
def test_columns_respect_dependencies_and_boxes_do_not_overlap(graph: dict[str, list[str]]) -> None:
    drawn = draw_columns(graph)
    if drawn is None:
        assert max(columns_of(graph).values()) >= 9
        return
    place = {box.name: box for box in drawn.boxes}
    assert set(place) == set(graph)
    for name, needed in graph.items():
        assert all(place[source].x + place[source].width < place[name].x for source in needed)
    for one, other in combinations(drawn.boxes, 2):
        assert one.x != other.x or abs(one.y - other.y) >= one.height
    _check_frame(drawn)
    assert {(link.source, link.target) for link in drawn.links} == {
        (s, name) for name, needed in graph.items() for s in needed
    }


@settings(deadline=None)
@given(graphs())
def test_rails_of_two_stages_never_share_a_place(graph: dict[str, list[str]]) -> None:
    drawn = draw_rows(graph)
    assert [box.name for box in drawn.boxes] == list(graph)
    _check_frame(drawn)
    spans: dict[str, tuple[float, float, float]] = {}
    for link in drawn.links:
        x, start, end = (
            float(re.search(pattern, link.path)[1])
            for pattern in (r"Q([\d.]+) ", r"^M[\d.]+ ([\d.]+)", r"([\d.]+)H[\d.]+$")
        )  # type: ignore[index]
        assert start < end
        before = spans.get(link.source)
        assert before is None or before[:2] == (x, start)
        spans[link.source] = (x, start, max(end, before[2] if before else end))
    for one, other in combinations(spans.values(), 2):
        assert one[0] != other[0] or one[2] < other[1] or other[2] < one[1]


def _check_frame(drawn: Drawing) -> None:
    for box in drawn.boxes:
        assert box.x >= 0 and box.x + box.width <= drawn.width
        assert box.y >= 0 and box.y + box.height <= drawn.height
