"""The one frozen configuration of a run: every setting, its type, its range, its default and what it does.

Text becomes a `RunConfig` in `vgpo_lite.config.load`. Unknown keys are errors. Derived values are properties. Loads no
torch. Where TRL has a name for a setting, it is TRL's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from vgpo_lite.data_types import Sampling

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Auto = Literal["auto"]


class Section(BaseModel):
    """A part of the configuration: frozen, and closed to keys nobody reads."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class FocusConfig(Section):
    """How focus on the image is read and turned into weights (arXiv 2604.09349, Eq. 3-11)."""

    signal: Literal["attention", "similarity"] = "attention"
    """What the last layer is asked for: attention mass on the image tokens, or the paper's similarity (Eq. 4)."""
    beta: Annotated[float, Field(ge=0)] = 0.3
    """Strength of the compensation, >= 0 (Eq. 6)."""
    gamma: Share = 0.5
    """Share of the tokens, counted from the end, that may be compensated (Eq. 5)."""
    kappa: Share = 0.2
    """Share of that tail, by focus, that is compensated (Eq. 5)."""
    schedule: Literal["linear", "exponential", "step"] = "linear"
    """How compensation grows with the position in the completion."""
    weighting: Literal["paper", "released"] = "paper"
    """The paper's equations, or what the authors' released program computes."""
    accumulation: Literal["sum", "mean"] = "sum"
    """How a completion's focus is accumulated: the paper's sum (favours long completions), or the mean."""
    sign: Literal["both", "positive"] = "both"
    """Which advantages are re-weighted: all (the paper), or positive ones only."""
    compensation: bool = True
    """Whether focus is compensated at all; off, beta does nothing."""
    token_reweighting: bool = True
    """Whether tokens are weighted inside a completion (psi, Eq. 8)."""
    trajectory_reweighting: bool = True
    """Whether completions are weighted inside a group (phi, Eq. 11)."""


class LoraSettings(Section):
    """Low-rank adapters on the language model's attention and MLP projections."""

    r: Annotated[int, Field(ge=1)] = 16
    """Rank of each adapter."""
    alpha: Annotated[int, Field(ge=1)] = 16
    """Scale of each adapter: its output is multiplied by alpha / r."""
    vision: bool = False
    """Whether the vision tower's linear layers get adapters too."""


class DataConfig(Section):
    """Where rows come from and how they become questions."""

    id: str | None = None
    """Hub id, folder or file of the data set; None: what `dataset` names."""
    revision: str | None = None
    """Hub revision (branch, tag or commit); None: the newest."""
    subset: str | None = None
    """Configuration of a hub data set, where it has several."""
    split: str = "train"
    """Split that trains."""
    eval_split: str | None = None
    """Split that measures; None: `eval.held_out` rows of the training split are held out."""
    question_column: str | None = None
    """Column of the question; None: the first of problem, question, prompt."""
    image_column: str | None = None
    """Column of the image or images; None: the first of images, image."""
    answer_column: str | None = None
    """Column of the gold answer; None: the first of answer, solution."""
    choices_column: str | None = None
    """Column of the options of multiple-choice questions, which are then lettered (A), (B); None: there are none."""
    require_image: bool = True
    """Whether a row without an image is dropped (and counted)."""
    max_pixels: Annotated[int, Field(ge=3136)] = 401_408
    """Pixel budget of one image; larger ones are scaled down. 401,408 = 512 image tokens of 28 x 28 pixels."""
    min_pixels: Annotated[int, Field(ge=784)] = 3136
    """Smaller images are scaled up to it."""
    max_prompt_length: Annotated[int, Field(ge=16)] = 4096
    """Rows whose encoded prompt is longer (tokens, image tokens included) are dropped and counted; nothing is cut."""
    max_bad_rows: Share = 0.05
    """Share of rows that may be unusable before the run refuses the data set."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Use only the first rows, as many as this; None: all."""
    prompt_style: Literal["reasoning", "direct"] = "reasoning"
    """Ask for <think> and \\boxed{}, or for the boxed answer alone (small models do better when not made to reason)."""
    prompt_template: str | None = None
    """A Jinja template of your own (`{{ question }}`), in place of the prompt style's."""
    evaluation_only: bool = False
    """Whether the data set is a benchmark: training on it warns."""
    columns_verified: bool = True
    """Whether the recipe's column names were seen in the data set, or are known only from descriptions of it."""

    @model_validator(mode="after")
    def _pixel_range_makes_sense(self) -> DataConfig:
        if self.min_pixels > self.max_pixels:
            raise ValueError(
                f"data.min_pixels is {self.min_pixels:,}, above data.max_pixels, which is {self.max_pixels:,}"
            )
        return self


class RewardConfig(Section):
    """What a completion earns."""

    functions: dict[str, float] = Field(default_factory=lambda: {"accuracy": 1.0})
    """Weight of each reward: accuracy, format, or `file.py:function` with TRL's signature."""
    timeout_seconds: Positive = 2.0
    """Time one answer may take to grade; then it is worth 0."""
    workers: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Grading processes; auto: one per core, at most 8."""

    @field_validator("functions")
    @classmethod
    def _functions_have_names_that_exist(cls, functions: dict[str, float]) -> dict[str, float]:
        strangers = [name for name in functions if name not in ("accuracy", "format") and ":" not in name]
        if strangers:
            raise ValueError(
                f"reward.functions names {', '.join(strangers)}; expected accuracy, format or `file.py:function`"
            )
        if not any(weight for weight in functions.values()):
            raise ValueError("reward.functions gives no reward a weight, so that there is nothing to learn from")
        return functions


class CheckpointConfig(Section):
    """When a run is saved."""

    every: Annotated[int, Field(ge=1)] = 25
    """Optimizer steps between checkpoints."""
    keep: Annotated[int, Field(ge=2)] = 2
    """Newest checkpoints kept."""


class EvalConfig(Section):
    """The measurement before and after training."""

    limit: Annotated[int, Field(ge=0)] = 200
    """Held-out rows measured before and after; 0: none."""
    held_out: Annotated[int, Field(ge=0)] = 200
    """Rows of the training split held out where the data set has no split for measuring."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Prompts decoded together."""


class MemoryConfig(Section):
    """Sizes that trade memory against time and change no result."""

    rows_per_micro_batch: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Completions per forward and backward; auto: the whole group packed."""
    prompts_per_decode: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Groups decoded together; auto: all of a step."""
    logprob_chunk: Annotated[int, Field(ge=1)] = 256
    """Tokens whose logits exist at one time."""
    focus_chunk: Annotated[int, Field(ge=1)] = 256
    """Tokens whose last-layer attention exists at one time."""


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
    eval: EvalConfig = EvalConfig()
    memory: MemoryConfig = MemoryConfig()

    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Tracker that mirrors metrics.jsonl."""
    save_completions_every: Annotated[int, Field(ge=1)] = 10
    """Steps between the parquet files of completions."""

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
    def uses_focus(self) -> bool:
        """Whether anything of this run reads focus to train: otherwise focus is only reported."""
        return self.advantage == "vgpo" and (self.focus.token_reweighting or self.focus.trajectory_reweighting)
