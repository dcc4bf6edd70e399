"""The loop: sample, reward, look, weigh, update.

A window is one batch of rollouts and the `num_iterations` optimizer steps taken on it. Everything random depends on the
seed and on counters alone, so a run that is resumed at a step's end goes on as if it had never stopped.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from vgpo_lite.algorithm.advantages import group_advantages
from vgpo_lite.algorithm.objective import step_denominator
from vgpo_lite.algorithm.weigh import weigh
from vgpo_lite.data_types import StepReport
from vgpo_lite.engine import Look
from vgpo_lite.engine.optimizer import apply_gradients, learning_rate
from vgpo_lite.invariants import check_first_group
from vgpo_lite.lifecycle import open_run
from vgpo_lite.metrics import Tally, rollout_metrics, sizes_in_use, step_costs
from vgpo_lite.rehearsal import rehearse
from vgpo_lite.sharing import shared_looks, shared_rollouts, shared_updates
from vgpo_lite.terms import objective_of, weighting_of
from vgpo_lite.windows import LearnedGroup, ScoredGroup, Window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.data_types import GroupSignals, Prompt
    from vgpo_lite.engine import Engine
    from vgpo_lite.listening import Listener, RunSummary
    from vgpo_lite.run import Run


def train(config: RunConfig, *, listener: Listener | None = None, resume: str = "never") -> RunSummary:
    """Train adapters by reinforcement learning with verifiable rewards, and measure before and after.

    Args:
        config: The resolved settings (`load_config`).
        listener: Who watches the run; None: nobody.
        resume: `never`, `auto` (the newest whole checkpoint of the run directory), or a checkpoint folder.

    Raises:
        VgpoLiteError: The run stopped deliberately; the class and its `exit_code` tell why, status.json repeats it.
    """
    with open_run(config, listener=listener, resume=resume) as run:
        rehearse(run)
        run.measure_before()
        while run.unfinished:
            window = run.pending or rollouts(run)
            for _ in range(window.updates, config.num_iterations if window.useful else 1):
                if run.unfinished:
                    window = step(run, window)
        run.save()
        return run.finish(run.measure("after"))


def rollouts(run: Run) -> Window:
    """Sample and grade until a step's worth of groups tells better from worse, within the bound on resampling."""
    config, started = run.config, time.perf_counter()
    draws, sampled, useful = run.progress.draws, [], []
    for _ in range(1 + config.max_resamples):
        places, prompts, draws = run.next_prompts(draws, config.prompts_per_step - len(useful))
        for scored in shared_rollouts(places, prompts, partial(graded_groups, run)):
            sampled.append(scored)
            trainable = scored.without_truncated() if config.mask_truncated_completions else scored
            if trainable.is_useful:
                useful.append(trainable)
        if len(useful) == config.prompts_per_step:
            break
    signals = []
    if config.num_iterations > 1:
        signals = shared_looks(useful, partial(signals_of, run))
    seconds = time.perf_counter() - started
    metrics = rollout_metrics(sampled, trained=len(useful))
    return Window(
        sampled=sampled, useful=useful, signals=signals, metrics=metrics, draws=draws, rollout_seconds=seconds
    )


def graded_groups(run: Run, places: Sequence[int], prompts: Sequence[Prompt]) -> list[ScoredGroup]:
    """Sample a group of completions for each of these prompts, and grade it."""
    config, scored = run.config, []
    groups = run.bench.engine.sample(prompts, config.sampling, places=places, on_step=run.decoding)
    for group, place in zip(groups, places, strict=True):
        rewards = run.bench.grader.grade(group)
        advantages = group_advantages(rewards.rewards, scale=config.scale_rewards)
        scored.append(ScoredGroup(group=group, rewards=rewards, advantages=advantages, place=place))
    return scored


def signals_of(run: Run, scored: ScoredGroup) -> GroupSignals:
    """Look at a group before the first of several updates."""
    return run.bench.engine.look(scored.group, keep_graph=False, reference=run.config.uses_reference).signals


def step(run: Run, window: Window) -> Window:
    """One optimizer step on a window; returns the window as it stands after it."""
    started, engine, tally = time.perf_counter(), run.bench.engine, Tally()
    number = run.progress.step + 1
    if not run.is_checked and window.useful and window.updates == 0:
        first = window.useful[0].group
        tally.add(
            check_first_group(
                engine,
                run.bench.policy,
                first,
                fresh_adapter=run.has_fresh_adapter,
                samples_itself=not run.config.decodes_from_copy,
            )
        )
        run.is_checked = True
    before = run.journal.before()

    def learned_group(index: int) -> LearnedGroup:
        run.listener.progressed("update", index, len(window.useful))
        run.bench.stop.poll()
        return learn(engine, window, index, tally, config=run.config, loss_scale=run.loss_scale.value)

    learned = shared_updates(window.useful, learned_group, parameters=run.bench.policy.adapters().values())
    run.is_settled = False
    gradient = apply_gradients(run.optimizer, step=number, config=run.config, loss_scale=run.loss_scale.value)
    engine.forget()
    if window.shows_images or not run.config.lora.vision:
        run.adapters_moved.after(gradient, learning_rate=learning_rate(number, run.config))
    metrics = {
        **window.metrics,
        **tally.over_processes().means(),
        "policy/grad_norm": gradient.norm,
        "policy/learning_rate": learning_rate(number, run.config),
        **step_costs(
            window.rollout_seconds if window.updates == 0 else 0.0,
            time.perf_counter() - started,
            run.bench.policy.device,
        ),
        **sizes_in_use(engine, run.config),
    }
    report = StepReport(step=number, metrics=metrics)
    run.journal.record(before, report, window, learned, loss_scale=run.loss_scale.value)
    return run.complete(report, window, applied=gradient.applied)


def learn(
    engine: Engine, window: Window, index: int, tally: Tally, *, config: RunConfig, loss_scale: float
) -> LearnedGroup:
    """Look at one group, weigh its advantages, and add its gradient to the step's."""
    scored = window.useful[index]
    if window.signals:
        look = Look(group=scored.group, signals=window.signals[index])
    else:
        look = engine.look(scored.group, keep_graph=True, reference=config.uses_reference)
    mask, focus = scored.group.completion_mask, look.signals.focus
    advantages = weigh(scored.advantages, focus, mask, weighting=weighting_of(config))
    objective = objective_of(config)
    denominator = step_denominator(objective, token_count=window.token_count, completion_count=window.completion_count)
    tally.add(engine.update(look, advantages, objective, denominator / loss_scale))
    tally.add({"memory/rows_per_micro_batch": (engine.rows_at_once(scored.group), 1)})
    tally.add_focus(focus, mask)
    return LearnedGroup(signals=look.signals, advantages=advantages, denominator=denominator)
