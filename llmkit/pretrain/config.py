"""Settings of the stage `pretrain`. No torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from llmkit.config.base import Config, Facts, Finding, Input, differs
from llmkit.model.config import ModelConfig
from llmkit.model.cost import block_linears
from llmkit.model.facts import architecture_facts
from llmkit.model.families import FAMILIES
from llmkit.model.spec import ModelSpec
from llmkit.pretrain.course import Course, Phase
from llmkit.train.config import Clock, ScheduleConfig, TrainConfig
from llmkit.train.optimizers.config import OptimizerConfig
from llmkit.train.parallel.limits import length_unit, product_limits, sequence_limits
from llmkit.train.ramp import Points, value_at

Objective = Literal["causal", "masked"]
_HEADS: Mapping[Objective, Literal["causal-lm", "masked-lm"]] = {"causal": "causal-lm", "masked": "masked-lm"}


def _model_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "start"
    return "new" if isinstance(value, (dict, ModelSpec)) else None


class SpanConfig(Config):
    """Lengths of the spans that are hidden (Joshi et al. 2020): geometric, and none longer than the longest."""

    stop: float = Field(default=0.2, gt=0, le=1)
    """The chance that a span ends behind each of its tokens; 0.2 and at most 10 make 3.8 tokens on average."""
    longest: int = Field(default=10, ge=1, le=1000)
    """Tokens (or words) of a span at most."""


class MaskConfig(Config):
    """Which tokens a masked language model has to find, and what it sees in their place (Devlin et al. 2018)."""

    probability: Annotated[float, Field(gt=0, lt=1)] | Points = 0.15
    """Share of the tokens that are chosen; special tokens never are. One number, or points: [[0, 0.3], [1, 0.15]] goes
    from 0.3 at the begin of the training to 0.15 at its end."""
    whole_words: bool = False
    """Choose whole words, and not single tokens of them."""
    spans: SpanConfig | None = None
    """Choose spans of neighbouring tokens, or words; by default each by itself."""
    replace: float = Field(default=0.8, ge=0, le=1)
    """Share of the chosen ones that become the mask token."""
    random: float = Field(default=0.1, ge=0, le=1)
    """Share of the chosen ones that become a random ordinary token; the rest stay as they are."""

    @property
    def mean_probability(self) -> float:
        """The share of chosen tokens over the whole training."""
        places = [0.0, 1.0] if isinstance(self.probability, float) else [0.0, *(p for p, _ in self.probability), 1.0]
        values = [value_at(self.probability, place) for place in places]
        sides = zip(itertools.pairwise(places), itertools.pairwise(values), strict=True)
        return sum((end - begin) * (low + high) / 2 for (begin, end), (low, high) in sides)

    @field_validator("probability")
    @classmethod
    def _possible(cls, value: float | list[list[float]]) -> float | list[list[float]]:
        if not isinstance(value, float) and any(not 0 < probability < 1 for _, probability in value):
            raise ValueError("probabilities lie between 0 and 1")
        return value


class SourceConfig(Config):
    """One of several sources of tokens."""

    data: str = Field(min_length=1)
    """The tokens: a stage `tokens`, or the folder of one."""
    weight: Annotated[float, Field(ge=0)] | Points = 1.0
    """Share of the sequences that come from here, against the other sources' weights. One number, or points:
    [[0, 0.9], [1, 0.3]] goes from 0.9 at the begin of the training to 0.3 at its end."""
    max_epochs: float | None = Field(default=None, gt=0)
    """How often it is read at most. Where its weight asks for more, the other sources have the rest; up to four times
    is nearly as good as new text (Muennighoff et al. 2023)."""


class PhaseConfig(Config):
    """Steps at the begin of the training that are made of other batches than the rest."""

    steps: int | None = Field(default=None, ge=1)
    """How many steps."""
    tokens: int | None = Field(default=None, ge=1)
    """As many steps as it takes to see at least so many tokens; in place of `steps`."""
    batch_size: int | None = Field(default=None, ge=1)
    """Sequences for each optimizer step; by default `batch_size` of the stage."""
    sequence_length: int | None = Field(default=None, ge=8)
    """Tokens of a sequence; by default `sequence_length` of the stage."""
    weights: list[Annotated[float, Field(ge=0)]] | None = None
    """Weights of the sources in this phase, in their order, in place of their own: a curriculum by stages."""

    @model_validator(mode="after")
    def _one_duration(self) -> Self:
        if (self.steps is None) == (self.tokens is None):
            raise ValueError("a phase lasts for a number of `steps` or of `tokens`: give one of them")
        return self


class PretrainConfig(TrainConfig):
    """Train a model on a stream of text, from random weights or from another model's."""

    kind: ClassVar[str] = "pretrain"

    shares_sequences: ClassVar[bool] = True

    stage: Literal["pretrain"] = "pretrain"
    """Kind of the stage."""
    data: Annotated[str, Field(min_length=1)] | Annotated[list[SourceConfig], Field(min_length=1)]
    """The tokens: a stage `tokens`, or the folder of one; or a list of such with their weights (`{data: ..., weight:
    ...}`), which are mixed."""
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
    temperature: float | None = Field(default=None, gt=0)
    """Multiply the weights of sources by their tokens to the power 1/temperature: at 1 all are read equally often, and
    the higher it is, the more small ones come up. By default the weights alone say."""
    objective: Objective | None = None
    """causal: predict the next token. masked: find hidden tokens. By default what the model is made for."""
    sequence_length: int | None = Field(default=None, ge=8)
    """Tokens of a training sequence; by default the model's context."""
    documents: Literal["apart", "joined"] = "apart"
    """Of several documents in one sequence, apart: none sees another, and the first token of each is not predicted.
    joined: the text is read as one."""
    phases: list[PhaseConfig] = Field(default=[])
    """What the first steps are made of, one phase after another, such as smaller batches or shorter sequences; then
    `batch_size` and `sequence_length` hold."""
    mask: MaskConfig = MaskConfig()
    """Masking, for the masked objective."""
    z_loss: float = Field(default=0.0, ge=0, le=1)
    """Weight of the squared log of the softmax's denominator, which keeps logits from drifting; 1e-4 is usual, 0 is
    none. The loss that is shown stays the cross-entropy alone, with `z_loss` beside it."""
    optimizer: OptimizerConfig = OptimizerConfig(name="normuon", lr=5e-3, weight_decay=0.1)
    """How gradients become updates. The default is the recipe that `scripts/bench/ablate.py` chose, for models of up to
    some 100 million parameters; larger ones want a smaller rate, or the rule of `base_width`."""
    schedule: ScheduleConfig = ScheduleConfig(name="wsd", decay_fraction=0.5, final_fraction=0.0)
    """How the learning rate changes over the run."""

    @property
    def sources(self) -> dict[str, SourceConfig]:
        """The sources of tokens by the key that names them."""
        if isinstance(self.data, str):
            return {"data": SourceConfig(data=self.data)}
        return {f"data.{number}.data": source for number, source in enumerate(self.data)}

    def inputs(self) -> list[Input]:
        """The tokens, and the model where training goes on from one."""
        found = [Input(key, source.data, ("tokens",)) for key, source in self.sources.items()]
        if isinstance(self.model, str):
            found.append(Input("model", self.model, ("model",)))
        return found

    def course(self, length: int) -> Course:
        """What the steps are made of; `length` is that of sequences where the settings say nothing."""
        length = self.sequence_length or length
        phases = [
            Phase(phase.batch_size or self.batch_size, phase.sequence_length or length, phase.steps, phase.tokens)
            for phase in self.phases
        ]
        return Course([*phases, Phase(self.batch_size, length)], self.steps)

    def clock(self, step: int) -> Clock:
        """Where in the schedule a step is: in tokens where the warm-up is; `resolved` must have been called then."""
        warmup = self.schedule.warmup_tokens
        if warmup is None:
            return super().clock(step)
        assert self.sequence_length is not None
        course = self.course(self.sequence_length)
        decay = max(1, round(course.tokens * self.schedule.decay_fraction))
        return Clock(course.tokens_before(step + 1), course.tokens, warmup, decay)

    def _check_warmup_tokens(self, tokens: int) -> Iterator[Finding]:
        key = "schedule.warmup_tokens"
        if self.schedule.warmup_steps is not None:
            yield Finding(
                "`warmup_steps` and `warmup_tokens` both say how long the warm-up is.", key=key, hint="Remove one."
            )
        if self.sequence_length is None:
            return
        total = self.course(self.sequence_length).tokens
        decay = total * self.schedule.decay_fraction if self.schedule.name == "wsd" else 0
        if tokens + decay > total:
            what = f"the warm-up of {tokens:,} tokens" + (f" and a decay of {round(decay):,}" if decay else "")
            yield Finding(f"{what} do not fit into the training's {total:,} tokens.", key=key, hint="Shorten it.")

    def resolved(self, length: int) -> PretrainConfig:
        """The same settings with the length of sequences written out."""
        return self.model_copy(update={"sequence_length": self.sequence_length or length})

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
        tokens = inputs[next(iter(self.sources))]
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
            facts["architecture"] = architecture_facts(config)
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
        model = Facts("model", self.model_facts(inputs))
        for key in self.sources:
            yield from self._check_tokens(key, inputs[key], model)
        yield from self._check_sources()
        yield from self._check_phases(model)
        yield from self._check_objective(model)
        yield from self._check_sharing(model)
        context, length = model.get("context"), self.sequence_length
        if length is not None and context is not None and length > context:
            yield Finding(
                f"sequence_length {length:,} is longer than the model's context of {context:,} tokens.",
                key="sequence_length",
                hint=f"Use at most {context:,}, or a model with a longer `context`.",
            )

    def _check_sharing(self, model: Facts) -> Iterator[Finding]:
        """Whether ranks can share this model's products and these sequences."""
        tensor, context = self.parallel.tensor, self.parallel.context
        if not isinstance(self.model, str):
            architecture = self.architecture(model.get("vocab_size") or 1)
            for key, limits in (
                ("parallel.tensor", product_limits(architecture, tensor)),
                ("parallel.context", sequence_limits(architecture, context)),
            ):
                for limit in limits:
                    yield Finding(f"{limit}.", key=key, hint="Set it to 1, or change the model.")
        unit = length_unit(bool(model.get("causal")), context, tensor)
        lengths = {"sequence_length": self.sequence_length or model.get("context")}
        lengths |= {
            f"phases.{number}.sequence_length": phase.sequence_length for number, phase in enumerate(self.phases)
        }
        for key, length in lengths.items():
            if length is not None and length % unit:
                yield Finding(
                    f"sequences of {length:,} tokens cannot be divided evenly among ranks that share them.",
                    key=key,
                    hint=f"Under `parallel` with context {context} and tensor {tensor} take a multiple of {unit}.",
                )

    def _check_tokens(self, key: str, tokens: Facts, model: Facts) -> Iterator[Finding]:
        name = self.sources[key].data
        ours, theirs = model.get("vocab_size"), tokens.get("vocab_size")
        if ours is not None and theirs is not None and theirs > ours:
            yield Finding(
                f"the tokens are of a vocabulary of {theirs:,}, and `{self._model_name}` knows {ours:,}.",
                key=key,
                hint="Make the tokens with the model's own tokenizer.",
            )
        causal = model.get("causal")
        if causal is not None and self.chosen_objective(causal) == "masked" and tokens.get("mask_token") is False:
            yield Finding(
                "the tokenizer of these tokens has no mask token, which the masked objective needs.",
                key=key,
                hint="Train a tokenizer with `algorithm: wordpiece` or with `masked: true`, or a causal model.",
            )
        yield from _check_splits(key, name, tokens)

    @property
    def _model_name(self) -> str:
        return self.model if isinstance(self.model, str) else "the first source's tokenizer"

    def _check_sources(self) -> Iterator[Finding]:
        names = [source.data for source in self.sources.values()]
        for key, source in self.sources.items():
            if names.count(source.data) > 1:
                yield Finding(f"`{source.data}` stands twice among the sources.", key=key, hint="Add its weights up.")
                return
        if len(names) == 1 and self.temperature is not None:
            yield Finding("there is one source, and nothing to mix.", key="temperature", hint="Remove the key.")
        yield from self._check_phase_weights()
        weights = [source.weight for source in self.sources.values()]
        places = {0.0, 1.0, *(place for w in weights if not isinstance(w, float) for place, _ in w)}
        for place in sorted(places):
            values = [value_at(weight, place) for weight in weights]
            if min(values) < 0 or not sum(values):
                problem = "a weight is below zero" if min(values) < 0 else "all weights are zero"
                yield Finding(f"{problem} at {place:g} of the training.", key="data", hint="Weights are shares.")
                return

    def _check_phase_weights(self) -> Iterator[Finding]:
        for number, phase in enumerate(self.phases):
            key = f"phases.{number}.weights"
            if phase.weights is not None and len(phase.weights) != len(self.sources):
                yield Finding(
                    f"{len(phase.weights)} weights are given for {len(self.sources)} sources.",
                    key=key,
                    hint="Give one for each source, in the order of `data`.",
                )
            elif phase.weights is not None and not sum(phase.weights):
                yield Finding("all weights are zero in this phase.", key=key, hint="Weights are shares.")

    def _check_phases(self, model: Facts) -> Iterator[Finding]:
        for number, phase in enumerate(self.phases):
            key, batch = f"phases.{number}", phase.batch_size or self.batch_size
            if isinstance(self.micro_batch_size, int) and batch % self.micro_batch_size:
                yield Finding(
                    f"micro_batch_size {self.micro_batch_size} does not divide the phase's batch_size {batch}.",
                    key=f"{key}.batch_size",
                )
            for finding in self.parallel.check(batch):
                yield replace(finding, key=f"{key}.batch_size")
            length, limit = phase.sequence_length, self.sequence_length or model.get("context")
            if length is not None and limit is not None and length > limit:
                yield Finding(
                    f"the phase's sequence_length {length:,} is longer than the {limit:,} tokens of the rest.",
                    key=f"{key}.sequence_length",
                    hint="Phases may be of shorter sequences.",
                )
        if self.phases and self.micro_batch_size is None:
            largest = max(phase.batch_size or self.batch_size for phase in self.phases)
            if largest > self.batch_size:
                yield Finding(
                    "a phase has a larger batch than the rest, and no micro_batch_size says how much goes at once.",
                    key="phases",
                    hint="Set `micro_batch_size`.",
                )
        limit = self.sequence_length or model.get("context")
        if limit is None:
            return
        if self.phases and sum(stretch.first < self.steps for stretch in self.course(limit).stretches) <= len(
            self.phases
        ):
            yield Finding(
                f"the phases take all of the {self.steps:,} steps, and the rest has none.",
                key="phases",
                hint="Shorten them, or train for more steps.",
            )

    def _check_objective(self, model: Facts) -> Iterator[Finding]:
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
        if objective == "causal" and differs(self, "mask"):
            yield Finding("the causal objective masks nothing.", key="mask", hint="Remove the key.")
        if self.mask.replace + self.mask.random > 1:
            yield Finding(
                f"replace ({self.mask.replace}) and random ({self.mask.random}) are shares of the chosen tokens and "
                "exceed 1 together.",
                key="mask",
                hint="What they leave stays as it is: 0.8 and 0.1 leave a tenth.",
            )


def _check_splits(key: str, name: str, tokens: Facts) -> Iterator[Finding]:
    splits = tokens.get("splits")
    if splits is None:
        return
    if "train" not in splits:
        yield Finding(f"`{name}` has no tokens for training.", key=key)
    if "validation" not in splits:
        yield Finding(
            f"`{name}` has no tokens for validation, so the loss on held-out text is not measured.",
            key=key,
            severity="warning",
        )
