"""The stage from documents to files, its report, and what its settings refuse."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from pydantic import ValidationError
from tokenizer_samples import CHATML, TEXTS

from llmkit.config.base import Facts
from llmkit.errors import DataError
from llmkit.store.documents import Document, document_id, write_documents
from llmkit.store.stage import Context, ResolvedInput
from llmkit.tokenizer.config import TokenizerConfig
from llmkit.tokenizer.sampling import source_shares
from llmkit.tokenizer.stage import check, run
from llmkit.tokenizer.tokenizer import Tokenizer
from llmkit.tokenizer.training import train_bpe, train_unigram, train_wordpiece


@pytest.fixture
def context(tmp_path):
    def documents():
        for index, text in enumerate(TEXTS):
            split = "validation" if index % 5 == 0 else "train"
            yield Document(document_id(text), text, "code" if index % 2 else "prose", f"{index}", split=split)
        yield Document("0", "zzzz zzzz zzzz zzzz qqqq", "code", "held out", split="test")

    write_documents(tmp_path / "corpus", documents())
    data = ResolvedInput("data", "corpus", tmp_path / "corpus", "0", Facts("documents"))
    return Context("tokenizer", 1, tmp_path / "out", {"data": data}, "a.yaml:1: stages.tokenizer")


def settings(**values) -> TokenizerConfig:
    return TokenizerConfig.model_validate({"data": "corpus", "vocab_size": 400, **values})


def make(config, context):
    context.directory.mkdir(exist_ok=True)
    assert check(config, context) == []
    return run(config, context)


def test_a_tokenizer_is_made_with_its_facts_and_report(context):
    outcome = make(settings(special_tokens=["<|call|>"]), context)
    tokenizer = Tokenizer.load(context.directory / "tokenizer")
    assert outcome.facts == Facts(
        "tokenizer", {"vocab_size": 400, "algorithm": "bpe", "chat_template": True, "mask_token": False}
    )
    assert outcome.facts == settings().facts({})
    assert tokenizer.vocab_size == 400
    assert tokenizer.chat_template == CHATML
    report = json.loads((context.directory / "report.json").read_text())
    assert report["special_tokens"] == {
        "<|endoftext|>": 0, "<|pad|>": 1, "<|im_start|>": 2, "<|im_end|>": 3, "<|call|>": 4,
    }  # fmt: skip
    held_out = TEXTS[::5]
    tokens = sum(len(tokenizer.encode(text)) for text in held_out)
    size = sum(len(text.encode()) for text in held_out)
    assert report["compression"]["split"] == "validation"
    assert report["compression"]["all"] == {
        "documents": len(held_out), "bytes": size, "tokens": tokens, "unknown": 0, "bytes_per_token": size / tokens,
    }  # fmt: skip
    assert sum(row["bytes"] for row in report["compression"]["sources"].values()) == size
    assert set(report["compression"]["sources"]) == {"code", "prose"}
    assert outcome.summary["bytes_per_token"] == size / tokens


def test_the_held_out_parts_are_not_learnt_from(context):
    make(settings(vocab_size=3000), context)
    assert len(Tokenizer.load(context.directory / "tokenizer").encode("zzzz")) == 4


def test_a_small_corpus_gives_the_size_it_has(context):
    outcome = make(settings(vocab_size=50_000), context)
    size = Tokenizer.load(context.directory / "tokenizer").vocab_size
    assert 400 < size < 50_000
    assert outcome.facts.get("vocab_size") == size


def test_wordpiece(context):
    outcome = make(settings(algorithm="wordpiece", lowercase=False), context)
    tokenizer = Tokenizer.load(context.directory / "tokenizer")
    expected = {"vocab_size": 400, "algorithm": "wordpiece", "chat_template": False, "mask_token": True}
    assert outcome.facts == Facts("tokenizer", expected)
    ids = [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id]
    assert ids == [0, 1, 2, 3, 4]
    assert tokenizer.decode(tokenizer.encode("Text wrapping")) == "Text wrapping"
    assert tokenizer.encode("☃") == [tokenizer.unk_id]


def test_bytes_for_masked_models(context):
    outcome = make(settings(masked=True, special_tokens=["<call>"]), context)
    tokenizer = Tokenizer.load(context.directory / "tokenizer")
    expected = {"vocab_size": 400, "algorithm": "bpe", "chat_template": False, "mask_token": True}
    assert outcome.facts == Facts("tokenizer", expected) == settings(masked=True).facts({})
    names = ("cls", "bos", "pad", "sep", "eos", "mask")
    assert [getattr(tokenizer, f"{name}_id") for name in names] == [0, 0, 1, 2, 2, 3]
    assert (tokenizer.special_ids, tokenizer.chat_template) == ({0, 1, 2, 3, 4}, None)
    theirs = transformers.AutoTokenizer.from_pretrained(context.directory / "tokenizer")
    text = "Text wrapping, ☃ and <mask>"
    framed = tokenizer.encode_single(text.replace("<mask>", "more"), 100)
    assert framed == theirs(text.replace("<mask>", "more"))["input_ids"]
    assert (framed[0], framed[-1], theirs.mask_token_id) == (0, 2, 3)
    assert theirs("a", "b")["input_ids"] == [0, *tokenizer.encode("a"), 2, 2, *tokenizer.encode("b"), 2]
    # What a text says is text: its own <mask> hides nothing.
    assert tokenizer.mask_id not in tokenizer.encode_single(text, 100)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_part_of_the_corpus(context):
    make(settings(max_bytes=6000), context)
    first = (context.directory / "tokenizer" / "tokenizer.json").read_bytes()
    report = json.loads((context.directory / "report.json").read_text())
    assert 2000 < report["training"]["bytes"] < 12_000
    make(settings(max_bytes=6000), context)
    assert (context.directory / "tokenizer" / "tokenizer.json").read_bytes() == first
    make(settings(max_bytes=None), context)
    assert (context.directory / "tokenizer" / "tokenizer.json").read_bytes() != first
    with pytest.raises(DataError, match=r"stages\.tokenizer\.max_bytes: no text is left to learn from\. Raise it"):
        run(settings(max_bytes=1), context)


def test_unigram_loses_nothing(context):
    outcome = make(settings(algorithm="unigram", vocab_size=500, special_tokens=["<|call|>"]), context)
    tokenizer = Tokenizer.load(context.directory / "tokenizer")
    expected = {"vocab_size": 500, "algorithm": "unigram", "chat_template": True, "mask_token": False}
    assert outcome.facts == Facts("tokenizer", expected)
    assert (tokenizer.algorithm, tokenizer.vocab_size, tokenizer.special_ids) == ("unigram", 500, {0, 1, 2, 3, 4})
    text = "Text wrapping 12345 ☃ \x00 <|endoftext|>\n\n\tдобрый 你好"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert sum(tokenizer.token_bytes(token) for token in ids) == len(text.encode())
    assert not tokenizer.special_ids & set(ids)
    ids, mask = tokenizer.render_conversation([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    assert [tokenizer.decode([token], skip_special=False) for token, said in zip(ids, mask, strict=True) if said] == [
        "b", "<|im_end|>",
    ]  # fmt: skip
    theirs = transformers.AutoTokenizer.from_pretrained(context.directory / "tokenizer")
    assert theirs("Text wrapping")["input_ids"] == tokenizer.encode("Text wrapping")


def test_unigram_segments_as_its_likelihoods_say():
    """The best of all ways to cut a word, found by trying every one."""
    backend = train_unigram(lambda: TEXTS, vocab_size=500)
    scores = dict(json.loads(backend.to_str())["model"]["vocab"])

    def best(word: str) -> float:
        ways = [0.0] + [-1e9] * len(word)
        for end in range(1, len(word) + 1):
            ways[end] = max(ways[start] + scores.get(word[start:end], -1e9) for start in range(end))
        return ways[-1]

    for word in ("wrapping", "paragraphs", "Ġindentation", "xyzzy"):
        pieces = [piece.value for piece in backend.model.tokenize(word)]
        assert "".join(pieces) == word
        assert sum(scores[piece] for piece in pieces) == pytest.approx(best(word), abs=1e-4)


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_blanks_are_single_where_that_is_asked(context, algorithm):
    longest = {}
    for rule in ("single", "runs"):
        make(settings(algorithm=algorithm, whitespace=rule, vocab_size=500), context)
        tokenizer = Tokenizer.load(context.directory / "tokenizer")
        pieces = [tokenizer.decode([token]) for token in tokenizer.encode("        return x;\n\n\n    y")]
        assert "".join(pieces) == "        return x;\n\n\n    y"
        longest[rule] = max(sum(character.isspace() for character in piece) for piece in pieces)
    assert longest["single"] == 1
    assert longest["runs"] > 2


@pytest.mark.parametrize(
    ("sizes", "weights", "limit", "expected"),
    [
        ({"a": 100, "b": 300}, None, None, {"a": 1, "b": 1}),
        ({"a": 100, "b": 300}, None, 100, {"a": 0.25, "b": 0.25}),
        ({"a": 100, "b": 300}, {"a": 1, "b": 1}, 100, {"a": 0.5, "b": 1 / 6}),
        ({"a": 100, "b": 300}, {"a": 1, "b": 1}, None, {"a": 1, "b": 1 / 3}),
        ({"a": 100, "b": 300, "c": 50}, {"a": 3, "b": 1}, 200, {"a": 1, "b": 1 / 3, "c": 0}),
        ({"a": 100, "b": 300}, {"a": 1, "b": 1}, 1000, {"a": 1, "b": 1}),
        ({"a": 10, "b": 40, "c": 1000}, {"a": 1, "b": 1, "c": 1}, 150, {"a": 1, "b": 1, "c": 0.1}),
    ],
)
def test_shares_of_sources(sizes, weights, limit, expected):
    assert source_shares(sizes, weights, limit) == pytest.approx(expected)


def test_sources_are_sampled_by_weight(context):
    make(settings(sources={"code": 1}), context)
    report = json.loads((context.directory / "report.json").read_text())
    train = [(number, text) for number, text in enumerate(TEXTS) if number % 5]
    sizes = {name: sum(len(t.encode()) for n, t in train if n % 2 == odd) for name, odd in (("code", 1), ("prose", 0))}
    assert report["training"]["bytes"] == sizes["code"]
    assert report["training"]["sources"] == {"code": 1.0, "prose": 0.0}
    make(settings(sources={"code": 1, "prose": 3}, max_bytes=8000), context)
    report = json.loads((context.directory / "report.json").read_text())
    assert report["training"]["sources"] == pytest.approx(
        {"code": 2000 / sizes["code"], "prose": 6000 / sizes["prose"]}
    )
    with pytest.raises(DataError, match=r"no source `web`\. Sources: code, prose"):
        run(settings(sources={"web": 1}), context)


def test_tokenizers_are_compared_by_source_and_language(context, tmp_path, capsys):
    other = make(settings(algorithm="wordpiece"), Context("other", 1, tmp_path / "other", context.inputs))
    given = ResolvedInput("compare.0", "other", tmp_path / "other", "1", Facts("tokenizer"))
    compared = Context(context.name, 1, context.directory, {**context.inputs, "compare.0": given})
    config = settings(compare=["other"])
    assert [place.key for place in config.inputs()] == ["data", "compare.0"]
    make(config, compared)
    report = json.loads((context.directory / "report.json").read_text())
    ours, theirs = report["comparison"]["tokenizer"], report["comparison"]["other"]
    assert report["compression"] == {"split": "validation", **ours}
    assert theirs["all"]["bytes_per_token"] == other.summary["bytes_per_token"]
    wordpiece = Tokenizer.load(tmp_path / "other/tokenizer")
    texts = {"prose": TEXTS[::10], "code": TEXTS[5::10]}
    for source, chosen in texts.items():
        assert theirs["sources"][source]["tokens"] == sum(len(wordpiece.encode(text)) for text in chosen)
        assert ours["sources"][source]["bytes"] == sum(len(text.encode()) for text in chosen)
    assert theirs["languages"] == {"unknown": theirs["all"]}
    shown = capsys.readouterr().out
    assert "Bytes per token" in shown
    assert "source prose" in shown


@pytest.mark.parametrize("train", [train_bpe, train_wordpiece])
def test_batches_do_not_matter(train):
    made = {train(lambda: TEXTS, vocab_size=450, batch=batch).to_str() for batch in (1, 3, 64, 1000)}
    assert len(made) == 1


def test_processes_do_not_matter(tmp_path):
    """Two processes with other hash seeds learn the same bytes (hash tables of either language are seeded)."""
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    script = (
        "import json, sys, hashlib\n"
        "from llmkit.tokenizer.training import train_bpe, train_unigram, train_wordpiece\n"
        "texts = json.load(open(sys.argv[1]))\n"
        "trainers = (train_bpe, train_unigram, train_wordpiece)\n"
        "made = [train(lambda: texts, vocab_size=450).to_str() for train in trainers]\n"
        "print(hashlib.sha256('\\n'.join(made).encode()).hexdigest())\n"
    )
    digests = set()
    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "texts.json")],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout.strip())
    here = [train(lambda: TEXTS, vocab_size=450).to_str() for train in (train_bpe, train_unigram, train_wordpiece)]
    assert digests == {hashlib.sha256("\n".join(here).encode()).hexdigest()}


def test_numbers_are_split_into_groups_of_digits(context):
    for digits, expected in ((1, 6), (2, 3), (3, 2)):
        backend = train_bpe(lambda: ["123456 " * 9, "123 456 12 34 56 "] * 9, vocab_size=400, digits=digits)
        assert len(backend.encode("123456").ids) == expected


@pytest.mark.parametrize(
    ("values", "key", "message"),
    [
        ({"vocab_size": 259}, "vocab_size", "no room for the 4 special tokens and the 256 bytes"),
        ({"vocab_size": 260, "special_tokens": ["<|a|>"]}, "vocab_size", "no room for the 5 special tokens"),
        ({"vocab_size": 5, "algorithm": "wordpiece"}, "vocab_size", "no room for the 5 special tokens"),
        ({"special_tokens": ["<|a|>", "word"]}, "special_tokens.1", "could be ordinary text"),
        ({"special_tokens": ["<|pad|>"]}, "special_tokens.0", "there already"),
        ({"chat_template": "chatmll"}, "chat_template", "`chatmll` is no chat template"),
        ({"algorithm": "wordpiece", "chat_template": "{{ a }}"}, "chat_template", "belongs to bpe"),
        ({"algorithm": "wordpiece", "digits": 1}, "digits", "belongs to bpe"),
        ({"algorithm": "wordpiece", "masked": True}, "masked", "belongs to bpe"),
        ({"masked": True, "chat_template": "{{ a }}"}, "chat_template", "for masked models has no chat template"),
        ({"masked": True, "special_tokens": ["<mask>"]}, "special_tokens.0", "is there already"),
        ({"lowercase": False}, "lowercase", "belongs to wordpiece"),
        ({"algorithm": "unigram", "min_frequency": 3}, "min_frequency", "belongs to bpe and wordpiece"),
        ({"algorithm": "wordpiece", "whitespace": "single"}, "whitespace", "belongs to bpe and unigram"),
    ],
)
def test_what_the_settings_refuse(values, key, message):
    (finding,) = settings(**values).check({})
    assert finding.key == key
    assert message in finding.message
    assert finding.severity == "error"


def test_settings_that_fit():
    assert list(settings(vocab_size=260).check({})) == []
    assert list(settings(vocab_size=6, algorithm="wordpiece").check({})) == []
    assert list(settings(algorithm="wordpiece", chat_template=None).check({})) == []
    with pytest.raises(ValidationError):
        settings(vocab_size="400")


def test_a_template_from_a_file(context, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}")
    config = settings(chat_template=str(file))
    assert [given.key for given in config.inputs()] == ["data", "chat_template"]
    found = ResolvedInput("chat_template", str(file), file, "1", Facts("file"))
    make(config, Context(context.name, 1, context.directory, {**context.inputs, "chat_template": found}))
    assert Tokenizer.load(context.directory / "tokenizer").chat_template == file.read_text()


@pytest.mark.parametrize(
    ("template", "severity", "message"),
    [
        ("{% for %}", "error", "no valid jinja2"),
        ("{{ nothing.at.all }}", "error", "does not take these messages"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}", "warning", "cannot be fine-tuned"),
    ],
)
def test_templates_are_tried_before_the_work(context, template, severity, message):
    (finding,) = check(settings(chat_template=template), context)
    assert (finding.key, finding.severity) == ("chat_template", severity)
    assert message in finding.message
