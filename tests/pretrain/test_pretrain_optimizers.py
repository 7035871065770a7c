"""Settings of optimizers that reach beyond them: initial weights, the precision of weights, the model that is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pretrain_samples import NEW_CAUSAL, pretrain, write_tokens
from safetensors.torch import load_file

from llmkit.model.load import load_model


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model" / "model.safetensors")


def test_new_weights_and_their_rates_follow_the_base_width(tmp_path: Path) -> None:
    """A step so small that it leaves the weights as they were made; four times the base width."""
    data = write_tokens(tmp_path / "tokens")
    width = int(NEW_CAUSAL["width"])
    found = {}
    for name, base in (("plain", None), ("scaled", width // 4)):
        settings = {"lr": 1e-30, **({} if base is None else {"base_width": base})}
        pretrain(tmp_path / name, data, model=NEW_CAUSAL, steps=1, optimizer={"name": "adamw", **settings})
        found[name] = weights(tmp_path / name)
    for name, plain in found["plain"].items():
        factor = 0.25 if name == "model.norm.weight" else 0.5 if "proj" in name else 1.0
        torch.testing.assert_close(found["scaled"][name], plain * factor)


@pytest.mark.parametrize("rounding", ["stochastic", "kahan"])
def test_a_model_with_weights_in_bfloat16_learns_and_is_saved_as_it_is(tmp_path: Path, rounding: str) -> None:
    data = write_tokens(tmp_path / "tokens")
    common = {"steps": 60, "batch_size": 8, "evaluate_batches": 4}
    wide = pretrain(tmp_path / "wide", data, **common, precision="bf16", optimizer={"lr": 0.02})
    narrow = pretrain(
        tmp_path / "narrow", data, **common, precision="bf16-pure", optimizer={"lr": 0.02, "rounding": rounding}
    )
    assert narrow.summary["validation_loss"] == pytest.approx(wide.summary["validation_loss"], abs=0.1)
    assert {value.dtype for value in weights(tmp_path / "narrow").values()} == {torch.bfloat16}
    assert load_model(tmp_path / "narrow/model").embeddings.token.weight.dtype == torch.bfloat16
