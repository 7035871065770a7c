"""Weights by size, limits of epochs, and weights of phases: what a training really reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pretrain_samples import pretrain, write_tokens

from llmkit.config.base import Facts
from llmkit.data.loader import TokenWindows
from llmkit.data.shards import ShardWriter
from llmkit.errors import DataError
from llmkit.pretrain.config import PretrainConfig
from llmkit.pretrain.course import Course, Phase
from llmkit.pretrain.epochs import mixture_of
from llmkit.pretrain.mixture import Mixture
from llmkit.pretrain.stream import TrainingStream

LENGTH = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sources")


def open_windows(folder: Path, counts: list[int]) -> list[TokenWindows]:
    """Sources of so many windows each."""
    opened = []
    for count in counts:
        directory = folder / f"{count}"
        if not directory.exists():
            with ShardWriter(directory / "train", {"digest": "x", "vocab_size": 9}, None, 10**6) as writer:
                writer.write_many(np.ones(count * LENGTH + 1, dtype=np.int64), np.array([count * LENGTH + 1]), 1)
        opened.append(TokenWindows(directory, "train", LENGTH))
    return opened


def make_config(sources: list[dict[str, object]], **other: object) -> PretrainConfig:
    data = [{"data": f"s{number}", **source} for number, source in enumerate(sources)]
    model = {"family": "llama", "layers": 1, "width": 16, "heads": 2, "context": LENGTH}
    return PretrainConfig.model_validate({"data": data, "model": model, "batch_size": 8, "steps": 1000, **other})


def shares(folder: Path, config: PretrainConfig, counts: list[int]) -> list[float]:
    mixture = mixture_of(config, config.course(LENGTH), open_windows(folder, counts))
    return (mixture.counts(8000) / 8000).tolist()


def test_temperature_goes_from_sizes_to_weights(folder: Path) -> None:
    sizes = [8100, 900, 100]
    for temperature, expected in (
        (1.0, [8100, 900, 100]),
        (2.0, [90, 30, 10]),
        (1e9, [1, 1, 1]),
    ):
        config = make_config([{}, {}, {}], temperature=temperature)
        total = sum(expected)
        assert shares(folder, config, sizes) == pytest.approx([part / total for part in expected], abs=1e-3)
    # Weights are multiplied.
    config = make_config([{}, {"weight": 3.0}, {}], temperature=2.0)
    assert shares(folder, config, sizes) == pytest.approx([90 / 190, 90 / 190, 10 / 190], abs=1e-3)
    assert shares(folder, make_config([{}, {}, {}]), sizes) == pytest.approx([1 / 3] * 3, abs=1e-3)


def test_what_a_small_source_may_not_give_the_others_do(folder: Path) -> None:
    config = make_config([{"weight": 2.0}, {"weight": 1.0}, {"weight": 1.0, "max_epochs": 4.0}])
    found = shares(folder, config, [8100, 900, 100])
    # 400 of 8,000 sequences, less what is spared for rounding; the rest two to one.
    assert found[2] == pytest.approx(400 / 8000, abs=5e-4)
    assert found[2] <= 400 / 8000
    assert found[0] == pytest.approx(2 * found[1], rel=2e-3)


def test_limits_are_kept_one_after_another(folder: Path) -> None:
    limits = [
        {"weight": 1.0, "max_epochs": 2.0},
        {"weight": 5.0, "max_epochs": 1.0},
        {"weight": 9.0, "max_epochs": 1.0},
    ]
    # Cutting the third fills the second, which has to be cut then, too.
    assert shares(folder, make_config(limits), [8100, 900, 100]) == pytest.approx([7 / 8, 9 / 80, 1 / 80], abs=1e-3)


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.tuples(st.floats(0.1, 9), st.floats(0, 9), st.sampled_from([None, 0.5, 1.0, 2.0])), min_size=2, max_size=4
    ),
    st.booleans(),
)
def test_no_source_is_read_more_often(
    folder: Path, sources: list[tuple[float, float, float | None]], phased: bool
) -> None:
    counts = [100, 900, 300, 2000][: len(sources)]
    config = make_config(
        [{"weight": [[0, low], [1, high]], "max_epochs": most} for low, high, most in sources],
        steps=100,
        phases=[{"steps": 30, "sequence_length": LENGTH, "batch_size": 16}] if phased else [],
    )
    course, windows = config.course(LENGTH), open_windows(folder, counts)
    try:
        mixture = mixture_of(config, course, windows)
    except (DataError, ValueError):
        return
    stream = TrainingStream(windows, course, mixture, micro_batch_size=8, seed=1, masking=None, apart=False)
    for epochs, (_, _, most) in zip(stream.epochs(), sources, strict=True):
        assert most is None or epochs <= most + 1e-6
    free = Mixture([[[0, low], [1, high]] for low, high, _ in sources], course)
    if all(most is None for _, _, most in sources):
        assert mixture.counts(course.rows).tolist() == free.counts(course.rows).tolist()


def test_too_little_for_the_training_is_refused(folder: Path) -> None:
    config = make_config([{"max_epochs": 1.0}, {"max_epochs": 4.0}])
    with pytest.raises(DataError, match="do not last for the training's 64,000 tokens"):
        shares(folder, config, [900, 100])
    with pytest.raises(DataError, match="`s1` is too small"):
        shares(folder, make_config([{}, {"max_epochs": 0.001}]), [900, 100])


def test_phases_have_weights_of_their_own() -> None:
    course = Course([Phase(4, 8, steps=100), Phase(4, 16, steps=50), Phase(4, 8)], 300)
    mixture = Mixture([1.0, 1.0], course, [[1.0, 0.0], [1.0, 3.0]])
    bounds = [0, 400, 600, 1200]
    counts = np.diff([mixture.counts(bound) for bound in bounds], axis=0).tolist()
    assert counts == [[400, 0], pytest.approx([50, 150], abs=1), pytest.approx([300, 300], abs=1)]
    # Nothing else changes where no phase has any.
    plain, none = Mixture([1.0, 2.0], course), Mixture([1.0, 2.0], course, [None, None])
    assert [plain.counts(n).tolist() for n in range(1201)] == [none.counts(n).tolist() for n in range(1201)]


def test_settings_that_do_not_fit_are_found() -> None:
    facts = {f"data.{number}.data": Facts("tokens", {"vocab_size": 9}) for number in range(2)}
    phases = [{"steps": 2, "weights": [1.0]}, {"steps": 2, "weights": [0.0, 0.0]}]
    found = {finding.key: finding.message for finding in make_config([{}, {}], phases=phases).check(facts)}
    assert found["phases.0.weights"] == "1 weights are given for 2 sources."
    assert found["phases.1.weights"] == "all weights are zero in this phase."
    found = {finding.key: finding.message for finding in make_config([{}], temperature=2.0).check(facts)}
    assert found["temperature"] == "there is one source, and nothing to mix."


def test_a_training_with_a_curriculum_and_limits(tmp_path: Path) -> None:
    sizes = ({"train": 4000, "validation": 100}, {"train": 161, "validation": 100})
    inputs = []
    for number, counts in enumerate(sizes):
        inputs.append(replace(write_tokens(tmp_path / f"s{number}", counts), key=f"data.{number}.data"))
    outcome = pretrain(
        tmp_path / "out",
        *inputs,
        data=[{"data": "s0"}, {"data": "s1", "max_epochs": 1.5}],
        sequence_length=LENGTH,
        steps=24,
        phases=[{"steps": 8, "weights": [1.0, 0.0]}],
        optimizer={"name": "adamw", "lr": 1e-3},
    )
    # 20 windows, one and a half times, less the spare; the first eight steps have none of them.
    assert 20 <= outcome.summary["sequences/s1"] <= 30
    assert outcome.summary["sequences/s0"] + outcome.summary["sequences/s1"] == 24 * 8
    assert outcome.summary["epochs/s1"] <= 1.5
