"""Embedding heads and the directories of sentence-transformers, against transformers with the pooling computed here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors
from torch import Tensor

from llmkit.errors import DataError, ModelError
from llmkit.inference import load
from llmkit.model.embedding import embed_sequences, set_pooling
from llmkit.model.facts import read_model_facts, read_stored
from llmkit.model.initialization import build
from llmkit.model.load import load_model
from llmkit.model.save import save_model
from llmkit.model.spec import ModelSpec

WORDS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "red", "green", "blue", "fox", "dog", "owl", "runs", "sits")
TEXTS = ("red fox runs", "dog", "green owl sits red dog runs blue fox", "", "blue [SEP] owl", "the dog")
LEGACY = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "lasttoken": "pooling_mode_lasttoken"}


def _save_tokenizer(directory: Path) -> None:
    backend = Backend(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    ).save_pretrained(directory)


def _write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def _modules(directory: Path, *kinds: str, old: bool = True) -> None:
    package = "sentence_transformers.models" if old else "sentence_transformers.base.modules.any"
    folders = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {"idx": i, "name": str(i), "path": folders.get(kind, f"{i}_{kind}"), "type": f"{package}.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    _write(directory / "modules.json", modules)


@pytest.fixture
def sentence_model(tmp_path: Path) -> Path:
    """A BERT body saved by transformers, with the files of sentence-transformers before 6 around it."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=16,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    _save_tokenizer(tmp_path)
    _modules(tmp_path, "Transformer", "Pooling", "Normalize")
    _write(tmp_path / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True})
    _write(tmp_path / "sentence_bert_config.json", {"max_seq_length": 7, "do_lower_case": False})
    return tmp_path


@torch.no_grad()
def _reference(directory: Path, texts: tuple[str, ...], mode: str, normalize: bool) -> Tensor:
    """Each text alone, cut to seven tokens. Texts of special tokens are ordinary text: here, an unknown word."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.BertModel.from_pretrained(directory, attn_implementation="eager").eval()
    rows = []
    for text in texts:
        plain = text.replace("[SEP]", "unknown")
        inputs = tokenizer(plain, truncation=True, max_length=7, return_tensors="pt")
        hidden = model(inputs["input_ids"]).last_hidden_state[0]
        row = {"cls": hidden[0], "lasttoken": hidden[-1], "mean": hidden.mean(dim=0)}[mode]
        rows.append(row / row.square().sum().sqrt() if normalize else row)
    return torch.stack(rows)


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("mode", ["mean", "cls", "lasttoken"])
def test_embeddings_equal_the_reference(mode: str, normalize: bool, new: bool, sentence_model: Path) -> None:
    _modules(sentence_model, "Transformer", "Pooling", *["Normalize"] * normalize, old=not new)
    pooling = {"pooling_mode": mode} if new else {flag: flag == LEGACY[mode] for flag in LEGACY.values()}
    _write(sentence_model / "1_Pooling" / "config.json", pooling)
    if new:
        settings = json.loads((sentence_model / "tokenizer_config.json").read_text())
        _write(sentence_model / "tokenizer_config.json", {**settings, "model_max_length": 7})
        _write(sentence_model / "sentence_bert_config.json", {"transformer_task": "feature-extraction"})
    loaded = load(str(sentence_model), device="cpu")
    expected = _reference(sentence_model, TEXTS, mode, normalize)
    for batch_size in (1, 4, 64):
        assert torch.allclose(loaded.embed(TEXTS, batch_size=batch_size), expected, atol=1e-6)
    assert torch.allclose(loaded.embed(TEXTS[0]), expected[:1], atol=1e-6)
    assert loaded.embed([]).shape == (0, 32)


def test_a_saved_sentence_model_is_the_same_again(sentence_model: Path, tmp_path: Path) -> None:
    loaded = load(str(sentence_model), device="cpu")
    save_model(loaded.model, tmp_path / "again")
    loaded.tokenizer.save(tmp_path / "again")
    again = load(str(tmp_path / "again"), device="cpu")
    assert again.model.config == loaded.model.config
    assert again.model.config.embedding_context == 7
    assert torch.equal(again.embed(TEXTS), loaded.embed(TEXTS))

    modules = json.loads((tmp_path / "again" / "modules.json").read_text())
    assert [module["type"].rpartition(".")[2] for module in modules] == ["Transformer", "Pooling", "Normalize"]
    assert all((tmp_path / "again" / module["path"]).is_dir() for module in modules)
    pooling = json.loads((tmp_path / "again" / "1_Pooling" / "config.json").read_text())
    assert {name for name, value in pooling.items() if value is True} == {"pooling_mode_mean_tokens"}
    assert pooling["word_embedding_dimension"] == 32
    reference = transformers.AutoModel.from_pretrained(tmp_path / "again", attn_implementation="eager").eval()
    ids = torch.tensor([[1, 5, 6, 7, 2]])
    with torch.no_grad():
        theirs = reference(ids).last_hidden_state.mean(dim=1)
        assert torch.allclose(again.model(ids), theirs / theirs.norm(), atol=1e-6)


def test_facts_of_a_sentence_model(sentence_model: Path) -> None:
    facts = read_model_facts(sentence_model)
    assert (facts["head"], facts["family"], facts["causal"]) == ("embedding", "bert", False)
    assert facts["parameters"] == sum(parameter.numel() for parameter in load_model(sentence_model).parameters())


def test_another_head_on_a_sentence_model_and_back(sentence_model: Path, tmp_path: Path) -> None:
    model = load_model(sentence_model, head="classification", labels=["a", "b"])
    assert set(model.new_parameters) == {"head.score.weight", "head.score.bias"}
    # A directory that held a sentence model holds a classifier once one is saved there.
    save_model(model, sentence_model)
    assert read_stored(sentence_model).config.head == "classification"
    assert load_model(sentence_model, head="embedding").config.pooling == "mean"


@pytest.mark.parametrize(
    ("family", "pooling"), [("bert", "mean"), ("roberta", "mean"), ("distilbert", "mean"), ("modernbert", "mean")]
)
def test_a_masked_language_model_under_an_embedding_head(family: str, pooling: str, tmp_path: Path) -> None:
    config = ModelSpec(family=family, layers=2, width=32, heads=2, context=48, init_std=0.2).resolve(61, pad_id=3)
    save_model(build(config, seed=1), tmp_path / "masked")
    model = load_model(tmp_path / "masked", head="embedding")
    assert (model.config.pooling, model.new_parameters) == (pooling, ())
    save_model(model, tmp_path / "embedding")
    reference = transformers.AutoModel.from_pretrained(tmp_path / "embedding", attn_implementation="eager").eval()
    ids = torch.randint(4, 61, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = reference(ids).last_hidden_state.mean(dim=1)
    assert torch.allclose(load_model(tmp_path / "embedding")(ids), theirs, atol=1e-5)


def test_pooling_is_chosen_and_saved(sentence_model: Path, tmp_path: Path) -> None:
    model = load_model(sentence_model)
    set_pooling(model, "first", normalize=False, context=5)
    ids = torch.tensor([[1, 5, 6, 7, 2]])
    with torch.no_grad():
        assert torch.equal(model(ids), model.hidden(ids)[:, 0])
    save_model(model, tmp_path / "first")
    again = read_stored(tmp_path / "first").config
    assert (again.pooling, again.normalize_embedding, again.embedding_context) == ("first", False, 5)
    assert again == model.config
    with pytest.raises(ModelError, match="a model with a reward head gives no embeddings"):
        set_pooling(load_model(sentence_model, head="reward"), "mean", normalize=True)


def test_a_decoder_is_read_at_its_last_token(tmp_path: Path) -> None:
    config = ModelSpec(family="llama", layers=2, width=32, heads=2, init_std=0.2).resolve(61, pad_id=3)
    save_model(build(config, seed=1), tmp_path / "writer")
    model = load_model(tmp_path / "writer", head="embedding")
    save_model(model, tmp_path / "embedding")
    reference = transformers.LlamaModel.from_pretrained(tmp_path / "embedding").eval()
    rows = [[5, 6, 7, 8], [9], [10, 11]]
    with torch.no_grad():
        expected = torch.cat([reference(torch.tensor([row])).last_hidden_state[:, -1] for row in rows])
    assert torch.allclose(embed_sequences(model, rows), expected, atol=1e-5)


def test_embeddings_do_not_depend_on_their_batch(sentence_model: Path) -> None:
    model = load_model(sentence_model)
    rows = [[1, *range(4, 4 + length), 2] for length in (1, 5, 3, 8, 1, 2)]
    whole = embed_sequences(model, rows, batch_size=6)
    for row, expected in zip(rows, whole, strict=True):
        assert torch.allclose(embed_sequences(model, [row])[0], expected, atol=1e-6)


def test_what_cannot_be_embedded_is_said(sentence_model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sequence 1 has no tokens"):
        embed_sequences(load_model(sentence_model), [[1, 2], []])
    config = ModelSpec(family="gpt2", layers=1, width=32).resolve(61, pad_id=3)
    with pytest.raises(ModelError, match="a model with a causal-lm head gives no embeddings"):
        embed_sequences(build(config, seed=0), [[1]])


REFUSED: list[tuple[str, Any, str]] = [
    ("modules.json", {"a": 1}, "must hold a list of modules"),
    ("modules.json", [{"type": "x.Transformer"}], "must hold a list of modules"),
    ("1_Pooling/config.json", {"pooling_mode": "max"}, "pooling 'max' is not supported"),
    ("1_Pooling/config.json", {LEGACY["cls"]: True, LEGACY["mean"]: True}, "is not supported, only cls"),
    ("1_Pooling/config.json", [], "must hold a JSON object"),
    ("sentence_bert_config.json", {"max_seq_length": -1}, "max_seq_length: -1 is no number of tokens"),
    ("sentence_bert_config.json", {"max_seq_length": 7, "do_lower_case": True}, "do_lower_case is not supported"),
    ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "puts words before each text"),
]


@pytest.mark.parametrize(("name", "content", "message"), REFUSED)
def test_sentence_models_that_are_refused(name: str, content: Any, message: str, sentence_model: Path) -> None:
    _write(sentence_model / name, content)
    with pytest.raises(ModelError, match=message):
        load_model(sentence_model)


def test_modules_that_are_refused(sentence_model: Path) -> None:
    _modules(sentence_model, "Transformer", "Pooling", "Dense", "Normalize")
    with pytest.raises(ModelError, match="modules Transformer, Pooling, Dense, Normalize are not supported"):
        load_model(sentence_model)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "../1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    _write(sentence_model / "modules.json", modules)
    with pytest.raises(ModelError, match=r"'\.\./1_Pooling' is not the name of a folder here"):
        load_model(sentence_model)
