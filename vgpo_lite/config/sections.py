"""The sections of a run's configuration: every setting in them, its type, its range, its default and what it does."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Auto = Literal["auto"]
_CHUNK = 256  # tokens: larger matrix products are no faster


class Section(BaseModel):
    """A part of the configuration: frozen, and closed to keys nobody reads."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class FocusConfig(Section):
    """How focus on the image is read and turned into weights (arXiv 2604.09349, Eq. 3-11)."""

    signal: Literal["attention", "similarity"] = "attention"
    """What focus is: attention mass on the image tokens in the last layer that sees the whole prompt, or the paper's
    similarity of last states (Eq. 4)."""
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
    max_pixels: Annotated[int, Field(ge=3136)] | Auto = 401_408
    """Pixel budget of one image; larger ones are scaled down, or shown in fewer tiles. 401,408 = 512 image tokens of
    28 x 28 pixels. auto: that, or less where it does not fit into memory. Gemma 3 shows every image in one size."""
    min_pixels: Annotated[int, Field(ge=784)] = 3136
    """Smaller images are scaled up to it, by Qwen's families alone."""
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
        if self.min_pixels > self.pixel_budget:
            raise ValueError(
                f"data.min_pixels is {self.min_pixels:,}, above data.max_pixels, which is {self.pixel_budget:,}"
            )
        return self

    @property
    def pixel_budget(self) -> int:
        """`max_pixels` as a number: what `auto` is before a planner finds it too much."""
        return 401_408 if self.max_pixels == "auto" else self.max_pixels


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


class JournalConfig(Section):
    """The flight recorder: what `vgpo-lite replay` needs to take recorded steps anew."""

    steps: Annotated[int, Field(ge=0)] = 50
    """Newest steps kept; 0 switches the journal off."""
    max_bytes: Annotated[int, Field(ge=0)] = 1_000_000_000
    """Size limit of the journal. It keeps the adapters of as many recent steps as fit; 0 switches it off."""


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

    gpu_memory: Positive | None = None
    """GB (10^9 bytes) of the card that the run may use, its context included; None: all it has."""
    rows_per_micro_batch: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Completions per forward and backward; auto: as many as fit a quarter of the memory that copies would take."""
    prompts_per_decode: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Groups decoded together; auto: all of a step."""
    rows_per_decode: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Completions of one prompt decoded together; auto: all of them. Fewer: prompts decode one by one."""
    logprob_chunk: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Tokens whose logits exist at one time; auto: 256, or fewer where they do not fit."""
    focus_chunk: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Tokens whose attention, as focus reads it, exists at one time; auto: 256, or fewer where they do not fit."""
    decode_graph: bool | Auto = "auto"
    """Whether keys and values of completions lie in room that is there beforehand, so that a GPU runs the steps of
    decoding as CUDA graphs, which are far quicker to start; not for engine=batched. auto: on a GPU."""
    worst_first: bool | Auto = "auto"
    """Whether the largest group there can be is decoded, looked at and updated once before the first step, to no other
    effect than that sizes shrink before time is spent; auto: on a GPU."""
    cpu_threads: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Threads of torch on a CPU; auto: one for models under 50 million parameters, else what torch chooses."""

    def uses_decode_graph(self, device: str) -> bool:
        """`decode_graph` on a type of device."""
        return device == "cuda" if self.decode_graph == "auto" else self.decode_graph

    @property
    def logprob_tokens(self) -> int:
        """`logprob_chunk` as a number."""
        return _CHUNK if self.logprob_chunk == "auto" else self.logprob_chunk

    @property
    def focus_tokens(self) -> int:
        """`focus_chunk` as a number."""
        return _CHUNK if self.focus_chunk == "auto" else self.focus_chunk
