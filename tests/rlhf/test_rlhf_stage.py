"""The stage as a whole, on worlds with planted answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import rlhf_worlds as worlds
import torch
import transformers

from llmkit.errors import ConfigError, DataError
from llmkit.model.generation import Generator
from llmkit.model.load import load_model
from llmkit.model.sampling import Sampling
from llmkit.rlhf.config import RLHFConfig
from llmkit.rlhf.online import RolloutSource
from llmkit.rlhf.preferences import PairSource
from llmkit.rlhf.samples import SampleLog
from llmkit.rlhf.stage import check, plan, run
from llmkit.store.stage import Context
from llmkit.tokenizer.tokenizer import Tokenizer
from llmkit.train.memory.machines import named_machine
from llmkit.train.metrics import OF_THE_MACHINE

H100 = named_machine("h100")

FAST = {"optimizer": {"lr": 3e-3}, "evaluate_every": 1000, "log_every": 1}
QUICK = {**FAST, "optimizer": {"lr": 1e-2}, "rollout": {"max_new_tokens": 3}, "rewards": ["contains"]}


@pytest.fixture
def preferences(tmp_path: Path) -> Path:
    worlds.write_rows(tmp_path / "preferences.jsonl", worlds.preferences(500))
    return tmp_path / "preferences.jsonl"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    worlds.write_rows(tmp_path / "prompts.jsonl", worlds.conversations(200, " red"))
    return tmp_path / "prompts.jsonl"


def mean(rows: list[dict[str, Any]], name: str) -> float:
    return float(sum(row[name] for row in rows) / len(rows))


class TestRewardModel:
    def test_learns_a_planted_preference(self, base: Path, preferences: Path, tmp_path: Path) -> None:
        context = worlds.context(tmp_path / "out", base, preferences)
        outcome = run(worlds.settings("reward_model", steps=25, batch_size=32, **FAST), context)
        assert outcome.summary["validation_accuracy"] > 0.9
        assert (outcome.facts.get("head"), outcome.facts.get("chat_template")) == ("reward", True)
        self.holds_on_unseen_pairs(tmp_path / "out" / "model")

    def holds_on_unseen_pairs(self, directory: Path) -> None:
        """In transformers, which reads the score at the last token that is no padding."""
        judge = transformers.AutoModelForSequenceClassification.from_pretrained(directory)
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        right = 0
        rows = worlds.preferences(60, seed=77)
        for row in rows:
            scores = []
            for answer in (row["chosen"], row["rejected"]):
                text = tokenizer.apply_chat_template(
                    [*row["prompt"], {"role": "assistant", "content": answer}], tokenize=False
                )
                ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
                with torch.no_grad():
                    scores.append(judge(ids).logits.item())
            right += scores[0] > scores[1]
        assert right / len(rows) > 0.9


class TestDPO:
    def test_raises_the_implicit_reward_of_what_is_preferred(
        self, speaker: Path, preferences: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        context = worlds.context(tmp_path / "out", speaker, preferences)
        outcome = run(worlds.settings("dpo", steps=25, batch_size=32, dpo={"beta": 0.5}, **FAST), context)
        rows = worlds.metrics(tmp_path / "out", "train")
        assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
        assert outcome.summary["validation_accuracy"] > 0.9
        assert outcome.summary["validation_margin"] > 1.0
        assert outcome.facts.get("head") == "causal-lm"
        assert self.share_with_red(speaker, tokenizer) < 0.4
        assert self.share_with_red(tmp_path / "out" / "model", tokenizer) > 0.7

    def share_with_red(self, directory: Path, tokenizer: Tokenizer) -> float:
        prompts = [
            tokenizer.render_conversation(row["prompt"], add_generation_prompt=True).ids
            for row in worlds.preferences(100, seed=5)
        ]
        answers = Generator(load_model(directory), decode=tokenizer.decode).generate(
            prompts, Sampling(max_new_tokens=3)
        )
        return sum(" red" in (answer.text or "") for answer in answers) / len(answers)


class TestOnline:
    def test_grpo_learns_to_say_the_word(self, base: Path, prompts: Path, tmp_path: Path) -> None:
        config = worlds.settings("grpo", steps=40, batch_size=64, **QUICK)
        outcome = run(config, worlds.context(tmp_path / "out", base, prompts))
        rows = worlds.metrics(tmp_path / "out", "train")
        assert mean(rows[:5], "reward") < 0.1
        assert mean(rows[-5:], "reward") > 0.9
        assert outcome.summary["validation_reward"] > 0.9
        assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-6)
        assert rows[-1]["kl"] > 0.1
        assert rows[-1]["entropy"] < rows[0]["entropy"]

    def test_a_large_coefficient_holds_grpo_to_the_starting_model(
        self, base: Path, prompts: Path, tmp_path: Path
    ) -> None:
        config = worlds.settings("grpo", steps=40, batch_size=64, grpo={"kl_coefficient": 3.0}, **QUICK)
        run(config, worlds.context(tmp_path / "out", base, prompts))
        assert max(row["kl"] for row in worlds.metrics(tmp_path / "out", "train")) < 0.1

    def test_ppo_learns_to_say_the_word(self, speaker: Path, prompts: Path, tmp_path: Path) -> None:
        values = {**QUICK, "optimizer": {"lr": 5e-3}}
        config = worlds.settings("ppo", steps=60, batch_size=64, **values, ppo={"kl_coefficient": 0.01})
        run(config, worlds.context(tmp_path / "out", speaker, prompts))
        rows = worlds.metrics(tmp_path / "out", "train")
        assert mean(rows[:4], "reward") < 0.5
        assert mean(rows[-8:], "reward") > 0.9
        assert mean(rows[-8:], "value") > 0.5

    def test_ppo_follows_a_reward_model(self, speaker: Path, preferences: Path, prompts: Path, tmp_path: Path) -> None:
        judge = worlds.settings("reward_model", steps=25, batch_size=32, **FAST)
        run(judge, worlds.context(tmp_path / "judge", speaker, preferences))
        values = {**FAST, "optimizer": {"lr": 5e-3}, "rollout": {"max_new_tokens": 3}, "ppo": {"kl_coefficient": 0.01}}
        config = worlds.settings("ppo", steps=60, batch_size=64, reward_model="judge", **values)
        context = worlds.context(tmp_path / "out", speaker, prompts, tmp_path / "judge" / "model")
        assert check(config, context) == []
        run(config, context)
        rows = worlds.metrics(tmp_path / "out", "train")
        assert mean(rows[-4:], "score_reward_model") > mean(rows[:4], "score_reward_model") + 1.0

    def test_first_step_of_a_rollout_has_ratio_one(self, base: Path, prompts: Path, tmp_path: Path) -> None:
        values = {**QUICK, "rollout": {"max_new_tokens": 3, "minibatches": 2}}
        config = worlds.settings("ppo", steps=2, batch_size=16, micro_batch_size=8, **values)
        run(config, worlds.context(tmp_path / "out", base, prompts))
        first, second = worlds.metrics(tmp_path / "out", "train")
        assert (first["old_kl"], first["clip_fraction"]) == (0.0, 0.0)
        assert second["old_kl"] > 0.0

    def test_what_becomes_of_unfinished_answers(self, base: Path, prompts: Path, tmp_path: Path) -> None:
        for unfinished, reward in (("score", 0.0), ("penalty", -1.0)):
            rollout = {"max_new_tokens": 1, "unfinished": unfinished}
            config = worlds.settings(
                "grpo",
                steps=1,
                batch_size=64,
                rollout=rollout,
                log_every=1,
                rewards=[{"name": "contains", "text": "?"}],
            )
            run(config, worlds.context(tmp_path / unfinished, base, prompts))
            (row,) = worlds.metrics(tmp_path / unfinished, "train")
            assert row["reward"] == pytest.approx(reward * (1 - row["finished"]))

    def test_samples_are_shown(self, base: Path, prompts: Path, tmp_path: Path) -> None:
        values = {**QUICK, "rollout": {"max_new_tokens": 3, "samples_every": 2}}
        run(worlds.settings("grpo", steps=4, batch_size=16, **values), worlds.context(tmp_path / "out", base, prompts))
        rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [0] * 4 + [2] * 4
        for row in rows:
            assert row["reward"] == row["scores"]["contains"] == float("red" in row["completion"])
            assert (row["reference"], row["task"]) == (" red", "colour")


class Stopped(Exception):
    """Stands for a kill."""


def interrupted(config: RLHFConfig, context: Context, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until step `at`, die there, and run again."""
    for source in (RolloutSource, PairSource):
        original = source.batches

        def dying(self: Any, step: int, original: Any = original) -> Any:
            batches = original(self, step)
            if step == at:
                raise Stopped
            return batches

        monkeypatch.setattr(source, "batches", dying)
    with pytest.raises(Stopped):
        run(config, context)
    monkeypatch.undo()
    run(config, context)


@pytest.mark.parametrize(
    ("algorithm", "values", "at"),
    [
        ("reward_model", FAST, 5),
        ("dpo", FAST, 5),
        # Checkpoints at steps 3 and 6; rollouts begin at steps 0, 4 and 8: the first restart is inside a rollout.
        ("grpo", {**QUICK, "grpo": {"epochs": 2}, "rollout": {"max_new_tokens": 3, "minibatches": 2}}, 5),
        ("grpo", {**QUICK, "rollout": {"max_new_tokens": 3, "samples_every": 1}}, 5),
        ("ppo", {**QUICK, "ppo": {"epochs": 4}}, 7),
        ("ppo", {**QUICK, "ppo": {"epochs": 4}}, 8),
    ],
)
def test_interrupted_ends_with_the_same_bits(
    algorithm: str,
    values: dict[str, Any],
    at: int,
    base: Path,
    preferences: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = preferences if algorithm in ("reward_model", "dpo") else prompts
    given = {"steps": 10, "batch_size": 16, "micro_batch_size": 8, "checkpoints": {"every": 3}, **values}
    config = worlds.settings(algorithm, **given)
    whole, cut = (worlds.context(tmp_path / name, base, data) for name in ("whole", "cut"))
    run(config, whole)
    interrupted(config, cut, at, monkeypatch)
    files = sorted(path.relative_to(whole.directory) for path in (whole.directory / "model").iterdir())
    assert len(files) >= 4
    for file in files:
        assert (whole.directory / file).read_bytes() == (cut.directory / file).read_bytes(), file
    timed = OF_THE_MACHINE
    lines = [
        [{k: v for k, v in row.items() if k not in timed} for row in worlds.metrics(context.directory, "train")]
        for context in (whole, cut)
    ]
    assert lines[0] == lines[1]
    if config.online:
        samples = [(context.directory / "samples.jsonl").read_bytes() for context in (whole, cut)]
        assert samples[0] == samples[1]


def test_micro_batches_change_nothing_but_rounding(base: Path, prompts: Path, tmp_path: Path) -> None:
    rows = []
    for size in (16, 4):
        config = worlds.settings("grpo", steps=1, batch_size=16, micro_batch_size=size, **QUICK)
        run(config, worlds.context(tmp_path / str(size), base, prompts))
        rows.append(worlds.metrics(tmp_path / str(size), "train")[0])
    for name in ("loss", "grad_norm", "reward", "entropy", "completion_length", "kl"):
        assert rows[0][name] == pytest.approx(rows[1][name], rel=1e-4, abs=1e-6)


class TestCheck:
    def test_nothing_wrong(self, base: Path, preferences: Path, prompts: Path, tmp_path: Path) -> None:
        assert check(worlds.settings("dpo"), worlds.context(tmp_path / "a", base, preferences)) == []
        config = worlds.settings("grpo", rewards=["contains"], rollout={"max_new_tokens": 4})
        assert check(config, worlds.context(tmp_path / "b", base, prompts)) == []

    def test_inputs_that_are_not_there_yet(self, base: Path, preferences: Path, tmp_path: Path) -> None:
        context = worlds.context(tmp_path, base, preferences)
        assert check(worlds.settings("dpo"), Context("aligned", 1, tmp_path, {}, "a.yaml")) == []
        without = Context("aligned", 1, tmp_path, {"model": context.inputs["model"]}, "a.yaml")
        assert check(worlds.settings("dpo"), without) == []

    def test_too_long(self, base: Path, prompts: Path, tmp_path: Path) -> None:
        context = worlds.context(tmp_path, base, prompts)
        values = {"rewards": ["contains"], "rollout": {"max_new_tokens": 3, "max_prompt_length": 3}, "batch_size": 8}
        (finding,) = check(worlds.settings("grpo", **values), context)
        assert (finding.severity, finding.key) == ("error", "data")
        with pytest.raises(DataError, match="are longer than 3 tokens"):
            run(worlds.settings("grpo", **values), context)
        (finding,) = check(worlds.settings("grpo", too_long="drop", **values), context)
        assert finding.message.startswith("all of the first 200")

    def test_long_ones_are_left_out_and_counted(self, base: Path, tmp_path: Path) -> None:
        rows = worlds.preferences(60)
        rows[3]["chosen"] *= 20
        worlds.write_rows(tmp_path / "p.jsonl", rows)
        context = worlds.context(tmp_path / "out", base, tmp_path / "p.jsonl")
        outcome = run(worlds.settings("dpo", too_long="drop", steps=1, batch_size=4), context)
        assert outcome.summary["dropped"] == 1

    def test_wrong_rows(self, base: Path, tmp_path: Path) -> None:
        rows = worlds.preferences(5)
        rows[2]["rejected"] = rows[2]["chosen"]
        worlds.write_rows(tmp_path / "p.jsonl", rows)
        (finding,) = check(worlds.settings("dpo"), worlds.context(tmp_path, base, tmp_path / "p.jsonl"))
        assert "are the same" in finding.message

    def test_reward_model_of_another_tokenizer(
        self, base: Path, prompts: Path, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        judge = worlds.save(worlds.make_model(tokenizer, head="reward"), tokenizer, tmp_path / "judge")
        config = worlds.settings("ppo", reward_model="judge", rollout={"max_new_tokens": 3})
        assert check(config, worlds.context(tmp_path, base, prompts, judge)) == []
        file = judge / "tokenizer_config.json"
        file.write_text(file.read_text().replace("<|im_start|>{% endif", "<|im_end|>{% endif"))
        context = worlds.context(tmp_path, base, prompts, judge)
        (finding,) = check(config, context)
        assert "another tokenizer or chat template" in finding.message
        with pytest.raises(ConfigError, match="another tokenizer"):
            run(config, context)
        (finding,) = check(config, worlds.context(tmp_path, base, prompts, base))
        assert "gives no scores" in finding.message


def test_plan() -> None:
    from llmkit.config.base import Facts

    facts = {"model": Facts("model", {"parameters": 1000, "context": 64})}
    found = plan(worlds.settings("dpo", steps=10, batch_size=4, max_length=32), facts, H100)
    assert (found.parameters, found.tokens) == (1000, 10 * 4 * 2 * 32)
    online = plan(worlds.settings("ppo", rewards=["contains"], steps=10, batch_size=4), facts, H100)
    assert (online.tokens, online.memory_bytes["reference"]) == (10 * 4 * 64, 4000)
    assert plan(worlds.settings("dpo"), {"model": Facts("model")}, H100).parameters is None


def test_samples_of_a_stopped_attempt_are_not_repeated(tmp_path: Path) -> None:
    (tmp_path / "samples.jsonl").write_text('{"step": 0, "a": 1}\n{"step": 4, "a": 2}\n{"step": 8, "scores": {}')
    log = SampleLog(tmp_path, 1)
    log.write(4, [{"a": 3}])
    log.write(8, [{"a": "\u2028"}])
    lines = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == [
        {"step": 0, "a": 1},
        {"step": 4, "a": 3},
        {"step": 8, "a": "\u2028"},
    ]
