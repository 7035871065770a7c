"""Every family and head against transformers, opened from its directories and opening ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from llmkit.model.initialization import build
from llmkit.model.load import load_model
from llmkit.model.save import export_tensors, save_model
from llmkit.model.spec import ModelSpec

VOCABULARY, PAD, TOLERANCE = 61, 3, 1e-4

SMALL = {"vocab_size": VOCABULARY, "initializer_range": 0.2, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = {
    **SMALL,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}
GPT2 = {**SMALL, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
BERT = {
    **SMALL,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

REFERENCES = {
    "llama": ("LlamaForCausalLM", LLAMA),
    "llama-tied": ("LlamaForCausalLM", {**LLAMA, "tie_word_embeddings": True}),
    "llama-biases": ("LlamaForCausalLM", {**LLAMA, "attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("LlamaForCausalLM", {**LLAMA, "head_dim": 12, "num_key_value_heads": 1}),
    "llama-scaled": ("LlamaForCausalLM", {**LLAMA, "rope_parameters": LLAMA3_SCALING}),
    "llama-linear": (
        "LlamaForCausalLM",
        {**LLAMA, "rope_parameters": {"rope_type": "linear", "rope_theta": 300.0, "factor": 3.0}},
    ),
    "llama-classifier": ("LlamaForSequenceClassification", {**LLAMA, "num_labels": 3}),
    "llama-reward": ("LlamaForSequenceClassification", {**LLAMA, "num_labels": 1}),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt2-untied": ("GPT2LMHeadModel", {**GPT2, "tie_word_embeddings": False, "n_inner": 48}),
    "gpt2-relu": ("GPT2LMHeadModel", {**GPT2, "activation_function": "relu"}),
    "gpt2-classifier": ("GPT2ForSequenceClassification", {**GPT2, "num_labels": 2}),
    "gpt2-reward": ("GPT2ForSequenceClassification", {**GPT2, "num_labels": 1}),
    "bert": ("BertForMaskedLM", BERT),
    "bert-untied": ("BertForMaskedLM", {**BERT, "tie_word_embeddings": False, "type_vocab_size": 4}),
    "bert-classifier": ("BertForSequenceClassification", {**BERT, "num_labels": 4, "hidden_act": "gelu_new"}),
    "bert-reward": ("BertForSequenceClassification", {**BERT, "num_labels": 1}),
}


def _scramble(model: torch.nn.Module) -> None:
    """Give norms and biases values that matter."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def _reference(name: str) -> Any:
    architecture, settings = REFERENCES[name]
    model_class = getattr(transformers, architecture)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**settings))
    _scramble(model)
    return model.eval()


def _batch() -> tuple[Tensor, Tensor]:
    """Three rows of different lengths, padded on the right."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(4, VOCABULARY, (3, 21), generator=generator)
    mask = torch.arange(21) < torch.tensor([21, 13, 2])[:, None]
    return input_ids.masked_fill(~mask, PAD), mask.long()


def _theirs(model: Any, input_ids: Tensor, mask: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=input_ids, attention_mask=mask).logits
    return logits[:, 0] if logits.shape[-1] == 1 else logits


def _real(scores: Tensor, mask: Tensor) -> Tensor:
    return scores[mask.bool()] if scores.dim() == 3 else scores


def _loss(scores: Tensor, mask: Tensor) -> Tensor:
    """A loss of real rows alone that reaches every parameter."""
    if scores.dim() == 1:
        return F.softplus(scores).sum()
    rows = _real(scores, mask)
    targets = torch.arange(len(rows)) % rows.shape[-1]
    return F.cross_entropy(rows, targets)


def _close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= TOLERANCE * max(1e-3, float(theirs.abs().max())))


@pytest.mark.parametrize("name", REFERENCES)
def test_opens_a_reference_directory_with_equal_logits_loss_and_gradients(name: str, tmp_path: Path) -> None:
    reference = _reference(name)
    reference.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    input_ids, mask = _batch()
    ours, theirs = model(input_ids, mask), _theirs(reference, input_ids, mask)
    assert ours.shape == theirs.shape
    assert _close(_real(ours, mask), _real(theirs, mask))

    our_loss, their_loss = _loss(ours, mask), _loss(theirs, mask)
    assert our_loss.item() == pytest.approx(their_loss.item(), rel=1e-5)
    our_loss.backward()
    their_loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
    gradients = {key: tensor.read() for key, tensor in export_tensors(model).items()}
    theirs_by_name = {key: p.grad for key, p in reference.named_parameters() if p.grad is not None}
    for key, gradient in theirs_by_name.items():
        assert _close(gradients[key], gradient), key
    # Written for tied embeddings' sake, or a second name of a shared bias.
    assert gradients.keys() - theirs_by_name.keys() <= {"cls.predictions.bias", "cls.predictions.decoder.bias"}


@pytest.mark.parametrize("name", REFERENCES)
def test_unpadded_batch_equals_reference(name: str, tmp_path: Path) -> None:
    reference = _reference(name)
    reference.save_pretrained(tmp_path)
    input_ids = torch.randint(4, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(2))
    ours = load_model(tmp_path)(input_ids)
    assert _close(ours, _theirs(reference, input_ids, torch.ones_like(input_ids)))


SPECS: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama", "kv_heads": 2, "head_width": 10, "rope_theta": 700.0},
    "llama-untied": {"family": "llama", "tie_embeddings": False, "mlp_width": 24},
    "gpt2": {"family": "gpt2"},
    "gpt2-untied": {"family": "gpt2", "tie_embeddings": False, "mlp_width": 24},
    "bert": {"family": "bert"},
    "bert-untied": {"family": "bert", "tie_embeddings": False, "mlp_width": 24},
}


@pytest.mark.parametrize("head", ["own", "classification", "reward"])
@pytest.mark.parametrize("name", SPECS)
def test_reference_opens_our_directory_with_equal_logits(name: str, head: str, tmp_path: Path) -> None:
    spec = ModelSpec(layers=2, width=32, heads=4, context=48, init_std=0.2, **SPECS[name])
    config = spec.resolve(VOCABULARY, pad_id=PAD, bos_id=1, eos_ids=(2,))
    if head != "own":
        config = config.with_head(head, ("no", "maybe", "yes") if head == "classification" else ())  # type: ignore[arg-type]
    model = build(config, seed=3).eval()
    _scramble(model)
    save_model(model, tmp_path)

    settings = transformers.AutoConfig.from_pretrained(tmp_path)
    model_class = getattr(transformers, settings.architectures[0])
    reference, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    input_ids, mask = _batch()
    ours, theirs = model(input_ids, mask), _theirs(reference.eval(), input_ids, mask)
    assert _close(_real(ours, mask), _real(theirs, mask))
    if head == "classification":
        assert reference.config.id2label == {0: "no", 1: "maybe", 2: "yes"}

    again = load_model(tmp_path)
    assert again.config == config
    assert again.new_parameters == ()
    assert torch.equal(_real(again(input_ids, mask), mask), _real(model(input_ids, mask), mask))


def test_token_types_equal_reference(tmp_path: Path) -> None:
    reference = _reference("bert")
    reference.save_pretrained(tmp_path)
    input_ids, mask = _batch()
    types = (torch.arange(21) > 6).long().expand(3, 21)
    ours = load_model(tmp_path)(input_ids, mask, types)
    theirs = reference(input_ids=input_ids, attention_mask=mask, token_type_ids=types).logits
    assert _close(_real(ours, mask), _real(theirs, mask))


def test_opens_sharded_directories(tmp_path: Path) -> None:
    reference = _reference("llama-biases")
    reference.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    input_ids, mask = _batch()
    assert _close(_real(load_model(tmp_path)(input_ids, mask), mask), _real(_theirs(reference, input_ids, mask), mask))


def test_opens_a_body_saved_alone_under_a_new_head(tmp_path: Path) -> None:
    reference = _reference("bert-classifier")
    reference.bert.save_pretrained(tmp_path)
    model = load_model(tmp_path, head="classification", labels=["a", "b"], seed=4)
    assert model.new_parameters == ("head.score.bias", "head.score.weight")
    input_ids, mask = _batch()
    pooled = reference.bert(input_ids=input_ids, attention_mask=mask).pooler_output
    expected = F.linear(pooled, model.head.score.weight, model.head.score.bias)
    assert _close(model(input_ids, mask), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_reference_opens_other_precisions(dtype: torch.dtype, tmp_path: Path) -> None:
    config = ModelSpec(family="llama", layers=1, width=32, heads=2).resolve(VOCABULARY, pad_id=PAD)
    model = build(config, seed=0)
    save_model(model, tmp_path, dtype=dtype)
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert reference.dtype == dtype
    assert load_model(tmp_path).embeddings.token.weight.dtype == dtype
    input_ids, mask = _batch()
    ours = load_model(tmp_path, dtype=torch.float32)(input_ids, mask)
    assert _close(_real(ours, mask), _real(_theirs(reference.float(), input_ids, mask), mask))


def test_generation_settings_reach_the_reference(tmp_path: Path) -> None:
    config = ModelSpec(family="gpt2", layers=1, width=32).resolve(VOCABULARY, pad_id=PAD, bos_id=1, eos_ids=(2, 5))
    save_model(build(config, seed=0), tmp_path, generation={"temperature": 0.7, "do_sample": True})
    settings = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (settings.temperature, settings.do_sample, settings.eos_token_id) == (0.7, True, [2, 5])
    assert (settings.pad_token_id, settings.bos_token_id) == (PAD, 1)


def test_saved_bytes_are_deterministic(tmp_path: Path) -> None:
    config = ModelSpec(family="bert", layers=2, width=32, heads=2).resolve(VOCABULARY, pad_id=PAD)
    for name in ("one", "two"):
        save_model(build(config, seed=7), tmp_path / name)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert not (tmp_path / "one" / "generation_config.json").exists()
