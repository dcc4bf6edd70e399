"""What `vgpo-lite plan` predicts for every preset under every card's recipe, and what a change saves: no GPU is needed.

    python benchmarks/cards.py      results/cards.json and results/cards-changes.json, in seconds

The prompt is that of a demanding data set: one image as large as the recipe allows and 512 tokens of text. A cell says
what is needed, the reserve included. Measured cells come from results/gpu.json where `benchmarks/gpu.py` wrote it.
"""

from __future__ import annotations

import json
from typing import Any

from vgpo_lite.config.load import load_config
from vgpo_lite.errors import HardwareError
from vgpo_lite.planning import Job, PromptSize, fitted, is_beyond, memory_plan, preset_architectures, wanted_limit
from vgpo_lite.units import memory

CARDS = {"8gb": "8 GB", "12gb": "12 GB", "16gb": "16 GB", "t4": "T4, 15 GB", "24gb": "24 GB"}
"""Recipes, and what their cards are called."""
PROMPT = PromptSize(text_tokens=512, images=(10_000,))
"""More image tokens than any recipe's budget lets through."""
NOT_MEASURED = "not measured"
CHANGED = ("qwen2-vl-2b", "qwen2.5-vl-7b", "qwen3-vl-4b")
CHANGES = (
    "",
    "memory.prompts_per_decode=1",
    "memory.rows_per_micro_batch=1",
    "memory.logprob_chunk=32",
    "max_completion_length=512",
    "data.max_pixels=200704",
    "num_generations=4",
    "lora.r=8",
    "gradient_checkpointing=false",
    "quantization=none",
)
"""Settings that bear on memory, one at a time under the recipe for 16 GB."""


def main() -> None:
    """Write both tables."""
    from measured import RESULTS, write_result  # beside this script; tests import the rest of it

    path = RESULTS / "gpu.json"
    log = json.loads(path.read_text())["measurements"]["log"] if path.exists() else []
    for name, table in (("cards", cards_table(log)), ("cards-changes", changes_table())):
        print(write_result(name, measurements={"table": table}, claims=[], packages=("transformers",), gpu="none"))


def cards_table(log: list[dict[str, Any]]) -> dict[str, Any]:
    """Models by cards: what a run needs, by the plan, and what was measured.

    Args:
        log: The cases that `benchmarks/gpu.py` has measured.
    """
    columns = ["model", *CARDS.values(), "measured on a GPU: peak, seconds a step"]
    rows = [
        [model, *(predicted_cell(model, card) for card in CARDS), measured_cell(model, log)]
        for model in preset_architectures()
    ]
    return {"columns": columns, "rows": rows}


def job_on(model: str, card: str, *changes: str) -> Job:
    """The run that a cell is about."""
    config = load_config(model=model, gpu=card, overrides=changes)
    return Job(model=preset_architectures()[model], config=config, largest=PROMPT, eval_rows=config.eval.held_out)


def predicted_cell(model: str, card: str) -> str:
    """What the plan predicts, and what it had to choose to get there."""
    job, chosen = job_on(model, card), ""
    if is_beyond(job.model.model_type, job.config.dtype):
        chosen = ", dtype=float32"
        job = job_on(model, card, "dtype=float32")
    try:
        _, plan = fitted(job, limit_bytes=wanted_limit(job.config))
    except HardwareError:
        return f"does not fit: {memory(memory_plan(job).needed_bytes)} predicted{chosen}"
    chosen += "".join(f", {choice.split(',')[0]}" for choice in plan.choices)
    return f"{memory(plan.needed_bytes)} predicted{chosen}"


def measured_cell(model: str, log: list[dict[str, Any]]) -> str:
    """What was measured of a model under each card's limit, each with the work it was measured on."""
    cells = [
        f"{job['limit_gb']} GB card: {memory(max(result['peak_bytes'].values()))}, {result['step_seconds']:.1f} s "
        f"({job['image_tokens']} image tokens, {job['generations']} x {job['completion']})"
        for job, result in ((seen["job"], seen["result"]) for seen in log)
        if job["model"] == model and job["side"] == "ours" and "failed" not in result and not job["smoke"]
    ]
    return "; ".join(cells) or NOT_MEASURED


def changes_table() -> dict[str, Any]:
    """What one changed setting makes of what is needed, beside the recipe for 16 GB as it is."""
    rows = [
        [f"`{change}`" if change else "as the recipe has it", *(changed_cell(model, change) for model in CHANGED)]
        for change in CHANGES
    ]
    return {"columns": ["change", *CHANGED], "rows": rows}


def changed_cell(model: str, change: str) -> str:
    """What is then needed, whether or not it fits."""
    now = memory_plan(job_on(model, "16gb", *([change] if change else []))).needed_bytes
    before = memory_plan(job_on(model, "16gb")).needed_bytes
    return f"{memory(now)} predicted" + (f" ({(now - before) / 1e9:+.1f} GB)" if change else "")


if __name__ == "__main__":
    main()
