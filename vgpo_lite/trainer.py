"""The loop: sample, reward, look, weigh, update.

A window is one batch of rollouts and the `num_iterations` optimizer steps taken on it. Everything random depends on the
seed and on counters alone, so a run that is resumed at a step's end goes on as if it had never stopped.
"""

from __future__ import annotations

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
from vgpo_lite.metrics import Tally, focus_counts, rollout_metrics, sizes_in_use
from vgpo_lite.rehearsal import rehearse
from vgpo_lite.sharing import shared_looks, shared_rollouts, shared_updates
from vgpo_lite.terms import objective_of, weighting_of
from vgpo_lite.windows import LearnedGroup, ScoredGroup, Window

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.data_types import GroupSignals, Prompt, RolloutGroup
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
    config, draws = run.config, run.progress.draws
    sampled, useful, signals = [], [], []
    with run.costs.phase("sampling"):
        for _ in range(1 + config.max_resamples):
            places, prompts, draws = run.next_prompts(draws, config.prompts_per_step - len(useful))
            for scored in shared_rollouts(places, prompts, partial(graded_groups, run)):
                sampled.append(scored)
                trainable = scored.without_truncated() if config.mask_truncated_completions else scored
                if trainable.is_useful:
                    useful.append(trainable)
            if len(useful) == config.prompts_per_step:
                break
    if config.num_iterations > 1:
        with run.costs.phase("looking"):
            signals = shared_looks(useful, partial(signals_of, run))
    metrics = rollout_metrics(sampled, trained=len(useful))
    return Window(sampled=sampled, useful=useful, signals=signals, metrics=metrics, draws=draws)


def graded_groups(run: Run, places: Sequence[int], prompts: Sequence[Prompt]) -> list[ScoredGroup]:
    """Sample a group of completions for each of these prompts, and grade it."""
    config, scored = run.config, []
    groups = run.bench.engine.sample(prompts, config.sampling, places=places, on_step=run.decoding)
    with run.costs.phase("grading"):
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
    config, engine, number, tally = run.config, run.bench.engine, run.progress.step + 1, Tally()
    if not run.is_checked and window.useful and window.updates == 0:
        with run.costs.phase("checking"):
            tally.add(checked(run, window.useful[0].group))
        run.is_checked = True

    def learned_group(index: int) -> LearnedGroup:
        run.listener.progressed("update", index, len(window.useful))
        run.bench.stop.poll()
        look = seen(run, window, index)
        learned, counts = learn(engine, window, index, look, config=config, loss_scale=run.loss_scale.value)
        tally.add(counts)
        return learned

    with run.costs.phase("updating"):
        before = run.journal.before()
        learned = shared_updates(window.useful, learned_group, parameters=run.bench.policy.adapters().values())
        run.is_settled = False
        gradient = apply_gradients(run.optimizer, step=number, config=config, loss_scale=run.loss_scale.value)
        engine.forget()
        if window.shows_images or not config.lora.vision:
            run.adapters_moved.after(gradient, learning_rate=learning_rate(number, config))
        means = tally.over_processes().means()
    metrics = {
        **window.metrics,
        **means,
        "policy/grad_norm": gradient.norm,
        "policy/learning_rate": learning_rate(number, config),
        **run.costs.end_step(),
        **sizes_in_use(engine, config),
    }
    report = StepReport(step=number, metrics=metrics)
    run.journal.record(before, report, window, learned, loss_scale=run.loss_scale.value)
    return run.complete(report, window, applied=gradient.applied)


def checked(run: Run, group: RolloutGroup) -> dict[str, tuple[float, float]]:
    """How far the passes of the first group are apart that must agree."""
    return check_first_group(
        run.bench.engine,
        run.bench.policy,
        group,
        fresh_adapter=run.has_fresh_adapter,
        samples_itself=not run.config.decodes_from_copy,
    )


def seen(run: Run, window: Window, index: int) -> Look:
    """What the update of a group starts from: seen before the first of several updates, or now."""
    group = window.useful[index].group
    if window.signals:
        return Look(group=group, signals=window.signals[index])
    with run.costs.phase("looking"):
        return run.bench.engine.look(group, keep_graph=True, reference=run.config.uses_reference)


def learn(
    engine: Engine, window: Window, index: int, look: Look, *, config: RunConfig, loss_scale: float
) -> tuple[LearnedGroup, dict[str, tuple[float, float]]]:
    """Weigh a group's advantages by what was seen of it, and add its gradient to the step's; returns metrics too."""
    scored = window.useful[index]
    mask, focus = scored.group.completion_mask, look.signals.focus
    advantages = weigh(scored.advantages, focus, mask, weighting=weighting_of(config))
    objective = objective_of(config)
    denominator = step_denominator(objective, token_count=window.token_count, completion_count=window.completion_count)
    counts = engine.update(look, advantages, objective, denominator / loss_scale)
    counts |= {"memory/rows_per_micro_batch": (engine.rows_at_once(scored.group), 1)} | focus_counts(focus, mask)
    return LearnedGroup(signals=look.signals, advantages=advantages, denominator=denominator), counts
