"""The kinds of stage. Everything else reaches a stage through this table; adding a kind is adding a row."""

from __future__ import annotations

from llmkit.config.experiment import StageKind

_TABLE = (
    StageKind("data", "data", "llmkit.data.config:DataConfig", "llmkit.data.stage", 3),
    StageKind("examples", "data", "llmkit.data.examples_config:ExamplesConfig", "llmkit.data.examples_stage", 1),
    StageKind("tokenizer", "tokenizer", "llmkit.tokenizer.config:TokenizerConfig", "llmkit.tokenizer.stage", 1),
    StageKind("tokens", "tokens", "llmkit.data.tokens_config:TokensConfig", "llmkit.data.tokens_stage", 1),
    StageKind("pretrain", "pretrain", "llmkit.pretrain.config:PretrainConfig", "llmkit.pretrain.stage", 2),
    StageKind("finetune", "finetune", "llmkit.finetune.config:FinetuneConfig", "llmkit.finetune.stage", 2),
    StageKind("rlhf", "rlhf", "llmkit.rlhf.config:RLHFConfig", "llmkit.rlhf.stage", 1),
    StageKind("eval", "eval", "llmkit.eval.config:EvalConfig", "llmkit.eval.stage", 1),
)

KINDS = {kind.name: kind for kind in _TABLE}
