"""Tokenizers from and to the metadata of GGUF files: ids as of the tokenizers that they were made from."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers
from gguf import GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from llmkit.errors import ModelError
from llmkit.store.gguf import read_gguf
from llmkit.tokenizer.gguf import tokenizer_of_gguf
from llmkit.tokenizer.gguf_write import gguf_of_tokenizer
from llmkit.tokenizer.tokenizer import Tokenizer
from llmkit.tokenizer.training import bpe_settings, train_bpe, train_wordpiece, wordpiece_settings

TEXTS = (
    "The quick brown fox jumps over the lazy dog. It's 12345.67 dollars, isn't it? I'LL SEE, you'Re right!",
    "def f(x):\n    return x**2  # squares\n\n\nclass A:\n\tpass\n\r\n",
    "   leading and trailing   \n \n  \t mixed\u00a0blanks \u2003 end ",
    "Grüße aus Köln — “naïve café”, 你好，世界! こんにちは 123 ١٢٣ ½ 🙂👩‍👩‍👧 ok",
    "हिन्दी में लिखा e\u0301te\u0301 ไทย עִבְרִית CamelCaseWords and XMLHttpRequest/paths//etc...\n/x",
    "0 00 000 0000 00000 1,000,000 3.14 v1.2.3-rc4 a1b2c3 ------======= ''''''```` \"\"\"",
    "",
    " ",
    "\n\n",
)
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def cut_by(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


ORIGINALS: dict[str, Any] = {
    # As in the tokenizer.json of GPT-2, SmolLM2, Llama 3, Qwen2 and gpt-oss.
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": cut_by(rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}"),
    "qwen2": cut_by(rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{REST}"),
    "gpt-4o": cut_by(CASED),
}


def original(name: str) -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = ORIGINALS[name]
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    return backend


def write(path: Path, metadata: Mapping[str, Any], architecture: str = "llama") -> Path:
    writer = GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add: Any = {
            str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, list: writer.add_array,
        }[type(value)]  # fmt: skip
        add(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def byte_level_metadata(backend: Backend, pre: str) -> dict[str, Any]:
    """As a converter writes it, from the parts of tokenizer.json."""
    model = json.loads(backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


@pytest.mark.parametrize("name", ORIGINALS)
def test_byte_level_ids_are_those_of_the_original(name: str, tmp_path: Path) -> None:
    backend = original(name)
    tokenizer = tokenizer_of_gguf(read_gguf(write(tmp_path / "t.gguf", byte_level_metadata(backend, name))))
    for text in TEXTS:
        # The published tokenizers of Qwen2 bring text into normal form C first.
        expected = backend.encode(text if name != "qwen2" else text.replace("e\u0301", "é"), add_special_tokens=False)
        assert tokenizer.encode(text) == expected.ids
        assert tokenizer.decode(tokenizer.encode(text)) == backend.decode(expected.ids)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.end_of_turn_id) == (0, 2, 2)
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.special_ids == {0, 1, 2}


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2"])
def test_byte_level_ids_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.gguf", byte_level_metadata(original(name), name))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    tokenizer = tokenizer_of_gguf(read_gguf(path))
    for text in TEXTS:
        if "e\u0301" not in text:  # which the reference leaves as it is
            assert tokenizer.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=40))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    backend = original("smollm")
    backend.add_special_tokens(SPECIAL)
    before = Tokenizer(backend, {"eos_token": SPECIAL[0], "pad_token": SPECIAL[2], "chat_template": TEMPLATE})
    folder = tmp_path_factory.mktemp("t")
    metadata = gguf_of_tokenizer(before, before.vocab_size + 3)
    after = tokenizer_of_gguf(read_gguf(write(folder / "t.gguf", metadata)))
    assert metadata["tokenizer.ggml.pre"] == "smollm"
    assert metadata["tokenizer.ggml.tokens"][-1] == f"[PAD{before.vocab_size + 2}]"
    assert after.encode(text) == before.encode(text)
    assert (after.eos_id, after.pad_id, after.bos_id) == (before.eos_id, before.pad_id, None)
    assert after.vocab_size == before.vocab_size + 3
    messages = [{"role": "user", "content": text}]
    assert after.render_conversation(messages) == before.render_conversation(messages)


def test_a_first_token_is_kept(tmp_path: Path) -> None:
    metadata = byte_level_metadata(original("llama-bpe"), "llama-bpe")
    del metadata["tokenizer.ggml.add_bos_token"]
    tokenizer = tokenizer_of_gguf(read_gguf(write(tmp_path / "t.gguf", metadata)))
    assert tokenizer.frame_ids == ([0], [])  # which the pre-tokenizer's name implies
    assert gguf_of_tokenizer(tokenizer, tokenizer.vocab_size)["tokenizer.ggml.add_bos_token"] is True
    metadata["tokenizer.ggml.add_eos_token"] = metadata["tokenizer.ggml.add_bos_token"] = True
    both = tokenizer_of_gguf(read_gguf(write(tmp_path / "t.gguf", metadata)))
    assert both.frame_ids == ([0], [2])


PIECES = {
    "▁": -1.0, "t": -2.0, "h": -3.0, "e": -4.0, "c": -5.0, "a": -6.0, "b": -7.0, "▁t": -10.0, "he": -9.0, "▁the": -20.0,
    "th": -11.0, "ca": -12.0, "ab": -13.0, "▁ca": -14.0, "cab": -15.0, "aa": -16.0, "aaa": -17.0, "▁▁": -18.0,
    "é": -21.0,
}  # fmt: skip


def sentencepiece_metadata() -> dict[str, Any]:
    special = ["<unk>", "<s>", "</s>"]
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = [*special, *letters, *PIECES]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * (3 + 256) + list(PIECES.values()),
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(PIECES),
    }


def sentencepiece_ids(text: str) -> list[int]:
    """BPE as SentencePiece does it: join the neighbours whose union scores best, the leftmost first, until none is."""
    ids = {token: index for index, token in enumerate(sentencepiece_metadata()["tokenizer.ggml.tokens"])}
    symbols = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        unions = [(PIECES.get(a + b), -place) for place, (a, b) in enumerate(itertools.pairwise(symbols))]
        best = max(((score, place) for score, place in unions if score is not None), default=None)
        if best is None:
            break
        place = -best[1]
        symbols[place : place + 2] = ["".join(symbols[place : place + 2])]
    fallback = [[ids[s]] if s in PIECES else [ids[f"<0x{byte:02X}>"] for byte in s.encode()] for s in symbols]
    return [index for part in fallback for index in part]


@settings(deadline=None, max_examples=200)
@given(st.text(alphabet="thecab é\n9", max_size=24))
def test_scores_give_the_ids_of_sentencepiece(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = write(tmp_path_factory.mktemp("t") / "t.gguf", sentencepiece_metadata())
    tokenizer = tokenizer_of_gguf(read_gguf(path))
    assert tokenizer.encode(text) == sentencepiece_ids(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (1, 2, 0)
    assert tokenizer.frame_ids == ([1], [])
    written = gguf_of_tokenizer(tokenizer, tokenizer.vocab_size)
    again = tokenizer_of_gguf(read_gguf(write(path, written)))
    assert written["tokenizer.ggml.model"] == "llama"
    assert written["tokenizer.ggml.token_type"] == sentencepiece_metadata()["tokenizer.ggml.token_type"]
    assert again.encode(text) == tokenizer.encode(text)


def test_no_space_before_a_text(tmp_path: Path) -> None:
    metadata = sentencepiece_metadata() | {"tokenizer.ggml.add_space_prefix": False}
    tokenizer = tokenizer_of_gguf(read_gguf(write(tmp_path / "t.gguf", metadata)))
    tokens = metadata["tokenizer.ggml.tokens"]
    assert [tokens[index] for index in tokenizer.encode("the cab")] == ["t", "he", "▁ca", "b"]
    assert gguf_of_tokenizer(tokenizer, tokenizer.vocab_size)["tokenizer.ggml.add_space_prefix"] is False


def test_merges_that_no_scores_give_are_not_written(tmp_path: Path) -> None:
    tokenizer = tokenizer_of_gguf(read_gguf(write(tmp_path / "t.gguf", sentencepiece_metadata())))
    definition = json.loads(json.dumps(tokenizer.definition))
    definition["model"]["merges"] = definition["model"]["merges"][1:]  # which SentencePiece would still join
    lacking = Tokenizer(Backend.from_str(json.dumps(definition)), {"bos_token": "<s>"})
    with pytest.raises(ModelError, match="do not follow from scores"):
        gguf_of_tokenizer(lacking, 500)


def test_wordpiece_ids_are_those_of_the_original(tmp_path: Path) -> None:
    backend = train_wordpiece(lambda: TEXTS * 3, vocab_size=300)
    before = Tokenizer(backend, wordpiece_settings())
    vocabulary = json.loads(backend.to_str())["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    metadata = {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": [
            token if token.startswith("[") and token.endswith("]")
            else token.removeprefix("##") if token.startswith("##") else f"▁{token}"
            for token in tokens
        ],
        "tokenizer.ggml.token_type": [3 if token.startswith("[") and len(token) > 1 else 1 for token in tokens],
        "tokenizer.ggml.unknown_token_id": before.unk_id,
        "tokenizer.ggml.cls_token_id": before.cls_id,
        "tokenizer.ggml.seperator_token_id": before.sep_id,
        "tokenizer.ggml.padding_token_id": before.pad_id,
        "tokenizer.ggml.mask_token_id": before.mask_id,
    }  # fmt: skip
    after = tokenizer_of_gguf(read_gguf(write(tmp_path / "t.gguf", metadata, "bert")))
    for text in TEXTS:
        assert after.encode(text) == before.encode(text)
        assert after.encode_single(text, 40) == before.encode_single(text, 40)
    with pytest.raises(ModelError, match="WordPiece"):
        gguf_of_tokenizer(before, 400)


@pytest.mark.parametrize(("digits", "name"), [(3, "smaug-bpe"), (1, "stablelm2")])
def test_the_cuts_of_llmkits_own_tokenizers_are_named_only_when_asked(digits: int, name: str, tmp_path: Path) -> None:
    texts = [text for text in TEXTS if "\u0301" not in text]
    own = Tokenizer(train_bpe(lambda: texts * 3, vocab_size=400, digits=digits), bpe_settings(TEMPLATE))
    with pytest.raises(ModelError, match="no pre-tokenizer that cuts every text"):
        gguf_of_tokenizer(own, 400)
    with pytest.raises(ModelError, match="'llama' is not known"):
        gguf_of_tokenizer(own, 400, "llama")
    read = tokenizer_of_gguf(read_gguf(write(tmp_path / "t.gguf", gguf_of_tokenizer(own, 400, name))))
    for text in texts:
        assert read.encode(text) == own.encode(text)
    assert read.special_ids == own.special_ids and read.end_of_turn_id == own.end_of_turn_id


def test_a_vocabulary_larger_than_the_model_is_refused() -> None:
    backend = original("gpt-2")
    with pytest.raises(ModelError, match="the model only 10"):
        gguf_of_tokenizer(Tokenizer(backend, {}), 10)


def test_more_around_a_text_than_two_tokens_is_refused() -> None:
    backend = original("gpt-2")
    backend.add_special_tokens(SPECIAL)
    backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> <|im_end|> $A", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    with pytest.raises(ModelError, match="more around a text"):
        gguf_of_tokenizer(Tokenizer(backend, {}), 600)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"tokenizer.ggml.model": "t5"}, "kind 't5'"),
        ({"tokenizer.ggml.pre": "quux"}, "'quux' is not known"),
        ({"tokenizer.ggml.pre": None}, "lacks tokenizer.ggml.pre"),
        ({"tokenizer.ggml.tokens": None}, "lacks tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "list of texts"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "'a' occurs twice"),
        ({"tokenizer.ggml.token_type": [1]}, "only 1 token types"),
        ({"tokenizer.ggml.merges": ["ab"]}, "'ab', which is no pair"),
        ({"tokenizer.ggml.merges": ["q zzz"]}, "do not fit together"),
        ({"tokenizer.ggml.merges": None}, "lacks tokenizer.ggml.merges"),
        ({"tokenizer.ggml.eos_token_id": 12345}, "eos_token_id is 12345"),
        ({"tokenizer.ggml.eos_token_id": "</s>"}, "must be of kind int"),
        ({"tokenizer.chat_template": 3}, "must be of kind str"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    metadata = byte_level_metadata(original("gpt-2"), "gpt-2") | change
    path = write(tmp_path / "t.gguf", {key: value for key, value in metadata.items() if value is not None})
    with pytest.raises(ModelError, match=problem):
        tokenizer_of_gguf(read_gguf(path))
