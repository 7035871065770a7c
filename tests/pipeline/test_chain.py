"""The whole chain at toy size, as a person runs it: what it makes, what `transformers` makes of that, kills, reruns."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from chain_support import CONFIG, ROOT, TIMED, json_lines, load_script, marks, write_data

from llmkit.pipeline.run import Pipeline, load_experiment
from llmkit.store.artifact import open_artifact
from llmkit.store.documents import read_documents

kill_and_resume = load_script("kill_and_resume")
verify_models = load_script("verify_models")

pytestmark = pytest.mark.timeout(1800)

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
TRAINED = {
    "gpt": "LlamaForCausalLM",
    "bert": "BertForMaskedLM",
    "sft": "LlamaForCausalLM",
    "classifier": "BertForSequenceClassification",
    "reward": "LlamaForSequenceClassification",
    "dpo": "LlamaForCausalLM",
    "ppo": "LlamaForCausalLM",
    "grpo": "LlamaForCausalLM",
}
MADE = {
    **dict.fromkeys(TRAINED, "model"),
    "corpus": "documents",
    "bpe": "tokenizer",
    "wordpiece": "tokenizer",
    "tokens": "tokens",
    "bert_tokens": "tokens",
    "chats": "examples",
    "moods": "examples",
    "choices": "examples",
    "eval": "results",
}
TASKS = {"perplexity", "masked", "generate", "drawn", "classification", "preferences", "choice"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data and the config, and the chain run in it once, from start to end."""
    folder = tmp_path_factory.mktemp("chain")
    write_data(folder / "data")
    shutil.copy(CONFIG, folder / CONFIG.name)
    with contextlib.chdir(folder):
        kill_and_resume.Command(Path(CONFIG.name), environment=ENVIRONMENT).finish(folder / "alone.log")
    return folder


@pytest.fixture(autouse=True)
def _here(world: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(world)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def alone(world: Path) -> Path:
    return world / "runs" / "chain"


def pipeline(*overrides: str) -> Pipeline:
    return Pipeline(load_experiment(CONFIG.name, overrides))


def states(found: Any) -> dict[str, str]:
    return {state.name: state.state for state in found}


def test_every_stage_ends_with_an_artifact_whose_files_are_whole(alone: Path) -> None:
    assert {name: open_artifact(alone / name, verify=True).facts.kind for name in pipeline().experiment.stages} == MADE
    assert not [path.name for path in alone.iterdir() if "partial" in path.name]


def test_held_out_places_and_planted_rubbish_are_where_they_belong(alone: Path) -> None:
    report = json.loads((alone / "corpus" / "report.json").read_text())
    assert (report["total"]["in"], report["total"]["kept"]) == (8 * 15 + 2 + 12, 8 * 15 + 12)
    assert sum(report["total"]["dropped"].values()) == 2
    splits: dict[str, set[str]] = {}
    for document in read_documents(alone / "corpus", None):
        if "place" in document.metadata:
            splits.setdefault(document.metadata["place"], set()).add(document.split)
    assert len(splits) == 8
    assert all(len(found) == 1 for found in splits.values())
    assert set.union(*splits.values()) > {"train"}


def test_the_evaluation_measures_every_task_with_finite_numbers(alone: Path) -> None:
    found = json.loads((alone / "eval" / "results.json").read_text())
    assert {row["task"] for row in found["results"]} == TASKS
    assert all(math.isfinite(row["value"]) for row in found["results"])
    assert list(found["models"]) == ["gpt", "sft", "ppo", "grpo", "bert", "classifier", "reward"]
    assert {row["task"] for row in json_lines(alone / "eval" / "samples.jsonl")} >= {"generate", "drawn", "choice"}
    digests = {name: open_artifact(alone / name, verify=False).digest for name in found["models"]}
    assert {name: model["digest"] for name, model in found["models"].items()} == digests


def test_transformers_opens_every_model_and_agrees(alone: Path) -> None:
    directories = verify_models.model_directories(alone)
    assert {directory.parent.name for directory in directories} == set(TRAINED)
    for directory in directories:
        compared = verify_models.compare(directory)
        assert compared.problems == []
        assert compared.architecture == TRAINED[directory.parent.name]
        assert compared.difference < 1e-4
        # No model answers alike whatever it is asked, which would make agreement cheap.
        assert compared.spread > 1e-2


def test_a_model_that_transformers_computes_otherwise_is_noticed(
    alone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = verify_models.load_model

    def slightly_off(*args: Any, **kwargs: Any) -> Any:
        model = original(*args, **kwargs)
        with torch.no_grad():
            model.blocks[1].attention_norm.weight.mul_(1.1)
        return model

    monkeypatch.setattr(verify_models, "load_model", slightly_off)
    monkeypatch.setattr(sys, "argv", ["verify_models.py", str(alone / "gpt")])
    assert verify_models.main() == 1
    assert "logits" in capsys.readouterr().out


@pytest.mark.parametrize("config", [CONFIG.name, "runs/chain/run.yaml"])
def test_a_second_run_does_nothing_and_says_so(alone: Path, config: str) -> None:
    before = marks(alone)
    done = subprocess.run(
        [sys.executable, "-m", "llmkit", "run", "--config", config],
        env=ENVIRONMENT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr.splitlines()[-1] == "chain: everything is up to date (17 stages)."
    assert marks(alone) == before


def test_a_changed_key_of_a_late_stage_reruns_only_what_depends_on_it(alone: Path) -> None:
    copy = Path("elsewhere/chain")
    shutil.copytree(alone, copy)
    before = {name: marks(copy / name) for name in MADE}
    runs_dir = f"runs_dir={copy.parent}"
    # A run is a run wherever it stands.
    assert set(states(pipeline(runs_dir).states().values()).values()) == {"up to date"}
    found = states(pipeline(runs_dir, "stages.grpo.grpo.kl_coefficient=0.5").run())
    assert {name for name, state in found.items() if state == "out of date"} == {"grpo", "eval"}
    assert {name for name in MADE if marks(copy / name) != before[name]} == {"grpo", "eval"}
    model = "model/model.safetensors"
    assert (copy / "grpo" / model).read_bytes() != (alone / "grpo" / model).read_bytes()


def test_a_changed_key_of_an_early_stage_reaches_all_that_depends_on_it_and_nothing_else(alone: Path) -> None:
    found = states(pipeline("stages.wordpiece.lowercase=false").states().values())
    assert found["wordpiece"] == "out of date"
    assert {name for name, state in found.items() if state == "waiting"} == {
        "bert_tokens",
        "bert",
        "classifier",
        "eval",
    }


def test_killed_in_every_stage_it_ends_with_the_same_bytes(world: Path, alone: Path) -> None:
    command = [sys.executable, ROOT / "scripts" / "kill_and_resume.py", "--config", CONFIG.name]
    killing = [*command, "--alone", alone, "--scratch", world / "scratch"]
    subprocess.run(killing, env=ENVIRONMENT, capture_output=True, check=True)
    killed = world / "scratch" / "killed" / "chain"
    for name in MADE:
        count, different = kill_and_resume.different_files(alone / name, killed / name)
        assert count > 0
        assert different == [], name
    log = (world / "scratch" / "killed.log").read_text()
    for name in MADE:
        assert f"{name}: goes on where it was stopped" in log
    for name in TRAINED:
        assert f"{name}: going on from the checkpoint of step " in log
        lines = [json_lines(run / name / "metrics.jsonl", TIMED) for run in (alone, killed)]
        assert lines[0] == lines[1]
        assert lines[0]
    for name in ("ppo", "grpo"):
        assert json_lines(killed / name / "samples.jsonl") == json_lines(alone / name / "samples.jsonl")
