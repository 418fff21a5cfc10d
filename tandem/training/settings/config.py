"""`Recipe`: everything a training run depends on, checked once, when it is read.

The description of a field is its help text; built-in recipes are in `tandem/catalogue/recipes`.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tandem.catalogue.config import GQA, ModelConfig, SwiGLU
from tandem.catalogue.generation import GenerationDefaults
from tandem.catalogue.position import Rope
from tandem.errors import ConfigurationError, RecipeError
from tandem.training.settings.faults import describe

ScheduleKind = Literal["constant", "linear", "cosine", "wsd"]
Recompute = Literal["none", "selective", "full"]
Precision = Literal["float32", "bfloat16"]
MOST_TOKENS = 1 << 28
"""In a step: several times as many as the largest runs have, and what a host still holds (24 bytes each)."""
LARGEST = 1_000_000
"""Of a new model's sizes: several times as many as the largest models have, and what libraries still count with."""


class Section(BaseModel):
    """A part of a recipe: frozen, and with no field that is not known."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


class ModelShape(Section):
    """A decoder of the Llama family; its vocabulary is the tokenizer's."""

    hidden_size: int = Field(gt=0, le=LARGEST)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    feed_forward_size: int = Field(gt=0, le=LARGEST)
    max_position: int = Field(gt=0, description="Longest sequence the exported model claims, in tokens.")
    rope_theta: float = Field(default=10000.0, gt=0)
    norm_eps: float = Field(default=1e-5, gt=0)
    tied_embeddings: bool = True

    def with_vocabulary(self, vocab_size: int) -> ModelConfig:
        """The decoder's configuration.

        Raises:
            ConfigurationError: Sizes contradict each other.
        """
        head_dim = self.hidden_size // self.heads
        return ModelConfig(
            family="llama",
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            layers=self.layers,
            attention=GQA(heads=self.heads, kv_heads=self.kv_heads, head_dim=head_dim),
            position=Rope(theta=self.rope_theta, dims=head_dim),
            feed_forward=SwiGLU(size=self.feed_forward_size),
            norm_eps=self.norm_eps,
            tied_embeddings=self.tied_embeddings,
            max_position=self.max_position,
        )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not divisible by {self.heads} heads; change one")
        try:
            self.with_vocabulary(1)
        except ConfigurationError as error:
            raise ValueError(f"{error}; change one") from None
        return self


class TokenizerShape(Section):
    """A byte-level BPE tokenizer, trained on the corpus."""

    vocab_size: int = Field(ge=263, le=LARGEST, description="Number of ids, special tokens included.")


class Data(Section):
    """Where the texts come from."""

    source: str = Field(min_length=1, description="`python-stdlib`, or a folder of Python files.")


class GuardConfig(Section):
    """What is done about a loss or a gradient norm that is wild or no number; see docs/training-guard.md."""

    on_spike: Literal["log", "stop", "skip", "rollback"] = Field(
        default="log", description="What to do about a loss or norm far above those before."
    )
    on_nan: Literal["stop", "skip", "rollback"] = Field(
        default="stop", description="What to do about one that is no number."
    )
    most: int = Field(
        default=5, gt=0, description="Batches left out in a row, or rollbacks to one checkpoint, before it stops."
    )
    hang_after: float | None = Field(
        default=600.0,
        gt=0,
        description="Seconds without a step, at least, until ranks that hang are ended; null: never.",
    )


class StepConfig(Section):
    """One training stage but for its length: on how much, how fast."""

    seq_length: int = Field(gt=1, description="Tokens in a sample.")
    global_batch: int = Field(gt=0, description="Samples in a step.")
    micro_batch: int = Field(gt=0, description="Samples in memory at once; does not change the result.")
    lr: float = Field(gt=0, description="Learning rate after the warm-up.")
    min_lr: float = Field(ge=0, description="Learning rate at the end.")
    schedule: ScheduleKind = Field(default="cosine", description="How the learning rate falls after the warm-up.")
    weight_decay: float = Field(default=0.1, ge=0, description="On matrices only.")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="How long AdamW remembers gradients.")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="How long it remembers their squares.")
    eps: float = Field(default=1e-8, gt=0, description="Added to the root in AdamW's denominator.")
    clip: float = Field(default=1.0, gt=0, description="Largest norm of the gradient.")
    precision: Precision = Field(
        default="float32", description="What is computed in; weights, gradient sums and optimizer stay in float32."
    )
    balance: float | None = Field(
        default=None,
        ge=0,
        description="Coefficient of the loss that evens a mixture's experts; the model's by default.",
    )
    balance_bias: float | None = Field(
        default=None,
        ge=0,
        description="What a step moves DeepSeek-V3's routers' biases by; by default 0.001 in pretraining, else 0.",
    )
    recompute: Recompute = Field(default="none", description="Activations computed again instead of being kept.")
    save_every: int = Field(gt=0, description="Steps between checkpoints; one more is written at the end.")
    keep_last: int = Field(default=2, gt=0, description="Checkpoints kept.")
    guard: GuardConfig = GuardConfig()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.global_batch % self.micro_batch:
            raise ValueError(
                f"global_batch {self.global_batch} is no multiple of micro_batch {self.micro_batch}; change one"
            )
        if (tokens := self.global_batch * self.seq_length) > MOST_TOKENS:
            raise ValueError(
                f"global_batch {self.global_batch} of seq_length {self.seq_length} is a step of {tokens:,} tokens, and "
                f"no run needs more than {MOST_TOKENS:,}; lower one"
            )
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} is above lr {self.lr}; lower it")
        return self


class StageConfig(StepConfig):
    """One training stage with its length."""

    steps: int = Field(gt=0, description="Optimisation steps; a number and no time limit, so runs can be repeated.")
    warmup_steps: int = Field(ge=0)
    decay_steps: int | None = Field(
        default=None, gt=0, description="Last steps, in which schedule `wsd` falls; a tenth of all by default."
    )

    @model_validator(mode="after")
    def _lasts(self) -> Self:
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} are more than steps {self.steps}; lower them")
        if self.decay_steps is not None and self.schedule != "wsd":
            raise ValueError(f"decay_steps {self.decay_steps} is for schedule wsd, not {self.schedule}; remove it")
        if self.decay_steps is not None and self.warmup_steps + self.decay_steps > self.steps:
            ends = f"warmup_steps {self.warmup_steps} and decay_steps {self.decay_steps}"
            raise ValueError(f"{ends} are more than steps {self.steps}; lower them")
        return self


class FineTuning(StageConfig):
    """Fine-tuning on conversations."""

    replay_every: int | None = Field(
        default=None, gt=1, description="Every so many-th sample is text of the corpus, so that it is not forgotten."
    )


class LoraConfig(Section):
    """Small factors beside frozen matrices, which alone are trained (Hu et al., 2021)."""

    rank: int = Field(default=16, gt=0, description="Columns of A and B; more learn more, and take more memory.")
    alpha: float = Field(default=32, gt=0, le=1e6, description="What they add is multiplied by alpha / rank.")
    rslora: bool = Field(default=False, description="By alpha / sqrt(rank) instead.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Share of the inputs that are dropped on the way.")
    targets: tuple[str, ...] | str = Field(
        default="all-linear", min_length=1, description="Matrices, in our names or the checkpoint's, or all-linear."
    )


class Generation(Section):
    """How the exported model samples when a request does not say."""

    temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=0.9, gt=0, le=1)
    top_k: int = Field(default=40, ge=0)

    def defaults(self, bos: int, ends: tuple[int, ...]) -> GenerationDefaults:
        """With the ids of the beginning and of the tokens that end an answer."""
        return GenerationDefaults(bos_token_id=bos, eos_token_ids=ends, **self.model_dump())


class Launch(Section):
    """The processes of a run."""

    master_addr: str = Field(default="localhost", min_length=1, description="Address of the first host.")
    master_port: int = Field(default=6000, gt=0, lt=65536, description="Port there.")
    nodes: int = Field(default=1, gt=0, description="Hosts.")
    node_rank: int = Field(default=0, ge=0, description="Which of them this one is.")
    ranks: int | None = Field(
        default=None, gt=0, le=1024, description="Processes on this host; one for each device by default."
    )

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Self:
        if self.node_rank >= self.nodes:
            raise ValueError(f"node_rank {self.node_rank} is none of {self.nodes} nodes; they count from 0")
        if self.nodes > 1 and self.master_addr in ("localhost", "127.0.0.1", "::1"):
            raise ValueError(
                f"{self.nodes} nodes need an address of the first that all of them reach, not {self.master_addr}; set "
                "MASTER_ADDR (launch.master_addr) to it"
            )
        return self


class Recipe(Section):
    """One run from texts to an exported model."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    threads: int | None = Field(default=None, gt=0, le=1024, description="CPU threads; left as they are by default.")
    model: ModelShape
    tokenizer: TokenizerShape
    data: Data
    pretrain: StageConfig
    sft: FineTuning
    generation: Generation = Generation()
    launch: Launch = Launch()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name, stage in {"pretrain": self.pretrain, "sft": self.sft}.items():
            for field in ("balance", "balance_bias"):
                if (value := getattr(stage, field)) is not None:
                    raise ValueError(f"{name}.{field} {value} is for mixtures of experts; remove it")
            if stage.seq_length > self.model.max_position:
                raise ValueError(
                    f"{name}.seq_length {stage.seq_length} is above model.max_position {self.model.max_position}; "
                    "change one"
                )
        return self


def build_recipe(fields: Any, where: str) -> Recipe:
    """Check the fields of a recipe.

    Args:
        fields: What the file holds.
        where: The file, for messages.

    Raises:
        RecipeError: A field is missing, unknown or out of range; every one is named, with its value.
    """
    try:
        return Recipe.model_validate(fields)
    except ValidationError as error:
        faults = "; ".join(describe(fault) for fault in error.errors())
        raise RecipeError(f"{where}: {faults}") from None
