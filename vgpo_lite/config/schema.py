"""The one frozen configuration of a run: every setting, its type, its range, its default and what it does.

Text becomes a `RunConfig` in `vgpo_lite.config.load`. Unknown keys are errors. Derived values are properties. Loads no
torch. Where TRL has a name for a setting, it is TRL's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, model_validator

from vgpo_lite.config.sections import (
    Auto,
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    FocusConfig,
    JournalConfig,
    LoraSettings,
    MemoryConfig,
    Positive,
    RewardConfig,
    Section,
    Share,
)
from vgpo_lite.data_types import Sampling

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "EvalConfig",
    "FocusConfig",
    "JournalConfig",
    "LoraSettings",
    "MemoryConfig",
    "RewardConfig",
    "RunConfig",
    "Section",
]


class RunConfig(Section):
    """Everything that decides a run."""

    model: str = "tiny"
    """Preset name, hub id or local folder of the model."""
    model_id: str | None = None
    """Hub id or folder that a preset stands for; None: `model` itself."""
    revision: str | None = None
    """Hub revision of the model (branch, tag or commit); None: the newest."""
    adapter: str | None = None
    """Adapter folder to continue from; None: a fresh adapter."""
    trust_remote_code: bool = False
    """Whether code that a model's repository brings may run here. Nothing needs it."""
    dataset: str = "shapes"
    """Preset name, hub id, file or folder of the data set."""
    output: str | None = None
    """Run directory; None: runs/<model>-<dataset>."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the order of prompts, of sampling and of the adapter's first weights."""

    advantage: Literal["vgpo", "grpo"] = "vgpo"
    """VGPO's weighted advantages, or plain group-relative ones (weights of one)."""
    loss: Literal["dapo", "grpo", "dr_grpo", "gspo", "cispo"] = "dapo"
    """Policy objective; values and gradients are those of TRL's loss_type of that name."""
    scale_rewards: Literal["std", "none"] = "std"
    """Whether advantages are divided by the group's standard deviation."""
    clip_low: Positive = 0.2
    """The importance ratio is clipped below 1 - clip_low (TRL's epsilon)."""
    clip_high: Positive | Auto = "auto"
    """The importance ratio is clipped above 1 + clip_high (TRL's epsilon_high). CISPO caps it at clip_high itself.
    auto: 0.28 (DAPO), for cispo 5 (ScaleRL, arXiv 2510.13786)."""
    kl_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the KL divergence to the model without the adapter (TRL's beta)."""

    engine: Literal["shared", "batched"] = "shared"
    """See each image and prompt once per group, or the ordinary way: as many copies as completions."""
    backend: Literal["transformers", "unsloth"] = "transformers"
    """The library that loads the model."""
    quantization: Literal["nf4", "none"] = "nf4"
    """4-bit NormalFloat with double quantization for the language model's linear layers, or none."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Format of what is not quantized; auto: bfloat16 where the card has it, float16 where not, float32 on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""
    gradient_checkpointing: bool = True
    """Whether activations are recomputed in the backward pass instead of kept."""
    decode_weights: Literal["quantized", "copy"] | Auto = "auto"
    """What samples: the model as it trains, or a copy of the language model's linear layers in `dtype` with the
    adapter added in, which is held beside it; the loss then weighs each token by min(p / p of the copy, 2). auto: the
    copy of a model in NF4 on a GPU where the plan of memory has room for it."""

    num_generations: Annotated[int, Field(ge=2)] = 8
    """Completions per prompt: the group."""
    prompts_per_step: Annotated[int, Field(ge=1)] = 4
    """Prompts whose groups train one optimizer step."""
    num_iterations: Annotated[int, Field(ge=1)] = 1
    """Optimizer steps on the same rollouts."""
    max_resamples: Annotated[int, Field(ge=0)] = 2
    """How often prompts whose completions all earned the same are replaced by further ones, per step."""
    max_completion_length: Annotated[int, Field(ge=1)] = 1024
    """Tokens after which a completion is cut."""
    mask_truncated_completions: bool = False
    """Whether completions cut at the limit are left out of the loss."""
    temperature: Positive = 1.0
    """Sampling temperature; the loss uses the same."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus mass while sampling."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Most likely tokens kept while sampling; 0: all."""

    max_steps: Annotated[int, Field(ge=1)] = 200
    """Optimizer steps of the whole run."""
    learning_rate: Annotated[float, Field(ge=0)] = 5e-6
    """Highest learning rate."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up."""
    warmup_ratio: Share = 0.1
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of the adapters."""
    max_grad_norm: Positive = 0.1
    """Gradients are scaled down to this norm."""
    optim: Literal["auto", "adamw", "adamw_8bit"] = "auto"
    """Optimizer; auto: 8-bit AdamW on a GPU, AdamW on a CPU."""

    focus: FocusConfig = FocusConfig()
    lora: LoraSettings = LoraSettings()
    data: DataConfig = DataConfig()
    reward: RewardConfig = RewardConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    journal: JournalConfig = JournalConfig()
    eval: EvalConfig = EvalConfig()
    memory: MemoryConfig = MemoryConfig()

    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Tracker that mirrors metrics.jsonl."""
    save_completions_every: Annotated[int, Field(ge=1)] = 10
    """Steps between the parquet files of completions; those of step 1 are always written."""

    @model_validator(mode="after")
    def _clip_range_makes_sense(self) -> RunConfig:
        if self.clip_low >= 1:
            raise ValueError(
                f"clip_low is {self.clip_low}; it must be below 1, or the ratio's lower bound is not positive"
            )
        return self

    _sources: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @property
    def sources(self) -> Mapping[str, str]:
        """Where each setting's value came from, by full key (`focus.beta`); a key that is absent has its default."""
        return self._sources

    def with_sources(self, sources: Mapping[str, str]) -> RunConfig:
        """The same settings, remembering where each came from."""
        copy = self.model_copy()
        copy._sources = dict(sources)
        return copy

    def __eq__(self, other: object) -> bool:
        """Two configurations are equal when all their settings are, wherever these came from."""
        return isinstance(other, RunConfig) and self.model_dump() == other.model_dump()

    @property
    def output_folder(self) -> str:
        """The run directory: `output`, or `runs/<model>-<dataset>` from the last parts of their names."""
        return self.output or f"runs/{PurePath(self.model).name}-{PurePath(self.dataset).name}"

    @property
    def sampling(self) -> Sampling:
        """How the completions of a training step are drawn; the seed is set per draw."""
        return Sampling(
            num_generations=self.num_generations,
            max_completion_length=self.max_completion_length,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
        )

    @property
    def ratio_ceiling(self) -> float:
        """The number that `clip_high` stands for."""
        if self.clip_high != "auto":
            return self.clip_high
        return 5.0 if self.loss == "cispo" else 0.28

    @property
    def decodes_from_copy(self) -> bool:
        """Whether a 16-bit copy samples; `auto` is no copy until the planner has found room for it."""
        return self.decode_weights == "copy"

    @property
    def uses_reference(self) -> bool:
        """Whether the loss needs log-probabilities of the model without the adapter."""
        return self.kl_coefficient > 0

    @property
    def uses_focus(self) -> bool:
        """Whether anything of this run reads focus to train: otherwise focus is only reported."""
        return self.advantage == "vgpo" and (self.focus.token_reweighting or self.focus.trajectory_reweighting)
