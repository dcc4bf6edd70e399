"""The memory plan of a job: its phases, what is kept free beside them, and whether all of it fits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vgpo_lite.listening import MemoryPlan
from vgpo_lite.planning.phases import memory_phases

if TYPE_CHECKING:
    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.planning.job import Job

CONTEXT_BYTES = 600_000_000
"""What a card's driver, its kernels and cuBLAS's workspace take before the first tensor: 0.4 to 0.6 GB as commonly
reported. Not measured here."""

GAPS = 0.06
"""Of what comes and goes: memory the allocator holds but cannot hand out, because it lies in pieces. Not measured
here."""


def wanted_limit(config: RunConfig) -> int | None:
    """Bytes that a configuration allows a run; None: it does not say."""
    return None if config.memory.gpu_memory is None else int(config.memory.gpu_memory * 1e9)


def memory_plan(job: Job, *, limit_bytes: int | None = None, choices: tuple[str, ...] = ()) -> MemoryPlan:
    """Predict what a job holds.

    Args:
        job: The run.
        limit_bytes: What it may use; None: nobody said.
        choices: What was chosen for it, in words.
    """
    phases = memory_phases(job)
    reserve = 0
    if job.device == "cuda":
        moving = max(phase.total_bytes - phase.parts["weights"] for phase in phases)
        reserve = CONTEXT_BYTES + int(GAPS * moving)
    return MemoryPlan(
        phases=phases,
        reserve_bytes=reserve,
        limit_bytes=limit_bytes,
        prompt_tokens=job.prompt.tokens,
        image_tokens=job.prompt.image_tokens,
        choices=choices,
    )
