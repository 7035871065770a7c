from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmkit.data.guarded import Guarded, GuardError, shared_guard


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with Guarded("guarded_functions:misbehave", seconds=0.2, megabytes=100) as guard:
        yield guard


def test_one_process_answers_many_calls(guard: Guarded) -> None:
    results = [guard.call(number) for number in range(5)] + list(guard.map(range(5, 100)))
    assert [value for value, _ in results] == list(range(100))
    (process,) = {process for _, process in results}
    assert process != os.getpid()


@pytest.mark.parametrize(
    ("what", "kind", "reason"),
    [
        ("raise", "error", "KeyError: 'not there'"),
        ("loop", "time", "took more than 0.2 s of computing time"),
        ("sleep", "time", "gave no result in 2 s"),
        ("memory", "memory", "took more than 100 MiB of memory"),
        ("crash", "crash", "crashed its process (SIGSEGV)"),
        ("abort", "crash", "crashed its process (SIGABRT)"),
        ("exit", "crash", "crashed its process (exit code 3)"),
    ],
)
def test_what_goes_wrong_costs_one_call(guard: Guarded, what: str, kind: str, reason: str) -> None:
    before, error, after = guard.map(["before", what, "after"])
    assert (before[0], after[0]) == ("before", "after")
    assert (error.kind, error.reason) == (kind, reason)
    # An exception leaves the process as it is, everything else ends it.
    assert (before[1] == after[1]) == (kind == "error")
    with pytest.raises(GuardError, match=reason.split("(", maxsplit=1)[0]):
        guard.call(what)
    assert guard.call("again")[0] == "again"


def test_what_earlier_calls_left_behind_refuses_nothing(guard: Guarded) -> None:
    results = list(guard.map(["hoard"] * 6))
    assert [value for value, _ in results] == ["hoard"] * 6
    assert 1 < len({process for _, process in results}) < 6


def test_results_are_plain_values(guard: Guarded) -> None:
    with pytest.raises(pickle.UnpicklingError, match="holds a builtins"):
        guard.call("object")


def test_large_arguments_and_results(guard: Guarded) -> None:
    pages = [b"x" * 3_000_000, "é" * 1_000_000, {"a": [1, 2.5, None, True]}]
    assert [value for value, _ in guard.map(pages)] == pages


def test_nothing_to_do_starts_nothing(guard: Guarded) -> None:
    assert list(guard.map([])) == []
    assert guard._process is None


def test_a_function_that_is_not_there_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with (
        Guarded("guarded_functions:absent", seconds=1, megabytes=100) as guard,
        pytest.raises(RuntimeError, match="AttributeError"),
    ):
        guard.call(1)


def test_a_process_shares_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    first = shared_guard("guarded_functions:double", seconds=1, megabytes=100)
    assert shared_guard("guarded_functions:double", seconds=1, megabytes=100) is first
    assert list(first.map(range(70))) == [2 * number for number in range(70)]
    first.close()


def test_slow_calls_among_quick_ones_have_all_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with Guarded("guarded_functions:work", seconds=20, megabytes=100) as guard:
        assert list(guard.map([0.0, 0.8, 0.0])) == ["worked 0.0 s", "worked 0.8 s", "worked 0.0 s"]
