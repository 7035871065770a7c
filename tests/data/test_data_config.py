from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from llmkit.config.base import Facts, Input
from llmkit.data.config import DataConfig
from llmkit.data.tokens_config import TokensConfig


def parse(*sources: dict[str, Any], **other: Any) -> DataConfig:
    return DataConfig.model_validate({"sources": list(sources), **other})


def test_settings_load_without_the_libraries_that_do_the_work() -> None:
    heavy = "torch numpy pyarrow datasets transformers tokenizers"
    code = "import sys, llmkit.data.config, llmkit.data.tokens_config; "
    code += f"print([name for name in '{heavy}'.split() if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_files_and_local_datasets_are_inputs() -> None:
    config = parse(
        {"kind": "python-docs"},
        {"kind": "text", "files": ["a.txt", "b/*.txt"]},
        {"kind": "dataset", "dataset": "./folder"},
        {"kind": "dataset", "dataset": "owner/name", "name": "hub"},
    )
    assert config.inputs() == [
        Input("sources.1.files.0", "a.txt", ("file",)),
        Input("sources.1.files.1", "b/*.txt", ("file",)),
        Input("sources.2.dataset", "./folder", ("file",)),
    ]


def test_facts_name_the_splits_that_get_documents() -> None:
    assert parse({"kind": "python-docs"}).facts({}).get("splits") == ["train", "validation", "test"]
    some = parse({"kind": "python-docs"}, splits={"validation": 0.1, "test": 0.0})
    assert some.facts({}) == Facts("documents", {"splits": ["train", "validation"]})


def test_the_python_that_is_read_belongs_to_the_result() -> None:
    version = ".".join(map(str, sys.version_info[:3]))
    assert parse({"kind": "python-docs"}).environment()["python"] == version
    assert parse({"kind": "text", "files": ["a"]}).environment() == {}


def test_sources_of_one_name_are_refused() -> None:
    config = parse({"kind": "text", "files": ["a"]}, {"kind": "text", "files": ["b"]})
    (finding,) = config.check({})
    assert finding.key == "sources.1"
    assert "both called `text`" in finding.message
    named = parse({"kind": "text", "files": ["a"]}, {"kind": "text", "files": ["b"], "name": "other"})
    assert list(named.check({})) == []


def test_a_dataset_that_may_change_is_worth_a_warning() -> None:
    (finding,) = parse({"kind": "dataset", "dataset": "owner/name"}).check({})
    assert (finding.severity, finding.key) == ("warning", "sources.0.dataset")
    assert list(parse({"kind": "dataset", "dataset": "owner/name", "revision": "1a2b"}).check({})) == []


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"kind": "docx", "files": ["a"]}, "does not match any of the expected tags"),
        ({"kind": "text"}, "Field required"),
        ({"kind": "text", "files": []}, "at least 1 item"),
        ({"kind": "text", "files": "a.txt"}, "valid list"),
        ({"kind": "jsonl", "files": ["a"], "encoding": "utf-9"}, "no text encoding"),
        ({"kind": "jsonl", "files": ["a"], "encoding": "hex"}, "no text encoding"),
        ({"kind": "csv", "files": ["a"], "delimiter": "::"}, "at most 1 character"),
        ({"kind": "python-docs", "parts": ["tests"]}, "'reference', 'docstrings' or 'source'"),
        ({"kind": "python-docs", "limit": 0}, "greater than or equal to 1"),
    ],
)
def test_impossible_sources_are_refused(source: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        parse(source)


def test_lengths_in_the_wrong_order_are_refused() -> None:
    limits = {"length": {"min_characters": 10, "max_characters": 5}}
    with pytest.raises(ValidationError, match="every document would go"):
        parse({"kind": "python-docs"}, cleaning=limits)


def test_tokens_take_their_facts_from_documents_and_tokenizer() -> None:
    config = TokensConfig(data="corpus", tokenizer="bpe")
    given = {
        "data": Facts("documents", {"splits": ["train"]}),
        "tokenizer": Facts("tokenizer", {"vocab_size": 300, "mask_token": False, "algorithm": "bpe"}),
    }
    assert config.facts(given) == Facts("tokens", {"vocab_size": 300, "mask_token": False, "splits": ["train"]})
    assert config.facts({"data": Facts("unknown"), "tokenizer": Facts("unknown")}) == Facts("tokens", {})
    assert [needed.key for needed in config.inputs()] == ["data", "tokenizer"]
