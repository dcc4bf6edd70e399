"""Running out of memory, and what it asks for: the next smaller size of the work at hand.

None of these sizes changes a completion or a gradient beyond rounding (`planning.update`, `rollout`), so whoever runs
out of memory makes one of them smaller and does the same work again.
"""

from __future__ import annotations

import gc
import traceback
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, ParamSpec, TypeVar

import torch

from vgpo_lite.errors import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from vgpo_lite.engine.protocol import EngineSettings
    from vgpo_lite.models.policy import Policy

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Phase = Literal["decoding", "looking", "updating"]

SMALLEST_CHUNK = 16
"""Tokens: their logits take 10 MB at a vocabulary of 152,000, less than one layer's activations of any completion."""


OUT_OF_MEMORY, NO_GRAPH = "out of memory", "a step cannot be captured as a CUDA graph"
Cause = Literal["out of memory", "a step cannot be captured as a CUDA graph"]


class GraphError(Exception):
    """A step of decoding cannot be captured as a graph; without one it can be run."""


class Shortage(NamedTuple):
    """Work that ended because there was no memory left, or no graph to be had.

    Attributes:
        reason: What the allocator said, or who captures; one line.
        cause: Which of the two.
    """

    reason: str
    cause: Cause = OUT_OF_MEMORY


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """One size that shrank, for the rest of the run.

    Attributes:
        phase: What ran out of memory.
        sizes: Each setting that changed, by its full name, with what it was and what it is.
        overruled: Where the user had written the old value, by the setting's name: a file, `--set`, ...
        reason: What the allocator said.
        cause: Why it shrank.
    """

    phase: Phase
    sizes: Mapping[str, tuple[object, object]]
    overruled: Mapping[str, str]
    reason: str
    cause: Cause = OUT_OF_MEMORY

    @property
    def event(self) -> str:
        """What it is called among a run's events."""
        return "out_of_memory" if self.cause == OUT_OF_MEMORY else "no_graph"

    def in_words(self) -> str:
        """One line for who watches.

        >>> sizes = {"memory.rows_per_micro_batch": (4, 2)}
        >>> Backoff(phase="updating", sizes=sizes, overruled={}, reason="").in_words()
        'out of memory while updating: memory.rows_per_micro_batch is 2 instead of 4 from here on'
        """
        changes = ", ".join(f"{name} is {after} instead of {before}" for name, (before, after) in self.sizes.items())
        written = "".join(f", although {name} was set by {place}" for name, place in self.overruled.items())
        return f"{self.cause} while {self.phase}: {changes} from here on{written}"


class DecodeSizes(NamedTuple):
    """What decodes together.

    Attributes:
        prompts: Groups.
        rows: Completions of each; fewer than a whole group only for one prompt at a time.
    """

    prompts: int
    rows: int

    def smaller(self) -> DecodeSizes | None:
        """Half the prompts, and from one prompt on half its completions; None: there is nothing smaller.

        >>> DecodeSizes(3, 8).smaller(), DecodeSizes(1, 8).smaller(), DecodeSizes(1, 1).smaller()
        (DecodeSizes(prompts=1, rows=8), DecodeSizes(prompts=1, rows=4), None)
        """
        if self.prompts > 1:
            return DecodeSizes(self.prompts // 2, self.rows)
        return DecodeSizes(1, self.rows // 2) if self.rows > 1 else None


def smaller_parts(settings: EngineSettings, rows_at_once: int) -> EngineSettings | None:
    """How looks and updates go on with less memory: fewer rows, then smaller chunks, then recomputed activations.

    Args:
        settings: Those that did not fit.
        rows_at_once: Completions that went through the model together.

    Returns:
        The next smaller settings; None where there are none.
    """
    if rows_at_once > 1 or settings.rows_per_micro_batch is None:
        return replace(settings, rows_per_micro_batch=max(rows_at_once // 2, 1))
    if max(settings.logprob_chunk, settings.focus_chunk) > SMALLEST_CHUNK:
        logprobs, focus = (
            max(size // 2, min(size, SMALLEST_CHUNK)) for size in (settings.logprob_chunk, settings.focus_chunk)
        )
        return replace(settings, logprob_chunk=logprobs, focus_chunk=focus)
    return None if settings.recompute else replace(settings, recompute=True)


def attempted(
    work: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result | Shortage:
    """The work's result, or that it ran out of memory or could not be captured; every other error passes.

    What failed holds its tensors through the frames of its traceback: they are cleared, so that nothing but the
    caller's own references is left of it.
    """
    try:
        return work(*args, **kwargs)
    except GraphError as error:
        traceback.clear_frames(error.__traceback__)
        return Shortage(reason=str(error), cause=NO_GRAPH)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)
        return Shortage(reason=str(error).partition("\n")[0] or type(error).__name__)


def release_memory(device: torch.device) -> None:
    """Give back what failed work left behind: cycles are collected, and the GPU's allocator forgets its free blocks."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class GradientSnapshot:
    """The adapters' gradients as they stand, kept on the CPU: a GPU that is full has no room for them twice."""

    def __init__(self, policy: Policy) -> None:
        self._parameters = list(policy.adapters().values())
        self._kept: list[Tensor | None] = [
            None if parameter.grad is None else parameter.grad.to("cpu", copy=True) for parameter in self._parameters
        ]

    def restore(self) -> None:
        """Put them back, bit by bit; what was added since is gone."""
        for parameter, kept in zip(self._parameters, self._kept, strict=True):
            if kept is None:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.copy_(kept)
            else:
                parameter.grad = kept.to(parameter.device)
