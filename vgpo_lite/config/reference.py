"""The one table of every setting: what it takes, what it does, its default and where that default comes from.

`python -m vgpo_lite.config.reference docs/settings.md` writes it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from vgpo_lite.config.schema import RunConfig
from vgpo_lite.config.settings import Setting, sections, settings
from vgpo_lite.config.writing import flat_values, render, scalar, table

PAPER = "the paper (arXiv 2604.09349)"
UNSLOTH = "Unsloth's vision notebooks"
PATCH = "the family's own image processor"

ORIGINS: Mapping[str, str] = {
    "model": "built in: runs anywhere",
    "model_id": "filled in by a preset",
    "revision": "the newest; the run records its hash",
    "adapter": "a fresh start",
    "trust_remote_code": "no repository's code runs unasked",
    "dataset": "built in: runs anywhere",
    "output": "named after model and data set",
    "seed": "any number",
    "advantage": PAPER,
    "loss": f"{PAPER} builds on DAPO",
    "scale_rewards": f"{PAPER}; GRPO (arXiv 2402.03300)",
    "clip_low": f"{PAPER}; DAPO (arXiv 2503.14476)",
    "clip_high": f"{PAPER}; DAPO (arXiv 2503.14476)",
    "kl_coefficient": f"{PAPER}: no KL term",
    "engine": "the same gradients in less time and memory",
    "backend": "runs with and without a GPU",
    "quantization": "QLoRA (arXiv 2305.14314): fits consumer cards",
    "dtype": "what the card computes fastest without overflow",
    "device": "the GPU where there is one",
    "gradient_checkpointing": "memory before time",
    "decode_weights": "no weight is dequantized for every token; the cap is that of truncated importance sampling",
    "num_generations": PAPER,
    "prompts_per_step": "32 completions a step; small enough for one card",
    "num_iterations": "on-policy: the ratio is 1",
    "max_resamples": "DAPO's dynamic sampling, bounded",
    "max_completion_length": "room for a chain of reasoning on one card",
    "mask_truncated_completions": "they are trained on, and counted",
    "temperature": "the policy itself; these models ship near-greedy ones",
    "top_p": "the policy itself",
    "top_k": "the policy itself",
    "max_steps": "an evening on one card",
    "learning_rate": UNSLOTH,
    "lr_scheduler_type": UNSLOTH,
    "warmup_ratio": UNSLOTH,
    "weight_decay": "low rank already restrains the update",
    "max_grad_norm": UNSLOTH,
    "optim": UNSLOTH,
    "report_to": "nothing leaves the machine unasked",
    "save_completions_every": "enough to read along",
    "focus.signal": "exact attention mass; `similarity` is the paper's",
    "focus.beta": PAPER,
    "focus.gamma": PAPER,
    "focus.kappa": PAPER,
    "focus.schedule": f"{PAPER}: best of the three",
    "focus.weighting": PAPER,
    "focus.accumulation": PAPER,
    "focus.sign": PAPER,
    "focus.compensation": PAPER,
    "focus.token_reweighting": PAPER,
    "focus.trajectory_reweighting": PAPER,
    "lora.r": UNSLOTH,
    "lora.alpha": UNSLOTH,
    "lora.vision": "the tower stays frozen: one encoding serves a whole step",
    "data.id": "filled in by a preset",
    "data.revision": "the newest; the run records its hash",
    "data.subset": "the only one",
    "data.split": "the usual name",
    "data.eval_split": "not every data set has one",
    "data.question_column": "found by its usual names",
    "data.image_column": "found by its usual names",
    "data.answer_column": "found by its usual names",
    "data.choices_column": "most data sets write them into the question",
    "data.require_image": "focus needs an image",
    "data.max_pixels": "512 image tokens: legible text on an 8 GB card",
    "data.min_pixels": f"{PATCH}: 4 image tokens",
    "data.max_prompt_length": "several images at max_pixels, with a long question",
    "data.max_bad_rows": "a few broken rows are normal, many mean a wrong column",
    "data.limit": "all rows",
    "data.prompt_style": PAPER,
    "data.prompt_template": "the prompt style's own",
    "data.evaluation_only": "set by the presets of benchmarks",
    "data.columns_verified": "set to false by presets known from descriptions only",
    "reward.functions": "a right answer is the goal",
    "reward.timeout_seconds": "ordinary answers take milliseconds",
    "reward.workers": "the machine's cores",
    "checkpoint.every": "minutes of work at stake",
    "checkpoint.keep": "one may be damaged",
    "journal.steps": "as far back as one looks when a run goes wrong",
    "journal.max_bytes": "13 adapters of rank 16 of a 2 B model; less than the model itself",
    "eval.limit": "a 95 % interval of about 7 points either way",
    "eval.held_out": "as many as are measured",
    "eval.batch_size": "a step's memory is not exceeded",
    "memory.gpu_memory": "the whole card",
    "memory.rows_per_micro_batch": "chosen to fit",
    "memory.prompts_per_decode": "chosen to fit",
    "memory.decode_graph": "starting the kernels of a decoding step one by one takes longer than running them",
    "memory.worst_first": "a run that dies of memory dies on its longest prompt, hours later",
    "memory.rows_per_decode": "chosen to fit",
    "memory.logprob_chunk": "chosen to fit; 256 tokens of a 152,000-word vocabulary: 156 MB in float32",
    "memory.cpu_threads": "measured: a tiny model's threads wait longer than they work",
    "memory.focus_chunk": "chosen to fit; a few MB at 28 heads and 1,000 image tokens",
}
"""Where each default comes from, or why it is what it is."""

INTRODUCTION = """\
# Settings

<!-- Written by `make docs` from vgpo_lite/config; do not edit by hand. -->

Every setting can stand in a recipe (`vgpo-lite train -r my.yaml`), on the command line (`--set focus.beta=0.2`) and in
Python (`load_config(focus={"beta": 0.2})`). Later ones win: defaults < model recipe < data set recipe < card recipe <
run recipe < `--set` < flags. `vgpo-lite train --dry-run` shows what a run would use and where each value comes from;
`vgpo-lite recipe copy defaults my.yaml` writes all of this as a recipe to edit.

Names are TRL's where TRL has one. Its `epsilon` is `clip_low`, `epsilon_high` is `clip_high`, and its `beta` is
`kl_coefficient`: `beta` here is the paper's compensation only.
"""


def settings_page() -> str:
    """The page `docs/settings.md`."""
    parts = [INTRODUCTION]
    for section, meaning in {"": "", **sections()}.items():
        parts.append(f"## {section}\n\n{' '.join(meaning.split())}\n" if section else "## The run\n")
        rows = [setting for key, setting in settings().items() if key.rpartition(".")[0] == section]
        parts.append("\n".join([_row(*TITLES), _row(*("---" for _ in TITLES)), *map(_setting_row, rows)]) + "\n")
    return "\n".join(parts)


def default_recipe() -> str:
    """All settings as a recipe to edit: each commented out with its default and its meaning."""
    meanings = {key: setting.meaning for key, setting in settings().items()}
    head = "# Every setting with its default: take the first # away from a line to change it.\n"
    return head + render(RunConfig(), meanings, commented_out=True)


TITLES = ("Setting", "Values", "Default", "What it does", "Where the default comes from")


def _setting_row(setting: Setting) -> str:
    default = flat_values(RunConfig())[setting.key]
    shown = table(default) if isinstance(default, Mapping) else scalar(default)
    return _row(f"`{setting.key}`", setting.expected, f"`{shown}`", setting.meaning, ORIGINS[setting.key])


def _row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(settings_page(), encoding="utf-8")
