from __future__ import annotations

import pytest

from llmkit.errors import ConfigError
from llmkit.train.config import TrainConfig
from llmkit.train.contract import Part
from llmkit.train.parallel.config import MeshSizes, ParallelConfig


@pytest.mark.parametrize(
    ("settings", "ranks", "expected"),
    [
        ({}, 1, (1, 1, 1, 1)),
        ({}, 8, (8, 1, 1, 1)),
        ({"shard": 4}, 8, (2, 4, 1, 1)),
        ({"shard": 2, "tensor": 2, "context": 2}, 8, (1, 2, 2, 2)),
        ({"replicate": 2, "shard": 4}, 8, (2, 4, 1, 1)),
    ],
)
def test_the_mesh_has_all_ranks(settings: dict[str, int], ranks: int, expected: tuple[int, ...]) -> None:
    assert ParallelConfig(**settings).sizes(ranks) == MeshSizes(*expected)


@pytest.mark.parametrize(
    ("settings", "ranks", "words"),
    [
        ({"shard": 4}, 1, "a multiple of 4 ranks, and one process was started"),
        ({"shard": 3}, 4, "a multiple of 3 ranks, and 4 ranks were started"),
        ({"replicate": 2, "shard": 2}, 2, "4 ranks, and 2 ranks were started"),
        ({"replicate": 1}, 2, "1 ranks, and 2 ranks were started"),
    ],
)
def test_another_number_of_ranks_is_refused(settings: dict[str, int], ranks: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ParallelConfig(**settings).sizes(ranks)


def test_a_batch_that_cannot_be_divided_is_found_with_the_nearest_that_can() -> None:
    config = TrainConfig(stage="x", batch_size=10, parallel=ParallelConfig(shard=4))
    (finding,) = config.check({})
    assert finding.key == "batch_size"
    assert finding.hint == "The nearest that can: 8 or 12."
    assert not list(TrainConfig(stage="x", batch_size=12, parallel=ParallelConfig(shard=4)).check({}))


@pytest.mark.parametrize(("rows", "count"), [(12, 4), (10, 4), (3, 5), (7, 1)])
def test_parts_are_the_whole_and_even(rows: int, count: int) -> None:
    cut = [list(range(rows))[Part(index, count).rows(rows)] for index in range(count)]
    assert [row for part in cut for row in part] == list(range(rows))
    assert max(map(len, cut)) - min(map(len, cut)) <= 1
    assert min(map(len, cut)) == Part(0, count).smallest(rows)
