"""Small files for `chain.yaml`, the same in every run: stories, notes, chats, moods, preferences, questions."""

from __future__ import annotations

import csv
import importlib.util
import json
import random
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from llmkit.train.metrics import OF_THE_MACHINE

ROOT = Path(__file__).parents[2]
CONFIG = Path(__file__).with_name("chain.yaml")
TIMED = OF_THE_MACHINE
ANIMALS = ("fox", "owl", "hare", "otter", "crow", "badger", "wren", "mole")
PLACES = ("river", "forest", "meadow", "harbour", "village", "mountain", "garden", "bridge")
COLOURS = ("red", "grey", "brown", "white", "black", "green")
MOODS = {
    "glad": ("bright", "warm", "merry", "lovely", "gentle"),
    "sad": ("cold", "lonely", "broken", "dark", "weary"),
    "angry": ("loud", "fierce", "bitter", "furious", "cruel"),
}
VERBS = ("sees", "follows", "remembers", "leaves", "crosses", "finds")


def load_script(name: str) -> ModuleType:
    """A program of `scripts/` as a module; as when it is run, it finds the modules beside it."""
    beside = str(ROOT / "scripts")
    if beside not in sys.path:
        sys.path.append(beside)
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def json_lines(path: Path, leave_out: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Rows of a JSONL file without some of their keys."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key not in leave_out} for row in rows]


def marks(directory: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of the last change of every file below a folder, but for the memory of files' digests."""
    stats = {path.relative_to(directory).as_posix(): path.stat() for path in sorted(directory.rglob("*"))}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items() if name not in ("", ".digests.json")}


def write_data(directory: Path) -> None:
    """Write all files below a folder."""
    draw = random.Random(5)
    notes = directory / "notes"
    notes.mkdir(parents=True)
    stories = [{"place": place, "text": _story(draw, place, number)} for number in range(15) for place in PLACES]
    # Once more, to be dropped.
    _write_rows(directory / "stories.jsonl", [*stories, stories[3], {"place": "nowhere", "text": "too short"}])
    for number in range(12):
        (notes / f"note-{number:02}.txt").write_text(_story(draw, "house", 100 + number) + "\n", encoding="utf-8")
    _write_rows(directory / "chats.jsonl", _chats(draw))
    _write_rows(directory / "preferences.jsonl", _preferences(draw))
    _write_rows(directory / "questions.jsonl", _questions(draw))
    with (directory / "moods.csv").open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["text", "label"])
        for number in range(60):
            mood = tuple(MOODS)[number % len(MOODS)]
            rows.writerow([f"The {draw.choice(ANIMALS)} had a {draw.choice(MOODS[mood])} day, number {number}.", mood])


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _sentence(draw: random.Random, place: str) -> str:
    first, second = draw.sample(ANIMALS, 2)
    return f"The {draw.choice(COLOURS)} {first} {draw.choice(VERBS)} a {second} near the {place}."


def _story(draw: random.Random, place: str, number: int) -> str:
    lines = [" ".join(_sentence(draw, place) for _ in range(2)) for _ in range(draw.randint(2, 5))]
    return f"Story {number} of the {place}\n\n" + "\n".join(lines)


def _chats(draw: random.Random) -> list[dict[str, Any]]:
    rows = []
    for animal in ANIMALS:
        for place in PLACES:
            colour = draw.choice(COLOURS)
            ask = {"role": "user", "content": f"Which colour has the {animal} of the {place}?"}
            rows.append({"messages": [ask, {"role": "assistant", "content": f"It is {colour}."}], "task": "colour"})
    more = [{"role": "user", "content": "And now?"}, {"role": "assistant", "content": "Still the same."}]
    rows[0]["messages"] = [{"role": "system", "content": "Be brief."}, *rows[0]["messages"], *more]
    return rows


def _preferences(draw: random.Random) -> list[dict[str, Any]]:
    rows = []
    for animal in ANIMALS:
        for place in PLACES:
            right, wrong = draw.sample(COLOURS, 2)
            prompt = f"Which colour has the {animal} of the {place}?"
            rows.append({"prompt": prompt, "chosen": f"It is {right}.", "rejected": f"{wrong} {wrong} {wrong}"})
    return rows


def _questions(draw: random.Random) -> list[dict[str, Any]]:
    return [
        {"prompt": f"The {animal} is", "choices": draw.sample(COLOURS, 3), "answer": draw.randrange(3)}
        for animal in ANIMALS
    ]
