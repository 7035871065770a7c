from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from llmkit.config.base import Facts
from llmkit.data import tokens_stage
from llmkit.data.inspect import summarize_documents, summarize_tokens
from llmkit.data.shards import TokenShards
from llmkit.data.tokens_config import TokensConfig
from llmkit.store.documents import Document, document_id, write_documents
from llmkit.store.stage import Context, Outcome, ResolvedInput
from llmkit.tokenizer.tokenizer import Tokenizer

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
TEXTS = {"train": ["abc", "☃ and <|end|>", "x" * 50], "validation": ["held out"], "test": []}


def byte_tokenizer() -> Tokenizer:
    """A token for each byte, after one special token."""
    backend = Backend(models.BPE({"<|end|>": 0, **{byte: n for n, byte in enumerate(BYTES, 1)}}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|end|>", special=True)])
    return Tokenizer(backend, {"eos_token": "<|end|>"})


def word_tokenizer() -> Tokenizer:
    """Whole words and the special tokens of BERT."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "held", "out", "abc"]
    backend = Backend(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(words[:5])
    roles = {f"{word[1:-1].lower()}_token": word for word in words[:5]}
    return Tokenizer(backend, roles)


def make_context(tmp_path: Path, tokenizer: Tokenizer) -> Context:
    documents = [
        Document(document_id(text), text, "s", f"p{number}", split=split)  # type: ignore[arg-type]
        for split, texts in TEXTS.items()
        for number, text in enumerate(texts)
    ]
    write_documents(tmp_path / "corpus", documents)
    tokenizer.save(tmp_path / "bpe/tokenizer")
    inputs = {
        "data": ResolvedInput("data", "corpus", tmp_path / "corpus", "", Facts("documents")),
        "tokenizer": ResolvedInput("tokenizer", "bpe", tmp_path / "bpe", "", Facts("tokenizer")),
    }
    (tmp_path / "tokens").mkdir()
    return Context("tokens", 1, tmp_path / "tokens", inputs)


def run(context: Context, **settings: int) -> Outcome:
    config = TokensConfig.model_validate({"data": "corpus", "tokenizer": "bpe", **settings})
    assert tokens_stage.check(config, context) == []
    return tokens_stage.run(config, context)


def test_each_document_is_followed_by_the_end_of_text(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    outcome = run(make_context(tmp_path, tokenizer))
    shards = TokenShards(tmp_path / "tokens", "train", tokenizer.digest)
    stream = shards.read(0, shards.tokens).tolist()
    # One token for each byte; the text of a special token in a document is text.
    expected: list[int] = []
    for text in TEXTS["train"]:
        expected += [len(text.encode()), 0]
    ends = [index for index, token in enumerate(stream) if token == 0]
    assert [end - start - 1 for start, end in zip([-1, *ends], ends, strict=False)] == expected[::2]
    assert tokenizer.decode(stream[:3]) == "abc"
    sizes = [len(text.encode()) for text in TEXTS["train"]]
    assert (shards.documents, shards.tokens, shards.text_bytes) == (3, sum(sizes) + 3, sum(sizes))
    assert shards.separator == 0
    assert outcome.facts == Facts(
        "tokens", {"vocab_size": 257, "splits": ["train", "validation"], "mask_token": False, "chat_template": False}
    )
    assert outcome.summary["tokens"] == sum(sizes) + 3 + 9
    assert sorted(path.name for path in (tmp_path / "tokens").iterdir()) == [
        "report.json", "tokenizer", "train", "validation",
    ]  # fmt: skip
    assert Tokenizer.load(tmp_path / "tokens/tokenizer").digest == tokenizer.digest
    report = json.loads((tmp_path / "tokens/report.json").read_text())
    assert report["splits"]["validation"] == {
        "documents": 1, "tokens": 9, "text_bytes": 8, "bytes_per_token": round(8 / 9, 4),
    }  # fmt: skip
    assert report["sources"]["train"]["s"] == report["splits"]["train"]


def test_without_an_end_of_text_documents_follow_each_other(tmp_path: Path) -> None:
    outcome = run(make_context(tmp_path, word_tokenizer()))
    shards = TokenShards(tmp_path / "tokens", "validation")
    assert shards.read(0, 9).tolist() == [5, 6]
    assert shards.separator is None
    assert (shards.tokenizer["cls_id"], shards.tokenizer["sep_id"], shards.tokenizer["pad_id"]) == (2, 3, 0)
    assert shards.tokenizer["special_ids"] == [0, 1, 2, 3, 4]
    assert outcome.facts.get("mask_token") is True


def test_what_an_interrupted_attempt_left_does_no_harm(tmp_path: Path) -> None:
    context = make_context(tmp_path, byte_tokenizer())
    for name in ("train/00000.bin", "train/00009.idx", "test/00000.bin"):
        (context.directory / name).parent.mkdir(exist_ok=True)
        (context.directory / name).write_bytes(b"half")
    run(context, shard_tokens=10)
    files = sorted(path.relative_to(context.directory).as_posix() for path in context.directory.glob("t*/*"))
    assert files == [
        "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "train/00000.bin", "train/00000.idx",
        "train/00001.bin", "train/00001.idx", "train/index.json",
    ]  # fmt: skip


def test_the_same_documents_give_the_same_bytes(tmp_path: Path) -> None:
    contexts = [make_context(tmp_path / name, byte_tokenizer()) for name in ("one", "two")]
    one, two = (
        {path.relative_to(context.directory): path.read_bytes() for path in context.directory.rglob("*.*")}
        for context in contexts
        if run(context)
    )
    assert one == two


def test_what_cannot_work_is_found_before(tmp_path: Path) -> None:
    config = TokensConfig(data="corpus", tokenizer="bpe")
    assert tokens_stage.check(config, Context("tokens", 1, tmp_path)) == []
    backend = Backend(models.WordLevel({"a": 0}, unk_token="a"))
    context = make_context(tmp_path, Tokenizer(backend, {}))
    for file in (tmp_path / "corpus/documents").glob("train-*"):
        file.unlink()
    found = tokens_stage.check(config, context)
    assert [finding.key for finding in found] == ["data", "tokenizer"]


def test_tokens_can_be_looked_at(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    run(make_context(tmp_path, tokenizer))
    counts, shown = summarize_tokens(tmp_path / "tokens", lambda ids: tokenizer.decode(ids, skip_special=False))
    assert counts.columns == ["split", "documents", "tokens", "bytes of text", "bytes per token", "shards"]
    assert counts.rows[1] == ["validation", 1, 9, 8, pytest.approx(8 / 9), 1]
    assert [*shown.rows[0][:3], str(shown.rows[0][3])] == ["train", 0, 4, "a|b|c|<|end|>"]
    assert len(shown.rows) == 4
    documents = summarize_documents(tmp_path / "corpus")
    assert [table.title for table in documents] == ["Documents", "Samples"]
    assert documents[0].rows == [["s", 3, 1, 0, 4]]
