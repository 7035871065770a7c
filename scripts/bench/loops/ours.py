"""llmkit's loop, all of it: data, measured precision, metrics, clipping, spikes, AdamW."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from loops.turns import MASK_ID, Turns, hidden_tokens, random_tokens

from llmkit.model.initialization import build
from llmkit.model.spec import ModelSpec
from llmkit.pretrain.batches import Batch, split_batch
from llmkit.pretrain.config import PretrainConfig
from llmkit.pretrain.objective import LanguageModelling
from llmkit.store.stage import Context
from llmkit.train.contract import StatelessSource
from llmkit.train.loop import train


class GatedTokens(StatelessSource):
    """The competitors' tokens, a step at a time when it is this one's turn."""

    def __init__(self, shape: dict[str, Any], causal: bool, turns: Turns) -> None:
        self._tokens = random_tokens(shape["vocab"], shape["batch"], shape["length"] + causal)
        self._hidden = None if causal else hidden_tokens(self._tokens)
        self._turns, self._micro_batch = turns, shape["micro_batch"]

    def batches(self, step: int) -> list[Batch]:
        """The micro-batches of a step."""
        self._turns.step()
        place = step % len(self._tokens)
        ids = self._tokens[place]
        if self._hidden is None:
            return split_batch(Batch(ids[:, :-1].contiguous(), ids[:, 1:].flatten()), self._micro_batch)
        positions = self._hidden[place].flatten().nonzero()[:, 0]
        batch = Batch(ids.masked_fill(self._hidden[place], MASK_ID), ids.flatten()[positions], positions)
        return split_batch(batch, self._micro_batch)


def run(shape: dict[str, Any], scenario: str, turns: Turns) -> None:
    """Train until told to stop."""
    family = "llama" if scenario == "causal" else "bert"
    spec = {"family": family, "layers": shape["layers"], "width": shape["width"], "context": shape["context"]}
    config = ModelSpec(**spec).resolve(shape["vocab"], pad_id=0)
    settings = PretrainConfig.model_validate(
        {
            "data": "-",
            "model": spec,
            "steps": 10**6,
            "batch_size": shape["batch"],
            "micro_batch_size": shape["micro_batch"],
            "optimizer": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.1},
            "compile": shape["compile"],
            "checkpoints": {"every": 10**6},
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        train(
            model=build(config, seed=0),
            objective=LanguageModelling(),
            source=GatedTokens(shape, scenario == "causal", turns),
            config=settings,
            context=Context("llmkit", 0, Path(folder)),
            save=lambda model, path: path.mkdir(),
            flops_per_token=config.flops_per_token(shape["length"]),
        )
