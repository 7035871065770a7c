"""The command line under torchrun: the same model from two ranks as from one, and one message where it ends early."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

CONFIG = """\
run: {run}
runs_dir: {directory}/runs
seed: 11
stages:
  corpus:
    stage: data
    sources: [{{kind: text, files: [{directory}/notes], name: notes}}]
    cleaning: {{repetition: null, length: null}}
    splits: {{validation: 0.2}}
  bpe: {{stage: tokenizer, data: corpus, algorithm: bpe, vocab_size: 300}}
  tokens: {{data: corpus, tokenizer: bpe}}
  gpt:
    stage: pretrain
    data: tokens
    model: {{family: llama, layers: 1, width: 32, heads: 2, context: 32}}
    steps: 4
    batch_size: 4
    precision: fp32
    log_every: 1
"""
WORDS = ["grey", "fox", "follows", "lonely", "hare", "across", "cold", "river", "while", "an", "owl", "remembers"]


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    notes = tmp_path / "notes"
    notes.mkdir()
    for number in range(24):
        order = [WORDS[(number + 5 * place) % len(WORDS)] for place in range(60 + number)]
        (notes / f"{number:02}.txt").write_text(" ".join(order) + ".\n", encoding="utf-8")
    return tmp_path


def _config(directory: Path, run: str) -> Path:
    path = directory / f"{run}.yaml"
    path.write_text(CONFIG.format(run=run, directory=directory), encoding="utf-8")
    return path


def _llmkit(*arguments: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    launcher = [] if ranks == 1 else ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    command = [sys.executable, "-m", *launcher, "llmkit", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)


def test_two_ranks_make_the_model_that_one_makes(experiment: Path) -> None:
    alone = _llmkit("run", "--config", str(_config(experiment, "alone")))
    assert alone.returncode == 0, alone.stderr
    shared = _llmkit(
        "run", "--config", str(_config(experiment, "shared")), "--set", "stages.gpt.parallel.shard=2", ranks=2
    )
    assert shared.returncode == 0, shared.stderr
    assert shared.stderr.count("gpt: starts\n") == 1
    assert shared.stderr.count("gpt: done in ") == 1
    expected, found = (
        {path.name: path for path in (experiment / "runs" / run / "gpt" / "model").iterdir()}
        for run in ("alone", "shared")
    )
    assert found.keys() == expected.keys()
    for name, path in expected.items():
        if name != "model.safetensors":
            assert found[name].read_bytes() == path.read_bytes(), name
    ours, theirs = load_file(found["model.safetensors"]), load_file(expected["model.safetensors"])
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, rtol=0, atol=1e-5)


def test_a_mistake_is_said_once_and_ends_all_ranks(experiment: Path) -> None:
    config = _config(experiment, "wrong")
    ended = _llmkit("run", "--config", str(config), "--set", "stages.gpt.parallel.shard=3", ranks=2)
    assert ended.returncode != 0
    messages = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1
    assert "stages.gpt.parallel" in messages[0] or "batch_size" in messages[0]
    assert not (experiment / "runs" / "wrong" / "gpt").exists()


def test_commands_that_train_nothing_speak_once(experiment: Path) -> None:
    checked = _llmkit("check", "--config", str(_config(experiment, "checked")), ranks=2)
    assert checked.returncode == 0, checked.stderr
    assert (checked.stdout + checked.stderr).count("4 stages") == 1
