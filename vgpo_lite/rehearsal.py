"""The worst first: the largest group there can be, once before the first step, so that memory runs out then or never.

The longest prompt of the data is completed to the limit, as many times as a step has prompts; one of its groups is
looked at and updated. Nothing of it stays: no gradient, no state of the optimizer, no draw, no number of any generator.
What may change is sizes, where the engine ran out of memory.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from vgpo_lite.errors import DataError
from vgpo_lite.prompts import longest_prompts
from vgpo_lite.terms import objective_of

if TYPE_CHECKING:
    from vgpo_lite.data_types import Prompt
    from vgpo_lite.engine import DecodeProgress
    from vgpo_lite.run import Run

CANDIDATES = 4
"""Rows that are tried, the longest first: a row may turn out damaged behind its headers."""


def rehearse(run: Run) -> None:
    """Try the largest group, where `memory.worst_first` asks for it; tells what it took.

    Raises:
        HardwareError: It fits at no size.
        InterruptedRunError: A signal came.
    """
    wanted, policy = run.config.memory.worst_first, run.bench.policy
    prompt = _longest_prompt(run) if wanted is True or (wanted == "auto" and policy.device.type == "cuda") else None
    if prompt is None or not run.unfinished:
        return
    started = time.perf_counter()
    try:
        _try(run, prompt)
    finally:
        for parameter in policy.adapters().values():
            parameter.grad = None
        run.bench.engine.forget()
    config, seconds, peak = run.config, time.perf_counter() - started, run.costs.highest_bytes
    tokens = prompt.input_ids.shape[0]
    run.recorder.event(
        "rehearsed",
        sample_id=prompt.sample.sample_id,
        prompt_tokens=tokens,
        completion_tokens=config.max_completion_length,
        seconds=round(seconds, 3),
        peak_bytes=peak,
    )
    run.listener.noted(
        f"the largest group fits: a prompt of {tokens:,} tokens with {config.num_generations} completions of "
        f"{config.max_completion_length:,}, peak memory {peak / 1e9:.1f} GB, {seconds:.0f} s"
    )


def _longest_prompt(run: Run) -> Prompt | None:
    bench = run.bench
    outlines = bench.train.outlines()
    for row in longest_prompts(outlines, bench.policy.processor, run.config.data, count=CANDIDATES):
        try:
            return bench.prompt(bench.train, row)
        except DataError as error:
            run.recorder.event("row_passed_over", place=None, reason=str(error))
    return None


def _try(run: Run, prompt: Prompt) -> None:
    config, engine = run.config, run.bench.engine

    def decoding(progress: DecodeProgress) -> None:
        run.listener.progressed("trying the largest group", progress.done_tokens, progress.limit_tokens)
        run.bench.stop.poll()

    prompts = [replace(prompt) for _ in range(config.prompts_per_step)]  # each with image features of its own
    sampling = replace(config.sampling, ignore_eos=True)
    group = engine.sample(prompts, sampling, places=range(len(prompts)), on_step=decoding)[0]
    run.bench.stop.poll()
    look = engine.look(group, keep_graph=config.num_iterations == 1, reference=config.uses_reference)
    run.bench.stop.poll()
    no_advantages = torch.zeros(group.completion_ids.shape)
    engine.update(look, no_advantages, objective_of(config), float(group.token_count))
