"""Tokenization in tasks: the same shards whoever does them, and after being killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_tokens_stage import BYTES, byte_tokenizer

from llmkit.config.base import Facts
from llmkit.data import tokens_stage
from llmkit.data.execution.cache import Cache
from llmkit.data.shards import ShardWriter, TokenShards
from llmkit.data.tokenization import plan_tasks
from llmkit.data.tokens_config import TokensConfig
from llmkit.errors import DataError
from llmkit.store.documents import Document, document_id, write_documents
from llmkit.store.stage import Context, ResolvedInput


def texts(count: int) -> list[str]:
    generator = np.random.default_rng(3)
    return ["abc é\n"[: generator.integers(7)] * int(generator.integers(1, 40)) for _ in range(count)]


def make_corpus(folder: Path, count: int = 60, group: int = 5) -> list[str]:
    """Documents of two sources by turns, in files of 25 rows and row groups of a few."""
    written = texts(count)
    documents = [
        Document(document_id(text), text, "ab"[number % 2], f"p{number}", split="test" if number % 20 == 0 else "train")
        for number, text in enumerate(written)
    ]
    write_documents(folder, documents, rows_per_file=25)
    for file in folder.glob("documents/*.parquet"):
        pq.write_table(pq.read_table(file), file, row_group_size=group)
    return written


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkit.data.tokenization.TASK_BYTES", 300)
    monkeypatch.setattr("llmkit.data.tokenization._BATCH_BYTES", 100)


def make_context(folder: Path, name: str) -> Context:
    byte_tokenizer().save(folder / "bpe/tokenizer")
    (folder / name).mkdir(parents=True)
    inputs = {
        "data": ResolvedInput("data", "corpus", folder / "corpus", "", Facts("documents")),
        "tokenizer": ResolvedInput("tokenizer", "bpe", folder / "bpe", "", Facts("tokenizer")),
    }
    return Context(name, 1, folder / name, inputs)


def run(folder: Path, name: str, **settings: object) -> dict[str, bytes]:
    context = make_context(folder, name)
    config = TokensConfig.model_validate({"data": "corpus", "tokenizer": "bpe", "shard_tokens": 500, **settings})
    tokens_stage.run(config, context)
    return {
        path.relative_to(context.directory).as_posix(): path.read_bytes() for path in context.directory.rglob("*.*")
    }


def expected_shards(folder: Path, written: list[str], split: str) -> dict[str, bytes]:
    """What one writer makes of the documents, a token for each byte."""
    tokenizer = byte_tokenizer()
    number = {byte: index for index, byte in enumerate(BYTES, 1)}
    alphabet = dict(zip(range(256), byte_characters(), strict=True))
    with ShardWriter(folder / "expected" / split, tokens_stage.describe(tokenizer), 0, 500) as writer:
        for index, text in enumerate(written):
            if (index % 20 == 0) == (split == "test"):
                writer.write([number[alphabet[byte]] for byte in text.encode()], len(text.encode()))
    return {f"{split}/{path.name}": path.read_bytes() for path in (folder / "expected" / split).iterdir()}


def byte_characters() -> list[str]:
    """GPT-2's character for each byte: itself where it can be seen, and the next free one otherwise."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in seen else chr(next(others)) for byte in range(256)]


@pytest.mark.usefixtures("small_tasks")
@pytest.mark.parametrize("group", [1, 5, 1000])
def test_tasks_join_to_what_one_writer_makes(tmp_path: Path, group: int) -> None:
    written = make_corpus(tmp_path / "corpus", group=group)
    (file, *_) = sorted((tmp_path / "corpus/documents").glob("train-*"))
    assert len(plan_tasks(file, "", tmp_path, "", None)) > 3
    made = run(tmp_path, "tokens")
    expected = expected_shards(tmp_path, written, "train") | expected_shards(tmp_path, written, "test")
    assert {name: data for name, data in made.items() if name[:4] in ("trai", "test")} == expected
    assert len(expected) > 9
    # What the tasks made is not kept.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bpe", "corpus", "expected", "tokens"]


@pytest.mark.usefixtures("small_tasks")
def test_processes_do_not_matter_to_shards(tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus")
    one = run(tmp_path, "one", executor={"processes": 1})
    assert run(tmp_path, "two", executor={"processes": 2}) == one


@pytest.mark.usefixtures("small_tasks")
def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_corpus(tmp_path / "corpus")
    work = {"folder": str(tmp_path / "work"), "keep": True}
    first = run(tmp_path, "first", work=work)
    done = []
    make = Cache.make

    def counted(cache: Cache, task):  # type: ignore[no-untyped-def]
        done.extend([task.key] if cache.get(task.key) is None else [])
        return make(cache, task)

    monkeypatch.setattr(Cache, "make", counted)
    assert run(tmp_path, "again", work=work) == first
    assert done == []
    other = run(tmp_path, "other", work=work, shard_tokens=700)
    assert done == []
    assert other["train/00000.bin"][:800] == first["train/00000.bin"][:800]
    # A file of documents that is other than before is done anew, and no other.
    (changed, *_) = sorted((tmp_path / "corpus/documents").glob("train-*"))
    pq.write_table(pq.read_table(changed).slice(1), changed, row_group_size=5)
    run(tmp_path, "changed", work=work)
    tasks = plan_tasks(changed, "", tmp_path, "", None)
    assert len(done) == len(tasks)


def test_one_source_of_several(tmp_path: Path) -> None:
    written = make_corpus(tmp_path / "corpus")
    run(tmp_path, "tokens", sources=["b"])
    shards = TokenShards(tmp_path / "tokens", "train")
    sizes = [len(text.encode()) + 1 for text in written[1::2]]
    assert [shards.document(index).size for index in range(shards.documents)] == sizes
    # The documents held out are all of the other source.
    assert not (tmp_path / "tokens/test").exists()
    with pytest.raises(DataError, match=r"sources.1: no document comes from the source `c`. Sources: a, b."):
        run(tmp_path, "wrong", sources=["a", "c"])


@pytest.mark.usefixtures("small_tasks")
def test_several_tokenizers_of_one_corpus_agree_on_documents(tmp_path: Path) -> None:
    """Row k of one set of shards is row k of the other."""
    written = make_corpus(tmp_path / "corpus")
    run(tmp_path, "bytes")
    from test_tokens_stage import word_tokenizer

    context = make_context(tmp_path, "words")
    word_tokenizer().save(tmp_path / "bpe/tokenizer")
    tokens_stage.run(TokensConfig(data="corpus", tokenizer="bpe"), context)
    ours, theirs = TokenShards(tmp_path / "bytes", "train"), TokenShards(tmp_path / "words", "train")
    train = [text for number, text in enumerate(written) if number % 20]
    assert ours.documents == theirs.documents == len(train)
    assert [theirs.document(k).size for k in range(len(train))] == [len(text.split()) for text in train]


@pytest.mark.usefixtures("small_tasks")
def test_a_text_that_cannot_be_encoded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = make_corpus(tmp_path / "corpus")

    def refuse(self: object, text: str) -> list[int]:
        if text == written[7]:
            raise DataError("the tokenizer cannot encode this text.")
        return [1]

    monkeypatch.setattr("llmkit.tokenizer.tokenizer.Tokenizer.encode", refuse)
    monkeypatch.setattr(
        "llmkit.tokenizer.tokenizer.Tokenizer.encode_batch", lambda self, texts: [refuse(self, text) for text in texts]
    )
    with pytest.raises(DataError, match=f"document {document_id(written[7])}: the tokenizer cannot encode"):
        run(tmp_path, "tokens")


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
import llmkit.data.tokenization as tokenization
tokenization.TASK_BYTES = 300
from test_tokenization import make_context
from llmkit.data import tokens_stage
from llmkit.data.tokens_config import TokensConfig
from llmkit.store.stage import Context
context = make_context(Path({folder!r}), "killed") if not Path({folder!r}, "killed").exists() else None
context = context or Context("killed", 1, Path({folder!r}, "killed"), make_context(Path({folder!r}), "again").inputs)
settings = {{"data": "corpus", "tokenizer": "bpe", "shard_tokens": 500, "executor": {{"processes": 2}}}}
tokens_stage.run(TokensConfig.model_validate(settings), context)
"""


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    make_corpus(tmp_path / "corpus", 400)
    script = SCRIPT.format(path=[str(Path(__file__).parent)], folder=str(tmp_path))
    work = tmp_path / ".killed.work"
    process = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    while process.poll() is None and len(list(work.glob("results/*/*"))) < 5:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert work.exists()
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=True)
    killed = tmp_path / "killed"
    found = {path.relative_to(killed).as_posix(): path.read_bytes() for path in killed.rglob("*.*")}
    assert found == run(tmp_path, "whole")
    assert not list(work.glob("results/*/*"))
