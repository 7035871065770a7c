"""Labels of words: which tokens carry them, how spans are counted, and a model that learns a rule."""

from __future__ import annotations

import math

import pytest
import torch
from finetune_samples import byte_tokenizer, letter_tokenizer, make_context, save_tiny, settings, write_rows
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from transformers import AutoModelForTokenClassification, AutoTokenizer

import llmkit.finetune.stage as stage
from llmkit.config.base import Facts
from llmkit.data.examples import TaggedText, read_tags
from llmkit.data.inspect_examples import summarize_examples
from llmkit.errors import DataError
from llmkit.finetune.encoding import Places
from llmkit.finetune.tags import IGNORED, TagBatch, TagObjective, WordEncoder, encode_tags, spans
from llmkit.model.load import load_model
from llmkit.store.stage import ResolvedInput
from llmkit.tokenizer.tokenizer import Tokenizer
from llmkit.tokenizer.training import masked_bpe_settings, train_bpe

LABELS = ("O", "B-X", "I-X", "B-Y", "I-Y")


def tag_rows() -> list[dict]:
    """A word that begins with `a` is a B-X, one after it that begins with `b` goes on with it, all else is O."""
    words = ["ab", "ac", "ba", "bd", "ca", "dc", "cd"]
    rows = []
    for number in range(300):
        chosen = [words[(number // 7**place + place * number) % 7] for place in range(5)]
        labels: list[str] = []
        for word in chosen:
            after = bool(labels) and labels[-1] != "O"
            labels.append("B-X" if word[0] == "a" else "I-X" if word[0] == "b" and after else "O")
        rows.append({"tokens": chosen, "labels": labels})
    return rows


SPANS = [
    (["O", "O"], set()),
    (["B-X", "I-X", "O"], {(0, 2, "X")}),
    (["B-X", "B-X"], {(0, 1, "X"), (1, 2, "X")}),
    (["B-X", "I-Y"], {(0, 1, "X"), (1, 2, "Y")}),
    (["I-X", "I-X", "O", "I-X"], {(0, 2, "X"), (3, 4, "X")}),
    (["O", "B-X-Z", "I-X-Z"], {(1, 3, "X-Z")}),
    (["B-X", "N", "I-X"], {(0, 1, "X"), (2, 3, "X")}),
    ([], set()),
]


@pytest.mark.parametrize(("labels", "found"), SPANS)
def test_spans(labels, found):
    assert spans(labels) == found


@pytest.mark.parametrize("kind", ["wordpiece", "bytes", "masked-bytes"])
def test_labels_stand_where_the_reference_has_the_words_first_tokens(kind, tmp_path):
    words = ["abba", "d", "cab,", "a", "b.d"]
    text = " ".join(["abba cab bad dab", *words])
    if kind == "wordpiece":
        tokenizer = letter_tokenizer()
    elif kind == "bytes":
        tokenizer = byte_tokenizer()
    else:
        tokenizer = Tokenizer(train_bpe(lambda: [text] * 9, vocab_size=280, masked=True), masked_bpe_settings())
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)(" ".join(words), return_offsets_mapping=True)
    starts = {sum(len(word) + 1 for word in words[:index]): index for index in range(len(words))}
    example = TaggedText("0", words, ["O", "B-X", "I-X", "B-Y", "O"])
    found = encode_tags([(0, example)], LABELS, tokenizer, 100, "truncate", Places("f"), causal=False)
    assert found.tokens.tolist() == theirs["input_ids"]
    expected = [IGNORED] * len(theirs["input_ids"])
    for at, index in starts.items():
        # Of byte-level tokenizers the space belongs to the word after it.
        first = next(
            n
            for n, (start, end) in enumerate(theirs["offset_mapping"])
            if end > start >= at - (at > 0) and (start == at or kind != "wordpiece")
        )
        expected[first] = LABELS.index(example.labels[index])
    assert found.targets.tolist() == expected
    assert found.counts.targets == 5 == sum(mark != IGNORED for mark in expected)

    ends = {at + len(words[index]): index for at, index in starts.items()}
    found = encode_tags([(0, example)], LABELS, tokenizer, 100, "truncate", Places("f"), causal=True)
    expected = [
        LABELS.index(example.labels[ends[end]]) if end in ends and end > start else IGNORED
        for start, end in theirs["offset_mapping"]
    ]
    assert found.targets.tolist() == expected
    assert found.counts.targets == 5 == sum(mark != IGNORED for mark in expected)


def test_long_texts_are_cut_within_their_frame():
    tokenizer = letter_tokenizer()
    long, short = TaggedText("0", ["ab", "cd", "a"], ["B-X", "O", "O"]), TaggedText("1", ["a"], ["B-Y"])
    found = encode_tags([(0, long), (1, short)], LABELS, tokenizer, 5, "truncate", Places("f"), causal=False)
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    ids = tokenizer.encode("ab cd a")
    assert found.tokens.tolist() == [cls, *ids[:3], sep, cls, *tokenizer.encode("a"), sep]
    assert found.lengths.tolist() == [5, 3]
    assert (found.counts.truncated, found.counts.kept, found.counts.longest) == (1, 2, 2 + len(ids))
    dropped = encode_tags([(0, long), (1, short)], LABELS, tokenizer, 5, "drop", Places("f"), causal=False)
    assert (dropped.lengths.tolist(), dropped.counts.dropped_overlong) == ([3], 1)
    with pytest.raises(DataError, match=r"f: row 1 \(id 0\).*at most 5 fit"):
        encode_tags([(0, long)], LABELS, tokenizer, 5, "error", Places("f"), causal=False)
    with pytest.raises(DataError, match="the label 'B-Z' is not among"):
        encode_tags([(0, TaggedText("0", ["a"], ["B-Z"]))], LABELS, tokenizer, 5, "drop", Places("f"), causal=False)


def test_a_tokenizer_whose_words_depend_on_each_other_is_refused():
    backend = Backend(models.WordLevel({"to": 0, "be": 1, "so": 2, "?": 3, "to be so": 4}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split("\n", behavior="isolated")
    with pytest.raises(DataError, match="depend on the words beside it"):
        WordEncoder(Tokenizer(backend, {"unk_token": "?"}))


class Fixed(torch.nn.Module):
    """Gives the same logits for any text."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, input_ids, attention_mask):
        return self.logits


def test_loss_accuracy_and_span_f1_of_known_labels():
    """Found: X at 0-1, Y at 3. There are: X at 0-1, X at 3. One of two is right each way: F1 is a half."""
    wanted = [IGNORED, 1, 2, IGNORED, 0, 1, IGNORED]
    chosen = [4, 1, 2, 3, 0, 3, 0]
    logits = torch.zeros(1, 7, 5, dtype=torch.float64)
    for place, label in enumerate(chosen):
        logits[0, place, label] = 2.0
    batch = TagBatch(torch.zeros(1, 7, dtype=torch.long), torch.ones(1, 7, dtype=torch.long), torch.tensor([wanted]))
    output = TagObjective(LABELS).loss(Fixed(logits).eval(), batch)
    right, wrong = math.log(1 + 4 * math.exp(-2)), math.log(1 + 4 * math.exp(-2)) + 2
    assert output.sum.item() == pytest.approx(3 * right + wrong)
    assert (output.weight, output.tokens) == (4, 7)
    assert [float(value) for value in output.metrics["accuracy"]] == [3, 4]
    assert output.metrics["span_f1"] == (2, 4)
    assert set(TagObjective(LABELS).loss(Fixed(logits).train(), batch).metrics) == {"accuracy"}
    assert set(TagObjective(("N", "V", "A", "P", "D")).loss(Fixed(logits).eval(), batch).metrics) == {"accuracy"}


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_tagger_learns_the_rule(family, tmp_path):
    data = write_rows(tmp_path / "d.jsonl", tag_rows())
    context = make_context(tmp_path / "out", save_tiny(tmp_path / "m", family), data)
    config = settings(batch_size=32, optimizer={"lr": 1e-2}, task="token-classification", epochs=20)
    assert list(config.check({"model": context.inputs["model"].facts, "data": Facts("file")})) == []
    assert stage.check(config, context) == []
    outcome = stage.run(config, context)
    assert (outcome.facts.get("head"), outcome.facts.get("labels")) == ("token-classification", ["B-X", "I-X", "O"])
    assert outcome.summary["validation_accuracy"] > 0.95
    assert outcome.summary["validation_span_f1"] > 0.9

    theirs = AutoModelForTokenClassification.from_pretrained(context.directory / "model").eval()
    assert theirs.config.id2label == {0: "B-X", 1: "I-X", 2: "O"}
    ours = load_model(context.directory / "model")
    tokenizer = Tokenizer.load(context.directory / "model")
    ids = torch.tensor([tokenizer.encode_single("ab ba ca bd", 64, end=False)])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(input_ids=ids).logits, rtol=0, atol=1e-4)


def test_rows_of_words_and_labels(tmp_path):
    file = write_rows(tmp_path / "d.jsonl", [*tag_rows()[:60], {"tokens": ["a"], "labels": [1], "id": "x", "by": "me"}])
    source = ResolvedInput("data", str(file), file, "1", Facts("file"))
    read = [row for split in ("train", "validation", "test") for row in read_tags(source, split)]
    assert len(read) == 61
    row = next(row for row in read if row.id == "x")
    assert (row.words, row.labels, row.metadata) == (["a"], ["1"], {"by": "me"})
    assert row.to_row() == {"id": "x", "tokens": ["a"], "labels": ["1"], "by": "me"}
    tables = summarize_examples(source, 2)
    assert any("ab" in str(cell) for table in tables for line in table.rows for cell in line)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "labels": ["O"]}, "`tokens` has 2 words and `labels` 1 labels"),
        ({"tokens": [], "labels": []}, "`tokens` is empty"),
        ({"tokens": ["a", " "], "labels": ["O", "O"]}, r"`tokens\[1\]` is empty"),
        ({"tokens": "a b", "labels": ["O", "O"]}, "`tokens` has to be a list"),
        ({"tokens": ["a"], "labels": [None]}, r"`labels\[0\]` has to be a text or a whole number"),
        ({"text": "a", "label": "b"}, "the row is one of labels, and tags are wanted"),
    ],
)
def test_malformed_rows_are_named(row, message, tmp_path):
    file = write_rows(tmp_path / "d.jsonl", [row])
    with pytest.raises(DataError, match=message):
        read_tags(ResolvedInput("data", str(file), file, "1", Facts("file")), "train")
