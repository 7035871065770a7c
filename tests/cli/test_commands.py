"""The commands: exit codes, what is imported, what is printed where."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from typer.testing import CliRunner

from llmkit.cli import guard
from llmkit.cli.main import app
from llmkit.config.yaml import read_yaml
from llmkit.errors import ConfigError, Interrupted

CONFIGS = Path(__file__).parents[2] / "configs"
HEAVY = ("torch", "numpy", "datasets", "transformers", "pyarrow")


def llmkit(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own; the last line of stderr names the heavy modules it imported."""
    program = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('imported', *[m for m in {HEAVY} if m in sys.modules], file=sys.stderr))\n"
        "from llmkit.cli.main import main\nmain()\n"
    )
    return subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, cwd=cwd, check=False)


@pytest.mark.parametrize("words", [["--help"], [], ["run", "--help"], ["--version"], ["generate", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    result = llmkit(*words)
    assert result.returncode == 0
    assert result.stderr.splitlines()[-1] == "imported"
    assert len(result.stdout) > 3


@pytest.mark.parametrize(
    ("override", "place", "words"),
    [
        ("stages.gpt.stepz=5", "stages.gpt.stepz", "Did you mean `steps`?"),
        ("stages.gpt.steps='5'", "stages.gpt.steps", "is not a whole number"),
        ("stages.gpt.model.heads=7", "stages.gpt.model", "divide"),
        ("stages.gpt.sequence_length=4096", "stages.gpt.sequence_length", "context"),
        ("stages.sft.max_length=4096", "stages.sft.max_length", "context"),
        ("stages.sft.model=gtp", "stages.sft.model", "Did you mean `gpt`?"),
        ("stages.gpt.model=sft", "stages.gpt", "in a circle"),
        ("stages.gpt.model=gpt", "stages.gpt", "depends on itself"),
        ("stages.tokenizer.vocab_size=10", "stages.tokenizer.vocab_size", "no room for"),
        ("stages.gpt.data=questions", "stages.gpt.data", "is wanted here"),
        ("stages.aligned.model=bert", "stages.aligned.model", "head"),
        ("stages.sft.data=absent.jsonl", "stages.sft.data", "no file or folder"),
    ],
)
def test_mistakes_are_refused_before_torch_is_imported(tmp_path: Path, override: str, place: str, words: str) -> None:
    config = CONFIGS / "quickstart.yaml"
    result = llmkit("run", "--config", str(config), "--set", override, cwd=tmp_path)
    *message, imported = result.stderr.splitlines()
    assert result.returncode == 2, result.stderr
    assert "torch" not in imported
    assert place in message[0]
    assert words in " ".join(message)
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_mistake_is_json_where_asked(tmp_path: Path) -> None:
    result = llmkit("check", "--config", "absent.yaml", "--json", cwd=tmp_path)
    assert result.returncode == 2
    assert json.loads(result.stdout)["error"]["where"] == "absent.yaml"


def test_the_schema_accepts_the_shipped_configs(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["schema", "--output", str(tmp_path / "schema.json")])
    assert result.exit_code == 0
    schema = json.loads((tmp_path / "schema.json").read_text(encoding="utf-8"))
    assert json.loads(CliRunner().invoke(app, ["schema"]).stdout) == schema
    assert json.loads((CONFIGS / "schema.json").read_text(encoding="utf-8")) == schema, (
        "run `llmkit schema -o configs/schema.json`"
    )
    validator = jsonschema.validators.validator_for(schema)(schema)
    for path in CONFIGS.glob("*.yaml"):
        validator.validate(read_yaml(path).data)
    broken = read_yaml(CONFIGS / "quickstart.yaml").data
    broken["stages"]["gpt"]["stepz"] = 1
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(broken)


def test_init_copies_an_example_and_overwrites_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["init"]).exit_code == 0
    assert Path("quickstart.yaml").read_text(encoding="utf-8") == (CONFIGS / "quickstart.yaml").read_text(
        encoding="utf-8"
    )
    again = CliRunner().invoke(app, ["init"])
    assert again.exit_code == 2
    assert "not overwritten" in again.output
    assert "Did you mean `quickstart`?" in CliRunner().invoke(app, ["init", "quikstart"]).output


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("wrong."), 2),
        (Interrupted("stopped.", "SIGINT"), 130),
        (Interrupted("stopped.", "SIGTERM"), 143),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError(), 1),
    ],
)
def test_each_way_to_end_has_its_exit_code(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        guard.guarded(command)()
    assert caught.value.code == code
    assert ("Traceback" in capsys.readouterr().err) == (code == 1)


def test_sigterm_ends_with_143_where_nothing_else_handles_it(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def command() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    with pytest.raises(SystemExit) as caught:
        guard.guarded(command)()
    assert caught.value.code == 143
    assert "SIGTERM" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before
