from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
import torch
from toy_run import ToyModel, run_toy

from llmkit.errors import LLMKitError
from llmkit.store.files import sha256_tree
from llmkit.train.checkpoint import Checkpoints
from llmkit.train.state import load_weights, weight_tensors


def write(checkpoints: Checkpoints, step: int) -> Path:
    def model(path: Path) -> None:
        path.mkdir()
        (path / "config.json").write_text(f"{step}")

    return checkpoints.save(step, model, {"weights": {"w": torch.full((3,), float(step))}, "source": {}}, {"n": step})


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert checkpoints.newest() is None
    write(checkpoints, 5)
    found = checkpoints.newest()
    assert found is not None
    assert (found.step, found.state["n"]) == (5, 5)
    assert torch.equal(found.tensors("weights")["w"], torch.full((3,), 5.0))
    assert found.tensors("source") == {}


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (5, 10, 100):
        write(checkpoints, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]


def test_numbers_are_kept_to_the_last_bit(tmp_path: Path) -> None:
    values = {"third": 1 / 3, "tiny": 5e-324, "big": 2**60 + 1}
    Checkpoints(tmp_path, keep=1).save(1, lambda path: path.mkdir(), {}, values)
    found = Checkpoints(tmp_path, keep=1).newest()
    assert found is not None
    assert found.state == values


FILES = ["trainer/weights.safetensors", "trainer/state.json", "model/config.json", "manifest.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_newest_checkpoint_is_named_and_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, damage: str
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    write(checkpoints, 5)
    target = write(checkpoints, 10) / file
    data = bytearray(target.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        target.write_bytes(data)
    elif damage == "truncate":
        target.write_bytes(data[: len(data) // 2])
    else:
        target.unlink()
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 5
    assert "step-00000010" in capsys.readouterr().err
    assert not target.parent.exists()


def test_leftovers_of_a_killed_write_are_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    shutil.copytree(write(checkpoints, 5), tmp_path / ".step-00000010.partial")
    found = checkpoints.newest()
    assert found is not None
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_a_full_disk_leaves_the_checkpoint_before_whole(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    write(checkpoints, 5)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(LLMKitError, match=r"step 10 could not be written.*No space left"):
        checkpoints.save(10, full, {}, {})
    found = Checkpoints(tmp_path, keep=1).newest()
    assert found is not None
    assert found.step == 5


def test_tensors_that_share_memory_are_stored_each(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    views = {"whole": base, "part": base[2:5], "rows": base.view(3, 4).t(), "same": base}
    Checkpoints(tmp_path, keep=1).save(1, lambda path: path.mkdir(), {"source": views}, {})
    found = Checkpoints(tmp_path, keep=1).newest()
    assert found is not None
    stored = found.tensors("source")
    assert all(torch.equal(stored[name], value) for name, value in views.items())


def test_weights_hold_shared_tensors_once_and_leave_frozen_ones_out() -> None:
    model = ToyModel()
    model.value.requires_grad_(False)
    names = set(weight_tensors(model))
    assert "token.weight" in names
    assert "calls" in names
    assert names.isdisjoint({"head.weight", "value.weight", "value.bias"})


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(LLMKitError, match="not those of this model"):
        load_weights(ToyModel(), {"token.weight": torch.zeros(2, 2)})


def test_a_run_with_a_damaged_newest_checkpoint_ends_with_the_same_bytes(tmp_path: Path) -> None:
    run_toy(tmp_path / "whole", steps=12)
    run_toy(tmp_path / "damaged", steps=12)
    reference = sha256_tree(tmp_path / "whole" / "model")
    shutil.rmtree(tmp_path / "damaged" / "model")
    file = tmp_path / "damaged" / "checkpoints" / "step-00000012" / "trainer" / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 4
    file.write_bytes(data)
    run_toy(tmp_path / "damaged", steps=12)
    assert sha256_tree(tmp_path / "damaged" / "model") == reference
