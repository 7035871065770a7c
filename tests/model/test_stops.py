"""Stop texts and growing text against searches of the whole text."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from llmkit.model.stops import StopFinder, TextStream

PIECES = ["a", "b", "ab", "ba", "aab", " ", "b a", "", "\n", "é", "éa"]


def _decode_pieces(token_ids: list[int]) -> str:
    return "".join(PIECES[token] for token in token_ids)


def _decode_bytes(token_ids: list[int]) -> str:
    return bytes(token_ids).decode("utf-8", errors="replace")


STOPS = st.lists(st.text("ab é\n", min_size=1, max_size=4), min_size=1, max_size=3)


def _first_stop(text: str, stops: list[str]) -> int | None:
    return min((text.find(stop) for stop in stops if stop in text), default=None)


@given(token_ids=st.lists(st.integers(0, len(PIECES) - 1), min_size=1, max_size=30), stops=STOPS)
def test_the_first_stop_is_found_when_it_is_complete(token_ids: list[int], stops: list[str]) -> None:
    finder = StopFinder(_decode_pieces, stops)
    for count in range(1, len(token_ids) + 1):
        cut = finder.find(token_ids[:count])
        text = _decode_pieces(token_ids[:count])
        start = _first_stop(text, stops)
        if start is None:
            assert cut is None
            continue
        assert cut is not None
        assert cut.text == text[:start]
        assert _decode_pieces(token_ids[: cut.tokens]).startswith(cut.text)
        assert cut.tokens == 0 or len(_decode_pieces(token_ids[: cut.tokens - 1])) < start
        break


@example(text="éaa", stops=["a", "éaa"])
@given(
    text=st.text("ab é🙂\n", max_size=12),
    stops=st.lists(st.text("aé🙂", min_size=1, max_size=3), min_size=1, max_size=2),
)
def test_stops_of_several_bytes_are_found_byte_by_byte(text: str, stops: list[str]) -> None:
    finder = StopFinder(_decode_bytes, stops)
    token_ids = list(text.encode())
    cuts = [finder.find(token_ids[:count]) for count in range(1, len(token_ids) + 1)]
    found = next((cut for cut in cuts if cut is not None), None)
    # The stop that is complete first, which need not be the one that begins first.
    starts = [_first_stop(text[:count], stops) for count in range(1, len(text) + 1)]
    start = next((start for start in starts if start is not None), None)
    assert (found is None) == (start is None)
    if found is not None:
        assert found.text == text[:start]
        assert _decode_bytes(token_ids[: found.tokens]) == found.text


def test_a_token_shared_with_other_text_is_kept() -> None:
    finder = StopFinder(_decode_pieces, ["ba"])
    assert finder.find([4]) is None
    cut = finder.find([4, 2])  # "aab" and "ab" make "aabab".
    assert cut is not None
    assert (cut.text, cut.tokens) == ("aa", 1)


def test_most_tokens_are_dismissed_without_decoding_the_answer() -> None:
    calls: list[list[int]] = []

    def decode(token_ids: list[int]) -> str:
        calls.append(token_ids)
        return _decode_pieces(token_ids)

    finder = StopFinder(decode, ["éé"])
    for _ in range(50):
        assert finder.find([0] * 40) is None
    assert calls == [[0]]


@given(text=st.text("ab é🙂", max_size=20), stops=st.lists(st.text("ab🙂", min_size=1, max_size=4), max_size=2))
def test_a_stream_shows_whole_characters_and_no_beginning_of_a_stop(text: str, stops: list[str]) -> None:
    stream = TextStream(_decode_bytes, stops)
    token_ids = list(text.encode())
    shown, released = "", []
    for count in range(1, len(token_ids) + 1):
        so_far = _decode_bytes(token_ids[:count])
        if any(stop in so_far for stop in stops):
            # Generation ends here: what has been shown lies before the stop.
            assert len(shown) <= min(so_far.find(stop) for stop in stops if stop in so_far)
            return
        piece, tokens = stream.push(token_ids[:count])
        shown += piece
        released += tokens
        assert so_far.startswith(shown)
        assert released == token_ids[: len(released)]
        assert shown.startswith(_decode_bytes(released))
        held = so_far[len(shown) :].removesuffix("\ufffd")
        assert not held or any(stop.startswith(held) for stop in stops) or so_far.endswith("\ufffd")
    longest = max((len(stop) for stop in stops), default=1)
    assert len(text) - len(shown) < longest
