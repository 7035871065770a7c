"""Models in GGUF files: read as `transformers` reads them, and written so that it reads them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import gguf.quants
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf_files import tokenizer_metadata, write_llama
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference_decoders import GEMMA2, GEMMA3, GPT2, LLAMA, LLAMA3, LONGROPE, PHI3, QWEN3, scaled
from reference_decoders import REFERENCES as DECODERS
from reference_experts import MIXTRAL, QWEN3_MOE
from reference_experts import REFERENCES as EXPERTS

import llmkit
from llmkit.errors import LLMKitError, ModelError
from llmkit.model.gguf import read
from llmkit.model.gguf.write import KINDS, write_gguf
from llmkit.model.load import load_model
from llmkit.model.transformer import Transformer
from llmkit.store.gguf import read_gguf

TYPES = sorted(
    {kind for kind in GGMLQuantizationType if kind in gguf.quants._type_traits}
    | {GGMLQuantizationType.F32, GGMLQuantizationType.F16}
)
WIDE = {**LLAMA, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 96, "num_attention_heads": 4}
# Settings in which each architecture of llama.cpp is exact.
WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name: {**DECODERS, **EXPERTS}[name]
        for name in (
            "llama", "llama-tied", "llama-biases", "llama-wide-heads", "llama-llama3", "llama-linear", "llama-yarn",
            "llama-longrope",
            "mistral-global", "qwen2", "qwen3", "gemma", "phi3-partial", "phi3-longrope", "olmo2", "gpt_neox", "gpt2",
            "gpt2-untied", "mixtral", "qwen3_moe-normalised", "gpt_oss",
        )
    },
    "gemma2": ("Gemma2ForCausalLM", {**GEMMA2, "query_pre_attn_scalar": 12}),
    "gemma3": ("Gemma3ForCausalLM", {**GEMMA3, "query_pre_attn_scalar": 12}),
    "mistral-wide-window": ("MistralForCausalLM", {**LLAMA, "sliding_window": 64}),
}  # fmt: skip


def reference(name: str, config: dict[str, Any], folder: Path) -> Any:
    """A model of `transformers`, no parameter of which is a constant, saved to the folder."""
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return model


def written(model: Transformer, path: Path, kind: Any = "f32") -> Path:
    write_gguf(model, path, kind=kind, tokenizer=tokenizer_metadata(model.config.vocab_size), name="small")
    return path


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        made = model(ids)
    return made if isinstance(made, torch.Tensor) else made.logits


def opened_by_transformers(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name).eval()


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_is_read_to_the_bit(name: str, tmp_path: Path) -> None:
    reference(*WRITTEN[name], tmp_path)
    model = load_model(tmp_path)
    again = load_model(written(model, tmp_path / "model.gguf"))
    found = dict(again.named_parameters())
    for parameter, value in model.named_parameters():
        # Gemma's norms are stored with one added, which may round.
        if model.config.norm_offset and value.ndim == 1:
            torch.testing.assert_close(found.pop(parameter), value, rtol=0, atol=1e-7)
        else:
            assert torch.equal(found.pop(parameter), value), parameter
    assert not found
    ids = torch.randint(4, 61, (2, 20))
    torch.testing.assert_close(logits(again, ids), logits(model, ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen2", "gpt2", "gemma2", "gemma3", "phi3"])
def test_what_is_written_is_read_by_transformers(name: str, tmp_path: Path) -> None:
    # The reference takes the widths of heads, and biases, of some families from its defaults.
    plain = {"head_dim": 256, "query_pre_attn_scalar": 256}
    configs = {
        **WRITTEN,
        "phi3": ("Phi3ForCausalLM", {**PHI3, "tie_word_embeddings": False}),
        "gpt2": ("GPT2LMHeadModel", {**GPT2, "n_positions": 1024}),
        "gemma2": ("Gemma2ForCausalLM", {**GEMMA2, **plain}),
        "gemma3": ("Gemma3ForCausalLM", {**GEMMA3, **plain}),
    }
    theirs = reference(*configs[name], tmp_path)
    again = opened_by_transformers(written(load_model(tmp_path), tmp_path / "model.gguf"))
    ids = torch.randint(4, 61, (1, 5))
    scale = logits(theirs, ids).abs().max().item()
    torch.testing.assert_close(logits(again, ids), logits(theirs, ids), rtol=0, atol=1e-5 * scale)


def test_a_file_made_elsewhere_gives_the_logits_of_its_model(tmp_path: Path) -> None:
    model = reference("LlamaForCausalLM", LLAMA, tmp_path)
    path = write_llama(tmp_path / "model.gguf", model)
    ids = torch.randint(4, 61, (2, 20))
    torch.testing.assert_close(logits(opened_by_transformers(path), ids), logits(model, ids), rtol=0, atol=1e-5)
    opened = llmkit.load(str(path), device="cpu")
    torch.testing.assert_close(logits(opened.model, ids), logits(model, ids), rtol=0, atol=1e-5)
    assert (opened.model.config.bos_id, opened.model.config.eos_ids, opened.model.config.pad_id) == (1, (2,), 3)
    assert opened.tokenizer.encode("to\n") == [6, 0]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "BF16"])
def test_a_quantized_file_gives_the_logits_that_transformers_gives(kind: str, tmp_path: Path) -> None:
    model = reference("LlamaForCausalLM", WIDE, tmp_path)
    path = write_llama(tmp_path / "model.gguf", model, GGMLQuantizationType[kind])
    ids = torch.randint(4, 61, (2, 20))
    theirs = opened_by_transformers(path)
    torch.testing.assert_close(logits(load_model(path, dtype=torch.float32), ids), logits(theirs, ids))
    assert load_model(path).embeddings.token.weight.dtype == (torch.bfloat16 if kind == "BF16" else torch.float32)
    assert load_model(path, dtype=torch.float16).norm.weight.dtype == torch.float16


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_every_type_is_dequantized_as_gguf_does(
    kind: GGMLQuantizationType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(0)
    data = random.integers(0, 256, (2, 9, 3 * size), dtype=np.uint8)
    if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
        data = random.normal(size=(2, 9, 6)).astype(np.dtype(f"f{size}"))
    path = tmp_path / "one.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("t.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    entry = read_gguf(path).tensors["t.weight"]
    (stored,) = GGUFReader(path).tensors
    assert entry.type == kind.name
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(np.asarray(stored.data), kind).reshape(entry.shape)
    assert read.readable(kind.name)
    for chunk in (1, 7 * block, 1 << 20):
        monkeypatch.setattr(read, "CHUNK", chunk)
        whole = read._read_rows(path, entry, 0, entry.shape[0])
        np.testing.assert_array_equal(whole.float().numpy(), expected)
    np.testing.assert_array_equal(read._read_rows(path, entry, 1, 2).float().numpy(), expected[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_types_that_are_written(kind: Any, tmp_path: Path) -> None:
    reference("LlamaForCausalLM", WIDE, tmp_path)
    model = load_model(tmp_path)
    path = written(model, tmp_path / "model.gguf", kind)
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
    assert types["blk.0.attn_norm.weight"] == "F32"
    assert types["blk.0.ffn_up.weight"] == types["token_embd.weight"] == kind.upper()
    weight = dict(model.named_parameters())["blocks.1.mlp.up.weight"].detach()
    raw = next(tensor for tensor in GGUFReader(path).tensors if tensor.name == "blk.1.ffn_up.weight")
    expected = {
        "f32": weight, "f16": weight.half().float(), "bf16": weight.bfloat16().float(),
        "q8_0": torch.from_numpy(gguf.quants.dequantize(np.array(raw.data), raw.tensor_type)),
    }[kind]  # fmt: skip
    found = dict(load_model(path, dtype=torch.float32).named_parameters())["blocks.1.mlp.up.weight"]
    assert torch.equal(found, expected)
    # Q8_0 keeps 127 steps of the largest value in 32.
    assert (found - weight).abs().max() <= weight.abs().max() / 127


def test_rows_that_no_block_divides_are_written_as_f16(tmp_path: Path) -> None:
    reference("LlamaForCausalLM", LLAMA, tmp_path)
    path = written(load_model(tmp_path), tmp_path / "model.gguf", "q8_0")
    types = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}
    assert types["blk.0.ffn_down.weight"] == "F16" and types["blk.0.ffn_up.weight"] == "Q8_0"


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "window": ("MistralForCausalLM", {**LLAMA, "sliding_window": 5}, "no window of 5"),
    "phi3-window": ("Phi3ForCausalLM", {**PHI3, "sliding_window": 7}, "no window of 7"),
    "activation": (*DECODERS["gpt2-relu"], "no activation of relu"),
    "scaling": (*DECODERS["llama-dynamic"], "dynamic"),
    "qwen2-longrope": ("Qwen2ForCausalLM", {**LLAMA, **LONGROPE}, "no rope_scaling by rope_factors_long"),
    "qwen2-llama3": ("Qwen2ForCausalLM", {**LLAMA, **LLAMA3}, "no rope_scaling by rope_freqs"),
    "yarn": (
        "LlamaForCausalLM",
        {**LLAMA, **scaled("yarn", factor=4.0, attention_factor=0.8, original_max_position_embeddings=16)},
        "no rope_scaling",
    ),
    "shares": ("Qwen3MoeForCausalLM", {**QWEN3_MOE, "norm_topk_prob": False}, "no renormalize_experts"),
    "biases": ("Qwen3ForCausalLM", {**QWEN3, "attention_bias": True}, "without output_bias"),
    "untied": ("GemmaForCausalLM", {**LLAMA, "head_dim": 8, "tie_word_embeddings": False}, "with tie_embeddings"),
    "expert window": ("MixtralForCausalLM", {**MIXTRAL, "sliding_window": 6}, "no window of 6"),
    "head": (*DECODERS["llama-classifier"], "classification head"),
    "family": ("BertForMaskedLM", {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 1,
                                   "num_attention_heads": 4, "intermediate_size": 40}, "family bert"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_does_not_compute_is_not_written(name: str, tmp_path: Path) -> None:
    architecture, config, problem = REFUSED[name]
    reference(architecture, config, tmp_path)
    with pytest.raises(ModelError, match=problem):
        written(load_model(tmp_path), tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*.gguf*")) and not list(tmp_path.glob(".*.tmp"))


def test_an_unknown_architecture_is_refused(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "x.gguf", "mamba")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"architecture 'mamba' are not supported.*llama"):
        load_model(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"llama.block_count": 1 << 31}, "layers are announced"),
        ({"split.count": 3}, "one of 3 parts"),
        ({"llama.block_count": 3}, "missing blk.2"),
        ({"llama.block_count": 0}, "must be above zero"),
        ({"llama.embedding_length": 1 << 30}, "announced, but no tensor is wider"),
        ({"llama.attention.head_count": 5}, "do not divide"),
        ({"llama.attention.head_count": "four"}, "must be of kind int"),
        ({"llama.feed_forward_length": 41}, "ffn_down.weight has shape|no tensor is wider"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "lacks llama.attention.layer_norm_rms_epsilon"),
        ({"llama.attention.key_length": 1 << 31}, "announced"),
        ({"llama.rope.freq_base": float("nan")}, "rope_theta"),
        ({"llama.rope.scaling.type": "spiral"}, "'spiral' is not supported"),
        ({"llama.expert_count": 1 << 30}, "experts"),
        ({"tokenizer.ggml.eos_token_id": 9999}, "eos_token_id is 9999"),
    ],
)
def test_metadata_that_is_not_the_weights_is_refused(change: dict[str, Any], problem: str, tmp_path: Path) -> None:
    model = reference("LlamaForCausalLM", LLAMA, tmp_path)
    path = write_llama(tmp_path / "model.gguf", model)
    rewrite(path, change)
    with pytest.raises(LLMKitError, match=problem):
        llmkit.load(str(path), device="cpu")


def rewrite(path: Path, change: dict[str, Any]) -> None:
    """The same file with other metadata."""
    old = GGUFReader(path)
    values = {name: field.contents() for name, field in old.fields.items() if not name.startswith("GGUF.")} | change
    tensors = [(tensor.name, np.array(tensor.data), tensor.tensor_type) for tensor in old.tensors]
    del old
    writer = GGUFWriter(path, "llama")
    for key, value in values.items():
        if key != "general.architecture" and value is not None:
            kinds = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
            kinds[type(value)](key, value)
    for name, data, kind in tensors:
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    return write_llama(folder / "model.gguf", reference("LlamaForCausalLM", {**LLAMA, "num_hidden_layers": 1}, folder))


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_file_is_opened_or_refused(small: Path, tmp_path: Path, data: Any) -> None:
    content = bytearray(small.read_bytes())
    header = min(entry.offset for entry in read_gguf(small).tensors.values())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, header - 1))
        patch = data.draw(st.one_of(st.binary(min_size=1, max_size=4), st.just(b"\xff" * 8), st.just(bytes(8))))
        content[place : place + len(patch)] = patch
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    with contextlib.suppress(LLMKitError):
        llmkit.load(str(path), device="cpu")


def test_tables_of_factors_are_the_only_scaling(tmp_path: Path) -> None:
    # llama.cpp would divide positions by a factor as well.
    reference(*WRITTEN["phi3-longrope"], tmp_path)
    file = read_gguf(written(load_model(tmp_path), tmp_path / "model.gguf"))
    named = {key for key in file.metadata if ".rope.scaling." in key}
    assert named == {f"phi3.rope.scaling.{key}" for key in ("type", "original_context_length", "attn_factor")}
    assert {"rope_factors_long.weight", "rope_factors_short.weight"} <= file.tensors.keys()
