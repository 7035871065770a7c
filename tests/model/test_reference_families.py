"""Every family and head against transformers, opened from its directories and opening ours.

What is tried stands in the tables of `reference_decoders`, `reference_encoders` and `reference_experts`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import reference_decoders
import reference_encoders
import reference_experts
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from torch import Tensor

from llmkit.model.config import LABELLED, Head
from llmkit.model.facts import read_stored
from llmkit.model.families import FAMILIES
from llmkit.model.generation import Generator
from llmkit.model.initialization import build
from llmkit.model.load import load_model
from llmkit.model.sampling import Sampling
from llmkit.model.save import save_model
from llmkit.model.spec import ModelSpec
from llmkit.model.transformer import Transformer

VOCABULARY, PAD, TOLERANCE = 61, 3, 1e-4

REFERENCES = {**reference_decoders.REFERENCES, **reference_encoders.REFERENCES, **reference_experts.REFERENCES}
SPECS: dict[str, dict[str, Any]] = {**reference_decoders.SPECS, **reference_encoders.SPECS, **reference_experts.SPECS}


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
    model = model_class(model_class.config_class(**settings, attn_implementation="eager"))
    _scramble(model)
    return model.eval()


def _batch() -> tuple[Tensor, Tensor]:
    """Three rows of different lengths, padded on the right."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(4, VOCABULARY, (3, 21), generator=generator)
    mask = torch.arange(21) < torch.tensor([21, 13, 2])[:, None]
    return input_ids.masked_fill(~mask, PAD), mask.long()


def _theirs(model: Any, input_ids: Tensor, mask: Tensor) -> Tensor:
    """The reference's logits of each row alone, unpadded: of all rows' tokens, or one line for each row."""
    rows = [_logits(model, row[: int(real.sum())][None]) for row, real in zip(input_ids, mask, strict=True)]
    joined = torch.cat([row.flatten(0, -2) for row in rows])
    return joined[:, 0] if joined.shape[-1] == 1 else joined


def _logits(model: Any, input_ids: Tensor) -> Tensor:
    output = model(input_ids=input_ids)
    if "start_logits" in output:
        return torch.stack((output.start_logits, output.end_logits), dim=-1)
    logits: Tensor = output.logits
    return logits


def _real(scores: Tensor, mask: Tensor) -> Tensor:
    return scores[mask.bool()] if scores.dim() == 3 else scores


def _loss(scores: Tensor) -> Tensor:
    """A loss of real rows alone that reaches every parameter."""
    if scores.dim() == 1:
        return F.softplus(scores).sum()
    return F.cross_entropy(scores, torch.arange(len(scores)) % scores.shape[-1])


def _close(ours: Tensor, theirs: Tensor, least: float = 1e-3) -> bool:
    """Within the tolerance of the largest value, or of `least`, where all of them are smaller."""
    difference, largest = (ours - theirs).detach().abs().max(), theirs.detach().abs().max()
    return bool(difference <= TOLERANCE * max(least, float(largest)))


@pytest.mark.parametrize("name", REFERENCES)
def test_opens_a_reference_directory_with_equal_logits_loss_and_gradients(name: str, tmp_path: Path) -> None:
    """A padded batch of ours, each row alone of theirs."""
    reference = _reference(name)
    reference.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    input_ids, mask = _batch()
    ours, theirs = _real(model(input_ids, mask), mask), _theirs(reference, input_ids, mask)
    assert ours.shape == theirs.shape
    assert _close(ours, theirs)

    our_loss, their_loss = _loss(ours), _loss(theirs)
    assert our_loss.item() == pytest.approx(their_loss.item(), rel=1e-5)
    our_loss.backward()
    their_loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
        # What nothing reaches in the reference, such as a pooler that the head does not use, has no gradient.
        for parameter in reference.parameters():
            parameter.copy_(torch.tensor(torch.nan) if parameter.grad is None else parameter.grad)
    save_model(model, tmp_path / "ours")
    reference.save_pretrained(tmp_path / "theirs")
    gradients, expected = (load_file(tmp_path / side / "model.safetensors") for side in ("ours", "theirs"))
    expected = {key: gradient for key, gradient in expected.items() if not gradient.isnan().any()}
    # A softmax does not feel the biases of keys: their gradients are nothing but rounding of the others.
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for key in gradients.keys() & expected.keys():
        least = 1e-3 * max(1.0, largest if key.endswith((".key.bias", ".k_lin.bias")) else 1.0)
        assert _close(gradients[key], expected[key], least), key
    # A shared bias is written under two names, or under either.
    twice = {"cls.predictions.bias", "cls.predictions.decoder.bias", "lm_head.bias", "lm_head.decoder.bias"}
    assert gradients.keys() ^ expected.keys() <= twice


@pytest.mark.parametrize("name", REFERENCES)
def test_hands_back_what_the_reference_opens_with_equal_logits(name: str, tmp_path: Path) -> None:
    """Full rows of 40 tokens, from the reference's directory and from ours; config.json says the same in both."""
    reference = _reference(name)
    reference.save_pretrained(tmp_path / "theirs")
    model = load_model(tmp_path / "theirs")
    input_ids = torch.randint(4, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(2))
    ours, expected = model(input_ids), _theirs(reference, input_ids, torch.ones_like(input_ids))
    assert _close(ours.flatten(0, -2) if ours.dim() == 3 else ours, expected)

    save_model(model, tmp_path / "ours")
    assert read_stored(tmp_path / "ours").config == model.config
    again, info = type(reference).from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    assert _close(_theirs(again.eval(), input_ids, torch.ones_like(input_ids)), expected)


WRITERS = [name for name, (architecture, _) in REFERENCES.items() if architecture.endswith(("CausalLM", "LMHeadModel"))]


@pytest.mark.parametrize("name", [name for name in WRITERS if name in reference_decoders.REFERENCES])
def test_loss_is_that_which_the_reference_computes(name: str, tmp_path: Path) -> None:
    """Of the next tokens, those before a certain place left out."""
    reference = _reference(name)
    reference.save_pretrained(tmp_path)
    input_ids = torch.randint(4, VOCABULARY, (1, 24), generator=torch.Generator().manual_seed(6))
    labels = input_ids.masked_fill(torch.arange(24) < 7, -100)
    logits = load_model(tmp_path)(input_ids)
    loss = F.cross_entropy(logits[0, 6:-1], input_ids[0, 7:])
    assert loss.item() == pytest.approx(reference(input_ids=input_ids, labels=labels).loss.item(), rel=1e-4)


def _logits_before(model: Transformer, whole: Tensor, start: int) -> Tensor:
    """What the full forward expects at the places from `start` on, [L - start, V], of what is before them."""
    scaling = model.config.rope_scaling
    if scaling is None or not scaling.depends_on_length:
        return model(whole)[0, start - 1 : -1]
    return torch.stack([model(whole[:, :end])[0, -1] for end in range(start, whole.shape[1])])


@pytest.mark.parametrize("name", WRITERS)
def test_cached_decoding_equals_the_full_forward(name: str, tmp_path: Path) -> None:
    """Three prompts at once, written well past windows; each token's log-probability is the full forward's."""
    _reference(name).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    input_ids, _ = _batch()
    prompts = [input_ids[0, :11].tolist(), input_ids[0, 4:9].tolist(), input_ids[0, 9:11].tolist()]
    sampling = Sampling(max_new_tokens=25, temperature=0.0, stop_ids=())
    for prompt, completion in zip(prompts, Generator(model).generate(prompts, sampling), strict=True):
        assert completion.token_ids
        whole = torch.tensor([[*prompt, *completion.token_ids]])
        logprobs = _logits_before(model, whole, len(prompt)).log_softmax(-1)
        expected = logprobs.gather(-1, whole[0, len(prompt) :, None])[:, 0]
        assert torch.allclose(torch.tensor(completion.logprobs), expected, atol=1e-3)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text", "phi3"])
def test_cached_decoding_well_past_windows(family: str) -> None:
    """Windows of 70 tokens, prompts shorter and longer than one, 100 tokens written."""
    spec = ModelSpec(family=family, layers=2, width=32, heads=4, context=400, init_std=0.2, window=70)
    model = build(spec.resolve(VOCABULARY, pad_id=PAD), seed=1).eval()
    ids = torch.randint(4, VOCABULARY, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = [ids, ids[:90], ids[7:12]]
    sampling = Sampling(max_new_tokens=100, temperature=0.0, stop_ids=())
    for prompt, completion in zip(prompts, Generator(model).generate(prompts, sampling), strict=True):
        whole = torch.tensor([[*prompt, *completion.token_ids]])
        expected = model(whole)[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = expected.gather(-1, whole[0, len(prompt) :, None])[:, 0]
        assert torch.allclose(torch.tensor(completion.logprobs), expected, atol=1e-4)


CARRIED = [(name, head) for name, spec in SPECS.items() for head in FAMILIES[spec["family"]].architectures]


@pytest.mark.parametrize(("name", "head"), CARRIED)
def test_reference_opens_our_directory_with_equal_logits(name: str, head: Head, tmp_path: Path) -> None:
    spec = ModelSpec(layers=2, width=32, heads=4, context=48, init_std=0.2, **SPECS[name])
    config = spec.resolve(VOCABULARY, pad_id=PAD, bos_id=1, eos_ids=(2,))
    labels = ("no", "maybe", "yes") if head in LABELLED else ()
    model = build(config.with_head(head, labels), seed=3).eval()
    _scramble(model)
    save_model(model, tmp_path)

    settings = transformers.AutoConfig.from_pretrained(tmp_path)
    model_class = getattr(transformers, settings.architectures[0])
    reference, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    input_ids, mask = _batch()
    assert _close(_real(model(input_ids, mask), mask), _theirs(reference.eval(), input_ids, mask))
    if labels:
        assert reference.config.id2label == {0: "no", 1: "maybe", 2: "yes"}

    again = load_model(tmp_path)
    assert again.config == model.config
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
    assert _close(_real(load_model(tmp_path)(input_ids, mask), mask), _theirs(reference, input_ids, mask))


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
    assert _close(_real(ours, mask), _theirs(reference.float(), input_ids, mask))


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
