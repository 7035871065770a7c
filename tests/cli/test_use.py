"""generate and chat, on a small untrained model."""

from __future__ import annotations

import json
import os
import pty
import select
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from llmkit.cli.main import app
from llmkit.inference import load
from llmkit.model.initialization import build
from llmkit.model.save import save_model
from llmkit.model.spec import ModelSpec
from llmkit.tokenizer.tokenizer import Tokenizer
from llmkit.tokenizer.training import bpe_settings, train_bpe

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    texts = ["the cat sat on the mat and the dog ran after the ball " * 20]
    tokenizer = Tokenizer(train_bpe(lambda: texts, vocab_size=300), bpe_settings(TEMPLATE))
    spec = ModelSpec(family="llama", layers=2, width=32, heads=2, context=200, init_std=0.3)
    directory = tmp_path_factory.mktemp("models") / "model"
    save_model(build(spec.resolve(tokenizer.vocab_size, pad_id=tokenizer.pad_id), seed=3), directory)
    tokenizer.save(directory)
    return str(directory)


def _run(*words: str, given: str | None = None) -> str:
    result = CliRunner().invoke(app, list(words), input=given)
    assert result.exit_code == 0, result.output
    return result.stdout


def _refused(*words: str, given: str | None = None) -> str:
    """The message of a mistake that a person can mend, on one line."""
    result = CliRunner().invoke(app, list(words), input=given)
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def _write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_prompts_from_arguments_standard_input_and_jsonl(model: str, tmp_path: Path) -> None:
    expected = load(model).generate("the cat", temperature=0, max_new_tokens=9)[0]
    words = ("generate", "-m", model, "-n", "9", "--json")
    (row,) = _rows(_run(*words, "the cat"))
    assert (row["prompt"], row["text"], row["token_ids"]) == ("the cat", expected.text, expected.token_ids)
    assert row["logprobs"] == pytest.approx(expected.logprobs, abs=1e-5)
    assert _rows(_run(*words, given="the cat")) == [row]
    file = _write(tmp_path / "prompts.jsonl", [{"prompt": "the cat"}, {"messages": [{"role": "user", "content": "a"}]}])
    first, second = _rows(_run(*words, "-f", file))
    assert first["token_ids"] == row["token_ids"]
    assert second["messages"] == [{"role": "user", "content": "a"}]
    assert _run("generate", "-m", model, "-n", "9", "the cat") == f"the cat{expected.text}\n"


def test_settings_by_row_and_by_option(model: str, tmp_path: Path) -> None:
    own = {"temperature": 0.9, "min_p": 0.01, "seed": 4, "max_new_tokens": 5}
    file = _write(tmp_path / "prompts.jsonl", [{"prompt": "the"}, {"prompt": "the", "sampling": own}])
    first, second = _rows(_run("generate", "-m", model, "-f", file, "-n", "7", "--json"))
    assert (len(first["token_ids"]), len(second["token_ids"])) == (7, 5)
    loaded = load(model)
    assert second["token_ids"] == loaded.generate(["the"], keys=[1], **own)[0].token_ids
    options = ("--temperature", "0", "--repetition-penalty", "1.7")
    (penalised,) = _rows(_run("generate", "-m", model, "the", "-n", "7", "--json", *options))
    assert penalised["token_ids"] != first["token_ids"]
    for wrong, message in [
        ({"heat": 1}, "`sampling.heat`"),
        ({"top_p": 2}, "`sampling.top_p`"),
        ({"n": 2}, "cannot be set by row"),
        (3, "no object"),
    ]:
        file = _write(tmp_path / "bad.jsonl", [{"prompt": "a"}, {"prompt": "a", "sampling": wrong}])
        said = _refused("generate", "-m", model, "-f", file)
        assert message in said
        assert "bad.jsonl:2" in said


def test_a_file_of_answers_is_gone_on_with(model: str, tmp_path: Path) -> None:
    asked = [{"prompt": text} for text in ("the cat", "a dog", "the ball", "on", "mat")]
    file, whole, broken = _write(tmp_path / "p.jsonl", asked), tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    words = (
        "generate",
        "-m",
        model,
        "-f",
        file,
        "-n",
        "6",
        "--samples",
        "2",
        "--temperature",
        "0.8",
        "--dtype",
        "bf16",
    )
    _run(*words, "--output", str(whole))
    lines = whole.read_text().splitlines(keepends=True)
    assert [json.loads(line)["prompt"] for line in lines] == [row["prompt"] for row in asked for _ in range(2)]
    for kept in (0, 3, 4, 9, 10):
        broken.write_text("".join(lines[:kept]) + ("" if kept == 10 else lines[kept][:7]))
        _run(*words, "--output", str(broken))
        assert broken.read_text() == whole.read_text()
    assert "answers another prompt" in _refused("generate", "-m", model, "other", "--output", str(whole))


def test_what_is_refused(model: str, tmp_path: Path) -> None:
    assert "there is no prompt" in _refused("generate", "-m", model, given="")
    for row in ({"text": "a"}, {"messages": []}, {"messages": [{"role": "user"}]}, {"messages": ["a"]}):
        said = _refused("generate", "-m", model, "-f", _write(tmp_path / "bad.jsonl", [row]))
        assert "bad.jsonl:1" in said
        assert "neither a text" in said
    assert "is no engine" in _refused("generate", "-m", model, "a", "--engine", "magic")
    assert "vLLM is not installed" in _refused("generate", "-m", model, "a", "--engine", "vllm")
    assert "the built-in engine's" in _refused("generate", "-m", model, "a", "--engine", "vllm", "--device", "cpu")
    for other in (["--engine", "vllm"], ["--quantize", "int8"]):
        assert "plain weights on a CPU" in _refused("generate", "-m", model, "a", "--compile", *other)


def test_what_writes_one_answer_can_be_compiled(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words, called = ("generate", "-m", model, "hello", "-n", "8"), []

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        called.append(function.__qualname__)
        return function

    plain = _run(*words)
    monkeypatch.setattr(torch, "compile", counted)
    assert _run(*words) == plain
    assert not called
    assert _run(*words, "--compile") == plain
    assert called == ["FusedBlock.__call__", "Projection.__call__"]


def test_a_conversation_keeps_its_history(model: str) -> None:
    given = "hello\n\nagain\n/new\nhello\n/quit\n"
    shown = _run("chat", "-m", model, "--system", "Be brief.", "-n", "8", "--temperature", "0", given=given)
    loaded = load(model)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    first = loaded.generate(messages, temperature=0, max_new_tokens=8)[0].text
    assert first is not None
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "again"}]
    second = loaded.generate(messages, temperature=0, max_new_tokens=8)[0].text
    assert second is not None
    assert shown.count(first) == 2
    assert shown.index(first) < shown.index(second) < shown.rindex(first)


class _Terminal:
    """A pseudo-terminal of 80 columns with the command line in it."""

    def __init__(self, *words: str) -> None:
        self.process, self.file = pty.fork()
        if self.process == 0:
            os.environ |= {"COLUMNS": "80", "LINES": "24", "TERM": "dumb"}
            program = "from llmkit.cli.main import main\nmain()\n"
            os.execv(sys.executable, [sys.executable, "-c", program, *words])

    def until(self, text: str) -> Iterator[str]:
        """What is shown, read by read, up to a text."""
        seen, end = "", time.monotonic() + 60
        while text not in seen:
            assert time.monotonic() < end, seen
            if select.select([self.file], [], [], 0.5)[0]:
                part = os.read(self.file, 4096).decode(errors="replace")
                seen += part
                yield part

    def say(self, text: str) -> None:
        """Type a text."""
        os.write(self.file, text.encode())


def test_answers_stream_in_a_terminal(model: str) -> None:
    terminal = _Terminal("chat", "-m", model, "-n", "60", "--temperature", "0")
    opening = "".join(terminal.until("you> "))
    assert all(len(line) <= 80 for line in opening.splitlines())
    terminal.say("hello\n")
    assert len(list(terminal.until("you> "))) > 5
    terminal.say("\x04")
    _, status = os.waitpid(terminal.process, 0)
    os.close(terminal.file)
    assert os.waitstatus_to_exitcode(status) == 0
