from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from execution_support import MODULE, squares

from llmkit.data.execution.cache import Cache
from llmkit.data.execution.config import ExecutorConfig
from llmkit.data.execution.engine import open_engine
from llmkit.data.execution.local import Queue
from llmkit.data.execution.tasks import Task
from llmkit.errors import DataError

LOCAL = [ExecutorConfig(processes=1), ExecutorConfig(processes=2), ExecutorConfig()]


@pytest.mark.parametrize("config", LOCAL, ids=["one", "two", "auto"])
def test_results_come_in_order_and_are_made_once(config: ExecutorConfig, tmp_path: Path) -> None:
    log = tmp_path / "log"
    for _ in range(2):
        with open_engine(config, Cache(tmp_path / "work"), "test") as engine:
            found = engine.run(squares(7, log))
            assert [result.facts["square"] for result in found] == [0, 1, 4, 9, 16, 25, 36]
            (whole,) = engine.run([Task("total", f"{MODULE}:total", inputs={"squares": [item.key for item in found]})])
            assert whole.facts == {"total": 91, "facts": 91}
    assert sorted(log.read_text().split()) == list("0123456")
    assert engine.made == {}
    assert list((tmp_path / "work" / "unfinished").iterdir()) == []


def test_tasks_are_shared_by_the_processes_asked_for(tmp_path: Path) -> None:
    with open_engine(ExecutorConfig(processes=2), Cache(tmp_path), "test") as engine:
        processes = {result.facts["process"] for result in engine.run(squares(20, tmp_path / "log"))}
    assert len(processes) == 2
    assert os.getpid() not in processes
    little = [Task("square", f"{MODULE}:square", {"number": 5}, places={"log": str(tmp_path / "log")}, cost=10)]
    with open_engine(ExecutorConfig(), Cache(tmp_path / "other"), "test") as engine:
        assert engine.run(little)[0].facts["process"] == os.getpid()


def test_a_worker_stays_with_what_it_knows_while_others_have_work() -> None:
    def task(name: str, near: str) -> Task:
        return Task(name, "m:f", {"name": name}, near=near)

    waiting = Queue(
        [task("a1", "a"), task("a2", "a"), task("x", ""), task("b1", "b"), task("b2", "b"), task("b3", "b")]
    )
    taken = []

    def take(near: str) -> str:
        found = waiting.take(near)
        assert found is not None
        taken.append(found)
        return found.name

    assert [take(""), take(""), take("a"), take("a")] == ["a1", "x", "a2", "b1"]
    # What a process died of is done first, by whoever comes.
    waiting.put_back(taken[1])
    assert [take("nothing"), take("b"), take("x")] == ["x", "b2", "b3"]
    assert waiting.take("b") is None


def test_a_key_is_of_what_the_result_depends_on() -> None:
    task = Task("a", "m:f", {"x": 1}, {"in": ["k"]})
    assert task.key == Task("b", "m:f", {"x": 1}, {"in": ("k",)}, places={"p": "q"}, label="l", cost=3, near="n").key
    others = [
        Task("a", "m:g", {"x": 1}, {"in": ["k"]}),
        Task("a", "m:f", {"x": 2}, {"in": ["k"]}),
        Task("a", "m:f", {"x": 1}, {"in": ["l"]}),
        Task("a", "m:f", {"x": 1}, {"in": ["k"]}, version=2),
    ]
    assert len({task.key, *(other.key for other in others)}) == 5
    numbered = Task("a", "m:f", {"limits": {2: 0.1, 10: 0.2}})
    assert Task(**json.loads(json.dumps(numbered.as_json()))).key == numbered.key


@pytest.mark.parametrize("config", LOCAL[:2], ids=["one", "two"])
def test_mistakes_keep_their_words_and_leave_nothing(config: ExecutorConfig, tmp_path: Path) -> None:
    task = Task("refuse", f"{MODULE}:refuse")
    with open_engine(config, Cache(tmp_path), "test") as engine, pytest.raises(DataError) as caught:
        engine.run([task])
    error = caught.value
    assert (error.message, error.where, error.hint) == ("the row is no row", "a.csv:3", "Mend it.")
    assert Cache(tmp_path).get(task.key) is None
    assert list((tmp_path / "unfinished").iterdir()) == []
    with open_engine(config, Cache(tmp_path), "test") as engine, pytest.raises(Exception, match="by nought"):
        engine.run([Task("fail", f"{MODULE}:fail")])


def test_a_worker_that_dies_is_replaced_once(tmp_path: Path) -> None:
    def task(times: int) -> Task:
        return Task("die", f"{MODULE}:die", {"times": times}, places={"log": str(tmp_path / f"log{times}")})

    with open_engine(ExecutorConfig(processes=2), Cache(tmp_path / "work"), "test") as engine:
        assert len(engine.run([task(1), *squares(3, tmp_path / "log")])) == 4
        with pytest.raises(DataError, match=r"`die` ended by the signal SIGKILL, twice"):
            engine.run([task(5)])
    Cache(tmp_path / "work").clear_unfinished()
    assert list((tmp_path / "work" / "unfinished").iterdir()) == []


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from llmkit.data.execution.cache import Cache
from llmkit.data.execution.config import ExecutorConfig
from llmkit.data.execution.engine import open_engine
from llmkit.data.execution.tasks import Task
with open_engine(ExecutorConfig(processes=2), Cache(Path({str(tmp_path)!r})), "test") as engine:
    engine.run([Task("linger", "{MODULE}:linger", places={{"log": {str(tmp_path / "log")!r}}})])
"""
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    started = subprocess.Popen([sys.executable, "-c", code], env=path, stderr=subprocess.DEVNULL)
    worker = int(_wait_for(lambda: (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""))
    started.send_signal(signal.SIGKILL)
    started.wait()
    _wait_for(lambda: not _is_running(worker))


def _wait_for(check: Any) -> Any:
    while not (found := check()):
        time.sleep(0.02)
    return found


def _is_running(process: int) -> bool:
    # One that nobody has waited for yet is a zombie (Z).
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_a_result_that_lost_a_file_is_made_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "work")
    (task,) = squares(1, tmp_path / "log")
    cache.make(task)
    (cache.place(task.key) / "square.txt").write_text("")
    assert cache.get(task.key) is None
    assert (cache.make(task).path / "square.txt").read_text() == "0"
    (cache.place(task.key) / "result.json").write_text("{")
    assert cache.make(task).facts["square"] == 0
    assert (tmp_path / "log").read_text().split() == ["0", "0", "0"]


def test_results_are_removed_by_key(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "work")
    first, second, third = squares(3, tmp_path / "log")
    for task in (first, second, third):
        cache.make(task)
    cache.keep_only([first.key, second.key])
    assert [cache.get(task.key) is not None for task in (first, second, third)] == [True, True, False]
    cache.remove([first.key])
    assert cache.get(second.key) is not None
    cache.remove([second.key])
    assert not (tmp_path / "work").exists()
