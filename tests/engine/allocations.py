"""What a function allocates on the CPU, as the allocator itself counts it: saved activations included."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch.profiler import ProfilerActivity, profile

if TYPE_CHECKING:
    from collections.abc import Callable


class Allocations(NamedTuple):
    """Sizes in bytes."""

    peak: int
    largest: int


def allocations(function: Callable[[], object]) -> Allocations:
    """Run a function; the most it held at one time above the start, and its largest single allocation."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    assert record.profiler is not None
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return Allocations(peak, max(event.nbytes() for event in events))
