"""Losses against float64 computations from unpadded rows and masks written by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from finetune_samples import byte_tokenizer, letter_tokenizer, save_tiny
from transformers import AutoModelForCausalLM

from llmkit.data.examples import Conversation, LabelledText
from llmkit.finetune.encoding import Places, encode_conversations, encode_texts
from llmkit.finetune.objectives import (
    ChatObjective,
    ClassificationObjective,
    collate_chat,
    collate_packed,
    collate_texts,
    mean_loss,
)
from llmkit.model.load import load_model

PLACE = Places("rows")


def dialogue(*contents: str) -> Conversation:
    roles = ["user", "assistant"] * 9
    return Conversation("x", [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)])


TALKS = [dialogue("Hi", "Yo"), dialogue("a", "b", "c", "de"), dialogue("quite a long question", "I")]

# Each conversation of TALKS in ChatML, a token a character: { is <|im_start|> and } is <|im_end|>. What counts stands
# in brackets, which are no tokens.
WRITTEN = [
    "{user\nHi}\n{assistant\n[Yo}]\n",
    "{user\na}\n{assistant\n[b}]\n{user\nc}\n{assistant\n[de}]\n",
    "{user\nquite a long question}\n{assistant\n[I}]\n",
]


def by_hand(written: str) -> tuple[list[int], list[bool]]:
    """Ids and marks of a line of WRITTEN."""
    tokenizer, special = byte_tokenizer(), {"{": 2, "}": 3}
    ids, marks, inside = [], [], False
    for character in written:
        if character in "[]":
            inside = character == "["
        else:
            ids.append(special.get(character) or tokenizer.encode(character)[0])
            marks.append(inside)
    return ids, marks


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return load_model(save_tiny(tmp_path_factory.mktemp("llama")), dtype=torch.float64)


def encoded():
    return encode_conversations(enumerate(TALKS), byte_tokenizer(), 64, "error", PLACE)


def test_ids_and_masks_are_those_written_by_hand():
    examples = encoded()
    for row, written in enumerate(WRITTEN):
        ids, marks = by_hand(written)
        assert examples.tokens[examples.span(row)].tolist() == ids
        assert examples.targets[examples.span(row)].tolist() == marks
    assert examples.counts.targets == 3 + 2 + 3 + 2


def test_the_balance_of_experts_is_that_of_real_tokens(tmp_path):
    save_tiny(tmp_path, "mixtral", experts=4, experts_per_token=2, router_loss_weight=0.2)
    examples = encoded()
    batch = collate_chat(examples, range(len(TALKS)), 0)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        theirs = reference(input_ids=batch.input_ids, attention_mask=batch.attention_mask, output_router_logits=True)
    model = load_model(tmp_path)
    plain = ChatObjective().loss(model.eval(), batch)
    trained = ChatObjective().loss(model.train(), batch)
    balance, units = trained.metrics["router_loss"]
    assert units == plain.weight == len(batch.targets)
    assert float(balance) / units == pytest.approx(theirs.aux_loss.item(), rel=1e-5)
    expected = plain.sum.item() + 0.2 * units * theirs.aux_loss.item()
    assert trained.sum.item() == pytest.approx(expected, rel=1e-5)
    assert "router_loss" not in plain.metrics


def reference_chat(model, rows):
    """Sum of -log p(token | before it) over the marked tokens, each row by itself."""
    total, count = 0.0, 0
    for written in rows:
        ids, marks = by_hand(written)
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0].numpy().astype(np.float64)
        for position, mark in enumerate(marks):
            if mark:
                row = logits[position - 1]
                total += np.log(np.exp(row - row.max()).sum()) + row.max() - row[ids[position]]
                count += 1
    return total, count


def test_chat_loss_equals_the_sum_over_marked_tokens(llama):
    batch = collate_chat(encoded(), np.arange(3), pad_id=1)
    output = ChatObjective().loss(llama, batch)
    total, count = reference_chat(llama, WRITTEN)
    assert output.sum.item() == pytest.approx(total, rel=1e-12)
    assert output.weight == count == 10
    assert output.tokens == sum(len(by_hand(written)[0]) - 1 for written in WRITTEN)


def gradients(model, outputs):
    model.zero_grad()
    for output in outputs:
        output.sum.backward()
    weight = sum(output.weight for output in outputs)
    return {name: p.grad / weight for name, p in model.named_parameters()}


def assert_equal_gradients(one, other):
    for name, gradient in one.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-9, atol=1e-14, msg=name)


def test_the_gradient_does_not_depend_on_how_the_batch_is_cut(llama):
    examples, objective = encoded(), ChatObjective()
    whole = gradients(llama, [objective.loss(llama, collate_chat(examples, np.arange(3), 1))])
    for parts in ([[0, 1], [2]], [[2], [0], [1]]):
        batches = [collate_chat(examples, np.array(part), 1) for part in parts]
        assert_equal_gradients(whole, gradients(llama, [objective.loss(llama, batch) for batch in batches]))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_packing_changes_neither_loss_nor_gradient(family, tmp_path):
    model = load_model(save_tiny(tmp_path, family), dtype=torch.float64)
    examples, objective = encoded(), ChatObjective()
    packed = collate_packed(examples, np.arange(3), 1)
    plain = objective.loss(model, collate_chat(examples, np.arange(3), 1))
    together = objective.loss(model, packed)
    total, count = reference_chat(model, WRITTEN)
    assert together.sum.item() == pytest.approx(total, rel=1e-12)
    assert (together.weight, together.tokens) == (count, plain.tokens)
    assert together.metrics["token_accuracy"][0] == plain.metrics["token_accuracy"][0]
    # One row without padding.
    assert packed.input_ids.shape == (1, plain.tokens)
    assert_equal_gradients(gradients(model, [plain]), gradients(model, [together]))


def test_only_what_the_assistant_says_is_learned(llama):
    """What stands after the assistant's turn changes nothing; what it says does."""
    ends = [dialogue("Hi", "Yo"), dialogue("Hi", "Yo", "and then something else"), dialogue("Hi", "Ya")]
    examples = encode_conversations(enumerate(ends), byte_tokenizer(), 64, "error", PLACE)
    losses = [ChatObjective().loss(llama, collate_chat(examples, np.array([row]), 1)) for row in range(3)]
    assert losses[0].sum.item() == pytest.approx(losses[1].sum.item(), rel=1e-12)
    assert losses[0].weight == losses[1].weight == 3
    assert_equal_gradients(gradients(llama, losses[:1]), gradients(llama, losses[1:2]))
    assert losses[2].sum.item() != pytest.approx(losses[0].sum.item(), rel=1e-6)


def test_token_accuracy_counts_the_most_likely_tokens(llama):
    batch = collate_chat(encoded(), np.arange(3), pad_id=1)
    right, count = ChatObjective().loss(llama, batch).metrics["token_accuracy"]
    expected = 0
    for written in WRITTEN:
        ids, marks = by_hand(written)
        best = llama(torch.tensor([ids]))[0].argmax(-1).tolist()
        expected += sum(mark and best[at - 1] == ids[at] for at, mark in enumerate(marks))
    assert (int(right), count) == (expected, 10)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_classification_loss(family, tmp_path):
    model = load_model(
        save_tiny(tmp_path, family), head="classification", labels=["p", "q", "r"], dtype=torch.float64, seed=3
    )
    tokenizer = letter_tokenizer() if family == "bert" else byte_tokenizer()
    texts = [LabelledText("1", "a b c", "q"), LabelledText("2", "d", "p"), LabelledText("3", "b a", "r")]
    examples = encode_texts(enumerate(texts), ["p", "q", "r"], tokenizer, 64, "truncate", PLACE)
    cls, sep, letters = 2, 3, {letter: 5 + at for at, letter in enumerate("abcd")}
    if family == "bert":
        ids = [[cls, *(letters[c] for c in text.text.split()), sep] for text in texts]
    else:
        ids = [[*tokenizer.encode(text.text), 0] for text in texts]
    assert [examples.tokens[examples.span(row)].tolist() for row in range(3)] == ids
    output = ClassificationObjective().loss(model, collate_texts(examples, np.arange(3), tokenizer.pad_id))
    total = 0.0
    right = 0
    for row, label in zip(ids, [1, 0, 2], strict=True):
        logits = model(torch.tensor([row]))[0].detach().numpy()
        total += np.log(np.exp(logits).sum()) - logits[label]
        right += int(logits.argmax() == label)
    assert output.sum.item() == pytest.approx(total, rel=1e-12)
    assert output.weight == 3
    assert output.metrics["accuracy"][0] == right
    assert output.tokens == sum(map(len, ids))


def test_validation_averages_over_tokens_and_not_over_batches(llama):
    examples = encoded()
    batches = [collate_chat(examples, np.array([0, 1]), 1), collate_chat(examples, np.array([2]), 1)]
    with torch.no_grad():
        values = mean_loss(ChatObjective(), lambda: batches)(llama)
    total, count = reference_chat(llama, WRITTEN)
    assert values["loss"] == pytest.approx(total / count, rel=1e-9)
    assert set(values) == {"loss", "token_accuracy"}
