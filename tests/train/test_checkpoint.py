"""Checkpoints are whole or absent, on disks and at URLs, and no damage goes unnoticed."""

from __future__ import annotations

import copy
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import load_file
from torch import Tensor
from toy_run import ToyModel, run_toy

from llmkit.errors import ConfigError, LLMKitError
from llmkit.store.artifact import open_artifact
from llmkit.store.files import sha256_tree
from llmkit.store.folders import Folder
from llmkit.train.checkpoints.checkpoint import Checkpoints, Contents
from llmkit.train.checkpoints.config import CheckpointsConfig
from llmkit.train.checkpoints.retention import kept_steps
from llmkit.train.checkpoints.state import weight_tensors
from llmkit.train.checkpoints.tensor_file import NAMES, HashedStream, TensorFile, write_tensors
from llmkit.train.checkpoints.twin import Twin

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    place = tmp_path / "checkpoints" if request.param == "disk" else f"memory://{tmp_path.name}/checkpoints"
    yield Folder.at(place)
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def opened(folder: Folder, **settings: Any) -> Checkpoints:
    return Checkpoints(folder, CheckpointsConfig.model_validate(settings))


def contents(step: int, loss: float | None = None, tensors: Mapping[str, Tensor] | None = None) -> Contents:
    def model(path: Path, whole: Callable[[list[str]], Mapping[str, Tensor]]) -> None:
        path.mkdir()
        (path / "config.json").write_text(json.dumps(whole(["weights.w"])["weights.w"].tolist()))

    values = {"weights.w": torch.full((3,), float(step)), **(tensors or {})}
    return Contents(values, {"n": step}, {} if loss is None else {"loss": loss}, {}, model)


def write(checkpoints: Checkpoints, step: int, loss: float | None = None, wait: bool = True) -> None:
    checkpoints.save(step, contents(step, loss), wait=wait)


def steps(folder: Folder) -> list[int]:
    return [int(name.removeprefix("step-")) for name in folder.folders()]


def test_what_is_saved_comes_back(folder: Folder) -> None:
    checkpoints = opened(folder)
    assert checkpoints.newest() is None
    tensors = {
        "weights.scalar": torch.tensor(1 / 3, dtype=torch.float64),
        "weights.half": torch.randn(5, 3).bfloat16(),
        "weights.view": torch.arange(12.0).reshape(3, 4).t(),
        "source.0.rows": torch.arange(7),
        "source.0.flags": torch.tensor([True, False]),
        "source.0.none": torch.zeros(0, 4),
    }
    checkpoints.save(5, contents(5, tensors=tensors))
    found = opened(folder).newest()
    assert found is not None
    assert (found.step, found.state) == (5, {"n": 5})
    loaded = {name: torch.empty_like(value) for name, value in tensors.items()}
    checkpoints.load(found, loaded)
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())
    assert json.loads((found.folder / "model").read("config.json")) == [5.0, 5.0, 5.0]


def test_what_changes_while_it_is_written_is_not_what_is_saved(folder: Folder) -> None:
    checkpoints, going = opened(folder), threading.Event()
    value = torch.ones(3)
    slow = contents(4, tensors={"weights.w": value})
    write_model = slow.write_model

    def wait(path: Path, whole: Callable[[list[str]], Mapping[str, Tensor]]) -> None:
        assert going.wait(30)
        write_model(path, whole)

    checkpoints.save(4, Contents(slow.tensors, slow.state, {}, {}, wait), wait=False)
    # Training goes on while the checkpoint is being written.
    assert opened(folder).settings.asynchronous
    assert "manifest.json" not in (folder / "step-00000004").files()
    value.zero_()
    going.set()
    checkpoints.wait()
    found = opened(folder).newest()
    assert found is not None
    assert torch.equal(found.reader().whole(["weights.w"])["weights.w"], torch.ones(3))
    assert json.loads((found.folder / "model").read("config.json")) == [1.0, 1.0, 1.0]


def test_an_error_in_the_background_comes_out_later_as_a_sentence(folder: Folder) -> None:
    checkpoints = opened(folder)
    write(checkpoints, 5)
    broken = contents(10)

    def full(path: Path, whole: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    checkpoints.save(10, Contents(broken.tensors, broken.state, {}, {}, full), wait=False)
    with pytest.raises(LLMKitError, match=r"step 10 could not be written.*No space left") as raised:
        checkpoints.wait()
    assert raised.value.exit_code == 2
    # What was begun makes room again.
    assert steps(folder) == [5]
    found = opened(folder).newest()
    assert found is not None
    assert found.step == 5


@pytest.mark.parametrize(
    ("settings", "reach", "kept"),
    [
        ({"keep_last": 2}, 0, {70, 80}),
        ({"keep_last": 1}, 0, {80}),
        ({"keep_last": 1, "keep_every": 30}, 0, {30, 60, 80}),
        ({"keep_last": 1, "keep_best": {}}, 0, {40, 80}),
        ({"keep_last": 1, "keep_best": {"mode": "max"}}, 0, {20, 80}),
        ({"keep_last": 2}, 35, {40, 70, 80}),
        ({"keep_last": 2}, 500, {0, 70, 80}),
    ],
)
def test_which_are_kept(settings: dict[str, Any], reach: int, kept: set[int]) -> None:
    measures = dict.fromkeys(range(0, 100, 10)) | {20: 3.0, 40: 1.0, 60: 1.5}
    assert kept_steps(measures, 80, CheckpointsConfig.model_validate(settings), reach) == kept


def test_the_best_is_kept_over_restarts(folder: Folder) -> None:
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 5.0, 5: 4.0}
    for step, loss in losses.items():
        checkpoints = opened(folder, keep_last=1, keep_best={})
        checkpoints.newest()
        assert checkpoints.is_best({"loss": loss}) == (step <= 2)
        write(checkpoints, step, loss)
    assert steps(folder) == [2, 5]
    with pytest.raises(LLMKitError, match="validation has no `accuracy`"):
        opened(folder, keep_best={"metric": "accuracy"}).is_best({"loss": 1.0})


def test_checkpoints_after_one_that_is_gone_back_to_make_way(folder: Folder) -> None:
    checkpoints = opened(folder, keep_last=3)
    for step in (5, 10, 15):
        write(checkpoints, step)
    found = checkpoints.newest(lambda step, state: bool(state["n"] <= 5))
    assert found is not None
    assert (found.step, steps(folder)) == (5, [5])


def flipped(data: bytes, place: float, bit: int) -> bytes:
    changed = bytearray(data)
    changed[int(place * (len(data) - 1))] ^= 1 << bit
    return bytes(changed)


FILES = [
    "trainer/weights-00000.safetensors",
    "trainer/optimizer-00000.safetensors",
    "trainer/source-00000.safetensors",
    "trainer/tensors.json",
    "trainer/state.json",
    "model/part.safetensors",
    "model/model.safetensors",
    "manifest.json",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trained")
    run_toy(directory, steps=12)
    return directory


def test_every_file_of_a_checkpoint_is_among_those_that_are_damaged_below(trained: Path) -> None:
    newest = trained / "checkpoints" / "step-00000012"
    assert sorted(str(file.relative_to(newest)) for file in newest.rglob("*") if file.is_file()) == sorted(FILES)


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_in_any_file_is_noticed_before_training_goes_on(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    target = tmp_path / "checkpoints" / "step-00000012" / file
    whole = target.read_bytes()
    for place in (0.0, 0.02, 0.3, 0.5, 0.77, 0.98, 1.0):
        for bit in range(8):
            target.write_bytes(flipped(whole, place, bit))
            found = opened(Folder.at(tmp_path / "checkpoints")).newest()
            assert found is not None
            assert found.step == 10
            assert "step-00000012 is damaged and passed over" in capsys.readouterr().err
    target.write_bytes(whole)
    found = opened(Folder.at(tmp_path / "checkpoints")).newest()
    assert found is not None
    assert found.step == 12


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_shortened_or_missing_file_is_named(folder: Folder, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    checkpoints = opened(folder)
    write(checkpoints, 5)
    write(checkpoints, 10)
    place, file = folder / "step-00000010", "trainer/weights-00000.safetensors"
    data = place.read(file)
    place.filesystem.rm(f"{place.path}/{file}")
    if damage == "truncate":
        with place.create(file) as stream:
            stream.write(data[:-1])
    found = checkpoints.newest()
    assert found is not None
    assert found.step == 5
    said = capsys.readouterr().err
    assert f"`{file}` is {'missing' if damage == 'remove' else f'{len(data) - 1} bytes long'}" in said
    # It stays until there is a better one.
    assert steps(folder) == [5, 10]
    write(checkpoints, 7)
    assert steps(folder) == [5, 7]


def test_a_run_with_a_damaged_newest_checkpoint_ends_with_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "damaged")
    shutil.rmtree(tmp_path / "damaged" / "model")
    file = tmp_path / "damaged" / "checkpoints" / "step-00000012" / "trainer" / "optimizer-00000.safetensors"
    file.write_bytes(flipped(file.read_bytes(), 0.9, 2))
    run_toy(tmp_path / "damaged", steps=12)
    assert sha256_tree(tmp_path / "damaged" / "model") == sha256_tree(trained / "model")


def test_leftovers_of_a_killed_write_are_removed(folder: Folder) -> None:
    checkpoints = opened(folder)
    write(checkpoints, 5)
    write(checkpoints, 10)
    place = folder / "step-00000010"
    place.filesystem.rm(f"{place.path}/manifest.json")
    found = checkpoints.newest()
    assert found is not None
    assert (found.step, steps(folder)) == (5, [5])


def test_a_checkpoint_is_an_artifact_that_can_be_opened(trained: Path) -> None:
    found = open_artifact(trained / "checkpoints" / "step-00000012", verify=True)
    assert (found.manifest.kind, found.manifest.summary["step"]) == ("checkpoint", 12)
    assert isinstance(found.manifest.summary["validation_loss"], float)
    stored = load_file(found.file("trainer/weights-00000.safetensors"))
    finished = load_file(trained / "model" / "model.safetensors")
    assert torch.equal(stored["blocks.1.up.weight"], finished["blocks.1.up.weight"])


def test_a_run_whose_folder_is_lost_goes_on_from_a_url(trained: Path, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}"
    settings: dict[str, Any] = {"steps": 12, "checkpoints": {"every": 5, "directory": url}}
    run_toy(tmp_path / "run", **settings)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert not (tmp_path / "run" / "checkpoints").exists()
    memory = fsspec.filesystem("memory")
    memory.rm(f"/{tmp_path.name}/{tmp_path.name}/run/step-00000012", recursive=True)
    shutil.rmtree(tmp_path / "run")
    run_toy(tmp_path / "run", **settings)
    again = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in again.splitlines()] == [
        json.loads(line)["step"] for line in lines.splitlines()
    ]
    assert sha256_tree(tmp_path / "run" / "model") == sha256_tree(trained / "model")


class FullFileSystem(MemoryFileSystem):
    """A store whose quota is used up after a number of bytes, with an error of its own kind."""

    protocol = "full"
    store: dict[str, Any] = {}
    pseudo_dirs = [""]
    room = 0

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        stream = super()._open(path, mode, **kwargs)
        if mode == "wb":
            write = stream.write

            def limited(data: bytes) -> int:
                FullFileSystem.room -= len(data)
                if FullFileSystem.room < 0:
                    raise RuntimeError("QuotaExceeded: your bucket is full")
                return int(write(data))

            stream.write = limited
        return stream


def test_a_full_quota_at_a_url_stops_with_a_sentence(tmp_path: Path) -> None:
    fsspec.register_implementation("full", FullFileSystem, clobber=True)
    settings: dict[str, Any] = {"steps": 40, "log_every": 1, "checkpoints": {"every": 1, "directory": "full://runs"}}
    FullFileSystem.room = 250_000
    with pytest.raises(LLMKitError, match="could not be written: RuntimeError: QuotaExceeded") as raised:
        run_toy(tmp_path / "run", **settings)
    assert raised.value.exit_code == 2
    FullFileSystem.room = 1 << 40
    run_toy(tmp_path / "run", **settings)
    run_toy(tmp_path / "whole", **{**settings, "checkpoints": {}})
    assert sha256_tree(tmp_path / "run" / "model") == sha256_tree(tmp_path / "whole" / "model")


def test_a_full_disk_ends_a_training_with_exit_code_2_and_a_whole_checkpoint(tmp_path: Path) -> None:
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from toy_run import run_toy\n"
        "from llmkit.errors import LLMKitError\n"
        "def starve(step):\n"
        "    if step == 8: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))\n"
        "import toy_run\n"
        "batches = toy_run.ToySource.batches\n"
        "toy_run.ToySource.batches = lambda self, step: (starve(step), batches(self, step))[1]\n"
        "try:\n"
        "    run_toy(Path(sys.argv[1]), steps=30, log_every=30, evaluate_every=30, checkpoints={'every': 2})\n"
        "except LLMKitError as error:\n"
        "    print(error)\n"
        "    sys.exit(error.exit_code)\n"
    )
    environment = {
        **os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}", "OMP_NUM_THREADS": "1"
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "could not be written: [Errno 27] File too large" in done.stdout
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096
    found = opened(Folder.at(tmp_path / "checkpoints")).newest()
    assert found is not None
    # That of step 8 may have been under way.
    assert found.step in (6, 8)


def test_files_of_tensors_are_those_of_the_library(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for dtype in NAMES:
        values = torch.randint(0, 2, (3, 5), generator=generator)
        tensors[f"t{len(tensors)}"] = values.to(dtype)
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "odd": torch.arange(3).to(torch.int8)}
    file = tmp_path / "x.safetensors"
    with file.open("wb") as stream:
        hashed = HashedStream(stream)
        write_tensors(hashed, tensors)
    assert (hashed.size, hashed.sha256.hexdigest()) == (file.stat().st_size, sha256_tree(file))
    loaded = load_file(file)
    assert loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name].view(torch.uint8), value.view(torch.uint8)) if value.dim() else True
    with file.open("rb") as stream:
        rows = TensorFile(stream).read("t1", 1, 3)
    assert torch.equal(rows, tensors["t1"][1:3])


def test_a_place_that_nothing_can_open_is_named() -> None:
    with pytest.raises(ConfigError, match=r"`nowhere://x` cannot be opened") as raised:
        Folder.at("nowhere://x", "a.yaml:3: stages.x.checkpoints.directory")
    assert raised.value.where == "a.yaml:3: stages.x.checkpoints.directory"
    (finding,) = CheckpointsConfig(directory="nowhere://x").check(100)
    assert finding.key == "checkpoints.directory"


def test_a_twin_keeps_what_it_was_filled_with() -> None:
    model = ToyModel()
    before = copy.deepcopy(model)
    twin = Twin(model).filled({name: tensor.detach().clone() for name, tensor in weight_tensors(model).items()})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.calls += 3
    assert isinstance(twin, ToyModel)
    assert twin.head.weight is twin.token.weight
    for name, value in before.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value)


def test_weights_hold_shared_tensors_once_and_leave_frozen_ones_out() -> None:
    model = ToyModel()
    model.value.requires_grad_(False)
    names = set(weight_tensors(model))
    assert "token.weight" in names
    assert "calls" in names
    assert names.isdisjoint({"head.weight", "value.weight", "value.bias"})


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import toy_run

    run_toy(tmp_path, steps=2)
    monkeypatch.setattr(toy_run, "VOCABULARY", 29)
    with pytest.raises(LLMKitError, match="not those of this model"):
        run_toy(tmp_path, steps=2)
