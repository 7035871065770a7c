"""`llmkit inspect` on a corpus, its tokens and examples: what is printed on 80 columns, in colours and for machines."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.text import Text
from typer.testing import CliRunner

from llmkit.cli.main import app
from llmkit.console import Marked, bar, emit_table
from llmkit.data.shards import TokenShards
from llmkit.store.documents import read_documents
from llmkit.tokenizer.tokenizer import Tokenizer

TEXTS = [f"the cat number {n} sat on the mat, and the hat number {n} was flat" for n in range(40)]
CHAT = [
    {"messages": [{"role": "user", "content": "the cat?"}, {"role": "assistant", "content": "the mat\nü"}]},
    {"messages": [{"role": "user", "content": "the hat?"}, {"role": "assistant", "content": "was flat"}]},
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a corpus, of whose sources one has a copy and a short text, its tokenizer and its tokens."""
    folder = tmp_path_factory.mktemp("inspect")
    rows = [*TEXTS, TEXTS[3], "short"]
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in rows))
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, CHAT)))
    alone = {"processes": 1}
    source = {"kind": "jsonl", "files": [str(folder / "a.jsonl")], "language": "en"}
    config = {
        "run": "small",
        "runs_dir": str(folder / "runs"),
        "stages": {
            "corpus": {
                "stage": "data", "sources": [source], "executor": alone, "splits": {"validation": 0.2, "test": 0},
            },
            "tokenizer": {"data": "corpus", "vocab_size": 300},
            "tokens": {"data": "corpus", "tokenizer": "tokenizer", "executor": alone},
        },
    }  # fmt: skip
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    assert CliRunner().invoke(app, ["run", "--config", str(folder / "c.yaml")]).exit_code == 0
    return folder


def inspect(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["inspect", *map(str, words)], env={"COLUMNS": "80"})
    assert result.exit_code == code
    return result.stdout


def tables(*words: object) -> dict[str, list[list[Any]]]:
    found = json.loads(inspect(*words, "--json"))
    return {table["title"] or table["columns"][0]: table["rows"] for table in found["tables"]}


def test_a_corpus_fits_80_columns(run: Path) -> None:
    shown = inspect(run / "runs/small/corpus")
    assert max(map(len, shown.splitlines()[8:])) <= 80
    assert " 32 to 63            10   ████████ " in shown
    assert " 64 to 127           30   ████████████████████████ " in shown
    assert "│" not in shown
    assert "\x1b" not in shown
    found = tables(run / "runs/small/corpus")
    assert found["Lengths"] == [["32 to 63", 10], ["64 to 127", 30]]
    ((step, dropped, stayed),) = found["Duplicates beside what stayed"]
    assert step == "exact_duplicates: 100% alike"
    assert (dropped, stayed) == (f"jsonl: a.jsonl:41\n{TEXTS[3]}", f"jsonl: a.jsonl:4\n{TEXTS[3]}")
    assert [row[0] for row in found["Samples of what was dropped"]] == ["duplicate", "too_short"]


def test_a_row_of_documents_is_text_and_tokens(run: Path) -> None:
    corpus, folder = run / "runs/small/corpus", run / "runs/small/tokenizer"
    document = list(read_documents(corpus, ["validation"]))[2]
    found = tables(corpus, "--row", 2, "--split", "validation")
    assert ["path", document.path] in found["Document"]
    assert found["Text"] == [["text", document.text]]
    found = tables(corpus, "--row", 2, "--split", "validation", "--tokenizer", folder)
    ids = Tokenizer.load(folder / "tokenizer").encode(document.text)
    assert found["Tokens"] == [["text", len(ids)]]
    pieces = found["text"][0][0].split("|")
    assert len(pieces) == len(ids)
    assert "".join(pieces) == document.text


def test_a_row_of_tokens_ends_with_the_end_of_the_text(run: Path) -> None:
    tokens = run / "runs/small/tokens"
    found = tables(tokens, "--row", 5)
    shards = TokenShards(tokens, "train")
    text = list(read_documents(run / "runs/small/corpus", ["train"]))[5].text
    assert found["Tokens"] == [["document", shards.document(5).size]]
    shown = found["document"][0][0]
    assert shown.endswith("|<|endoftext|>")
    assert shown.removesuffix("|<|endoftext|>").replace("|", "") == text
    assert "there is no row 900" in CliRunner().invoke(app, ["inspect", str(tokens), "--row", "900"]).stderr


def test_a_row_of_a_conversation_shows_the_mask(run: Path) -> None:
    chat, folder = run / "chat.jsonl", run / "runs/small/tokenizer"
    found = tables(chat, "--row", 0, "-t", folder)
    (shown,) = found["conversation"][0]
    asked, _, answered = shown.partition("|[[")
    assert asked.replace("|", "") == "<im_start>user\\n\nthe cat?<im_end>\\n\n<im_start>assistant\\n\n"
    assert f"[[{answered}" == "[[the]]|[[ mat]]|[[\\n\n]]|[[ü]]|[[<|im_end|>]]|\\n\n"
    tokenizer = Tokenizer.load(folder / "tokenizer")
    learned = [*tokenizer.encode("the mat\nü"), tokenizer.end_of_turn_id]
    ids, _ = tokenizer.render_conversation(CHAT[0]["messages"])
    assert found["Tokens"] == [["conversation", len(ids), len(learned)]]
    assert tables(chat, "--row", 1)["Text"] == [["user", "the hat?"], ["assistant", "was flat"]]


def test_a_row_of_preferences_shows_the_mask_of_both_answers(run: Path, tmp_path: Path) -> None:
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": said, "chosen": "the mat", "rejected": "the hat"}))
    found = tables(tmp_path / "p.jsonl", "--row", 0, "-t", run / "runs/small/tokenizer")
    for name, answer in (("chosen", "[[the]]|[[ mat]]"), ("rejected", "[[the]]|[[ hat]]")):
        (shown,) = found[name][0]
        # What the assistant said before is not learned.
        assert shown.index("[[") == shown.index(answer)
        assert shown[shown.index("[[") :] == f"{answer}|[[<|im_end|>]]|\\n\n"


def test_what_has_no_rows_is_refused(run: Path) -> None:
    def error(*words: object) -> str:
        result = CliRunner().invoke(app, ["inspect", *map(str, words)])
        assert result.exit_code == 2
        return result.stderr

    assert "there are no rows here" in error(run / "runs/small", "--row", 0)
    assert "there are no rows here" in error(run / "runs/small/tokenizer", "--row", 0)
    assert "there is no split `dev`" in error(run / "runs/small/corpus", "--row", 0, "--split", "dev")
    assert "there is no row 0 in the split `test`; it is empty" in error(
        run / "runs/small/corpus", "--row", 0, "--split", "test"
    )
    assert "no such file" in error(run / "nothing", "--row", 0)
    assert "--row" in error(run / "chat.jsonl", "--row", -1)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_marks_are_colours_on_a_terminal_and_signs_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Marked((("a", "token"), ("b", "learned"), ("c", "learned")), between="|")
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    emit_table(["tokens"], [[cell]])
    line = terminal.getvalue().splitlines()[-2]
    assert Text.from_ansi(line).plain.strip() == "abc"
    assert len(set(re.findall(r"48;5;[0-9]+", line))) == 3
    file = io.StringIO()
    monkeypatch.setattr(sys, "stdout", file)
    emit_table(["tokens"], [[cell]])
    assert file.getvalue().splitlines()[-2].strip() == "a|[[b]]|[[c]]"
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    emit_table(["tokens"], [[cell]])
    assert Text.from_ansi(terminal.getvalue().splitlines()[-2]).plain.strip() == "a|[[b]]|[[c]]"


def test_bars_are_as_long_as_their_share() -> None:
    assert bar(10, 10) == "█" * 24
    assert bar(5, 10) == "█" * 12
    assert bar(1, 10**9) == "▏"
    assert bar(0, 10) == bar(0, 0) == ""
