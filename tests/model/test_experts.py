"""Routed experts against a loop over tokens in float64, their loss and their packed weights against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from reference_experts import REFERENCES, SMALL
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from llmkit.errors import ModelError
from llmkit.model.config import ModelConfig
from llmkit.model.experts import Experts, RoutedMLP, load_balancing_loss
from llmkit.model.initialization import build
from llmkit.model.load import load_model
from llmkit.model.packed import dequantize_mxfp4
from llmkit.model.save import save_model
from llmkit.model.spec import ModelSpec


def _config(family: str = "mixtral", **changes: Any) -> ModelConfig:
    spec = ModelSpec(family=family, layers=2, width=16, heads=2, experts=5, experts_per_token=2, expert_width=8)
    return spec.resolve(61, pad_id=0).model_copy(update=changes)


def _routed(config: ModelConfig, dtype: torch.dtype = torch.float64) -> RoutedMLP:
    generator = torch.Generator().manual_seed(0)
    routed = RoutedMLP(config).to(dtype)
    with torch.no_grad():
        for parameter in routed.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return routed


def _tokens(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def _expected(routed: RoutedMLP, x_W: Tensor, config: ModelConfig) -> Tensor:
    """One token through the experts that it would choose, from the definition."""
    gate, up, down = routed.experts.gate, routed.experts.up, routed.experts.down
    scores = routed.router.weight @ x_W + (0.0 if routed.router.bias is None else routed.router.bias)
    probabilities = scores.exp() / scores.exp().sum()
    best = sorted(range(config.experts), key=lambda expert: -probabilities[expert].item())[: config.experts_per_token]
    total = sum(probabilities[expert] for expert in best) if config.renormalize_experts else 1.0
    result = torch.zeros_like(x_W)
    for expert in best:
        opened, passed = gate.weight[expert] @ x_W, up.weight[expert] @ x_W
        if gate.bias is not None and up.bias is not None:
            opened, passed = opened + gate.bias[expert], passed + up.bias[expert]
        if config.activation == "clamped_swiglu":
            opened, passed = opened.clamp(max=7.0), passed.clamp(-7.0, 7.0) + 1.0
            inner = opened / (1 + (-1.702 * opened).exp()) * passed
        else:
            inner = opened / (1 + (-opened).exp()) * passed
        mixed = down.weight[expert] @ inner + (0.0 if down.bias is None else down.bias[expert])
        result = result + probabilities[expert] / total * mixed
    return result


CONFIGS = {
    "mixtral": _config(),
    "qwen3_moe": _config("qwen3_moe", renormalize_experts=False),
    "gpt_oss": _config("gpt_oss"),
    "one": _config(experts_per_token=1, renormalize_experts=False),
    "all": _config(experts_per_token=5),
}


@pytest.mark.parametrize("rows", [(3, 4), (1, 2), (1, 1), (40,)], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_each_token_goes_through_its_best_experts(name: str, rows: tuple[int, ...]) -> None:
    routed, x = _routed(CONFIGS[name]), _tokens(*rows, 16)
    mixed = routed(x)
    assert mixed.shape == x.shape
    for token, result in zip(x.view(-1, 16), mixed.view(-1, 16), strict=True):
        assert torch.allclose(result, _expected(routed, token, CONFIGS[name]), rtol=1e-9)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_are_those_of_the_function(name: str) -> None:
    routed, x = _routed(CONFIGS[name]), _tokens(6, 16).requires_grad_()
    assert torch.autograd.gradcheck(routed, (x,), atol=1e-5)
    names = [key for key, _ in routed.named_parameters()]

    def through(*values: Tensor) -> Any:
        return torch.func.functional_call(routed, dict(zip(names, values, strict=True)), (x.detach(),))

    assert torch.autograd.gradcheck(through, tuple(routed.parameters()), atol=1e-5, fast_mode=True)


def test_experts_without_tokens_get_a_gradient_of_zero() -> None:
    routed = _routed(_config(experts_per_token=1))
    with torch.no_grad():
        routed.router.weight[:3], routed.router.weight[3:] = 1.0, -1.0
    routed(_tokens(30, 16).abs()).sum().backward()
    assert routed.experts.gate.weight.grad is not None
    assert not routed.experts.gate.weight.grad[3:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
def test_one_operation_for_all_experts_gives_the_same(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU computes, as a CPU computes it."""
    outputs, gradients = [], []
    for grouped in (False, True):
        monkeypatch.setattr(Experts, "_are_one_operation", lambda self, x, grouped=grouped: grouped)
        routed, x = _routed(CONFIGS[name], dtype), _tokens(24, 16, dtype=dtype).requires_grad_()
        outputs.append(routed(x))
        outputs[-1].backward(_tokens(24, 16, dtype=dtype).flip(0).contiguous())
        gradients.append([x.grad, *(parameter.grad for parameter in routed.parameters())])
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    for ours, other in zip([outputs[0], *gradients[0]], [outputs[1], *gradients[1]], strict=True):
        assert (ours - other).abs().max() <= tolerance * ours.abs().max()


def test_autocast_keeps_the_routers_precision() -> None:
    routed, x = _routed(_config(), torch.float32), _tokens(20, 16, dtype=torch.float32)
    exact = routed(x.bfloat16().float())
    routing: list[Tensor] = []
    with torch.autocast("cpu", torch.bfloat16):
        mixed = routed(x.bfloat16(), routing)
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(routing[0], F.linear(x.bfloat16().float(), routed.router.weight))
    assert (mixed - exact).abs().max() < 0.03 * exact.abs().max()
    mixed.float().sum().backward()
    assert all(parameter.grad is not None for parameter in routed.parameters())


def _reference(name: str, **changes: Any) -> Any:
    architecture, settings = REFERENCES[name]
    model_class = getattr(transformers, architecture)
    torch.manual_seed(0)
    return model_class(model_class.config_class(**{**settings, **changes}, attn_implementation="eager")).eval()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["mixtral", "mixtral-one-expert", "qwen3_moe", "qwen3_moe-dense-layers", "gpt_oss"])
def test_load_balancing_loss_and_its_gradients_equal_the_references(name: str, masked: bool, tmp_path: Path) -> None:
    reference = _reference(name, output_router_logits=True, router_aux_loss_coef=0.3)
    reference.save_pretrained(tmp_path / "model")
    model = load_model(tmp_path / "model")
    assert model.config.router_loss_weight == 0.3
    input_ids = torch.randint(4, 61, (3, 15), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(15) < torch.tensor([15, 9, 2])[:, None]).long() if masked else None
    labels = input_ids if mask is None else input_ids.masked_fill(mask == 0, -100)
    output = reference(input_ids=input_ids, attention_mask=mask, labels=labels)
    routing: list[Tensor] = []
    logits = model.head(model.hidden(input_ids, mask, routing=routing))
    balance = load_balancing_loss(routing, model.config.experts_per_token, mask)
    assert balance.item() == pytest.approx(output.aux_loss.item(), rel=1e-5)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()) + 0.3 * balance
    assert loss.item() == pytest.approx(output.loss.item(), rel=1e-5)

    loss.backward()
    output.loss.backward()
    with torch.no_grad():
        for parameter in (*model.parameters(), *reference.parameters()):
            parameter.copy_(parameter.grad)
    save_model(model, tmp_path / "ours")
    reference.save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / side / "model.safetensors") for side in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    for key in ours:
        assert (ours[key] - theirs[key]).abs().max() <= 1e-4 * max(1e-3, float(theirs[key].abs().max())), key


def test_load_balancing_loss_of_known_routings() -> None:
    """Even use of 4 experts by 2 each gives 2; all tokens at the same 2 of 4, chosen for certain, give 4."""
    even = torch.zeros(1, 8, 4)
    even[0, torch.arange(8), torch.arange(8) % 4] = even[0, torch.arange(8), (torch.arange(8) + 1) % 4] = 1e-6
    assert load_balancing_loss([even], 2).item() == pytest.approx(2.0, rel=1e-5)
    same = torch.tensor([60.0, 60.0, 0.0, 0.0]).expand(1, 8, 4)
    assert load_balancing_loss([same, same], 2).item() == pytest.approx(4.0, rel=1e-5)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe-dense-layers"])
def test_opens_experts_joined_in_one_tensor(name: str, tmp_path: Path) -> None:
    """As transformers holds them, written where it is told to keep its own form."""
    reference = _reference(name)
    reference.save_pretrained(tmp_path, save_original_format=False)
    assert any(key.endswith("experts.gate_up_proj") for key in load_file(tmp_path / "model.safetensors"))
    input_ids = torch.randint(4, 61, (2, 9), generator=torch.Generator().manual_seed(2))
    expected = reference(input_ids=input_ids).logits
    assert (load_model(tmp_path)(input_ids) - expected).abs().max() < 1e-4 * expected.abs().max()


def test_refuses_more_experts_than_there_are(tmp_path: Path) -> None:
    _reference("mixtral").save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, "num_local_experts": 4000}))
    with pytest.raises(ModelError, match="4000 experts a layer are announced"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**settings, "num_local_experts": 3}))
    with pytest.raises(ModelError, match=r"unexpected model.layers.0.block_sparse_moe.experts.3.w1.weight"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise: 0.1 is not supported"),
        ("mixtral", {"num_experts_per_tok": 9}, r"experts_per_token \(9\) must be from 1 to experts \(4\)"),
        ("mixtral", {"output_router_logits": True, "router_aux_loss_coef": "much"}, "router_aux_loss_coef: 'much'"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step: 0 is no number of layers"),
        ("qwen3_moe", {"mlp_only_layers": 3}, "mlp_only_layers: 3 is no list"),
        ("qwen3_moe", {"num_experts": "six", "num_local_experts": None}, "num_experts: 'six' is no whole number"),
        ("gpt_oss", {"swiglu_limit": 5.0}, "swiglu_limit: 5.0 is not supported"),
        ("gpt_oss", {"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported"),
    ],
    ids=str,
)
def test_refuses_settings_that_it_does_not_compute(
    name: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    _reference(name).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, **change}))
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_half_precision_stays_near_the_reference(name: str, tmp_path: Path) -> None:
    """For most tokens: where two experts are all but equally good, rounding decides."""
    reference = _reference(name)
    reference.save_pretrained(tmp_path)
    input_ids = torch.randint(4, 61, (4, 20), generator=torch.Generator().manual_seed(2))
    expected = reference(input_ids=input_ids).logits
    found = load_model(tmp_path, dtype=torch.bfloat16)(input_ids)
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().amax(-1).median() < 0.03 * expected.abs().max()


def test_experts_and_routers_stay_dense_where_linear_maps_are_quantized(tmp_path: Path) -> None:
    save_model(build(_config(), seed=0), tmp_path)
    plain, quantized = load_model(tmp_path), load_model(tmp_path, quantize="int8")
    kept = {name: parameter for name, parameter in quantized.named_parameters() if ".mlp." in name}
    assert len(kept) == 2 * 4
    assert all(torch.equal(parameter, plain.get_parameter(name)) for name, parameter in kept.items())


_E2M1 = {0: 0.0, 1: 0.5, 2: 1.0, 3: 1.5, 4: 2.0, 5: 3.0, 6: 4.0, 7: 6.0}


def _number(code: int, scale: int) -> float:
    return (-1) ** (code >> 3) * _E2M1[code & 7] * 2.0 ** (scale - 127)


def _packed(*shape: int, lowest: int = 100, highest: int = 150) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    blocks = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
    return blocks, torch.randint(lowest, highest, shape, generator=generator, dtype=torch.uint8)


def test_mxfp4_is_what_the_format_says() -> None:
    blocks, scales = _packed(3, 5, lowest=0, highest=254)
    expected = [
        _number(code, int(scale))
        for row, row_scales in zip(blocks, scales, strict=True)
        for group, scale in zip(row, row_scales, strict=True)
        for byte in group.tolist()
        for code in (byte & 15, byte >> 4)
    ]
    assert dequantize_mxfp4(blocks, scales).double().flatten().tolist() == expected
    assert dequantize_mxfp4(blocks, torch.full_like(scales, 255)).isnan().all()


def test_mxfp4_equals_the_references() -> None:
    blocks, scales = _packed(2, 6, 3)
    expected = convert_moe_packed_tensors(blocks, scales)
    assert torch.equal(dequantize_mxfp4(blocks, scales).transpose(1, 2), expected)


def test_opens_gpt_oss_as_published(tmp_path: Path) -> None:
    """Experts in MXFP4, the rest in bf16; equal to the directory with plain numbers."""
    sizes = {"hidden_size": 64, "intermediate_size": 32, "head_dim": 16}
    reference = _reference("gpt_oss", **sizes).bfloat16()
    packed: dict[str, Tensor] = {}
    for layer, block in enumerate(reference.model.layers):
        experts = block.mlp.experts
        for name, parameter in (("gate_up_proj", experts.gate_up_proj), ("down_proj", experts.down_proj)):
            count, inputs, outputs = parameter.shape
            blocks, scales = _packed(count, outputs, inputs // 32, lowest=122, highest=127)
            parameter.data = convert_moe_packed_tensors(blocks, scales)
            key = f"model.layers.{layer}.mlp.experts.{name}"
            packed |= {f"{key}_blocks": blocks, f"{key}_scales": scales}
    reference.save_pretrained(tmp_path / "plain")
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    kept = {name: tensor for name, tensor in plain.items() if f"{name}_blocks" not in packed}
    (tmp_path / "packed").mkdir()
    save_file({**kept, **packed}, tmp_path / "packed" / "model.safetensors")
    settings = json.loads((tmp_path / "plain" / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (tmp_path / "packed" / "config.json").write_text(json.dumps(settings))

    input_ids = torch.randint(4, SMALL["vocab_size"], (2, 11), generator=torch.Generator().manual_seed(2))
    model = load_model(tmp_path / "packed")
    assert model.embeddings.token.weight.dtype == torch.bfloat16
    whole = load_model(tmp_path / "plain")
    for (name, ours), other in zip(model.named_parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, other), name
    reference = type(reference).from_pretrained(tmp_path / "plain", dtype=torch.float32, attn_implementation="eager")
    expected = reference(input_ids=input_ids).logits
    found = load_model(tmp_path / "packed", dtype=torch.float32)(input_ids)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_new_experts_are_drawn_like_other_weights() -> None:
    config = ModelSpec(family="qwen3_moe", layers=8, width=64, heads=4).resolve(61, pad_id=0)
    experts = build(config, seed=0).blocks[3].mlp.experts
    assert experts.gate.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert experts.down.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert not torch.equal(experts.gate.weight[0], experts.gate.weight[1])
