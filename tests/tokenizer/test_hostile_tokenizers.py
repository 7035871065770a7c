"""Tokenizer files made to do harm, or broken by chance: an error in words, and the process lives on."""

from __future__ import annotations

import base64
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizer_samples import CHATML, with_template

from llmkit.errors import LLMKitError
from llmkit.tokenizer.tokenizer import Tokenizer

FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    with_template(CHATML).save(path)
    return path


def _use(directory: Path) -> None:
    tokenizer = Tokenizer.load(directory)
    tokenizer.decode(tokenizer.encode("Hello world <|im_end|> é"), False)
    tokenizer.encode_single("Hello", 8)
    if tokenizer.chat_template is not None:
        tokenizer.render_conversation([{"role": "user", "content": "Hello"}])


def _files(saved: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    definition = json.loads((saved / "tokenizer.json").read_text())
    return definition, json.loads((saved / "tokenizer_config.json").read_text())


def _write(directory: Path, definition: Any, config: Any) -> Path:
    directory.mkdir(exist_ok=True)
    for name, value in (("tokenizer.json", definition), ("tokenizer_config.json", config)):
        (directory / name).write_text(value if isinstance(value, str) else json.dumps(value))
    return directory


def _definitions(definition: dict[str, Any]) -> dict[str, Any]:
    """What `tokenizers` 0.23 aborts on, panics on, refuses only in use, or refuses itself."""
    model, added = definition["model"], definition["added_tokens"][0]
    words = {"unk_token": "nope", "vocab": model["vocab"], "merges": None}
    table = base64.b64encode(b"\xff\xff\xff\xff\x00\x00\x00\x00").decode()
    replace = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    changes: dict[str, dict[str, Any]] = {
        "an id of 2^31": {"model": {**model, "vocab": {**model["vocab"], "far": 2**31}}},
        "an added id of 2^31": {"added_tokens": [{**added, "id": 2**31}]},
        "a negative id": {"model": {**model, "vocab": {**model["vocab"], "far": -1}}},
        "many special tokens": {"added_tokens": [{**added, "content": f"<{i}>", "id": i} for i in range(20_001)]},
        "a normalizer that grows": {"normalizer": {"type": "Sequence", "normalizers": [replace] * 5}},
        "a long prefix": {"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}},
        "a table that lies": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": table}},
        "a table that is none": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        "pieces of no length": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
        "a broken pattern": {"pre_tokenizer": {**split, "pattern": {"Regex": "(("}}},
        "a deep pattern": {"pre_tokenizer": {**split, "pattern": {"Regex": "(" * 50_000 + ")" * 50_000}}},
        "words without unknown": {"model": {**words, "type": "WordLevel"}},
        "pieces without unknown": {
            "model": {**words, "type": "WordPiece", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9}
        },
        "no pieces": {"model": {"type": "Unigram", "vocab": [], "unk_id": None}},
        "a merge of nothing": {"model": {**model, "merges": [["q", "nothing"]]}},
        "a frame of unknown tokens": {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "nope", "type_id": 0}}],
                "pair": [],
                "special_tokens": {},
            }
        },
        "no model": {"model": None},
    }
    return {name: {**definition, **change} for name, change in changes.items()} | {
        "nothing": "",
        "a list": "[]",
        "depth": '{"a":' * 100_000,
        "a key twice": '{"model": null, ' + json.dumps(definition)[1:],
    }


def test_definitions_that_would_end_the_process(saved: Path, tmp_path: Path) -> None:
    """All in one process with 1 GB to spare, which must live to the end."""
    definition, config = _files(saved)
    found = _definitions(definition)
    for index, value in enumerate(found.values()):
        _write(tmp_path / str(index), value, config)
    script = (
        "import resource, sys; from pathlib import Path; import test_hostile_tokenizers as t\n"
        "t.limit(1 << 30)\n"
        "for index in range(int(sys.argv[2])):\n"
        "    try: t._use(Path(sys.argv[1]) / str(index)); print(index, 'was opened')\n"
        "    except t.LLMKitError as error: assert '.json: ' in str(error), (index, error)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(len(found))]
    here = Path(__file__).parent
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), (list(found), done.stdout, done.stderr[-2000:])


def limit(spare: int) -> None:
    """Let this process take no more than so many bytes besides those that it has."""
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + spare,) * 2)


@pytest.mark.parametrize("pattern", ["((a+)+)+$", "(((a*)*)*)*b", "(((a{1,1000}){1,1000}){1,1000}){1,1000}"])
def test_patterns_that_backtrack_end(pattern: str, saved: Path, tmp_path: Path) -> None:
    definition, config = _files(saved)
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    _write(tmp_path, {**definition, "pre_tokenizer": split}, config)
    try:
        Tokenizer.load(tmp_path).encode("a" * 30 + "c")
    except LLMKitError as error:
        assert "cannot encode this text" in str(error)


def test_many_special_tokens_are_opened(saved: Path, tmp_path: Path) -> None:
    """As many as Gemma 3 has."""
    definition, config = _files(saved)
    added, size = definition["added_tokens"], max(definition["model"]["vocab"].values()) + 1
    more = [{**added[0], "id": size + i, "content": f"<unused{i}>"} for i in range(6000)]
    _write(tmp_path, {**definition, "added_tokens": [*added, *more]}, config)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.decode([size + 17], False) == "<unused17>"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
KEYS = ["bos_token", "eos_token", "pad_token", "unk_token", "chat_template", "model_max_length", "x"]


@FUZZ
@given(key=st.sampled_from([*KEYS, None]), value=JSON)
def test_any_settings_are_used_or_refused(key: str | None, value: Any, saved: Path, tmp_path: Path) -> None:
    definition, config = _files(saved)
    _write(tmp_path / "t", definition, {**config, key: value} if key else value)
    try:
        _use(tmp_path / "t")
    except LLMKitError as error:
        assert str(error)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("chat_template", value) for value in (3, True, {"a": 1}, {"content": 3}, "\ud800")),
        *(("bos_token", value) for value in (3, True, [1], {"a": 1}, {"content": None}, "\ud800", "x" * 10**6)),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_settings_that_are_no_text(key: str, value: Any, saved: Path, tmp_path: Path) -> None:
    definition, config = _files(saved)
    _write(tmp_path, definition, {**config, key: value})
    with pytest.raises(LLMKitError, match=r"tokenizer_config.json: .*(is no|not allowed)"):
        Tokenizer.load(tmp_path)


@FUZZ
@given(data=st.data())
def test_files_with_bytes_lost_or_changed(data: st.DataObject, saved: Path, tmp_path: Path) -> None:
    directory = tmp_path / "t"
    directory.mkdir(exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((saved / name).read_bytes())
    path = directory / data.draw(st.sampled_from(["tokenizer.json", "tokenizer_config.json"]))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    new = data.draw(st.binary(max_size=4) | st.sampled_from([b"9999999", b"[", b"null", b'"']))
    content[place : place + data.draw(st.integers(0, 6))] = new
    path.write_bytes(content)
    try:
        _use(directory)
    except LLMKitError as error:
        assert str(error)
