"""Encoders: config.json in the forms of older releases, what is refused, and windows at their edge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from reference_encoders import BERT, MODERNBERT

from llmkit.errors import ModelError
from llmkit.model.facts import read_stored
from llmkit.model.families import FAMILIES
from llmkit.model.initialization import build
from llmkit.model.load import load_model
from llmkit.model.save import save_model
from llmkit.model.spec import ModelSpec

OLD_MODERNBERT = {key: value for key, value in MODERNBERT.items() if key != "rope_parameters"} | {
    "architectures": ["ModernBertForMaskedLM"],
    "model_type": "modernbert",
    "num_hidden_layers": 7,
    "global_attn_every_n_layers": 2,
    "global_rope_theta": 700.0,
    "local_rope_theta": 30.0,
}


def _config_file(directory: Path, settings: dict[str, Any]) -> Path:
    (directory / "config.json").write_text(json.dumps(settings))
    return directory


@pytest.mark.parametrize(
    "changes", [{}, {"global_attn_every_n_layers": 3, "local_attention": 9}, {"num_hidden_layers": 1}]
)
def test_modernbert_as_releases_before_5_wrote_it(changes: dict[str, Any], tmp_path: Path) -> None:
    settings = {**OLD_MODERNBERT, **changes}
    config = read_stored(_config_file(tmp_path, settings)).config
    theirs = transformers.ModernBertConfig(**settings)
    local = tuple(layer for layer, kind in enumerate(theirs.layer_types) if kind == "sliding_attention")
    assert config.local_layers == local
    assert config.window == (theirs.sliding_window if local else None)
    assert config.rope_theta == theirs.rope_parameters["full_attention"]["rope_theta"] == 700.0
    assert config.local_rope_theta == theirs.rope_parameters["sliding_attention"]["rope_theta"] == 30.0
    # What is written says it in both forms.
    written = FAMILIES["modernbert"].write_config(config)
    assert (written["global_rope_theta"], written["local_rope_theta"]) == (700.0, 30.0)
    assert transformers.ModernBertConfig(**written).layer_types == theirs.layer_types
    if config.layers > 1:
        assert written["global_attn_every_n_layers"] == settings["global_attn_every_n_layers"]


def test_modernbert_sees_its_window_and_no_further(tmp_path: Path) -> None:
    """In a local layer token 10 sees 6 to 14: changing 5 or 15 leaves it, changing 6 or 14 does not."""
    spec = ModelSpec(family="modernbert", layers=2, width=32, heads=2, init_std=0.3)
    config = spec.resolve(61, pad_id=3).model_copy(update={"window": 4, "layers": 1, "local_layers": (0,)})
    model = build(config, seed=0).eval()
    row = torch.arange(4, 25)[None]
    with torch.no_grad():
        before = model.hidden(row)[0, 10]
        for place, seen in ((5, False), (6, True), (14, True), (15, False), (0, False), (20, False)):
            changed = row.clone()
            changed[0, place] = 60
            assert torch.equal(model.hidden(changed)[0, 10], before) is not seen


def test_roberta_numbers_positions_after_its_padding_token(tmp_path: Path) -> None:
    """transformers' own table of positions has pad_token_id + 1 rows before the first position's."""
    reference = transformers.RobertaForMaskedLM(transformers.RobertaConfig(**BERT)).eval()
    reference.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert (model.config.context, model.config.position_offset) == (60, 4)
    longest = torch.arange(60)[None] % 50 + 4
    with torch.no_grad():
        assert torch.allclose(model(longest), reference(longest).logits, atol=1e-4)
    with pytest.raises(ValueError, match="61 tokens exceeds the model's context of 60"):
        model(torch.full((1, 61), 5))


def test_a_new_roberta_without_a_padding_token(tmp_path: Path) -> None:
    config = ModelSpec(family="roberta", layers=1, width=32, heads=2, context=20).resolve(61, pad_id=None)
    assert (config.pad_id, config.position_offset) == (1, 2)
    save_model(build(config, seed=0), tmp_path)
    assert load_model(tmp_path).config == config


def test_heads_follow_each_other_on_one_body(tmp_path: Path) -> None:
    """A masked language model becomes a tagger, then a reader: the body stays, the final map is new."""
    config = ModelSpec(family="modernbert", layers=2, width=32, heads=2).resolve(61, pad_id=3)
    save_model(build(config, seed=0), tmp_path / "masked")
    tagger = load_model(tmp_path / "masked", head="token-classification", labels=["O", "B-PER", "I-PER"], seed=1)
    # The prediction transform of the masked language model stays.
    assert set(tagger.new_parameters) == {"head.score.weight", "head.score.bias"}
    save_model(tagger, tmp_path / "tagger")
    assert load_model(tmp_path / "tagger").config.labels == ("O", "B-PER", "I-PER")
    reader = load_model(tmp_path / "tagger", head="question-answering")
    assert reader(torch.tensor([[1, 5, 6]])).shape == (1, 3, 2)
    assert torch.equal(reader.head.transform.weight, tagger.head.transform.weight)
    assert not torch.equal(reader.head.score.weight[:2], tagger.head.score.weight[:2])
    with pytest.raises(ModelError, match="a token-classification head needs labels"):
        load_model(tmp_path / "masked", head="token-classification")


MODERN = {**OLD_MODERNBERT, "num_hidden_layers": 2}
ROBERTA = {**BERT, "architectures": ["RobertaForMaskedLM"], "model_type": "roberta"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({**MODERN, "classifier_activation": "relu"}, "classifier_activation"),
    ({**MODERN, "classifier_pooling": "max"}, "classifier_pooling: 'max' is not supported"),
    ({**MODERN, "local_attention": "128"}, "local_attention: '128' is no positive whole number"),
    ({**MODERN, "global_attn_every_n_layers": 0}, "global_attn_every_n_layers: 0 is no positive whole number"),
    ({**MODERN, "layer_types": ["full_attention"]}, "layer_types"),
    ({**MODERN, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rotary scaling is not supported"),
    ({**MODERN, "decoder_bias": False}, "decoder_bias: False is not supported"),
    ({**ROBERTA, "pad_token_id": None}, "pad_token_id is missing"),
    ({**ROBERTA, "hidden_act": "relu"}, "hidden_act: 'relu' is not supported under a masked-lm head"),
    ({**ROBERTA, "max_position_embeddings": 4}, "max_position_embeddings"),
    ({**ROBERTA, "is_decoder": True}, "is_decoder: True is not supported"),
    ({**ROBERTA, "architectures": ["RobertaForCausalLM"]}, "unknown architecture 'RobertaForCausalLM'"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_what_the_transformer_does_not_offer_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        read_stored(_config_file(tmp_path, settings))
