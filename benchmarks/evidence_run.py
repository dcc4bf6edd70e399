"""One run of evidence.py: an arm on a seed, trained until it has generated its tokens, measured on the way.

    python benchmarks/evidence_run.py --one '{"task": "counting", "arm": "dapo", "seed": 0, ...}'

prints what it measured as JSON on its last line. It drives the package's own loop, step by step.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from describing import share_named

from vgpo_lite.config.load import load_config, with_overrides
from vgpo_lite.data_types import Sampling
from vgpo_lite.engine import make_engine
from vgpo_lite.lifecycle import open_run
from vgpo_lite.models.modes import evaluating
from vgpo_lite.trainer import rollouts, step

if TYPE_CHECKING:
    from vgpo_lite.data_types import Prompt
    from vgpo_lite.engine import Engine
    from vgpo_lite.run import Run

EVAL_BATCH = 250
LOOKED_AT = 100
"""Held-out rows whose greedy completions are looked at for the focus of right and wrong answers."""


def main() -> None:
    """Do the run that the argument describes."""
    job = json.loads(sys.argv[sys.argv.index("--one") + 1])
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measured_run(job, Path(folder) / "run")))


def measured_run(job: dict[str, Any], output: Path) -> dict[str, Any]:
    """Train and measure.

    Args:
        job: `task`, `arm`, `seed`, `learning_rate`; the arm's `recipe`, the task's `dataset`, the `settings` of both;
            `tokens` to generate; `points` of the curve after the first, which is measured only where `points` is 0: it
            is the same for every run of a task; `held_out` rows.
        output: A new run directory.
    """
    config = load_config(
        job["recipe"], model="tiny", dataset=job["dataset"], output=str(output), seed=job["seed"],
        overrides=job["settings"],
    )  # fmt: skip
    with open_run(config) as run:
        prompts = [run.bench.prompt(run.bench.held_out, row) for row in range(job["held_out"])]
        curve = [] if job["points"] else [{"tokens": 0, "steps": 0, "score": scored(run, prompts, job["task"])}]
        tokens, seconds, metrics, begun = 0, 0.0, [], time.process_time()
        for point in range(1, job["points"] + 1):
            while tokens < job["tokens"] * point / job["points"]:
                started = time.process_time()
                window = rollouts(run)
                tokens += sum(int(scored.group.completion_mask.sum()) for scored in window.sampled)
                window = step(run, window)
                seconds += time.process_time() - started
                metrics.append(window.metrics)
            score = scored(run, prompts, job["task"])
            curve.append({"tokens": tokens, "steps": run.progress.step, "score": score})
        attentive = make_engine(
            run.bench.policy, with_overrides(run.config, ["advantage=vgpo", "focus.signal=attention"])
        )
        return {
            **{name: job[name] for name in ("task", "arm", "seed", "learning_rate", "tokens")},
            "curve": curve,
            "focus": focus_of_answers(attentive, run, prompts[:LOOKED_AT], job["task"]),
            **(means(metrics) if metrics else {}),
            "processor_seconds_per_step": round(seconds / max(1, run.progress.step), 4),
            "processor_seconds": round(time.process_time() - begun, 1),
            "peak_bytes_of_process": run.costs.highest_bytes,
        }


def scored(run: Run, prompts: list[Prompt], task: str) -> float:
    """Mean score of greedy completions, in [0, 1]: the share of right counts, or of cells named right.

    The prompts of a task are of one length, so transformers' own `generate` takes them in batches.
    """
    policy, total = run.bench.policy, 0.0
    for start in range(0, len(prompts), EVAL_BATCH):
        batch = prompts[start : start + EVAL_BATCH]
        ids = torch.stack([prompt.input_ids for prompt in batch])
        vision = {name: torch.cat([prompt.vision[name] for prompt in batch]) for name in batch[0].vision}
        with torch.no_grad(), evaluating(policy.model):
            told = policy.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), **vision,
                mm_token_type_ids=(ids == policy.model.config.image_token_id).long(),
                max_new_tokens=run.config.max_completion_length, do_sample=False,
            )  # fmt: skip
        decode = policy.processor.tokenizer.batch_decode
        total += sum(scores(run, decode(told[:, ids.shape[1] :], skip_special_tokens=True), batch, task))
    return round(total / len(prompts), 5)


def scores(run: Run, texts: list[str], prompts: list[Prompt], task: str) -> list[float]:
    """Score of each completion, in [0, 1]."""
    if task == "counting":
        verdicts = run.bench.grader.correct(texts, [prompt.sample.answer for prompt in prompts])
        return [float(verdict or 0.0) for verdict in verdicts]
    return [share_named(text, str(prompt.sample.columns["scene"])) for text, prompt in zip(texts, prompts, strict=True)]


def greedy(run: Run) -> Sampling:
    """One greedy completion for each prompt."""
    return Sampling(num_generations=1, max_completion_length=run.config.max_completion_length, temperature=0.0)


def focus_of_answers(engine: Engine, run: Run, prompts: list[Prompt], task: str) -> dict[str, Any]:
    """Mean late/early ratio of attention focus, of right answers (a score of 1) and of wrong ones.

    A completion's ratio is the mean focus of its second half over that of its first.
    """
    ratios, worth = [], []
    groups = engine.sample(prompts, greedy(run), places=list(range(len(prompts))))
    for prompt, group in zip(prompts, groups, strict=True):
        focus = engine.look(group, keep_graph=False, reference=False).signals.focus
        if focus is None:
            raise SystemExit(f"no focus for {prompt.sample.sample_id}")
        kept = focus[0][group.completion_mask[0]]
        half = (len(kept) + 1) // 2
        ratios.append(float(kept[half:].mean() / kept[:half].mean()))
        worth.extend(scores(run, [group.texts[0]], [prompt], task))
    engine.forget()
    parts = {
        "right": [ratio for ratio, value in zip(ratios, worth, strict=True) if value == 1.0],
        "wrong": [ratio for ratio, value in zip(ratios, worth, strict=True) if value < 1.0],
    }
    return {
        name: {"count": len(values), "late_over_early": round(sum(values) / len(values), 4) if values else None}
        for name, values in parts.items()
    }


def means(metrics: list[dict[str, float]]) -> dict[str, float]:
    """Means over the steps of what the loop records."""
    wanted = {
        "useful_share": "groups/useful_share",
        "groups_trained": "groups/trained",
        "length": "completions/mean_length",
        "reward": "reward/mean",
    }
    return {ours: round(sum(step[theirs] for step in metrics) / len(metrics), 4) for ours, theirs in wanted.items()}


if __name__ == "__main__":
    main()
