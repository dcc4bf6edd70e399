"""What the loop asks of an engine: sample groups, look at them, turn weighted advantages into gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from vgpo_lite.algorithm.objective import Objective
    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.data_types import GroupSignals, Prompt, RolloutGroup, Sampling
    from vgpo_lite.engine.rollout import DecodeProgress


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen of a group, and what its update starts from.

    Attributes:
        group: The group looked at.
        signals: Focus and log-probabilities, on the CPU, without a graph.
        logprobs: Log-probabilities that still hold the graph of their forward, on the model's device: the update goes
            backward through it, once. None where the update runs its own forward.
    """

    group: RolloutGroup
    signals: GroupSignals
    logprobs: Float[Tensor, "group token"] | None = None


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How an engine works. Only the first four decide results; the rest is memory.

    Attributes:
        temperature: Of the log-probabilities, > 0.
        focus_signal: What focus is: attention in the focus layer, the last that sees the whole prompt, or similarity of
            last states.
        needs_focus: Whether focus trains. Otherwise it is only reported, and no pass is spent on it alone.
        decode_weights: What samples: the model as it trains, or a 16-bit copy of the language model's linear layers.
            `patient` sees to it.
        rows_per_micro_batch: Completions per forward and backward, >= 1; None: what `planning.update` chooses.
        prompts_per_decode: Groups decoded together, >= 1; None: all.
        rows_per_decode: Completions of a group decoded together, >= 1; None: all. Below a whole group, groups decode
            one by one. `patient` sees to it.
        logprob_chunk: Tokens whose logits exist at one time.
        focus_chunk: Tokens whose attention in the focus layer exists at one time.
        recompute: Whether activations are recomputed in the backward pass instead of kept.
        decode_graph: Whether steps of decoding have fixed shapes and are a CUDA graph where there is a GPU.
    """

    temperature: float = 1.0
    focus_signal: Literal["attention", "similarity"] = "attention"
    needs_focus: bool = True
    decode_weights: Literal["quantized", "copy"] = "quantized"
    rows_per_micro_batch: int | None = None
    prompts_per_decode: int | None = None
    rows_per_decode: int | None = None
    logprob_chunk: int = 256
    focus_chunk: int = 256
    recompute: bool = True
    decode_graph: bool = False

    @classmethod
    def of(cls, config: RunConfig, *, device: str = "cpu") -> EngineSettings:
        """The settings a run's configuration asks for; `auto` is what fits, all prompts, and graphs on a GPU.

        Args:
            config: The configuration.
            device: The type of the device that the model is on.
        """
        memory = config.memory
        return cls(
            temperature=config.temperature,
            focus_signal=config.focus.signal,
            needs_focus=config.uses_focus,
            decode_weights="copy" if config.decodes_from_copy else "quantized",
            rows_per_micro_batch=None if memory.rows_per_micro_batch == "auto" else memory.rows_per_micro_batch,
            prompts_per_decode=None if memory.prompts_per_decode == "auto" else memory.prompts_per_decode,
            rows_per_decode=None if memory.rows_per_decode == "auto" else memory.rows_per_decode,
            logprob_chunk=memory.logprob_tokens,
            focus_chunk=memory.focus_tokens,
            recompute=config.gradient_checkpointing,
            decode_graph=memory.uses_decode_graph(device) and config.engine == "shared",
        )


class Engine(Protocol):
    """A policy at work. Groups come one at a time; nothing depends on what else is in the step."""

    @property
    def settings(self) -> EngineSettings:
        """How it works."""
        ...

    def rows_at_once(self, group: RolloutGroup) -> int:
        """Completions of this group that go through the model together in its update, >= 1."""
        ...

    def sample(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        places: Sequence[int],
        on_step: Callable[[DecodeProgress], None] | None = None,
    ) -> list[RolloutGroup]:
        """Sample one group per prompt; arguments as in `rollout.sample_groups`."""
        ...

    def look(self, group: RolloutGroup, *, keep_graph: bool, reference: bool) -> Look:
        """See what the update needs to know of a group before it begins: focus always belongs to the whole group.

        Args:
            group: What to look at.
            keep_graph: For one update per rollout: its own log-probabilities are the old ones, and focus comes out of
                its own forward where that covers the group. False: one pass without a graph gives the old
                log-probabilities and focus, for several updates on the same rollout.
            reference: Also the log-probabilities without the adapter, in a pass of their own.
        """
        ...

    def update(
        self, look: Look, advantages: Float[Tensor, "group token"], objective: Objective, denominator: float
    ) -> dict[str, tuple[float, float]]:
        """Add the group's gradient to that of the adapters; nothing else changes.

        Args:
            look: What was seen of the group. One that holds a graph serves one update.
            advantages: Weighted advantage of each token.
            objective: Which objective is minimised.
            denominator: `step_denominator` of the whole optimizer step, over the loss scale.

        Returns:
            Metrics as (sum, count), by `section/name`.
        """
        ...

    def forget(self) -> None:
        """Let go of what is kept per prompt: the step is over."""
        ...
