"""The `Trainer` of `transformers` as it comes, around that library's own model."""

from __future__ import annotations

import tempfile
from typing import Any

from loops.turns import MASK_ID, Turns, hidden_tokens, random_tokens


def run(shape: dict[str, Any], scenario: str, turns: Turns, *, bf16: bool) -> None:
    """Train until told to stop."""
    from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
    from transformers.trainer_callback import TrainerCallback

    class Gate(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            turns.step()

    sizes: dict[str, Any] = {
        "vocab_size": shape["vocab"],
        "hidden_size": shape["width"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "intermediate_size": shape["mlp_width"],
        "max_position_embeddings": shape["context"],
        "tie_word_embeddings": True,
    }
    tokens = random_tokens(shape["vocab"], shape["batch"], shape["length"])
    if scenario == "causal":
        model = LlamaForCausalLM(LlamaConfig(**sizes))
        inputs = labels = tokens
    else:
        model = BertForMaskedLM(BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
        hidden = hidden_tokens(tokens)
        inputs, labels = tokens.masked_fill(hidden, MASK_ID), tokens.masked_fill(~hidden, -100)
    assert sum(parameter.numel() for parameter in model.parameters()) == shape["parameters"]
    rows = [
        {"input_ids": ids, "labels": wanted}
        for ids, wanted in zip(inputs.flatten(0, 1), labels.flatten(0, 1), strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=shape["batch"],
            max_steps=10**6,
            learning_rate=1e-3,
            use_cpu=True,
            bf16=bf16,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[Gate()]).train()
