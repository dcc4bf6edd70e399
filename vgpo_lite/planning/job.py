"""What memory depends on: the model, the settings, and the largest prompt of the data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vgpo_lite.planning.update import WEIGHT_TOKENS, Sizes, UpdatePlan, undivided, update_plan

if TYPE_CHECKING:
    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.planning.architecture import Architecture


@dataclass(frozen=True, kw_only=True)
class PromptSize:
    """How large a prompt is.

    Attributes:
        text_tokens: Tokens beside those of images.
        images: Tokens of each image.
    """

    text_tokens: int
    images: tuple[int, ...] = ()

    @property
    def image_tokens(self) -> int:
        """Tokens of all images."""
        return sum(self.images)

    @property
    def tokens(self) -> int:
        """Tokens of the whole prompt, never fewer than two."""
        return max(self.text_tokens + self.image_tokens, 2)

    def within(self, tokens_per_image: int) -> PromptSize:
        """The same prompt with no image above that many tokens."""
        return replace(self, images=tuple(min(tokens, tokens_per_image) for tokens in self.images))


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run, as far as memory is concerned.

    Attributes:
        model: The architecture.
        config: The settings; what is `auto` is what the engine makes of it.
        largest: The largest prompt, its images as they are or as an earlier pixel budget left them.
        device: Where it runs: `cuda` or `cpu`.
        eval_rows: Held-out rows that are measured.
        trains: Whether it trains, or measures alone.
    """

    model: Architecture
    config: RunConfig
    largest: PromptSize
    device: str = "cuda"
    eval_rows: int = 0
    trains: bool = True

    def with_config(self, config: RunConfig) -> Job:
        """The same run with other settings."""
        return replace(self, config=config)

    @property
    def itemsize(self) -> int:
        """Bytes of a number that is not quantized: 2, but 4 in float32, which a CPU computes in."""
        dtype = self.config.dtype
        return 4 if dtype == "float32" or (dtype == "auto" and self.device == "cpu") else 2

    @property
    def uses_8bit_optimizer(self) -> bool:
        """Whether AdamW's states are in 8 bits."""
        return self.config.optim == "adamw_8bit" or (self.config.optim == "auto" and self.device == "cuda")

    @property
    def decodes_by_graph(self) -> bool:
        """Whether steps of decoding are CUDA graphs, which keep the memory of a step."""
        shared = self.config.engine == "shared" and self.device == "cuda"
        return shared and self.config.memory.uses_decode_graph(self.device)

    @property
    def prompt(self) -> PromptSize:
        """The largest prompt within the pixel budget."""
        return self.largest.within(self.model.vision.tokens_within(self.config.data.pixel_budget))

    @property
    def patches(self) -> int:
        """Patches of the prompt's images."""
        vision, pixels = self.model.vision, self.config.data.pixel_budget
        return sum(vision.patches_of(tokens, pixels=pixels) for tokens in self.prompt.images)

    @property
    def prompts_at_once(self) -> int:
        """Groups that decode together."""
        wanted, step = self.config.memory.prompts_per_decode, self.config.prompts_per_step
        if self.rows_at_once < self.config.num_generations:
            return 1
        return step if wanted == "auto" else min(wanted, step)

    @property
    def rows_at_once(self) -> int:
        """Completions of each of them that decode together."""
        wanted, group = self.config.memory.rows_per_decode, self.config.num_generations
        return group if wanted == "auto" else min(wanted, group)

    @property
    def measured_at_once(self) -> int:
        """Prompts that decode together, one completion each, while accuracy is measured."""
        wanted = self.config.memory.prompts_per_decode
        rows = min(self.config.eval.batch_size, self.config.eval.limit, self.eval_rows)
        return rows if wanted == "auto" else min(wanted, rows)

    @property
    def kept_prompts(self) -> int:
        """Prompts whose image features one step may come to hold, resampled ones included."""
        return self.config.prompts_per_step * (1 + self.config.max_resamples)

    @property
    def update_plan(self) -> UpdatePlan:
        """How the engine cuts the update of the largest group, all completions at their limit."""
        config, model = self.config, self.model
        wanted, rows = config.memory.rows_per_micro_batch, config.num_generations
        if config.engine == "batched":
            together = rows if wanted == "auto" else min(wanted, rows)
            kept = 1 if config.gradient_checkpointing else model.layers
            return UpdatePlan(together, kept, kept)
        kept_numbers = 4 * model.inner + 10 * model.hidden  # `Family.kept_numbers`
        sizes = Sizes(
            self.prompt.tokens, config.max_completion_length, rows, model.layers, kept_numbers * self.itemsize
        )
        if wanted != "auto":
            return undivided(sizes, recompute=config.gradient_checkpointing)._replace(rows=min(wanted, rows))
        return update_plan(sizes, recompute=config.gradient_checkpointing, weight_tokens=WEIGHT_TOKENS[self.device])
