"""Settings of the stage `pretrain`. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from llmkit.config.base import Config, Facts, Finding, Input, differs
from llmkit.model.config import ModelConfig
from llmkit.model.cost import block_linears
from llmkit.model.families import FAMILIES
from llmkit.model.spec import ModelSpec
from llmkit.model.facts import architecture_facts
from llmkit.train.config import TrainConfig
from llmkit.train.optimizer_config import OptimizerConfig

Objective = Literal["causal", "masked"]
_HEADS: Mapping[Objective, Literal["causal-lm", "masked-lm"]] = {"causal": "causal-lm", "masked": "masked-lm"}


def _model_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "start"
    return "new" if isinstance(value, (dict, ModelSpec)) else None


class MaskConfig(Config):
    """Which tokens a masked language model has to find, and what it sees in their place (Devlin et al. 2018)."""

    probability: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens that are chosen; special tokens never are."""
    replace: float = Field(default=0.8, ge=0, le=1)
    """Share of the chosen ones that become the mask token."""
    random: float = Field(default=0.1, ge=0, le=1)
    """Share of the chosen ones that become a random ordinary token; the rest stay as they are."""


class PretrainConfig(TrainConfig):
    """Train a model on a stream of text, from random weights or from another model's."""

    kind: ClassVar[str] = "pretrain"

    stage: Literal["pretrain"] = "pretrain"
    """Kind of the stage."""
    data: str = Field(min_length=1)
    """The tokens: a stage `tokens`, or the folder of one."""
    model: Annotated[
        Annotated[ModelSpec, Tag("new")] | Annotated[str, Tag("start"), Field(min_length=1)],
        Discriminator(
            _model_kind,
            custom_error_type="model",
            custom_error_message="a model is a mapping with the shape of a new one (family, layers, width, ...), or "
            "the stage, path or hf:owner/name of one to start from",
        ),
    ]
    """The shape of a new model, or a model to go on from: a stage, a path, or hf:owner/name."""
    objective: Objective | None = None
    """causal: predict the next token. masked: find hidden tokens. By default what the model is made for."""
    sequence_length: int | None = Field(default=None, ge=8)
    """Tokens of a training sequence; by default the model's context."""
    mask: MaskConfig = MaskConfig()
    """Masking, for the masked objective."""
    z_loss: float = Field(default=0.0, ge=0, le=1)
    """Weight of the squared log of the softmax's denominator, which keeps logits from drifting; 1e-4 is usual, 0 is
    none. The loss that is shown stays the cross-entropy alone, with `z_loss` beside it."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-3, weight_decay=0.1)
    """How gradients become updates."""

    def inputs(self) -> list[Input]:
        """The tokens, and the model where training goes on from one."""
        found = [Input("data", self.data, ("tokens",))]
        if isinstance(self.model, str):
            found.append(Input("model", self.model, ("model",)))
        return found

    def architecture(
        self,
        vocab_size: int,
        *,
        pad_id: int | None = None,
        bos_id: int | None = None,
        eos_ids: tuple[int, ...] = (),
    ) -> ModelConfig:
        """The architecture of a new model for a tokenizer.

        Raises:
            ValueError: a special id outside the vocabulary.
        """
        assert isinstance(self.model, ModelSpec)
        return self.model.resolve(vocab_size, pad_id=pad_id, bos_id=bos_id, eos_ids=eos_ids)

    def chosen_objective(self, causal: bool) -> Objective:
        """What is learned by a model that is, or is not, causal."""
        return self.objective or ("causal" if causal else "masked")

    def head(self, causal: bool) -> Literal["causal-lm", "masked-lm"]:
        """The head that the objective needs."""
        return _HEADS[self.chosen_objective(causal)]

    def model_facts(self, inputs: Mapping[str, Facts]) -> dict[str, Any]:
        """What is known of the model that is trained."""
        tokens = inputs["data"]
        if isinstance(self.model, str):
            return {**inputs["model"].properties, "labels": []}
        # The size of the vocabulary decides no more than the number of parameters.
        vocab_size = tokens.get("vocab_size")
        config = self.architecture(vocab_size or 1)
        facts: dict[str, Any] = {
            "family": config.family,
            "head": config.head,
            "labels": [],
            "causal": config.causal,
            "context": config.context,
            "width": config.width,
            "layers": config.layers,
            "linears": {name: list(shape) for name, shape in block_linears(config).items()},
        }
        if vocab_size is not None:
            facts |= {"vocab_size": vocab_size, "parameters": config.parameter_count()}
            facts |= {"active_parameters": config.active_parameter_count()} if config.experts else {}
        if tokens.get("chat_template") is not None:
            facts["chat_template"] = tokens.get("chat_template")
        return facts

    def facts(self, inputs: Mapping[str, Facts]) -> Facts:
        """A model with the head of the objective."""
        facts = self.model_facts(inputs)
        if facts.get("causal") is not None:
            facts["head"] = self.head(facts["causal"])
        return Facts("model", facts)

    def check(self, inputs: Mapping[str, Facts]) -> Iterator[Finding]:
        """Whether tokens, model, objective and lengths fit together."""
        yield from super().check(inputs)
        model, tokens = Facts("model", self.model_facts(inputs)), inputs["data"]
        yield from self._check_objective(model, tokens)
        yield from self._check_splits(tokens)
        context, length = model.get("context"), self.sequence_length
        if length is not None and context is not None and length > context:
            yield Finding(
                f"sequence_length {length:,} is longer than the model's context of {context:,} tokens.",
                key="sequence_length",
                hint=f"Use at most {context:,}, or a model with a longer `context`.",
            )
        ours, theirs = model.get("vocab_size"), tokens.get("vocab_size")
        if ours is not None and theirs is not None and theirs > ours:
            yield Finding(
                f"the tokens are of a vocabulary of {theirs:,}, and `{self.model}` knows {ours:,}.",
                key="data",
                hint="Make the tokens with the model's own tokenizer.",
            )

    def _check_objective(self, model: Facts, tokens: Facts) -> Iterator[Finding]:
        causal = model.get("causal")
        if causal is None:
            return
        objective = self.chosen_objective(causal)
        if (objective == "causal") != causal:
            fitting = [name for name, family in FAMILIES.items() if family.parts["causal"] != causal]
            sees = "sees only what came before" if causal else "sees both directions"
            yield Finding(
                f"a model of the family {model.get('family')} {sees} and cannot learn the {objective} objective.",
                key="objective",
                hint=f"Leave `objective` out, or take one of: {', '.join(fitting)}.",
            )
        elif objective == "masked" and tokens.get("mask_token") is False:
            yield Finding(
                "the tokenizer of these tokens has no mask token, which the masked objective needs.",
                key="data",
                hint="Train a tokenizer with `algorithm: wordpiece` or with `masked: true`, or a causal model.",
            )
        if objective == "causal" and differs(self, "mask"):
            yield Finding("the causal objective masks nothing.", key="mask", hint="Remove the key.")
        if self.mask.replace + self.mask.random > 1:
            yield Finding(
                f"replace ({self.mask.replace}) and random ({self.mask.random}) are shares of the chosen tokens and "
                "exceed 1 together.",
                key="mask",
                hint="What they leave stays as it is: 0.8 and 0.1 leave a tenth.",
            )

    def _check_splits(self, tokens: Facts) -> Iterator[Finding]:
        splits = tokens.get("splits")
        if splits is None:
            return
        if "train" not in splits:
            yield Finding(f"`{self.data}` has no tokens for training.", key="data")
        if "validation" not in splits:
            yield Finding(
                f"`{self.data}` has no tokens for validation, so the loss on held-out text is not measured.",
                key="data",
                severity="warning",
            )
            facts["architecture"] = architecture_facts(config)
