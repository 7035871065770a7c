from __future__ import annotations

import json
import multiprocessing
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from execution_support import MODULE, squares

from llmkit.data.execution import sharing
from llmkit.data.execution.cache import Cache
from llmkit.data.execution.config import ExecutorConfig
from llmkit.data.execution.engine import open_engine
from llmkit.data.execution.tasks import Task
from llmkit.errors import DataError

ONE = ExecutorConfig(processes=1)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "SILENCE", 0.5)
    monkeypatch.setattr(sharing, "BEAT", 0.05)


def work(folder: Path, log: Path, number: int, count: int, tasks: int) -> list[Any]:
    """What one shard gets for the squares and their sum."""
    with open_engine(ONE, Cache(folder), "test", (number, count)) as engine:
        found = engine.run(squares(tasks, log))
        (whole,) = engine.run([Task("total", f"{MODULE}:total", inputs={"squares": [item.key for item in found]})])
        if number == 1:
            engine.wait_for_others()
    return [[item.facts["square"] for item in found], whole.facts["total"]]


def in_threads(*calls: Any) -> list[Any]:
    """What the calls return or raise, made at the same time."""
    found: list[Any] = [None] * len(calls)

    def call(index: int) -> None:
        try:
            found[index] = calls[index]()
        except Exception as error:
            found[index] = error

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_shards_share_the_tasks_and_each_gets_all_results(tmp_path: Path) -> None:
    logs = [tmp_path / f"log{number}" for number in (1, 2, 3)]
    found = in_threads(
        *(lambda number=number, log=log: work(tmp_path / "work", log, number, 3, 10)
          for number, log in enumerate(logs, 1))
    )  # fmt: skip
    assert found == [[[n * n for n in range(10)], 285]] * 3
    assert [log.read_text().split() for log in logs] == [["0", "3", "6", "9"], ["1", "4", "7"], ["2", "5", "8"]]


def test_the_part_of_one_that_never_begins_is_done_by_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = in_threads(*(lambda n=n: work(tmp_path / "work", tmp_path / "log", n, 3, 9) for n in (1, 3)))
    assert found == [[[n * n for n in range(9)], 204]] * 2
    assert set((tmp_path / "log").read_text().split()) == set("012345678")
    assert "shard 2 of 3 has not begun; the others do its part." in capsys.readouterr().err


def test_the_part_of_one_that_fails_is_done_by_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = Task("refuse", f"{MODULE}:refuse")
    tasks = [*squares(1, tmp_path / "log"), refused]

    def shard(number: int) -> None:
        with open_engine(ONE, Cache(tmp_path / "work"), "test", (number, 2)) as engine:
            # Each has seen the other before there is anything to do.
            while engine._share is not None and not engine._share._peers[3 - number].seen:
                engine._share._look()
                time.sleep(0.01)
            engine.run(tasks)

    started = time.monotonic()
    errors = in_threads(lambda: shard(1), lambda: shard(2))
    assert [(type(error), error.message) for error in errors] == [(DataError, "the row is no row")] * 2
    assert time.monotonic() - started < 60
    assert "has failed; the others do its part." in capsys.readouterr().err


def test_one_that_is_killed_is_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_hang, args=(tmp_path / "work",), daemon=True)
    share = sharing.Share(1, 2, tmp_path / "work", "test")
    with share:
        process.start()
        while not share._peers[2].seen:
            share._look()
            time.sleep(0.01)
        assert not share._is_gone(2)
        process.kill()
        process.join()
        share.wait_for_others()
    said = capsys.readouterr().err
    assert f"shard 2 of 2 (process {process.pid} on " in said
    assert "no sign of life" in said


def _hang(folder: Path) -> None:
    sharing.BEAT = 0.02
    with sharing.Share(2, 2, folder, "test"):
        time.sleep(600)


def test_shards_that_do_other_things_are_told_so(tmp_path: Path) -> None:
    def shard(number: int) -> None:
        with open_engine(ONE, Cache(tmp_path / "work"), "test", (number, 2)) as engine:
            # Shard 2 sees one file more.
            engine.run(squares(4 + number, tmp_path / "log"))
            engine.run(squares(8 + number, tmp_path / "log"))

    errors = [error for error in in_threads(lambda: shard(1), lambda: shard(2)) if error is not None]
    assert errors
    assert all(isinstance(error, DataError) and "does other work than this one" in error.message for error in errors)


def test_one_that_comes_late_hears_that_the_work_is_over(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "work")
    with pytest.raises(sharing.WorkIsOverError), open_engine(ONE, cache, "test", (2, 2)) as engine:
        tasks = squares(4, tmp_path / "log")
        cache.make(tasks[0])
        sharing.remove_signs(cache.root, "test")
        cache.remove([tasks[0].key])
        engine.run(tasks)
    assert set((tmp_path / "log").read_text().split()) <= set("013")


def test_one_that_is_started_again_is_waited_for(tmp_path: Path) -> None:
    """The first is done before the other, of which an earlier sign is left, shows another."""
    place = tmp_path / "shards" / "test" / "2-of-2.json"
    place.parent.mkdir(parents=True)
    said = {"host": "h", "process": 1, "beat": 7, "state": "works", "phases": []}
    place.write_text(json.dumps(said))
    seen: list[float] = []

    def come_back() -> None:
        time.sleep(0.2)
        place.write_text(json.dumps({**said, "process": 2, "beat": 1}))
        time.sleep(0.2)
        place.write_text(json.dumps({**said, "process": 2, "beat": 2, "state": "done"}))
        seen.append(time.monotonic())

    with sharing.Share(1, 2, tmp_path, "test") as share:
        in_threads(share.wait_for_others, come_back)
        assert time.monotonic() - seen[0] < 0.5
        assert share._peers[2].said["state"] == "done"


def test_signs_of_an_earlier_run_are_no_signs_of_life(tmp_path: Path) -> None:
    with sharing.Share(2, 2, tmp_path, "test") as other:
        other._phases = ["something else"]
    with sharing.Share(1, 2, tmp_path, "test") as share:
        share._phases = ["this"]
        share._look()
        assert not share._peers[2].seen
    sharing.remove_signs(tmp_path, "test")
    assert list(tmp_path.iterdir()) == []


def test_files_of_dead_processes_and_zombies_are_cleared_and_no_others(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    context = multiprocessing.get_context("spawn")
    alive = context.Process(target=time.sleep, args=(600,), daemon=True)
    zombie = context.Process(target=int)
    alive.start()
    zombie.start()
    while _state(zombie.pid or 0) != "Z":
        time.sleep(0.01)
    for process in (alive, zombie):
        with _as(process.pid or 0), cache._unfinished("0123456789") as folder:
            (folder / "file").write_text("half")
            folder.rename(tmp_path / f"{process.pid}")
        (tmp_path / f"{process.pid}").rename(folder)
    cache.clear_unfinished()
    assert [folder.name.split("-")[-3] for folder in (tmp_path / "unfinished").iterdir()] == [str(alive.pid)]
    alive.kill()
    alive.join()
    zombie.join()
    cache.clear_unfinished()
    assert list((tmp_path / "unfinished").iterdir()) == []


def _state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


class _as:
    """Pretends to be another process."""

    def __init__(self, process: int) -> None:
        self._patch = pytest.MonkeyPatch()
        self._process = process

    def __enter__(self) -> None:
        self._patch.setattr("llmkit.data.execution.cache.os.getpid", lambda: self._process)

    def __exit__(self, *_: object) -> None:
        self._patch.undo()
