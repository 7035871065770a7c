"""Two hundred broken copies of the shipped configs: each is valid, or refused in one paragraph that says where."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from llmkit.cli.main import app
from llmkit.config.yaml import read_yaml
from llmkit.model.initialization import build
from llmkit.model.save import save_model
from llmkit.model.spec import ModelSpec
from llmkit.tokenizer.templates import read_template
from llmkit.tokenizer.tokenizer import Tokenizer
from llmkit.tokenizer.training import blank_bpe, bpe_settings

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
MUTATIONS = 200
STRANGE: list[Any] = [
    None,
    True,
    -1,
    0,
    10**12,
    2.5,
    1e308,
    "",
    "x",
    "../..",
    "hf:",
    [],
    {},
    [[]],
    {"a": {}},
    "1",
    "\u202e",
]

Place = tuple[Any, Any]  # a mapping or list, and a key or index of it


def places(value: Any) -> Iterator[Place]:
    """Every key of every mapping and every index of every list below a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from places(inner)


def misspell(word: str, chance: random.Random) -> str:
    at = chance.randrange(len(word))
    return chance.choice([word[:at] + word[at + 1 :], word[:at] + "x" + word[at:], word[:at] + word[at:][::-1]]) or "x"


def mutate(config: dict[str, Any], chance: random.Random) -> str:
    """Break one place; what was done, in words."""
    holder, key = chance.choice(list(places(config)))
    how = chance.choice(["delete", "misspell key", "retype", "out of range", "misspell value"])
    value = holder[key]
    if how == "delete":
        del holder[key]
    elif how == "misspell key" and isinstance(holder, dict):
        holder[misspell(key, chance)] = holder.pop(key)
    elif how == "misspell value" and isinstance(value, str):
        holder[key] = misspell(value, chance)
    elif how == "out of range" and isinstance(value, (int, float)) and not isinstance(value, bool):
        holder[key] = chance.choice([-value - 1, value * 10**9, 0, -0.5, value + 0.5, float("inf"), float("nan")])
    else:
        how = "retype"
        holder[key] = copy.deepcopy(chance.choice(STRANGE))
    return f"{how} at {key}: {value!r} -> {holder.get(key) if isinstance(holder, dict) else holder!r}"


def mutations() -> Iterator[tuple[str, str]]:
    """Name of the mutation and the broken YAML; some are broken twice."""
    chance = random.Random(20240229)
    for number in range(MUTATIONS):
        source = CONFIGS[number % len(CONFIGS)]
        config = read_yaml(source).data
        done = [mutate(config, chance) for _ in range(1 + number % 2)]
        yield (
            f"{number} {source.stem} " + " and ".join(done),
            yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
        )


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, with small stand-ins for the files that the shipped configs name."""
    # So deep that "../.." stays inside.
    place = tmp_path / "inner" / "most"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    rows = place / "data" / "gsm8k" / "train.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text("".join(json.dumps({"question": f"{n} + 1?", "answer": f"{n + 1}"}) + "\n" for n in range(40)))
    (place / "pages").mkdir()
    (place / "pages" / "page.html").write_text("<html><body><p>A page of some words.</p></body></html>")
    tokenizer = Tokenizer(blank_bpe(), bpe_settings(read_template("chatml", None)))
    spec = ModelSpec(family="llama", layers=1, width=8, heads=1, context=512)
    model = build(spec.resolve(tokenizer.vocab_size, pad_id=tokenizer.pad_id), seed=0)
    save_model(model, place / "models" / "smollm2")
    tokenizer.save(place / "models" / "smollm2")


def test_every_mutation_is_valid_or_refused_in_one_paragraph() -> None:
    valid = refused = 0
    for name, text in mutations():
        Path("broken.yaml").write_text(text, encoding="utf-8")
        result = CliRunner().invoke(app, ["check", "--config", "broken.yaml"])
        assert result.exit_code in (0, 2), f"{name}\n{result.output}\n{text}"
        assert "Traceback" not in result.output, name
        if result.exit_code == 2:
            refused += 1
            assert result.output.startswith("error: "), f"{name}\n{result.output}"
            assert "\n\n" not in result.output.strip(), f"{name}\n{result.output}"
            assert "broken.yaml" in result.output, f"{name}\n{result.output}"
        else:
            valid += 1
        assert not Path("runs").exists()
    # Most places matter, and some changes (another seed, another name) are valid.
    assert refused > MUTATIONS // 2
    assert valid > 0


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_shipped_configs_are_valid_and_name_their_schema(path: Path) -> None:
    result = CliRunner().invoke(app, ["check", "--config", str(path)])
    assert result.exit_code == 0, result.output
    assert path.read_text(encoding="utf-8").startswith("# yaml-language-server: $schema=schema.json\n")
