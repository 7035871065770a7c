from __future__ import annotations

import builtins
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from execution_support import MODULE, squares
from ray.cluster_utils import Cluster

from llmkit.data import stage
from llmkit.data.config import DataConfig
from llmkit.data.execution.cache import Cache
from llmkit.data.execution.config import ExecutorConfig
from llmkit.data.execution.engine import open_engine
from llmkit.data.execution.tasks import Task
from llmkit.errors import DataError, MissingDependencyError
from llmkit.store.stage import Context


@pytest.fixture(scope="module")
def config() -> Iterator[ExecutorConfig]:
    """A cluster of two nodes with a processor each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield ExecutorConfig(kind="ray", address=cluster.address)
    ray.shutdown()
    cluster.shutdown()


def test_tasks_are_done_on_the_nodes_of_a_cluster(config: ExecutorConfig, tmp_path: Path) -> None:
    before = builtins.print
    with open_engine(config, Cache(tmp_path / "work"), "test") as engine:
        found = engine.run(squares(6, tmp_path / "log"))
        assert [result.facts["square"] for result in found[:6]] == [0, 1, 4, 9, 16, 25]
        (tmp_path / "board").mkdir()
        places = {"board": str(tmp_path / "board")}
        meeting = [Task("meet", f"{MODULE}:meet", {"number": number}, places=places) for number in range(2)]
        assert len({result.facts["node"] for result in engine.run(meeting)}) == 2
        (whole,) = engine.run([Task("total", f"{MODULE}:total", inputs={"squares": [item.key for item in found[:6]]})])
        assert whole.facts == {"total": 55, "facts": 55}
    assert sorted((tmp_path / "log").read_text().split()) == list("012345")
    assert not ray.is_initialized()
    assert builtins.print is before


def test_a_corpus_is_the_same_to_the_byte(config: ExecutorConfig, tmp_path: Path) -> None:
    texts = [f"Text {number % 35} has many words, some of which come again: {number % 7}." for number in range(40)]
    for name, mine in (("a", texts[:20]), ("b", texts[20:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join([*(json.dumps({"text": text}) for text in mine), "{broken"]))
    sources = [{"kind": "jsonl", "files": [str(tmp_path / f"{name}.jsonl")], "name": name} for name in "ab"]
    settings = {"sources": sources, "deduplication": {"minhash": {"ngram": 2}, "lines": {}}}
    found = []
    for executor in (ExecutorConfig(processes=1), config):
        directory = tmp_path / executor.kind / "corpus"
        directory.mkdir(parents=True)
        stage.run(DataConfig.model_validate({**settings, "executor": executor}), Context("corpus", 1, directory))
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        found.append({path.relative_to(directory).as_posix(): path.read_bytes() for path in files})
    assert found[0] == found[1]
    assert {"documents/train-00000.parquet", "dropped/dropped-00000.parquet"} <= found[0].keys()


def test_mistakes_and_deaths_on_a_cluster_are_told(config: ExecutorConfig, tmp_path: Path) -> None:
    def task(times: int) -> Task:
        return Task("die", f"{MODULE}:die", {"times": times}, places={"log": str(tmp_path / f"log{times}")})

    with open_engine(config, Cache(tmp_path / "work"), "test") as engine:
        with pytest.raises(DataError) as caught:
            engine.run([Task("refuse", f"{MODULE}:refuse")])
        assert (caught.value.message, caught.value.where, caught.value.hint) == (
            "the row is no row", "a.csv:3", "Mend it.",
        )  # fmt: skip
        with pytest.raises(RuntimeError, match="by nought"):
            engine.run([Task("fail", f"{MODULE}:fail")])
        assert len(engine.run([task(1)])) == 1
        with pytest.raises(DataError, match="the task `die` failed on the Ray cluster, 2 times"):
            engine.run([task(5)])


def test_results_that_do_not_come_here_are_told(
    config: ExecutorConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cache, "get", lambda self, key: None)
    with (
        open_engine(config, Cache(tmp_path / "work"), "test") as engine,
        pytest.raises(DataError, match="its result is not here"),
    ):
        engine.run(squares(1, tmp_path / "log"))


def test_ray_that_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(MissingDependencyError, match=r"llmkit\[ray\]"),
        open_engine(ExecutorConfig(kind="ray"), Cache(tmp_path), "test"),
    ):
        pass
