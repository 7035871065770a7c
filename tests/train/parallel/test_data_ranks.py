from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rank_cases import SHAPE, VOCABULARY, Case, lines, run_case, run_cases, weights

from llmkit.model.initialization import build
from llmkit.model.spec import ModelSpec

TIED, UNTIED = {"tie_embeddings": True}, {"tie_embeddings": False}
NORMUON = {"optimizer": {"name": "normuon"}}
CASES = [
    Case("ddp-2-accumulated", 2, {}, TIED, {"micro_batch_size": 2}),
    Case("ddp-2-normuon", 2, {}, UNTIED, NORMUON),
    Case("fsdp-2-accumulated", 2, {"shard": 2}, TIED, {"micro_batch_size": 2}),
    Case("fsdp-2-normuon", 2, {"shard": 2}, UNTIED, {**NORMUON, "micro_batch_size": 3}),
    Case("fsdp-2-kept", 2, {"shard": 2, "reshard": False}, UNTIED, {"steps": 3, "micro_batch_size": 4}),
    Case("ddp-4", 4, {}, UNTIED, {"micro_batch_size": 2}),
    Case("fsdp-4-normuon", 4, {"shard": 4}, TIED, NORMUON),
    Case("hsdp-4-accumulated", 4, {"shard": 2}, UNTIED, {"micro_batch_size": 2}),
]


def _run(place: Path, ranks: int) -> Path:
    run_cases(place, ranks, [case for case in CASES if case.ranks == ranks])
    return place


@pytest.fixture(scope="module")
def on_2_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _run(tmp_path_factory.mktemp("two"), 2)


@pytest.fixture(scope="module")
def on_4_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _run(tmp_path_factory.mktemp("four"), 4)


@pytest.fixture
def many(case: Case, request: pytest.FixtureRequest) -> Path:
    """Where a case was run on its ranks."""
    place: Path = request.getfixturevalue(f"on_{case.ranks}_ranks")
    return place / case.name


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_many_ranks_learn_what_one_learns(case: Case, many: Path, tmp_path: Path) -> None:
    run_case(tmp_path / "one", replace(case, parallel={}))
    ours, theirs = lines(many), lines(tmp_path / "one")
    assert len(ours) == case.settings.get("steps", 20)
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
        assert (one["step"], one["lr"], one["tokens"]) == (other["step"], other["lr"], other["tokens"])
    (measured,), (expected,) = lines(many, "validation"), lines(tmp_path / "one", "validation")
    assert measured["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    ours_whole, theirs_whole = weights(many), weights(tmp_path / "one")
    assert ours_whole.keys() == theirs_whole.keys()
    for name, weight in theirs_whole.items():
        torch.testing.assert_close(ours_whole[name], weight, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", [case for case in CASES if "shard" in case.parallel], ids=lambda case: case.name)
def test_weights_drawn_in_parts_are_those_of_one_rank_to_the_bit(case: Case, many: Path) -> None:
    drawn = torch.load(many / "drawn.pt", weights_only=True)
    architecture = ModelSpec.model_validate({**SHAPE, **case.model}).resolve(VOCABULARY, pad_id=0)
    whole = dict(build(architecture, seed=3).named_parameters())
    assert drawn.keys() == whole.keys()
    for name, weight in whole.items():
        assert torch.equal(drawn[name], weight), name
